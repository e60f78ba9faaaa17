"""Training history on disk: append-only arrays, truncated to a checkpoint when training resumes."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mesascope.store._files import (
    RunError,
    describe_os_error,
    make_writable_folder,
    read_json,
    replace_atomically,
    to_json,
)

METADATA_FILE = "history.json"
MAX_BLOCK_BYTES = 8_000_000  # default size of a block, in bytes


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


class HistoryWriter:
    """Appends the rows of successive steps. A kill can tear the last steps, but none before the last sync.

    Args:
        folder: The folder of the files, one file per column.
        columns: The columns that are written at every step.
        metadata: Further information for readers, made of JSON types.
        keep_steps: Number of existing steps to keep; later ones are truncated.

    Raises:
        RunError: If fewer steps exist, the folder holds another history, or the file system refuses.
    """

    def __init__(
        self, folder: Path, columns: Mapping[str, HistoryColumn], metadata: Mapping[str, Any], keep_steps: int
    ) -> None:
        self.folder = folder
        self._columns = dict(columns)
        description = json.loads(to_json(_describe_columns(columns, metadata)))
        make_writable_folder(folder)
        exists = (folder / METADATA_FILE).exists()
        if keep_steps and exists and read_json(folder / METADATA_FILE) != description:
            raise RunError(
                f"{folder} must hold the history of this training, but holds another one; delete {folder.parent}"
            )
        if not keep_steps or not exists:
            with replace_atomically(folder / METADATA_FILE) as draft:
                draft.write_text(to_json(description))
        for name, column in columns.items():
            _truncate_column(_column_path(folder, name), column, keep_steps)
        self._files = {name: _column_path(folder, name).open("ab") for name in columns}

    def close(self) -> None:
        """Close the files. Data that does not fit on a full disk is lost, as after a kill.

        Raises:
            RunError: If the file system refuses.
        """
        first_error: OSError | None = None
        for file in self._files.values():
            try:
                file.close()
            except OSError as error:
                first_error = error
        if first_error is not None:
            raise RunError(describe_os_error(self.folder, first_error)) from first_error

    def append_step(self, rows: Mapping[str, np.ndarray]) -> None:
        """Append one step.

        Args:
            rows: One array for every column, (rows, width).

        Raises:
            ValueError: If a column is missing, or an array has the wrong shape or data type.
            RunError: If the file system refuses.
        """
        if rows.keys() != self._columns.keys():
            raise ValueError(f"a step must have the columns {', '.join(self._columns)}, but got {', '.join(rows)}")
        for name, values in rows.items():
            column = self._columns[name]
            if values.shape != (column.rows, column.width) or values.dtype != column.dtype:
                raise ValueError(
                    f"{name} must be ({column.rows}, {column.width}) of {column.dtype} at every step, but got "
                    f"{values.shape} of {values.dtype}"
                )
        try:
            for name, values in rows.items():
                self._files[name].write(np.ascontiguousarray(values).data)
        except OSError as error:
            raise RunError(describe_os_error(self.folder, error)) from error

    def sync_to_disk(self) -> None:
        """Flush all appended steps to disk, so that a kill cannot lose them.

        Raises:
            RunError: If the file system refuses.
        """
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(describe_os_error(self.folder, error)) from error


class HistoryReader:
    """Reader of a training history, in blocks, so that memory does not grow with the number of steps.

    Attributes:
        folder: The folder of the files.
        columns: The columns that are stored at every step.
        metadata: Further information stored by the writer.
        steps: Number of steps that are read.

    Args:
        folder: The folder of a :class:`HistoryWriter`.
        steps: Number of steps to read; all complete ones by default.

    Raises:
        RunError: If there is no history, or it has fewer complete steps.
    """

    def __init__(self, folder: Path, steps: int | None = None) -> None:
        if not (folder / METADATA_FILE).is_file():
            raise RunError(f"{folder} must hold {METADATA_FILE}, but has none; train with history=True")
        description = read_json(folder / METADATA_FILE)
        self.folder = folder
        try:
            self.columns = {name: HistoryColumn(**column) for name, column in description["columns"].items()}
            self.metadata: dict[str, Any] = description["facts"]
        except (TypeError, KeyError, AttributeError) as error:
            raise RunError(
                f"{folder / METADATA_FILE} must describe a history, but does not; delete {folder.parent}"
            ) from error
        complete_steps = min(_count_steps(_column_path(folder, name), column) for name, column in self.columns.items())
        if steps is not None and steps > complete_steps:
            raise RunError(
                f"{folder} must hold {steps} steps, but has {complete_steps} complete ones; delete {folder.parent}"
            )
        self.steps = complete_steps if steps is None else steps

    def limit_steps(self, steps: int) -> "HistoryReader":
        """Return a reader of the first ``steps`` steps.

        Args:
            steps: Number of steps to read.

        Returns:
            A reader of the same folder.

        Raises:
            RunError: If the history has fewer complete steps.
        """
        return HistoryReader(self.folder, steps)

    @property
    def size_on_disk(self) -> int:
        """Size on disk of the steps that are read, in bytes."""
        return self.steps * sum(column.bytes_per_step for column in self.columns.values())

    def read_rows(self, name: str, indices: np.ndarray) -> np.ndarray:
        """Return selected rows of a column; other rows are not read.

        Args:
            name: The column.
            indices: Row numbers, counted over all steps, of any shape.

        Returns:
            The rows, (*indices.shape, width).

        Raises:
            KeyError: If there is no such column.
        """
        column = self.columns[name]
        shape = (self.steps * column.rows, column.width)
        if not indices.size:
            return np.empty((*indices.shape, column.width), column.dtype)
        return np.array(np.memmap(_column_path(self.folder, name), column.dtype, "r", shape=shape)[indices])

    def read_column(self, name: str) -> np.ndarray:
        """Return a whole column; use it for narrow columns.

        Args:
            name: The column.

        Returns:
            All rows, (steps x rows, width).

        Raises:
            KeyError: If there is no such column.
        """
        column = self.columns[name]
        values = np.fromfile(
            _column_path(self.folder, name), dtype=column.dtype, count=self.steps * column.rows * column.width
        )
        return values.reshape(-1, column.width)

    def iterate_blocks(self, *names: str, rows: int | None = None) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        """Iterate over several columns in parallel, one block of rows at a time.

        The arrays are overwritten by the next block, so memory is that of one block.

        Args:
            *names: Columns with equal numbers of rows per step.
            rows: Rows per block; by default as many as fit in 8 MB of the widest column.

        Returns:
            An iterator over pairs (number of the first row, one (rows, width) array per column).

        Raises:
            KeyError: If there is no such column.
        """
        columns = [self.columns[name] for name in names]
        widest = max(column.width * np.dtype(column.dtype).itemsize for column in columns)
        total, size = self.steps * columns[0].rows, rows or max(1, MAX_BLOCK_BYTES // widest)
        buffers = [np.empty((min(size, total), column.width), dtype=column.dtype) for column in columns]
        files = [_column_path(self.folder, name).open("rb", buffering=0) for name in names]
        try:
            for start in range(0, total, size):
                parts = tuple(block[: min(size, total - start)] for block in buffers)
                for file, part in zip(files, parts, strict=True):
                    _read_into(file, part)
                yield start, parts
        finally:
            for file in files:
                file.close()


def _describe_columns(columns: Mapping[str, HistoryColumn], metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"columns": {name: vars(column) for name, column in columns.items()}, "facts": dict(metadata)}


def _column_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"


def _truncate_column(path: Path, column: HistoryColumn, keep_steps: int) -> None:
    """Truncate a column's file to ``keep_steps`` steps.

    Raises:
        RunError: If the file has fewer steps.
    """
    try:
        path.touch()
        existing = _count_steps(path, column)
        if existing < keep_steps:
            raise RunError(
                f"{path} must hold the {keep_steps} steps before the checkpoint, but has {existing}; delete "
                f"{path.parents[1]} "
                "and run again"
            )
        os.truncate(path, keep_steps * column.bytes_per_step)
    except OSError as error:
        raise RunError(describe_os_error(path, error)) from error


def _count_steps(path: Path, column: HistoryColumn) -> int:
    return path.stat().st_size // column.bytes_per_step if path.exists() else 0


def _read_into(file, rows: np.ndarray) -> None:
    view = rows.data.cast("B")
    while len(view):
        num_bytes = file.readinto(view)
        if not num_bytes:
            raise RunError(f"{file.name} must not shrink while it is read, but did; run again")
        view = view[num_bytes:]
