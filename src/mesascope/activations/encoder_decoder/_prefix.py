"""Soft prefixes: vectors before the source of an encoder-decoder."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.encoder_decoder._forward import run_pair
from mesascope.activations.encoder_decoder._inputs import SourceAndTarget
from mesascope.activations.forward import eval_no_grad
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import bitwise_equal, relative_difference
from mesascope.activations.validation.inputs import as_tensor, find_input_device


def prepare_prefix(model: PreTrainedModel, prefix: Any) -> Tensor:
    """Return the vectors of a prefix, on the device of a model.

    Args:
        model: the model.
        prefix: the vectors.

    Raises:
        ValueError: they are no finite numbers.
    """
    vectors = as_tensor("prefix", prefix).detach()
    if not vectors.is_floating_point() or not vectors.isfinite().all():
        raise ValueError("prefix must be vectors of finite numbers, but has integers, NaN or infinity; replace them")
    return vectors.to(find_input_device(model), model.dtype)


def embedding_of(model: PreTrainedModel, *, decoder: bool) -> nn.Module | None:
    """Return the module that embeds the tokens of one side, if transformers names it.

    Args:
        model: the model.
        decoder: the side of the decoder; otherwise that of the encoder.
    """
    try:
        part = model.get_decoder() if decoder else model.get_encoder()
        return part.get_input_embeddings()
    except (NotImplementedError, AttributeError, ValueError):
        return None


def prepend_prefix(model: PreTrainedModel, pair: SourceAndTarget, prefix: Any) -> SourceAndTarget:
    """Return the inputs with vectors before the source, and the embeddings of its tokens after them.

    Args:
        model: an encoder-decoder of transformers.
        pair: the inputs.
        prefix: the vectors, (slot, d_model) or (batch, slot, d_model).

    Raises:
        ValueError: the shape is another one.
        UnsupportedModel: the model computes something else from embeddings than from their tokens.
    """
    vectors = prepare_prefix(model, prefix)
    embedded = pair.source if pair.source.is_floating_point() else _embed_source(model, pair)
    vectors = vectors.expand(len(pair), -1, -1) if vectors.ndim == 2 else vectors
    if vectors.ndim != 3 or (len(vectors), vectors.shape[-1]) != (len(pair), embedded.shape[-1]):
        raise ValueError(
            f"prefix must be (slot, {embedded.shape[-1]}) or (batch, slot, {embedded.shape[-1]}), but got "
            f"{tuple(vectors.shape)}"
        )
    slots, mask = vectors.shape[1], pair.source_mask
    if mask is not None:
        mask = torch.cat([mask.new_ones(len(mask), slots), mask], dim=1)
    return replace(pair, source=torch.cat([vectors, embedded], dim=1), source_mask=mask, prefix_length=slots)


def _embed_source(model: PreTrainedModel, pair: SourceAndTarget) -> Tensor:
    """Return the embeddings of the source, from which the model must compute what it computes from the tokens."""
    embedding, name = embedding_of(model, decoder=False), type(model).__name__
    if embedding is None:
        raise UnsupportedModel(
            f"a prefix needs the embedding of tokens, but {name} does not name it; pass inputs_embeds"
        )
    with eval_no_grad(model):
        embedded, first = embedding(pair.source), slice(0, 1)
        from_tokens, from_vectors = (run_pair(model, each[first]) for each in (pair, replace(pair, source=embedded)))
    if not bitwise_equal(from_tokens, from_vectors):
        raise UnsupportedModel(
            f"embeddings must give the output of their tokens (bitwise), but that of {name} differs by "
            f"{relative_difference(from_vectors, from_tokens):.1e} (relative); pass inputs_embeds as the model expects "
            "them"
        )
    return embedded
