"""Checks of a loaded model: all weights are there, all are usable numbers, and the model runs."""

import re
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import torch
from torch import nn

from mesascope.models._weight_files import StoredWeights
from mesascope.models.load_errors import BrokenModelError, ModelNotFound, convert_load_errors
from mesascope.models.quantized.weights import holds_packed_bytes, is_quantized, list_scales, list_stored_tensors

_NUMBER = re.compile(r"\.\d+(?=\.)")  # of a layer or an expert
MAX_WEIGHT = 1e18  # ours: squares of larger weights overflow float32


@torch.no_grad()
def check_forward_pass(model: nn.Module, token_ids: torch.Tensor, name: str) -> None:
    """Check that a model predicts finite numbers; a wrong number in a config can fail only when the model runs.

    Args:
        model: the model.
        token_ids: a few tokens, of axes batch and pos.
        name: its name, for the message.

    Raises:
        ModelNotFound: the model cannot run, or a logit is not finite.
    """
    with convert_load_errors(f"a model must predict the next token, but {name} cannot: {{}}; check its config".format):
        loaded = (parameter.device for parameter in model.parameters() if not parameter.is_meta)
        logits = model(token_ids.to(next(loaded, token_ids.device))).logits
        if not logits.isfinite().all():
            raise BrokenModelError("its logits are not finite numbers")


@torch.no_grad()
def check_weight_values(name: str, model: nn.Module) -> None:
    """Check that no weight is NaN, infinite or larger than any forward pass can use.

    Args:
        name: The name of the model, for the message.
        model: The loaded model.

    Raises:
        ModelNotFound: A weight is not usable; the message names its tensor.
    """
    for key, buffer in model.named_buffers():  # computed from the config; masks hold the lowest number or -inf
        if buffer.is_floating_point() and not buffer.is_meta and not (buffer.float() < torch.inf).all():
            raise ModelNotFound(
                f"the numbers that {name} computes from its config must be finite, but {key} has others"
            )
    for key, weight in model.named_parameters():
        path, _, leaf = key.rpartition(".")
        if holds_packed_bytes(model.get_submodule(path), leaf):
            continue  # its scales are checked below
        for stored in list_stored_tensors(read_weight(model, key) if weight.is_meta else weight):
            check_weight(name, key, stored)
    for path, module in model.named_modules():
        for scale in list_scales(module):
            check_weight(name, f"the scale of {path}.weight", scale)


def check_weight(name: str, key: str, weight: torch.Tensor) -> None:
    """Check that one weight is not NaN, infinite or larger than any forward pass can use.

    Args:
        name: The name of the model, for the message.
        key: The name of the weight.
        weight: Its values.

    Raises:
        ModelNotFound: It is.
    """
    largest = _largest_magnitude(weight)
    if not largest <= MAX_WEIGHT:
        raise ModelNotFound(
            f"the weights of {name} must be finite and below {MAX_WEIGHT:g}, but {key} has {_name_value(largest)} "
            f"in {str(weight.dtype).removeprefix('torch.')}; get the file again, or use another dtype"
        )


def _largest_magnitude(weight: torch.Tensor) -> float:
    """Return the largest magnitude, NaN if there is any; 0 for integers, which hold packed weights."""
    if not weight.is_floating_point() or not weight.numel() or weight.is_meta:
        return 0.0
    low, high = torch.aminmax(weight if weight.element_size() > 1 else weight.float())
    return float(torch.maximum(low.abs(), high.abs()))  # NaN propagates


def _name_value(largest: float) -> str:
    return "NaN" if largest != largest else "an infinity" if largest == float("inf") else f"{largest:.3g}"


