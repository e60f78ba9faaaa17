"""Tensors of safetensors files, read one at a time.

The library safetensors maps a whole file into memory, so that opening it takes as much address space as it has bytes.
Here, only the bytes of one tensor are read.
"""

import json
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from mesascope.models._weight_files import find_weight_files
from mesascope.models.load_errors import BrokenModelError

MAX_HEADER_BYTES = 100_000_000  # the limit of the format
LENGTH_BYTES = 8  # of the number before the header
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        file: The file.
        version: Size in bytes and time of the last change of the file, in nanoseconds.
        offset: Position of its first byte in the file.
        shape: Its shape.
        dtype: Its data type.
    """

    file: Path
    version: tuple[int, int]
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """The size of the tensor."""
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Read the tensor from its file.

        Raises:
            BrokenModelError: The file has changed since its header was read.
        """
        values = torch.empty(self.num_bytes, dtype=torch.uint8)
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            complete = stream.readinto(values.numpy().data) == self.num_bytes
            if not complete or _describe_version(stream.fileno()) != self.version:
                raise BrokenModelError(
                    f"{self.file} must stay as it is while the model is in use, but has changed; load the model again"
                )
        return values.view(self.dtype).view(self.shape)


def read_tensor_table(folder: Path) -> dict[str, StoredTensor]:
    """Read the headers of the safetensors files of a model.

    Args:
        folder: The folder, with ``model.safetensors`` or an index of several files.

    Returns:
        The tensors by name.

    Raises:
        BrokenModelError: There is no such file, or one is truncated or inconsistent; the message names it.
    """
    files = find_weight_files(folder)
    if not files:
        raise BrokenModelError("it has no safetensors, from which layers could be streamed; save it as safetensors")
    return {name: stored for file in files for name, stored in _read_header(file).items()}


def _read_header(file: Path) -> dict[str, StoredTensor]:
    with file.open("rb") as stream:
        version = _describe_version(stream.fileno())
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        text = stream.read(length) if length <= MAX_HEADER_BYTES else b""
    first = LENGTH_BYTES + length
    try:
        entries = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        table = {name: _locate_tensor(file, version, first, entry) for name, entry in entries.items()}
    except BrokenModelError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise BrokenModelError(f"{file.name} is not a complete safetensors file: its header is invalid") from error
    for name, stored in table.items():
        start, end = entries[name]["data_offsets"]
        if end - start != stored.num_bytes or start < 0 or first + end > version[0]:
            raise BrokenModelError(f"{file.name} is not a complete safetensors file: {name} is incomplete")
    return table


def _locate_tensor(file: Path, version: tuple[int, int], first: int, entry: dict) -> StoredTensor:
    """Return a tensor from its entry in the header of a file, whose data begin at a byte."""
    if entry["dtype"] not in DTYPES:
        raise BrokenModelError(
            f"{file.name} must have tensors of numbers that are not packed, but has {entry['dtype']}"
        )
    start, _ = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    return StoredTensor(file=file, version=version, offset=first + start, shape=shape, dtype=DTYPES[entry["dtype"]])


def _describe_version(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
