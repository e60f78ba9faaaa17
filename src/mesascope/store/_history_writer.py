"""Writing of a training history: append-only arrays, truncated to a checkpoint when training resumes."""

import json
import os
from collections.abc import Mapping
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
from mesascope.store._history_columns import METADATA_FILE, HistoryColumn, column_path, count_complete_steps


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
            _truncate_column(column_path(folder, name), column, keep_steps)
        self._files = {name: column_path(folder, name).open("ab") for name in columns}

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
        _check_rows(rows, self._columns)
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


def _check_rows(rows: Mapping[str, np.ndarray], columns: Mapping[str, HistoryColumn]) -> None:
    if rows.keys() != columns.keys():
        raise ValueError(f"a step must have the columns {', '.join(columns)}, but got {', '.join(rows)}")
    for name, values in rows.items():
        column = columns[name]
        if values.shape != (column.rows, column.width) or values.dtype != column.dtype:
            raise ValueError(
                f"{name} must be ({column.rows}, {column.width}) of {column.dtype} at every step, but got "
                f"{values.shape} of {values.dtype}"
            )


def _describe_columns(columns: Mapping[str, HistoryColumn], metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"columns": {name: vars(column) for name, column in columns.items()}, "facts": dict(metadata)}


def _truncate_column(path: Path, column: HistoryColumn, keep_steps: int) -> None:
    """Truncate a column's file to ``keep_steps`` steps.

    Raises:
        RunError: If the file has fewer steps.
    """
    try:
        path.touch()
        existing = count_complete_steps(path, column)
        if existing < keep_steps:
            raise RunError(
                f"{path} must hold the {keep_steps} steps before the checkpoint, but has {existing}; delete "
                f"{path.parents[1]} "
                "and run again"
            )
        os.truncate(path, keep_steps * column.bytes_per_step)
    except OSError as error:
        raise RunError(describe_os_error(path, error)) from error
