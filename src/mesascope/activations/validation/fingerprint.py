"""Fingerprints of models: values that change when weights, buffers, flags, adapters or configurations change."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mesascope.activations.tolerances import float32_product_precision
from mesascope.models.quantized.weights import list_scales, list_stored_tensors
from mesascope.models.streaming.stream_layers import get_streamed_weights

MAX_ENTRIES = 64  # compared entries of a large tensor; a small one is compared as a whole
SMALL_TENSOR = 1024  # entries
GOLDEN_RATIO = 0.618  # of the width, by which the column of the next compared entry advances
STANDARD_ATTRIBUTES = frozenset(vars(nn.Module())) | {"training"}
SCALARS = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device})
Fingerprint = tuple[object, ...]


class Offloaded:
    """Stands for weights that cannot be read; it equals nothing but itself."""


def fingerprint_model(model: nn.Module) -> Fingerprint:
    """Return a value that changes with all that the structure of a model is derived from.

    It covers the identity of weights, buffers, modules and hooks; all entries of small tensors, and 64 entries of each
    large one, so that writes through ``.data`` are seen; numbers, texts and lists of them in modules and
    configurations; autocast; and the precision of matrix products.

    Args:
        model: the model.

    Returns:
        A value to compare; it equals no other if weights are offloaded, because they cannot be read.
    """
    modules = list_modules(model)
    identities, flags, configs = [], [], {}
    for module in modules:
        state = module.__dict__
        identities.append((id(module), len(state["_forward_hooks"]), len(state["_forward_pre_hooks"])))
        for name in state.keys() - STANDARD_ATTRIBUTES:
            value = state[name]
            if type(value) in SCALARS:
                flags.append((name, value))
            elif is_config(value):
                configs[id(value)] = value
            else:
                flags.append((name, _describe(value)))
    return (
        fingerprint_tensors(_collect_tensors(modules)),
        tuple(identities),
        tuple(flags),
        tuple((number, _describe_config(config)) for number, config in configs.items()),
        tuple(
            (
                kind,
                torch.is_autocast_enabled(kind),
                torch.get_autocast_dtype(kind),
                float32_product_precision(torch.device(kind)),
            )
            for kind in ("cpu", "cuda")
        ),
    )


def model_tensors(model: nn.Module) -> list[Tensor]:
    """Return all parameters and buffers of a model, module by module.

    Args:
        model: the model.

    Returns:
        The tensors, and the scales of quantised ones; one that several modules share is repeated. Streamed weights are
        left out.
    """
    return _collect_tensors(list_modules(model))


def list_modules(model: nn.Module) -> list[nn.Module]:
    """Return a model and all its modules, each once, in no particular order.

    Args:
        model: the model.
    """
    found, queue = {}, [model]
    while queue:
        module = queue.pop()
        if id(module) not in found:
            found[id(module)] = module
            queue += [child for child in module.__dict__["_modules"].values() if child is not None]
    return list(found.values())


def list_configs(model: nn.Module) -> list[PreTrainedConfig]:
    """Return all configurations of a model and of its parts, each once, in no particular order.

    Args:
        model: the model.
    """
    configs: dict[int, PreTrainedConfig] = {}
    queue = [module.__dict__["config"] for module in list_modules(model) if "config" in module.__dict__]
    while queue:
        config = queue.pop()
        if is_config(config) and id(config) not in configs:
            configs[id(config)] = config
            entries = object.__getattribute__(config, "__dict__")  # faster than attributes of a configuration
            queue += [entries.get(name) for name in type(config).sub_configs]
    return list(configs.values())


def is_config(value: object) -> bool:
    """Return whether a value is a configuration of transformers.

    Args:
        value: an attribute of a module or of a configuration.
    """
    return issubclass(type(value), PreTrainedConfig)  # not isinstance, which calls a slow property of configurations


def _collect_tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Return all tensors of modules but streamed weights, whose files must stay as they are."""
    return [
        tensor
        for module in modules
        for group in (
            module.__dict__["_parameters"].values(),
            module.__dict__["_buffers"].values(),
            list_scales(module),
        )
        for tensor in group
        if tensor is not None and not (tensor.is_meta and get_streamed_weights(module) is not None)
    ]


def fingerprint_tensors(tensors: Iterable[Tensor]) -> Fingerprint:
    """Return a value that changes with the identity of tensors, and with their content at up to 64 entries.

    Args:
        tensors: parameters and buffers.

    Returns:
        A value to compare; it equals no other if a tensor is on the meta device.
    """
    identities, samples = [], {}
    for tensor in tensors:
        if tensor.is_meta:
            return (Offloaded(),)
        identities.append((id(tensor), tensor._version, tensor.shape))
        for stored in list_stored_tensors(tensor.detach()):
            identities.append(stored.data_ptr())
            samples.setdefault((stored.dtype, stored.device), []).append(_sample_entries(stored))
    return (tuple(identities), *((key, _to_bytes(torch.cat(parts))) for key, parts in samples.items()))


def _sample_entries(tensor: Tensor) -> Tensor:
    """Return all entries of a small tensor, and entries at a stride of a large one that meets all rows and columns."""
    flat = tensor.reshape(-1)
    size, width = len(flat), tensor.shape[-1] if tensor.ndim else 1
    if size <= SMALL_TENSOR:
        return flat
    rows_per_step = size // width // MAX_ENTRIES
    return flat[:: rows_per_step * width + round(GOLDEN_RATIO * width) if rows_per_step else size // MAX_ENTRIES | 1]


def _to_bytes(values: Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).cpu().numpy().tobytes()


def _describe(value: Any) -> object:
    """Return a value to compare: content for numbers, texts and small collections of them, identity for the rest."""
    if type(value) in SCALARS:
        return value
    if isinstance(value, Mapping):
        return tuple((key, _describe(entry)) for key, entry in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(_describe(entry) for entry in value)
    return id(value)


def _describe_config(config: Any) -> Fingerprint:
    """Return the entries of a configuration, with those of the configurations in it."""
    entries = object.__getattribute__(config, "__dict__")
    return tuple(
        (
            name,
            value if type(value) in SCALARS else _describe_config(value) if is_config(value) else _describe(value),
        )
        for name, value in entries.items()
    )
