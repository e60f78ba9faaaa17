"""Progress display: progress bars on a terminal and in a notebook, plain lines elsewhere."""

import importlib.util
import math
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_TerminalProgressT = TypeVar("_TerminalProgressT", bound="_TerminalProgress")
LINE_INTERVAL = 10.0  # minimum time between plain lines, in seconds


def open_console(*, quiet: bool) -> Console:
    """Return the console on which a Python function shows its progress: none in a script without a terminal.

    Args:
        quiet: show nothing.

    Returns:
        A console in a notebook or on a terminal; elsewhere, one that prints nothing.
    """
    console = Console(stderr=True)
    watched = console.is_terminal or console.is_jupyter
    return console if watched and not quiet else Console(quiet=True)


def _draws_bars(console: Console) -> bool:
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None  # rich draws bars in a notebook with it
    return console.is_terminal and not console.quiet


class _TerminalProgress:
    """Context manager that draws progress bars if the console is a terminal or a notebook."""

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self._console = console
        self._bars = Progress(*columns, console=console, transient=True) if _draws_bars(console) else None

    def __enter__(self: _TerminalProgressT) -> _TerminalProgressT:
        """Start drawing."""
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing and restore the terminal."""
        if self._bars is not None:
            self._bars.stop()


class ProgressDisplay(_TerminalProgress):
    """Progress callback that draws one bar per part of a stage.

    Args:
        console: The console to draw on.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(
            console,
            TextColumn("{task.description:<18}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        self._tasks: dict[int, TaskID] = {}
        self._parts: Sequence[str] = ()
        self._name = ""
        self._last_line_time = 0.0

    def start_stage(self, name: str, parts: Sequence[str]) -> None:
        """Start a stage; its bars replace those of the previous one.

        Args:
            name: The name of the stage.
            parts: The names of its parts.
        """
        self._name, self._parts, self._last_line_time = name, parts, 0.0
        if self._bars is None:
            self._console.print(f"{name}: {', '.join(parts)}", markup=False, soft_wrap=True)
            return
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks = {i: self._bars.add_task(f"{name} {part}", total=None, loss="") for i, part in enumerate(parts)}

    def update_part(self, index: int, done: int, total: int, loss: float) -> None:
        """Update the progress of one part.

        Args:
            index: The index of the part.
            done: Units of work done.
            total: Units of work in total.
            loss: The last training loss; not a number where there is none.
        """
        loss_text = "" if math.isnan(loss) else f"loss {loss:.4g}"
        if self._bars is not None:
            self._bars.update(self._tasks[index], completed=done, total=total, loss=loss_text)
        elif done == total or time.monotonic() - self._last_line_time > LINE_INTERVAL:
            self._last_line_time = time.monotonic()
            self._console.print(
                f"{self._name} {self._parts[index]}: {done}/{total} {loss_text}".rstrip(), markup=False, soft_wrap=True
            )

    def log_message(self, line: str) -> None:
        """Print a message above the bars.

        Args:
            line: One line of text.
        """
        self._console.print(line, markup=False, soft_wrap=True)


class StageProgressBar(_TerminalProgress):
    """A single progress bar over successive stages.

    Args:
        console: The console to draw on.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(
            console,
            TextColumn("{task.description:<40}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._task = None if self._bars is None else self._bars.add_task("", total=None)
        self._last_stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Update the bar when a stage starts or ends.

        Args:
            stage: The name of the stage.
            done: Stages done.
            total: Stages in total.
        """
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, description=stage, completed=done, total=total)
        elif stage != self._last_stage and total > 1:  # a single stage is short or fails: no line
            self._last_stage = stage
            self._console.print(f"{stage} ({done + 1}/{total})", markup=False, soft_wrap=True)
