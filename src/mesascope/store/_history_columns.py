"""Columns of a training history on disk: one file of raw numbers each, and one of checksums, one per step."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mesascope.checksums import RunError, read_record

METADATA_FILE = "history.json"
CHECKSUM_BYTES = 16  # of a SHA-256 digest, per step and column


@dataclass(frozen=True, kw_only=True)
class HistoryColumn:
    """One array of a training history, with a fixed number of rows per step.

    Attributes:
        rows: Rows per optimizer step.
        width: Numbers per row.
        dtype: The numpy name of the data type.
    """

    rows: int
    width: int
    dtype: str = "float32"

    @property
    def bytes_per_step(self) -> int:
        """Size of one step on disk, in bytes."""
        return self.rows * self.width * np.dtype(self.dtype).itemsize


def read_metadata(folder: Path) -> dict[str, Any]:
    """Read the description of a history.

    Args:
        folder: The folder of the history.

    Returns:
        ``columns`` and ``facts``.

    Raises:
        RunError: If it is missing or damaged.
    """
    if not (folder / METADATA_FILE).is_file():
        raise RunError(f"{folder} must hold {METADATA_FILE}, but has none; train with history=True")
    hint = f"delete {folder.parent} and run again to train this seed again"
    description = read_record(folder / METADATA_FILE, "history", hint)
    return {key: value for key, value in description.items() if key != "format"}


def checksum_path(folder: Path, name: str) -> Path:
    """Return the file of the checksums of a column.

    Args:
        folder: The folder of the history.
        name: The column.
    """
    return folder / f"{name}.sha256"


def start_checksum(description: Mapping[str, Any], name: str) -> "hashlib._Hash":
    """Return the hash to which the rows of one step are added; it depends on the history and the column.

    Args:
        description: The description of the history, which says of what training it is.
        name: The column.
    """
    return hashlib.sha256(repr((description, name)).encode())


def column_path(folder: Path, name: str) -> Path:
    """Return the file of a column.

    Args:
        folder: The folder of the history.
        name: The column.
    """
    return folder / f"{name}.bin"


def count_complete_steps(folder: Path, name: str, column: HistoryColumn) -> int:
    """Return the number of steps of a column that are complete and have a checksum; 0 if there is no such file.

    Args:
        folder: The folder of the history.
        name: The column.
        column: Its shape.
    """
    files = (column_path(folder, name), column.bytes_per_step), (checksum_path(folder, name), CHECKSUM_BYTES)
    return min(file.stat().st_size // size if file.exists() else 0 for file, size in files)
