"""Preparation of the inputs of an encoder-decoder: what users pass, as tensors on the device of the model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations.encoder_decoder._inputs import SourceAndTarget
from mesascope.activations.encoder_decoder._prefix import embedding_of, prepare_prefix, prepend_prefix
from mesascope.activations.validation.inputs import (
    DESCRIPTIVE_KEYS,
    as_tensor,
    find_input_device,
    prepare_mask,
    read_inputs,
    validate_tokens,
)
from mesascope.activations.validation.token_rows import is_ragged, pad_rows
from mesascope.models.encoder_decoder.model import EncoderDecoder

SOURCE_KEYS = ("input_ids", "inputs_embeds")
TARGET_KEYS = ("decoder_input_ids", "decoder_inputs_embeds")
MASK_KEYS = ("attention_mask", "decoder_attention_mask")
ADVICE = (
    "pass a mapping with input_ids (batch, source), attention_mask, decoder_input_ids (batch, pos) and "
    "decoder_attention_mask"
)


def prepare_source_and_target(model: PreTrainedModel, inputs: Any, attention_mask: Any = None) -> SourceAndTarget:
    """Move the inputs of an encoder-decoder to its device, and check them.

    Args:
        model: an encoder-decoder of this package or of transformers.
        inputs: a mapping with ``input_ids`` or ``inputs_embeds``, ``attention_mask``, ``decoder_input_ids`` or
            ``decoder_inputs_embeds``, and ``decoder_attention_mask``; and with ``prefix``, vectors that precede the
            source. For an encoder-decoder of this package, also tokens of source and target in one sequence, such as a
            batch of a task, and the prefix replaces the embeddings of the first tokens of the source. A
            `SourceAndTarget` is returned as it is.
        attention_mask: (batch, pos), 1 where an input is not padding, for inputs in one sequence.

    Returns:
        The source and the target.

    Raises:
        ValueError: inputs are missing, would not be read, or have a wrong shape.
        UnsupportedModel: the model changes embeddings, so that vectors cannot take their place.
    """
    if isinstance(inputs, SourceAndTarget):
        return inputs
    if isinstance(model, EncoderDecoder):
        pair = _prepare_own(model, inputs, attention_mask)
    else:
        pair = _prepare_pair(model, inputs, attention_mask)
    for name, mask in (("source", pair.source_mask), ("target", pair.target_mask)):
        if mask is not None and not mask.any(1).all():
            row = int(mask.any(1).int().argmin())
            raise ValueError(f"a {name} must not be all padding, but that of sequence {row} is; omit the sequence")
    return pair


def _prepare_own(model: EncoderDecoder, inputs: Any, attention_mask: Any) -> SourceAndTarget:
    """Return source and target of a model of this package, which reads them in one sequence."""
    inputs, vectors = _split_prefix(model, inputs)
    tokens, mask = read_inputs(model, inputs, attention_mask)
    length, pad = model.config.source_length, model.config.pad_token_id
    if tokens.shape[1] <= length:
        raise ValueError(
            f"a sequence must have a source of {length} and a target of 1 or more positions, but got {tokens.shape[1]} "
            "positions"
        )
    if mask is None and pad is not None:
        mask = (tokens != pad).long()
    slots = 0 if vectors is None else len(vectors)
    if mask is not None:
        mask = torch.cat([torch.ones_like(mask[:, :slots]), mask[:, slots:]], dim=1)
    source_mask, target_mask = (None, None) if mask is None else (mask[:, :length], mask[:, length:])
    return SourceAndTarget(
        source=tokens[:, :length],
        target=tokens[:, length:],
        source_mask=_none_if_full(source_mask),
        target_mask=_none_if_full(target_mask),
        prefix=vectors,
        prefix_length=slots,
    )


def _split_prefix(model: EncoderDecoder, inputs: Any) -> tuple[Any, Tensor | None]:
    """Return tokens of source and target in one sequence, and the prefix, if there is one."""
    if not isinstance(inputs, Mapping):
        return inputs, None
    rest = {key: value for key, value in inputs.items() if value is not None}
    prefix = rest.pop("prefix", None)
    if "decoder_input_ids" in rest:
        rest = _join(rest)
    if prefix is None:
        return rest, None
    vectors, length = prepare_prefix(model, prefix), model.config.source_length
    if vectors.ndim != 2 or vectors.shape[1] != model.config.hidden_size or len(vectors) > length:
        raise ValueError(
            f"prefix must be (slot, {model.config.hidden_size}) with at most {length} slots, the positions of the "
            f"source, but got {tuple(vectors.shape)}"
        )
    return rest, vectors


def _join(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return source and target in one sequence."""
    _refuse_unread(inputs, {"input_ids", "decoder_input_ids", *MASK_KEYS})
    if "input_ids" not in inputs:
        raise ValueError(f"inputs must have input_ids, but have only {', '.join(map(str, inputs))}; {ADVICE}")
    parts = [as_tensor(name, inputs[name]) for name in ("input_ids", "decoder_input_ids")]
    joined = {"input_ids": torch.cat(parts, dim=1)}
    if not set(MASK_KEYS).isdisjoint(inputs):
        masks = [
            as_tensor(name, inputs[name]) if name in inputs else torch.ones_like(part)
            for name, part in zip(MASK_KEYS, parts, strict=True)
        ]
        joined["attention_mask"] = torch.cat(masks, dim=1)
    return joined


