"""Limits on the size of a model while it is built, so that a wrong config cannot fill the memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import psutil
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from mesascope.models._weight_files import StoredWeights
from mesascope.models.load_errors import BrokenModelError

MAX_TIES = 2  # tied weights are stored once and declared twice
MAX_PACKED = 16  # parameters per stored byte of quantised weights: one bit each, declared twice
SPARE_ELEMENTS, SPARE_TENSORS = 10_000_000, 2_000  # a small excess is harmless, and is refused as missing weights


@contextmanager
def limit_model_size(
    stored: StoredWeights | None, dtype: torch.dtype | str, *, quantized: bool, num_bytes: float | None = None
) -> Iterator[None]:
    """Refuse models inside the context that declare many more parameters than the weight files hold.

    transformers declares a model on the meta device, which needs no memory, before it allocates weights.

    Args:
        stored: The size of the weight files; unlimited if None.
        dtype: The data type in memory.
        quantized: Whether the model holds packed weights.
        num_bytes: The least memory of packed weights; by default that of all numbers of the files in the dtype.

    Raises:
        BrokenModelError: The config declares too many parameters, or the free memory is too small for the weights.
    """
    if stored is not None:
        _check_free_memory(stored, dtype, num_bytes)
    with nullcontext() if stored is None else _count_parameters(stored, quantized):
        yield


def _check_free_memory(stored: StoredWeights, dtype: torch.dtype | str, num_bytes: float | None) -> None:
    needed = stored.elements * dtype.itemsize if isinstance(dtype, torch.dtype) else stored.num_bytes
    needed = needed if num_bytes is None else num_bytes
    free = psutil.virtual_memory().available
    if needed > free:
        raise BrokenModelError(
            f"the weights need {needed / 1e9:.1f} GB of memory, but {free / 1e9:.1f} GB are free; use a smaller dtype"
        )


@contextmanager
def limit_declared_size(stored: StoredWeights) -> Iterator[None]:
    """Refuse models inside the context that declare many more parameters than the weight files hold.

    Unlike `limit_model_size`, it counts parameters on every device, and their weights need not fit into memory.

    Args:
        stored: The size of the weight files.

    Raises:
        BrokenModelError: The config declares too many parameters, or buffers that do not fit into memory.
    """
    with _count_parameters(stored, quantized=False, on_meta=False):
        yield


@contextmanager
def _count_parameters(stored: StoredWeights, quantized: bool, on_meta: bool = True) -> Iterator[None]:
    max_elements = SPARE_ELEMENTS + (stored.num_bytes * MAX_PACKED if quantized else stored.elements * MAX_TIES)
    max_tensors = SPARE_TENSORS + stored.tensors * MAX_TIES * (MAX_PACKED if quantized else 1)
    free = psutil.virtual_memory().available
    thread, elements, tensors, buffer_bytes = threading.get_ident(), 0, 0, 0

    def count_parameter(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        nonlocal elements, tensors
        if tensor is None or (on_meta and not tensor.is_meta) or threading.get_ident() != thread:
            return
        elements, tensors = elements + tensor.numel(), tensors + 1
        if elements > max_elements or tensors > max_tensors:
            raise BrokenModelError(
                f"config.json must fit the weight files, which hold {stored.elements:,} numbers in {stored.tensors:,} "
                f"tensors, but it declares {elements:,} in {tensors:,} or more, such as "
                f"{_describe_tensor(module, name, tensor)}"
            )

    def count_buffer(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        nonlocal buffer_bytes
        if tensor is None or (on_meta and not tensor.is_meta) or threading.get_ident() != thread:
            return
        buffer_bytes += tensor.numel() * tensor.element_size()
        if buffer_bytes > free:
            raise BrokenModelError(
                f"config.json must declare a model that fits into {free / 1e9:.1f} GB of free memory, but its buffers "
                f"need {buffer_bytes / 1e9:.1f} GB, such as {_describe_tensor(module, name, tensor)}"
            )

    handles = (
        torch_module.register_module_parameter_registration_hook(count_parameter),
        torch_module.register_module_buffer_registration_hook(count_buffer),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _describe_tensor(module: nn.Module, name: str, tensor: torch.Tensor) -> str:
    return f"{type(module).__name__}.{name} of shape {tuple(tensor.shape)}"
