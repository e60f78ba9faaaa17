"""Rows of numbers that grow with training: append-only files, cut back to a checkpoint when training is taken up."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mesascope.store.files import RunError, make_folder, read_json, replacing, to_json, why

SHAPE = "history.json"
BLOCK = 8_000_000  # bytes of one block, unless told


@dataclass(frozen=True, kw_only=True)
class Column:
    """One array of a history: so many rows at each step.

    Attributes:
        rows: at each step.
        width: numbers in a row.
        dtype: as numpy names it.
    """

    rows: int
    width: int
    dtype: str = "float32"

    @property
    def bytes_per_step(self) -> int:
        """What a step takes on disk."""
        return self.rows * self.width * np.dtype(self.dtype).itemsize


class HistoryWriter:
    """Appends the rows of one step after the other. A kill may tear the last steps, never those before a sync.

    Args:
        folder: where the files are, one for each column.
        columns: what is written at every step.
        facts: what a reader must know beside, in JSON's types.
        keep: steps that are kept of what is there; the rest is cut off.

    Raises:
        RunError: fewer steps are there, or it is a history of something else, or the disk refuses.
    """

    def __init__(self, folder: Path, columns: Mapping[str, Column], facts: Mapping[str, Any], keep: int) -> None:
        self.folder = folder
        self._columns = dict(columns)
        described = json.loads(to_json(_described(columns, facts)))
        make_folder(folder)
        there = (folder / SHAPE).exists()
        if keep and there and read_json(folder / SHAPE) != described:
            raise RunError(
                f"{folder} must hold the history of this training, but holds another; delete {folder.parent}"
            )
        if not keep or not there:
            with replacing(folder / SHAPE) as draft:
                draft.write_text(to_json(described))
        for name, column in columns.items():
            _cut(_file(folder, name), column, keep)
        self._files = {name: _file(folder, name).open("ab") for name in columns}

    def close(self) -> None:
        """Close the files; what a full disk does not take is lost, as after a kill.

        Raises:
            RunError: the disk refuses.
        """
        refused: OSError | None = None
        for file in self._files.values():
            try:
                file.close()
            except OSError as error:
                refused = error
        if refused is not None:
            raise RunError(why(self.folder, refused)) from refused

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Append one step.

        Args:
            rows: of every column, (rows, width).

        Raises:
            ValueError: a column is missing, or has another shape or type.
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
            raise RunError(why(self.folder, error)) from error

    def sync(self) -> None:
        """Put on disk what was appended: from now on a kill leaves it."""
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(why(self.folder, error)) from error


class History:
    """What was written, read in blocks so that memory does not grow with it.

    Attributes:
        folder: where the files are.
        columns: what there is at every step.
        facts: what the writer noted beside.
        steps: how many steps are read: all whole ones, or fewer.

    Args:
        folder: of a :class:`HistoryWriter`.
        steps: how many to read; all that are whole by default.

    Raises:
        RunError: there is none, or it has fewer steps.
    """

    def __init__(self, folder: Path, steps: int | None = None) -> None:
        if not (folder / SHAPE).is_file():
            raise RunError(f"{folder} must hold {SHAPE}, but has none; train with a history")
        told = read_json(folder / SHAPE)
        self.folder = folder
        try:
            self.columns = {name: Column(**column) for name, column in told["columns"].items()}
            self.facts: dict[str, Any] = told["facts"]
        except (TypeError, KeyError, AttributeError) as error:
            raise RunError(f"{folder / SHAPE} must describe a history, but does not; delete {folder.parent}") from error
        whole = min(_steps(_file(folder, name), column) for name, column in self.columns.items())
        if steps is not None and steps > whole:
            raise RunError(f"{folder} must hold {steps} steps, but has {whole} whole ones; delete {folder.parent}")
        self.steps = whole if steps is None else steps

    def until(self, steps: int) -> "History":
        """The same history as it was after so many steps."""
        return History(self.folder, steps)

    @property
    def bytes(self) -> int:
        """What the steps that are read take on disk."""
        return self.steps * sum(column.bytes_per_step for column in self.columns.values())

    def take(self, name: str, places: np.ndarray) -> np.ndarray:
        """Some rows of a column, by their places, each (..., width): the rest is not read.

        Raises:
            KeyError: there is no such column.
        """
        column = self.columns[name]
        shape = (self.steps * column.rows, column.width)
        if not places.size:
            return np.empty((*places.shape, column.width), column.dtype)
        return np.array(np.memmap(_file(self.folder, name), column.dtype, "r", shape=shape)[places])

    def read(self, name: str) -> np.ndarray:
        """One whole column, (steps x rows, width): for narrow ones.

        Raises:
            KeyError: there is no such column.
        """
        column = self.columns[name]
        found = np.fromfile(_file(self.folder, name), dtype=column.dtype, count=self.steps * column.rows * column.width)
        return found.reshape(-1, column.width)

    def blocks(self, *names: str, rows: int | None = None) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        """Columns side by side, a block of rows at a time: the number of the first row, and the rows of each.

        The arrays are overwritten by the next block, and memory is that of one block.

        Args:
            names: columns with equally many rows at a step.
            rows: of a block; by default as many as 8 MB of the widest column hold.

        Raises:
            KeyError: there is no such column.
        """
        columns = [self.columns[name] for name in names]
        widest = max(column.width * np.dtype(column.dtype).itemsize for column in columns)
        total, size = self.steps * columns[0].rows, rows or max(1, BLOCK // widest)
        held = [np.empty((min(size, total), column.width), dtype=column.dtype) for column in columns]
        files = [_file(self.folder, name).open("rb", buffering=0) for name in names]
        try:
            for start in range(0, total, size):
                parts = tuple(block[: min(size, total - start)] for block in held)
                for file, part in zip(files, parts, strict=True):
                    _fill(file, part)
                yield start, parts
        finally:
            for file in files:
                file.close()


def _described(columns: Mapping[str, Column], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the file beside the columns says."""
    return {"columns": {name: vars(column) for name, column in columns.items()}, "facts": dict(facts)}


def _file(folder: Path, name: str) -> Path:
    """Where a column is."""
    return folder / f"{name}.bin"


def _cut(path: Path, column: Column, keep: int) -> None:
    """Cut a column's file to the steps that are kept.

    Raises:
        RunError: it has fewer.
    """
    try:
        path.touch()
        there = _steps(path, column)
        if there < keep:
            raise RunError(
                f"{path} must hold the {keep} steps before the checkpoint, but has {there}; delete {path.parents[1]} "
                "and run again"
            )
        os.truncate(path, keep * column.bytes_per_step)
    except OSError as error:
        raise RunError(why(path, error)) from error


def _steps(path: Path, column: Column) -> int:
    """How many whole steps a file holds."""
    return path.stat().st_size // column.bytes_per_step if path.exists() else 0


def _fill(file, rows: np.ndarray) -> None:
    """Read exactly so many rows into an array that is there already."""
    view = rows.data.cast("B")
    while len(view):
        got = file.readinto(view)
        if not got:
            raise RunError(f"{file.name} must not shrink while it is read, but did; run again")
        view = view[got:]