@torch.no_grad()
def hash_weights(model: nn.Module) -> str:
    """Return a hash of the names and values of all weights of a model in memory.

    Args:
        model: The model.
    """
    digest = sha256()
    for name, value in _iterate_tensors(model):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _iterate_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Iterate over all weights and buffers, with their names; over what quantised ones are stored in.

    The state dict of a quantised model is not read, because that of bitsandbytes packs weights again.
    """
    if not is_quantized(model):
        for name, tensor in model.state_dict().items():
            yield name, read_weight(model, name) if tensor.is_meta else tensor
        return
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        for part in list_stored_tensors((read_weight(model, name) if tensor.is_meta else tensor).detach()):
            yield name, part
    for path, module in model.named_modules():
        for scale in list_scales(module):
            yield f"{path}.scale", scale


def read_weight(model: nn.Module, name: str) -> torch.Tensor:
    """Return a weight that accelerate loads when its module runs; one that was never loaded stays on the meta device.

    Args:
        model: The model.
        name: The name of the weight.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if "_hf_hook" not in vars(module):
        return getattr(module, leaf)
    from accelerate.utils import align_module_device  # installed, because it has set the hook

    with align_module_device(module):
        return getattr(module, leaf)


def check_weights_match(name: str, loading_info: dict[str, Any], kinds: tuple[str, ...]) -> None:
    """Check that no weights of the given kinds exist.

    Args:
        name: The name of the model, for the message.
        loading_info: The names of weights by kind, from transformers.
        kinds: The kinds: missing, unexpected or mismatched keys.

    Raises:
        ModelNotFound: There are such weights; the message names one.
    """
    # Missing weights would be random. Unexpected weights are an error only in our own checkpoints; published ones may
    # contain buffers or heads that the class does not use.
    for kind in kinds:
        if loading_info.get(kind):
            keys = sorted(map(_describe_key, loading_info[kind]))
            raise ModelNotFound(
                f"the weights of {name} must match the model exactly, but it has {len(keys)} "
                f"{kind.replace('_', ' ')}, such as {keys[0]}; get the complete model"
            )


def _describe_key(key: str | tuple[str, torch.Size, torch.Size]) -> str:
    """Return the name of a weight; for one of another shape, its shapes in the file and in the model."""
    if isinstance(key, str):
        return key
    name, stored, declared = key
    return f"{name} of shape {tuple(stored)} in the weights and {tuple(declared)} in config.json"


def check_all_layers_used(name: str, model: nn.Module, loading_info: dict[str, Any]) -> None:
    """Check that the config declares all layers and experts of the weights; other unused weights are allowed.

    Args:
        name: The name of the model, for the message.
        model: The loaded model.
        loading_info: The names of weights by kind, from transformers.

    Raises:
        ModelNotFound: An unused weight has the name of a declared one, with another number.
    """
    declared = {_NUMBER.sub(".N", key) for key, _ in model.named_parameters()}
    prefixes = ("", f"{getattr(model, 'base_model_prefix', '')}.")
    unused = [
        key
        for key in sorted(loading_info.get("unexpected_keys") or ())
        if _NUMBER.search(key) and any(_NUMBER.sub(".N", prefix + key) in declared for prefix in prefixes)
    ]
    if unused:
        raise ModelNotFound(
            f"config.json of {name} must declare all layers of the weights, but leaves out {len(unused)} weights, such "
            f"as {unused[0]}; get the config of these weights"
        )


def check_stored_types(name: str, model: nn.Module, stored: StoredWeights | None, quantized: bool) -> None:
    """Check that no weights are integers, unless a config says how they are packed.

    Args:
        name: The name of the model, for the message.
        model: The loaded model.
        stored: The weight files.
        quantized: Whether the config declares packed weights.

    Raises:
        ModelNotFound: A weight is stored as integers.
    """
    integers = stored.integers if stored and not quantized else frozenset()
    wrong = [key for key, _ in model.named_parameters() if key in integers]
    if wrong:
        raise ModelNotFound(
            f"the weights of {name} must be floating-point numbers, but {wrong[0]} has integers, and "
            "config.json has no quantization_config; get the complete model"
        )
