"""The log of training: one line per optimiser step, the last of which may be torn."""

import math
import os
from pathlib import Path

from mesascope.store.files import RunError, replacing, why

LOG_COLUMNS = ("step", "loss", "learning rate", "gradient norm", "seconds")


class Log:
    """Lines of ``log.csv``: step, loss of that step's batch before its update, rate, gradient norm, seconds.

    Attributes:
        seconds: the time that the kept lines took.
        loss: the loss of the last kept line.
    """

    def __init__(self, path: Path, keep: int) -> None:
        rows = [row for row in log_rows(path) if row[0] < keep]
        self.seconds = rows[-1][-1] if rows else 0.0
        self.loss = rows[-1][1] if rows else math.nan
        self._path = path
        self._lines = [_log_line(*row) for row in rows]
        with replacing(path) as draft:
            draft.write_text(",".join(LOG_COLUMNS) + "\n" + "".join(self._lines))
        self._lines.clear()

    def __enter__(self) -> "Log":
        """Itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Append what was noted, unless it is writing that failed."""
        if not isinstance(error, RunError):
            self.sync()

    def add(self, step: int, loss: float, rate: float, norm: float, seconds: float) -> None:
        """Note one step; it is in the file after the next :meth:`sync`."""
        self._lines.append(_log_line(step, loss, rate, norm, seconds))

    def sync(self) -> None:
        """Append what was noted."""
        try:
            with self._path.open("a") as file:
                file.writelines(self._lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(why(self._path, error)) from error
        self._lines.clear()


def log_rows(path: Path) -> list[list[float]]:
    """The whole lines of a log; it ends at the first that is torn."""
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


def _log_line(step: float | int, *numbers: float) -> str:
    """One line of the log."""
    return ",".join([str(int(step)), *map(repr, numbers)]) + "\n"
