"""Fingerprints of models: values that change when weights, buffers, flags, adapters or configurations change."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

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
    configurations; and autocast.

    Args:
        model: the model.

    Returns:
        A value to compare; it equals no other if weights are offloaded, because they cannot be read.
    """
    modules, flags, configs = [], [], {}
    for module in model.modules():
        state = vars(module)
        modules.append((id(module), len(state["_forward_hooks"]), len(state["_forward_pre_hooks"])))
        for name, value in state.items():
            if name not in STANDARD_ATTRIBUTES:
                flags.append((name, _describe(value)))
                if hasattr(value, "sub_configs"):
                    configs[id(value)] = value
    return (
        fingerprint_tensors(model_tensors(model)),
        tuple(modules),
        tuple(flags),
        tuple(_describe_config(config) for config in configs.values()),
        tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")),
    )


def model_tensors(model: nn.Module) -> list[Tensor]:
    """Return all parameters and buffers of a model, module by module.

    Args:
        model: the model.

    Returns:
        The tensors; one that several modules share is repeated.
    """
    states = [vars(module) for module in model.modules()]
    named = [entry for state in states for entry in (*state["_parameters"].values(), *state["_buffers"].values())]
    return [tensor for tensor in named if tensor is not None]


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
        for stored in _stored_tensors(tensor.detach()):
            identities.append(stored.data_ptr())
            samples.setdefault((stored.dtype, stored.device), []).append(_sample_entries(stored))
    return (tuple(identities), *((key, _to_bytes(torch.cat(parts))) for key, parts in samples.items()))


def _stored_tensors(tensor: Tensor) -> list[Tensor]:
    """Return the tensors in which a quantised or otherwise composed one is stored; itself if it is an ordinary one."""
    if type(tensor) is Tensor or not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [stored for name in names for stored in _stored_tensors(getattr(tensor, name))]


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
    """Return the entries of a configuration; those of the configurations in it have their own."""
    return tuple((name, _describe(value)) for name, value in vars(config).items())
