"""Reading of a training history, whole columns or blocks of rows."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mesascope.checksums import DamagedFile, RunError
from mesascope.store._history_columns import (
    CHECKSUM_BYTES,
    METADATA_FILE,
    HistoryColumn,
    checksum_path,
    column_path,
    count_complete_steps,
    read_metadata,
    start_checksum,
)

MAX_BLOCK_BYTES = 8_000_000  # default size of a block, in bytes
_verified_steps: dict[Path, tuple[tuple[int, ...], int]] = {}  # state of each column's files, and its verified steps


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
        description = self._description = read_metadata(folder)
        self.folder = folder
        try:
            self.columns = {name: HistoryColumn(**column) for name, column in description["columns"].items()}
            self.metadata: dict[str, Any] = description["facts"]
        except (TypeError, KeyError, AttributeError) as error:
            raise RunError(
                f"{folder / METADATA_FILE} must describe a history, but does not; delete {folder.parent}"
            ) from error
        by_column = {name: count_complete_steps(folder, name, column) for name, column in self.columns.items()}
        shortest = min(by_column, key=by_column.__getitem__)
        complete_steps = by_column[shortest]
        if steps is not None and steps > complete_steps:
            raise RunError(
                f"{column_path(folder, shortest)} must hold {steps} steps, but has {complete_steps} complete ones; "
                f"delete {folder.parent} and run again to train this seed again"
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

    def verify_column(self, name: str) -> None:
        """Verify the checksum of every step of a column that is read; done once for files that do not change.

        Args:
            name: The column.

        Raises:
            DamagedFile: If a step differs from its checksum.
        """
        file = column_path(self.folder, name)
        state = (*_file_state(file), *_file_state(checksum_path(self.folder, name)))
        verified_state, first = _verified_steps.get(file, ((), 0))
        first = first if verified_state == state else 0
        if first < self.steps:
            self._verify_steps(name, first)
            _verified_steps[file] = state, self.steps

    def _verify_steps(self, name: str, first: int) -> None:
        size, file = self.columns[name].bytes_per_step, column_path(self.folder, name)
        start = start_checksum(self._description, name)
        with file.open("rb") as rows, checksum_path(self.folder, name).open("rb") as checksums:
            rows.seek(first * size)
            checksums.seek(first * CHECKSUM_BYTES)
            for step in range(first, self.steps):
                found = start.copy()
                found.update(rows.read(size))
                if found.digest()[:CHECKSUM_BYTES] != checksums.read(CHECKSUM_BYTES):
                    raise DamagedFile(
                        f"{file} must match its checksums, but step {step} differs; delete {self.folder.parent} and "
                        "run again to train this seed again"
                    )

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
            DamagedFile: If a step differs from its checksum.
        """
        column = self.columns[name]
        self.verify_column(name)
        shape = (self.steps * column.rows, column.width)
        if not indices.size:
            return np.empty((*indices.shape, column.width), column.dtype)
        return np.array(np.memmap(column_path(self.folder, name), column.dtype, "r", shape=shape)[indices])

    def read_column(self, name: str) -> np.ndarray:
        """Return a whole column; use it for narrow columns.

        Args:
            name: The column.

        Returns:
            All rows, (steps x rows, width).

        Raises:
            KeyError: If there is no such column.
            DamagedFile: If a step differs from its checksum.
        """
        column = self.columns[name]
        self.verify_column(name)
        values = np.fromfile(
            column_path(self.folder, name), dtype=column.dtype, count=self.steps * column.rows * column.width
        )
        return values.reshape(-1, column.width)

    def iterate_blocks(self, *names: str, rows: int | None = None) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        """Iterate over columns in parallel, one block of rows at a time; the next block overwrites the arrays.

        Args:
            *names: Columns with equal numbers of rows per step.
            rows: Rows per block; by default as many as fit in 8 MB of the widest column.

        Returns:
            An iterator over pairs (number of the first row, one (rows, width) array per column).

        Raises:
            KeyError: If there is no such column.
            DamagedFile: If a step differs from its checksum.
        """
        columns = [self.columns[name] for name in names]
        for name in names:
            self.verify_column(name)
        widest = max(column.width * np.dtype(column.dtype).itemsize for column in columns)
        total, size = self.steps * columns[0].rows, rows or max(1, MAX_BLOCK_BYTES // widest)
        buffers = [np.empty((min(size, total), column.width), dtype=column.dtype) for column in columns]
        with ExitStack() as stack:
            files = [stack.enter_context(column_path(self.folder, name).open("rb", buffering=0)) for name in names]
            for start in range(0, total, size):
                parts = tuple(block[: min(size, total - start)] for block in buffers)
                for file, part in zip(files, parts, strict=True):
                    _read_into(file, part)
                yield start, parts


def _file_state(file: Path) -> tuple[int, int, int]:
    """Return what changes when a file is written: its inode, size and time of modification."""
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read_into(file, rows: np.ndarray) -> None:
    view = rows.data.cast("B")
    while len(view):
        num_bytes = file.readinto(view)
        if not num_bytes:
            raise RunError(f"{file.name} must not change while it is read, but became shorter; run again")
        view = view[num_bytes:]
