"""Training log: one CSV line per optimizer step, and a record with the checksum of the lines saved so far."""

import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mesascope.checksums import DamagedFile, RunError, check_origin, read_bytes, read_record, seal_record
from mesascope.store._files import describe_os_error, to_json, write_atomically

LOG_COLUMNS = ("step", "loss", "learning rate", "gradient norm", "seconds")
HEADER = (",".join(LOG_COLUMNS) + "\n").encode()


class TrainingLog:
    """Writer of ``log.csv``: step, loss of the batch before its update, learning rate, gradient norm, seconds.

    Lines are appended and synced before their checksum is written to ``log.json``, which covers all lines but those of
    the last sync if the process was killed there. No checkpoint is saved between the two.

    Attributes:
        seconds: Training time up to the last remaining line, in seconds.
        loss: Loss of the last remaining line.

    Args:
        path: The CSV file.
        keep_steps: Lines of this step and later ones are removed.
        identity: What tells this training from others.

    Raises:
        RunError: If the lines that remain are damaged.
    """

    def __init__(self, path: Path, keep_steps: int, identity: Mapping[str, Any]) -> None:
        self._path, self._identity = path, identity
        content = read_log(path, identity) if keep_steps else HEADER
        rows = [row for row in parse_log(content) if row[0] < keep_steps]
        self.seconds = rows[-1][-1] if rows else 0.0
        self.loss = rows[-1][1] if rows else math.nan
        valid_lines = b"".join(content.splitlines(keepends=True)[: 1 + len(rows)])
        self._hash, self._size = hashlib.sha256(valid_lines), len(valid_lines)
        self._lines: list[str] = []
        self._write_checksum()  # first: that of fewer lines also holds for more
        write_atomically(path, valid_lines)

    def __enter__(self) -> "TrainingLog":
        """Return the log."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Write buffered lines, unless writing itself has failed."""
        if not isinstance(error, RunError):
            self.sync_to_disk()

    def add_row(self, step: int, loss: float, rate: float, norm: float, seconds: float) -> None:
        """Buffer one line; the next :meth:`sync_to_disk` writes it.

        Args:
            step: Optimizer steps taken before this one.
            loss: Training loss of the step's batch before the update.
            rate: Learning rate.
            norm: Gradient norm before clipping.
            seconds: Training time so far, in seconds.
        """
        self._lines.append(_format_row(step, loss, rate, norm, seconds))

    def sync_to_disk(self) -> None:
        """Append all buffered lines and flush them to disk.

        Raises:
            RunError: If the file system refuses.
        """
        content = "".join(self._lines).encode()
        try:
            os.truncate(self._path, self._size)  # lines of a write that failed
            with self._path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(describe_os_error(self._path, error)) from error
        self._lines.clear()
        self._hash.update(content)
        self._size += len(content)
        self._write_checksum()

    def _write_checksum(self) -> None:
        checksum = {"size": self._size, "content": self._hash.hexdigest()}
        write_atomically(log_checksum_path(self._path), to_json(seal_record({**self._identity, **checksum}, "log")))


def log_checksum_path(path: Path) -> Path:
    """Return the file of the checksum of a log.

    Args:
        path: The log.
    """
    return path.with_suffix(".json")


def read_log(path: Path, identity: Mapping[str, Any] | None) -> bytes:
    """Read the lines of a training log that its checksum covers, and verify them.

    Args:
        path: The CSV file.
        identity: What the checksum must say of the origin of the log; not checked if None.

    Returns:
        The header and the lines.

    Raises:
        DamagedFile: If the log or its checksum is missing or damaged, or is that of another training.
    """
    hint = f"delete {path.parent} and run again to train this seed again"
    content, checksum = read_bytes(path, hint), read_record(log_checksum_path(path), "log", hint)
    check_origin(checksum, identity or {}, path, "log", hint)
    covered = content[: checksum["size"]]
    if len(covered) < checksum["size"] or hashlib.sha256(covered).hexdigest() != checksum["content"]:
        raise DamagedFile(f"{path} must match its checksum, but differs; {hint}")
    return covered


def parse_log(content: bytes) -> list[list[float]]:
    """Return the lines of a training log.

    Args:
        content: The header and complete lines.

    Returns:
        One row of numbers per step, in the order of ``LOG_COLUMNS``.
    """
    return [[float(cell) for cell in line.split(",")] for line in content.decode().splitlines()[1:]]


def _format_row(step: float | int, *numbers: float) -> str:
    return ",".join([str(int(step)), *map(repr, numbers)]) + "\n"
