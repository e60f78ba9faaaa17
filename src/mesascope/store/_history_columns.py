"""Columns of a training history on disk: one file of raw numbers each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

METADATA_FILE = "history.json"


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


def column_path(folder: Path, name: str) -> Path:
    """Return the file of a column.

    Args:
        folder: The folder of the history.
        name: The column.
    """
    return folder / f"{name}.bin"


def count_complete_steps(path: Path, column: HistoryColumn) -> int:
    """Return the number of complete steps in a column's file; 0 if it does not exist.

    Args:
        path: The file.
        column: The column.
    """
    return path.stat().st_size // column.bytes_per_step if path.exists() else 0
