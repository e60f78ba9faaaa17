"""How much a capture will keep, before it is made."""

import mmap
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor

from mesascope.activations.layer_spec import Layer
from mesascope.activations.sites import SITES
from mesascope.activations.structure.trace import Trace


class NotEnoughMemory(MemoryError):  # noqa: N818  it is a MemoryError by its base
    """A capture would keep more than what is free."""


def estimate(
    trace: Trace,
    layers: Sequence[Layer],
    places: Mapping[str, Sequence[int]],
    batch: int,
    length: int,
    queries: int | None = None,
) -> int:
    """The bytes of the sites to be kept.

    Args:
        trace: of a probe, whose shapes are scaled up.
        layers: of the model.
        places: site to the layers that are kept.
        batch, length: of the inputs.
        queries: how many rows score and pattern have; ``length`` by default.
    """
    total = 0
    for name, chosen in places.items():
        for number in chosen:
            total += prod(shape(trace, layers[number], name, batch, length, queries)) * trace.logits.dtype.itemsize
    return total


def refuse_too_large(needed: int, device: torch.device) -> None:
    """Refuse what does not fit.

    Raises:
        NotEnoughMemory: more bytes are needed than are free.
    """
    free = _free(device)
    if free is not None and needed > free:
        raise NotEnoughMemory(
            f"a capture must fit into memory, but needs {needed / 1e9:.2f} GB of {free / 1e9:.2f} GB free; ask for "
            "fewer sites or layers=, or reduce= large sites while the model runs"
        )


def shape(trace: Trace, layer: Layer, name: str, batch: int, length: int, queries: int | None = None) -> list[int]:
    """The sizes of a site's axes within one layer that has it.

    Args:
        trace: of a probe, whose shapes are scaled up.
        layer: which one.
        name: of the site.
        batch, length: of the inputs.
        queries: how many rows score and pattern have; ``length`` by default.
    """
    stream = trace.of(layer.block)[0].result
    width = {"d_model": stream.shape[-1], "d_out": trace.logits.shape[-1], "d_head": 0}
    for each in trace.attentions:
        if each.name == layer.attention:
            of = {"query": each.call.query, "key": each.call.key, "value": each.call.value, "head_out": each.output}
            width["d_head"] = of[name].shape[-1] if name in of else 0
    width |= {"batch": batch, "pos": length, "query": queries or length, "key": length}
    width |= {"head": layer.heads, "kv_head": layer.kv_heads}
    return [width[axis] for axis in SITES[name].inner]


def _free(device: torch.device) -> int | None:
    """Free bytes on a device, where they can be known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.exists():
        return None
    lines = [line.split() for line in table.read_text().splitlines()]
    return next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), None)


LARGE = 32 * 2**20  # bytes: what allocators take from the system and give back each time anyway


def make_room(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Shaped[Tensor, "..."]:
    """A tensor that nothing has been written to yet.

    The first touch of a page costs the system more than writing to it does: in pages of 4 KB, a gigabyte took 276,000
    faults and 0.6 s of the system's time. Where Linux can, it is asked to take pages of 2 MB: 1,656 faults.

    >>> make_room((2, 3), torch.float32, torch.device("cpu")).shape
    torch.Size([2, 3])
    """
    size = prod(shape) * dtype.itemsize
    if sys.platform != "linux" or device.type != "cpu" or size < LARGE:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that was built without them: the same memory, in small pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
