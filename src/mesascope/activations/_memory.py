"""Memory of a capture: estimates before the run, and allocation of large tensors."""

import mmap
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod

import psutil
import torch
from jaxtyping import Shaped
from torch import Tensor

from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.sites import CROSS_PREFIX, CROSS_SITES, MEMORY_PREFIX, get_site


class NotEnoughMemory(MemoryError):  # noqa: N818  a MemoryError by its base
    """A capture needs more memory than is free."""


def site_bytes(
    structure: ModelStructure,
    layers_by_site: Mapping[str, Sequence[int]],
    batch_size: int,
    length: int,
    queries: int | None = None,
    source: int = 0,
) -> int:
    """Return the memory of the recorded sites in bytes.

    Args:
        structure: the structure of the model; the shapes in its trace are scaled up.
        layers_by_site: the layers to record, by site.
        batch_size: the number of sequences.
        length: the number of positions.
        queries: the number of rows of ``attn_scores`` and ``pattern``; ``length`` by default.
        source: the number of positions of the source of an encoder-decoder.
    """
    recorded = [(name, number) for name, chosen in layers_by_site.items() for number in chosen]
    sizes = [
        prod(site_shape(structure, number, name, batch_size, length, queries, source)) for name, number in recorded
    ]
    return sum(sizes) * structure.trace.logits.dtype.itemsize


def check_memory(num_bytes: int, device: torch.device) -> None:
    """Check that a capture fits into memory.

    Args:
        num_bytes: the memory that it needs, in bytes.
        device: the device of the model.

    Raises:
        NotEnoughMemory: less memory is free.
    """
    free = _free_bytes(device)
    if free is not None and num_bytes > free:
        raise NotEnoughMemory(
            f"a capture must fit into memory, but needs {num_bytes / 1e9:.2f} GB of {free / 1e9:.2f} GB free; record "
            "fewer sites or layers=, or reduce= large sites during the run"
        )


def site_shape(
    structure: ModelStructure,
    layer_index: int,
    name: str,
    batch_size: int,
    length: int,
    queries: int | None = None,
    source: int = 0,
) -> list[int]:
    """Return the shape of a site within one layer that has it, without ``layer``.

    Args:
        structure: the structure of the model; the shapes in its trace are scaled up.
        layer_index: an index into the layers of the structure.
        name: the name of the site.
        batch_size: the number of sequences.
        length: the number of positions.
        queries: the number of rows of ``attn_scores`` and ``pattern``; ``length`` by default.
        source: the number of positions of the source of an encoder-decoder.
    """
    layer, trace = structure.layers[layer_index], structure.trace
    cross = layer.cross if name in CROSS_SITES else None
    attention = layer.attention if cross is None else cross.module
    stream = trace.block_call(layer).output_tensor
    width = {"d_model": stream.shape[-1], "d_out": trace.logits.shape[-1], "d_head": 0}
    for each in trace.attentions:
        if each.name == attention:
            of = {"query": each.call.query, "key": each.call.key, "value": each.call.value, "z": each.output}
            local = name.removeprefix(CROSS_PREFIX).removeprefix(MEMORY_PREFIX)
            width["d_head"] = of[local].shape[-1] if local in of else 0
    width |= {
        "iteration": structure.num_iterations or 0,
        "batch": batch_size,
        "pos": length,
        "query": queries or length,
        "key": length,
        "source": source,
    }
    if structure.chunks is not None:
        slots = structure.chunks.num_slots
        width |= {"chunk": -(-length // structure.chunks.length), "slot": slots, "source": slots}
    heads = layer if cross is None else cross
    width |= {"head": heads.num_heads, "kv_head": heads.num_kv_heads}
    width["d_mlp"] = layer.mlp_hidden.width if layer.mlp_hidden is not None else 0
    return [width[axis] for axis in get_site(name).axes_within_layer]


def _free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device in bytes, or ``None`` if it is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available if device.type == "cpu" else None


HUGE_PAGE_THRESHOLD = 32 * 2**20  # bytes: allocators return larger blocks to the system in any case


def allocate_tensor(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Shaped[Tensor, "..."]:
    """Allocate an uninitialised tensor, in huge pages on Linux if it is large.

    The first access to a page costs the system more than writing to it: with pages of 4 KB, a gigabyte took 276,000
    page faults and 0.6 s of system time; with huge pages of 2 MB, 1,656 faults.

    Args:
        shape: the shape.
        dtype: the dtype.
        device: the device.

    Returns:
        The tensor; its values are undefined.

    >>> allocate_tensor((2, 3), torch.float32, torch.device("cpu")).shape
    torch.Size([2, 3])
    """
    size = prod(shape) * dtype.itemsize
    if sys.platform != "linux" or device.type != "cpu" or size < HUGE_PAGE_THRESHOLD:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages: the same memory, in small pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
