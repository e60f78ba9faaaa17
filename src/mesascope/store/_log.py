"""Training log: one CSV line per optimizer step; a torn last line is ignored."""

import math
import os
from pathlib import Path

from mesascope.store._files import RunError, describe_os_error, replace_atomically

LOG_COLUMNS = ("step", "loss", "learning rate", "gradient norm", "seconds")


class TrainingLog:
    """Writer of ``log.csv``: step, loss of the batch before its update, learning rate, gradient norm, seconds.

    Attributes:
        seconds: Training time up to the last remaining line, in seconds.
        loss: Loss of the last remaining line.

    Args:
        path: The CSV file.
        keep_steps: Lines of this step and later ones are removed.
    """

    def __init__(self, path: Path, keep_steps: int) -> None:
        rows = [row for row in read_log_rows(path) if row[0] < keep_steps]
        self.seconds = rows[-1][-1] if rows else 0.0
        self.loss = rows[-1][1] if rows else math.nan
        self._path = path
        self._lines = [_format_row(*row) for row in rows]
        with replace_atomically(path) as draft:
            draft.write_text(",".join(LOG_COLUMNS) + "\n" + "".join(self._lines))
        self._lines.clear()

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
        try:
            with self._path.open("a") as file:
                file.writelines(self._lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(describe_os_error(self._path, error)) from error
        self._lines.clear()


def read_log_rows(path: Path) -> list[list[float]]:
    """Read the complete lines of a training log, up to the first torn one.

    Args:
        path: The CSV file; it may be missing.

    Returns:
        One row of numbers per step, in the order of ``LOG_COLUMNS``.
    """
    rows: list[list[float]] = []
    if not path.exists():
        return rows
    for line in path.read_text(errors="replace").splitlines(keepends=True)[1:]:
        try:
            row = [float(cell) for cell in line.split(",")]
        except ValueError:
            break
        if len(row) != len(LOG_COLUMNS) or not line.endswith("\n"):
            break
        rows.append(row)
    return rows


def _format_row(step: float | int, *numbers: float) -> str:
    return ",".join([str(int(step)), *map(repr, numbers)]) + "\n"
