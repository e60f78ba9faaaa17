"""How a run looks on a terminal while it goes on: bars where there is a terminal, plain lines elsewhere."""

import math
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

EVERY = 10.0  # seconds between plain lines


class Display:
    """A watcher that draws one bar per part of a stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._tasks: dict[int, TaskID] = {}
        self._name = ""
        self._told = 0.0

    def __enter__(self) -> "Display":
        """Begin to draw, if there is a terminal."""
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:<18}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._bars is not None:
            self._bars.stop()

    def stage(self, name: str, total: int) -> None:
        """A new stage: its bars take the place of the last one's."""
        self._name, self._told = name, 0.0
        if self._bars is None:
            self._console.print(f"{name}: {total} seed{'s' * (total > 1)}")
            return
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks = {i: self._bars.add_task(f"{name} seed {i}", total=None, loss="") for i in range(total)}

    def part(self, index: int, done: int, total: int, loss: float) -> None:
        """One seed has got so far."""
        shown = "" if math.isnan(loss) else f"loss {loss:.4g}"
        if self._bars is not None:
            self._bars.update(self._tasks[index], completed=done, total=total, loss=shown)
        elif done == total or time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            self._console.print(f"{self._name} seed {index}: {done}/{total} {shown}".rstrip())

    def say(self, line: str) -> None:
        """A line above the bars."""
        self._console.print(line, markup=False)


class Stages:
    """One bar over the stages of something that is done once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._told = ""

    def __enter__(self) -> "Stages":
        """Begin to draw, if there is a terminal."""
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description:<40}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """A stage begins, or is done."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=what, completed=done, total=total)
        elif what != self._told and total > 1:  # what is over in a moment, or fails, needs no line
            self._told = what
            self._console.print(f"{what} ({done + 1}/{total})", markup=False)
