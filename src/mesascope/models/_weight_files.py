"""Weight files of a model: names, shapes and sizes, read from their headers only."""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mesascope.models.load_errors import BrokenModelError, describe_error

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
Header = dict[str, tuple[int, str]]  # number of elements and data type of every tensor


@dataclass(frozen=True, kw_only=True)
class StoredWeights:
    """Size of all tensors in the weight files of a model.

    Attributes:
        tensors: Number of tensors.
        elements: Number of elements of all tensors.
        num_bytes: Size of all files, in bytes.
        integers: Names of the tensors that hold integers.
    """

    tensors: int
    elements: int
    num_bytes: int
    integers: frozenset[str] = frozenset()


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that must contain an object.

    Args:
        file: The file.

    Returns:
        The object.

    Raises:
        BrokenModelError: The file is not valid JSON, or is another value; the message names the file.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise BrokenModelError(f"{file.name} must be a JSON object, but is nested too deeply") from error
    except (ValueError, OSError) as error:
        raise BrokenModelError(f"{file.name} must be a JSON object, but is not: {describe_error(error)}") from error
    if not isinstance(value, dict):
        raise BrokenModelError(f"{file.name} must be a JSON object, but is a {type(value).__name__}")
    return value


def read_stored_weights(folder: Path) -> StoredWeights | None:
    """Read the headers of the weight files of a folder.

    Args:
        folder: The folder, with ``model.safetensors`` or an index of several files.

    Returns:
        The sizes, or None if there are no safetensors.

    Raises:
        BrokenModelError: A file is missing, truncated or inconsistent; the message names it.
    """
    files = find_weight_files(folder)
    if not files:
        return None
    header = _read_headers(files, {} if files == [folder / WEIGHTS_FILE] else _read_weight_map(folder))
    return StoredWeights(
        tensors=len(header),
        elements=sum(elements for elements, _ in header.values()),
        num_bytes=sum(file.stat().st_size for file in files),
        integers=frozenset(name for name, (_, dtype) in header.items() if not dtype.startswith(("F", "BF"))),
    )


def find_weight_files(folder: Path) -> list[Path]:
    """Find the safetensors files of a model.

    Args:
        folder: The folder.

    Returns:
        ``model.safetensors``, or the files of its index, by name; empty if there are none.

    Raises:
        BrokenModelError: The index is invalid, or names a file that is missing.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        return []
    names = sorted(set(_read_weight_map(folder).values()))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise BrokenModelError(f"{INDEX_FILE} must name files of the folder, but names {name}, which is missing")
    return [folder / name for name in names]


def _read_weight_map(folder: Path) -> dict[str, str]:
    """Read the index: the name of the file of every tensor."""
    index = read_json_object(folder / INDEX_FILE)
    weight_map = index.get("weight_map")
    if not isinstance(index.get("metadata", {}), dict):
        raise BrokenModelError(f"{INDEX_FILE} must have an object as metadata, but has {index['metadata']!r}")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise BrokenModelError(f"{INDEX_FILE} must have a weight_map from tensors to files, but has none")
    return weight_map


def _read_headers(files: list[Path], weight_map: dict[str, str]) -> Header:
    """Read the headers of all files; every tensor of an index must be in the file that it names."""
    joined: Header = {}
    for path in files:
        header = _read_header(path)
        missing = [tensor for tensor, file in weight_map.items() if file == path.name and tensor not in header]
        if missing:
            raise BrokenModelError(f"{path.name} must contain the tensors of {INDEX_FILE}, but {missing[0]} is missing")
        joined |= header
    return joined


def _read_header(file: Path) -> Header:
    """Return the number of elements and the data type of every tensor of a safetensors file."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  not a mapping
            header = {name: (prod(one.get_shape()), str(one.get_dtype())) for name, one in slices.items()}
    except Exception as error:  # any error of the parser
        raise BrokenModelError(f"{file.name} is not a complete safetensors file: {describe_error(error)}") from error
    if not header:
        raise BrokenModelError(f"{file.name} must contain weights, but has no tensors")
    return header