def _none_if_full(mask: Tensor | None) -> Tensor | None:
    return None if mask is None or bool(mask.bool().all()) else mask


def _prepare_pair(model: PreTrainedModel, inputs: Any, attention_mask: Any) -> SourceAndTarget:
    """Return source and target of a model of transformers."""
    if not isinstance(inputs, Mapping):
        raise ValueError(
            f"inputs of {type(model).__name__} must have a source and a target, but got a {type(inputs).__name__}; "
            f"{ADVICE}"
        )
    if attention_mask is not None:
        raise ValueError("attention_mask must be among the inputs of an encoder-decoder; move it into the mapping")
    inputs = {key: value for key, value in inputs.items() if value is not None}
    if "labels" in inputs:
        raise ValueError(
            "labels would not be read; pass decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels)"
        )
    _refuse_unread(inputs, {*SOURCE_KEYS, *TARGET_KEYS, *MASK_KEYS, "prefix"})
    source, ragged_source_mask = _read_side(model, inputs, SOURCE_KEYS)
    target, ragged_target_mask = _read_side(model, inputs, TARGET_KEYS)
    if len(source) != len(target):
        raise ValueError(f"source and target must have as many sequences, but got {len(source)} and {len(target)}")
    pair = SourceAndTarget(
        source=source,
        target=target,
        source_mask=_read_mask(inputs, MASK_KEYS[0], source, ragged_source_mask),
        target_mask=_read_mask(inputs, MASK_KEYS[1], target, ragged_target_mask),
    )
    return prepend_prefix(model, pair, inputs["prefix"]) if "prefix" in inputs else pair


def _refuse_unread(inputs: Mapping[str, Any], read: set[str]) -> None:
    unread = set(inputs) - read - DESCRIPTIVE_KEYS
    if unread:
        raise ValueError(f"inputs of an encoder-decoder would not be read: {', '.join(sorted(unread))}; {ADVICE}")


def _read_side(
    model: PreTrainedModel, inputs: Mapping[str, Any], keys: tuple[str, str]
) -> tuple[Tensor, Tensor | None]:
    """Return the tokens or vectors of one side, and the mask of tokens of unequal length."""
    given = [key for key in keys if key in inputs]
    if len(given) != 1:
        raise ValueError(f"inputs must have either {keys[0]} or {keys[1]}, but have {', '.join(inputs)}; {ADVICE}")
    (key,), mask = given, None
    values = inputs[key]
    if is_ragged(values):
        padded = pad_rows(values)
        values, mask = padded["input_ids"], padded["attention_mask"]
    x = as_tensor(key, values).to(find_input_device(model))
    if key == keys[0]:
        if x.ndim != 2 or 0 in x.shape or x.is_floating_point() or x.is_complex():
            raise ValueError(f"{key} must be integers (batch, pos) and not empty, but got {x.dtype} {tuple(x.shape)}")
        validate_tokens(embedding_of(model, decoder=keys == TARGET_KEYS), x.long())
        return x.long(), mask
    if x.ndim != 3 or 0 in x.shape or not x.is_floating_point():
        raise ValueError(f"{key} must be vectors (batch, pos, d_model), but got {x.dtype} {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError(f"{key} must be finite numbers, but some are NaN or infinite; replace them")
    return x.detach().to(model.dtype), mask


def _read_mask(inputs: Mapping[str, Any], key: str, x: Tensor, ragged_mask: Tensor | None) -> Tensor | None:
    if key in inputs and ragged_mask is not None:
        raise ValueError(f"{key} must not be given with lists of unequal length, which are padded; omit it")
    mask = inputs.get(key, ragged_mask)
    return None if mask is None else prepare_mask(mask, x, key)
