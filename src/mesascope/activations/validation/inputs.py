"""Inputs of a model, in the forms in which tokenizers and users have them, as tensors on the model's device."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.validation.token_rows import is_ragged, is_text, pad_rows
from mesascope.argument_types import validate_tensor
from mesascope.models.encoder_decoder.model import EncoderDecoder
from mesascope.tasks.base import Batch

InputsLike = Tensor | Batch | Mapping[str, Any] | Sequence[Any] | np.ndarray
ADVICE = "pass a tensor of tokens (batch, pos), or the output of tokenizer(texts, return_tensors='pt')"
# what tokenizers return and models do not read
DESCRIPTIVE_KEYS = {
    "length",
    "num_truncated_tokens",
    "offset_mapping",
    "overflow_to_sample_mapping",
    "special_tokens_mask",
}


def prepare_inputs(
    model: PreTrainedModel, inputs: Any, attention_mask: Any = None
) -> tuple[Shaped[Tensor, "batch pos *d_in"], Int[Tensor, "batch pos"] | None]:
    """Move inputs and mask to the model's device, and check them; a mask that is 1 everywhere becomes ``None``.

    Args:
        model: the model.
        inputs: tokens (batch, pos), vectors (batch, pos, d_in), a batch of a task, or the output of a tokenizer. Lists
            of tokens of unequal length are padded on the right.
        attention_mask: (batch, pos), 1 where an input is not padding; by default that in the output of a tokenizer.

    Returns:
        The inputs, and the mask or ``None``.

    Raises:
        ValueError: the inputs are no tensor of tokens or vectors or are empty, or a shape or a token is wrong.
        UnsupportedModel: the weights of the model are not loaded, or it is an encoder-decoder.
    """
    refuse_encoder_decoder(model)
    return read_inputs(model, inputs, attention_mask)


def refuse_encoder_decoder(model: PreTrainedModel) -> None:
    """Check that a model has one stack of layers.

    Args:
        model: the model.

    Raises:
        UnsupportedModel: it is an encoder-decoder.
    """
    if is_encoder_decoder(model):
        raise UnsupportedModel(
            f"this needs a model with one stack of layers, but {type(model).__name__} is an encoder-decoder; use "
            "capture, its edits, sweep, patch, path_patch, attribution_patch, and analyses of the parts of the capture"
        )


def is_encoder_decoder(model: PreTrainedModel) -> bool:
    """Return whether a model has an encoder and a decoder, and takes inputs for both.

    Args:
        model: the model.
    """
    if isinstance(model, EncoderDecoder):
        return True
    is_declared = bool(getattr(model.config, "is_encoder_decoder", False))  # first: a signature is read slowly
    return is_declared and "decoder_input_ids" in inspect.signature(model.forward).parameters


def read_inputs(
    model: PreTrainedModel, inputs: Any, attention_mask: Any = None
) -> tuple[Shaped[Tensor, "batch pos *d_in"], Int[Tensor, "batch pos"] | None]:
    """Return inputs and mask as `prepare_inputs` does, for any model.

    Args:
        model: the model.
        inputs: as in `prepare_inputs`.
        attention_mask: as in `prepare_inputs`.

    Raises:
        ValueError: as in `prepare_inputs`.
    """
    if isinstance(inputs, Batch):
        for name, tensor in {"targets": inputs.targets, "weight": inputs.weight, **inputs.latents}.items():
            validate_tensor(name, tensor)
    if is_text(inputs):
        raise ValueError(f"inputs must be tokens, but got text; {ADVICE}")
    if attention_mask is None and is_ragged(inputs):
        inputs = pad_rows(inputs)
    if isinstance(inputs, Mapping):
        inputs, attention_mask = _read_tokenizer_output(inputs, attention_mask)
    device = find_input_device(model)
    x = as_tensor("inputs", inputs.inputs if isinstance(inputs, Batch) else inputs).to(device)
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise ValueError(f"inputs must be (batch, pos) or (batch, pos, d_in) and not empty, but got {tuple(x.shape)}")
    if x.is_complex():
        raise ValueError(f"inputs must be real, but got {x.dtype}; {ADVICE}")
    if x.is_floating_point():
        x = x if isinstance(inputs, Tensor | Batch) else x.to(model.dtype)
        _validate_vectors(model, x)
    else:
        x = x.long()
        validate_tokens(_input_embeddings(model), x)
    return x, None if attention_mask is None else prepare_mask(attention_mask, x)


def find_input_device(model: PreTrainedModel) -> torch.device:
    """Return the device on which a model receives its inputs.

    Args:
        model: the model; its weights may be offloaded by accelerate, which loads them while a module runs.

    Raises:
        UnsupportedModel: the weights are not loaded.
    """
    if model.device.type != "meta":
        return model.device
    for module in model.modules():
        device = getattr(vars(module).get("_hf_hook"), "execution_device", None)
        if device is not None:
            return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    raise UnsupportedModel(
        f"a model must have its weights, but those of {type(model).__name__} are on the meta device; load them with "
        "from_pretrained"
    )


def validate_weights_loaded(model: PreTrainedModel) -> None:
    """Check that no weight is on the meta device, except those that accelerate loads while a module runs.

    Args:
        model: the model.

    Raises:
        UnsupportedModel: a weight is not loaded.
    """
    hooked = [name for name, module in model.named_modules() if "_hf_hook" in vars(module)]
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if weight.is_meta and not any(name.startswith(f"{module}." if module else "") for module in hooked):
            raise UnsupportedModel(
                f"a model must have all its weights, but {name} of {type(model).__name__} is on the meta device; load "
                "it with from_pretrained"
            )


def _read_tokenizer_output(output: Mapping[str, Any], attention_mask: Any) -> tuple[Any, Any]:
    """Return tokens and mask from the output of a tokenizer."""
    if "input_ids" not in output:
        raise ValueError(f"inputs must have input_ids, but have only {', '.join(map(str, output))}; {ADVICE}")
    if attention_mask is not None and "attention_mask" in output:
        raise ValueError("attention_mask must be given once, but the inputs have one, too; omit either")
    unread = set(output) - {"input_ids", "attention_mask"} - DESCRIPTIVE_KEYS
    unread -= {name for name in unread if name == "token_type_ids" and not np.any(np.asarray(output[name]))}
    if unread:
        raise ValueError(
            f"inputs must be input_ids and attention_mask, but {', '.join(sorted(unread))} would not be read; omit it"
        )
    return output["input_ids"], output.get("attention_mask", attention_mask)


def as_tensor(name: str, values: Any) -> Tensor:
    """Return a tensor, array or list as a tensor.

    Args:
        name: the name of the argument.
        values: its value.

    Raises:
        ValueError: it is none.
    """
    if isinstance(values, Tensor):
        validate_tensor(name, values)
        return values
    try:
        return torch.as_tensor(values if not isinstance(values, str) else None)
    except (TypeError, ValueError, RuntimeError) as error:
        given = type(values).__name__
        raise ValueError(f"{name} must be a tensor, but got a {given} that is none ({error}); {ADVICE}") from None


def _validate_vectors(model: PreTrainedModel, vectors: Shaped[Tensor, "batch pos *d_in"]) -> None:
    """Check that the model takes vectors, and that its linear layer can embed these; they must be finite."""
    if not vectors.isfinite().all():
        batch, pos = (int(index) for index in (~vectors.isfinite()).nonzero()[0][:2])
        raise ValueError(
            f"inputs must be finite numbers, but sequence {batch} has NaN or infinity at position {pos}; "
            "replace it, or omit the sequence"
        )
    embedding = _input_embeddings(model)
    if isinstance(embedding, nn.Embedding) and model.main_input_name == "input_ids":
        raise ValueError(f"inputs must be tokens (integers), which the model embeds, but got {vectors.dtype}; {ADVICE}")
    if type(embedding) is not nn.Linear or torch.is_autocast_enabled(vectors.device.type):
        return
    expected, dtype = embedding.in_features, embedding.weight.dtype
    if vectors.ndim != 3 or vectors.shape[-1] != expected or vectors.dtype != dtype:
        raise ValueError(
            f"inputs must be vectors (batch, pos, {expected}) in {dtype}, but got shape {tuple(vectors.shape)} in "
            f"{vectors.dtype}"
        )


def _input_embeddings(model: PreTrainedModel) -> nn.Module | None:
    try:
        return model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None


def validate_tokens(embedding: nn.Module | None, tokens: Shaped[Tensor, "batch pos *d_in"]) -> None:
    """Check that all tokens can be embedded: on a GPU, another one would end the process.

    Args:
        embedding: the module that embeds them, if it is known.
        tokens: the tokens.

    Raises:
        ValueError: the module embeds vectors, or a token is out of range.
    """
    if isinstance(embedding, nn.Linear):
        raise ValueError(
            "inputs must be vectors (batch, pos, d_in), because the model embeds vectors, but got integers"
        )
    if not isinstance(embedding, nn.Embedding):
        return
    low, high = (int(value) for value in torch.aminmax(tokens))
    if low < 0 or high >= embedding.num_embeddings:
        raise ValueError(
            f"tokens must be from 0 to {embedding.num_embeddings - 1}, but got {low if low < 0 else high}; use the "
            "tokenizer of the model"
        )


def prepare_mask(
    attention_mask: Any, x: Shaped[Tensor, "batch pos *d_in"], name: str = "attention_mask"
) -> Int[Tensor, "batch pos"] | None:
    """Return a mask on the device of the inputs, or ``None`` if it is 1 everywhere.

    Args:
        attention_mask: 1 where an input is not padding.
        x: the inputs.
        name: the name of the argument.

    Raises:
        ValueError: its shape is another one, or it has other numbers.
    """
    mask = as_tensor(name, attention_mask)
    if mask.shape != x.shape[:2]:
        shape, given = tuple(x.shape[:2]), tuple(mask.shape)
        raise ValueError(f"{name} must be (batch, pos) = {shape}, but got {given}")
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            f"{name} must be 1 where an input is not padding and 0 elsewhere, but has other numbers; an "
            "additive mask is not supported"
        )
    return None if mask.bool().all() else mask.to(x.device).long()
