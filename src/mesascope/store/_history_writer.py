"""Writing of a training history: append-only arrays, truncated to a checkpoint when training resumes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mesascope.checksums import seal_record
from mesascope.store._files import (
    RunError,
    describe_os_error,
    make_writable_folder,
    to_json,
    write_atomically,
)
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
        self._hashes = {name: start_checksum(description, name) for name in columns}
        make_writable_folder(folder)
        exists = (folder / METADATA_FILE).exists()
        if keep_steps and exists and read_metadata(folder) != description:
            raise RunError(
                f"{folder} must hold the history of this training, but holds another one; delete {folder.parent}"
            )
        if not keep_steps or not exists:
            write_atomically(folder / METADATA_FILE, to_json(seal_record(description, "history")))
        for name, column in columns.items():
            _truncate_column(folder, name, column, keep_steps)
        self._files = {name: column_path(folder, name).open("ab") for name in columns}
        self._checksums = {name: checksum_path(folder, name).open("ab") for name in columns}

    def close(self) -> None:
        """Close the files. Data that does not fit on a full disk is lost, as after a kill.

        Raises:
            RunError: If the file system refuses.
        """
        first_error: OSError | None = None
        for file in (*self._files.values(), *self._checksums.values()):
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
                content, checksum = np.ascontiguousarray(values).data, self._hashes[name].copy()
                checksum.update(content)
                self._files[name].write(content)
                self._checksums[name].write(checksum.digest()[:CHECKSUM_BYTES])
        except OSError as error:
            raise RunError(describe_os_error(self.folder, error)) from error

    def sync_to_disk(self) -> None:
        """Flush all appended steps to disk, so that a kill cannot lose them.

        Raises:
            RunError: If the file system refuses.
        """
        try:
            for file in (*self._files.values(), *self._checksums.values()):
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


def _truncate_column(folder: Path, name: str, column: HistoryColumn, keep_steps: int) -> None:
    """Truncate the files of a column to ``keep_steps`` steps.

    Raises:
        RunError: If they have fewer steps.
    """
    path = column_path(folder, name)
    try:
        existing = count_complete_steps(folder, name, column)
        if existing < keep_steps:
            raise RunError(
                f"{path} must hold the {keep_steps} steps before the checkpoint, but has {existing}; delete "
                f"{path.parents[1]} "
                "and run again"
            )
        for file, size in ((path, column.bytes_per_step), (checksum_path(folder, name), CHECKSUM_BYTES)):
            file.touch()
            os.truncate(file, keep_steps * size)
    except OSError as error:
        raise RunError(describe_os_error(path, error)) from error
