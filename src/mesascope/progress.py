"""How a run looks on a terminal while it goes on: bars where there is a terminal, plain lines elsewhere."""

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

Drawn = TypeVar("Drawn", bound="_OnTerminal")
EVERY = 10.0  # seconds between plain lines


class _OnTerminal:
    """Bars that are drawn between enter and exit, if there is a terminal to draw them on."""

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self._console = console
        self._bars = Progress(*columns, console=console, transient=True) if console.is_terminal else None

    def __enter__(self: Drawn) -> Drawn:
        """Begin to draw."""
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._bars is not None:
            self._bars.stop()


class Display(_OnTerminal):
    """A watcher that draws one bar per part of a stage."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            console,
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        self._tasks: dict[int, TaskID] = {}
        self._parts: Sequence[str] = ()
        self._name = ""
        self._since = 0.0

    def stage(self, name: str, parts: Sequence[str]) -> None:
        """A new stage: its bars take the place of the last one's."""
        self._name, self._parts, self._since = name, parts, 0.0
        if self._bars is None:
            self._console.print(f"{name}: {', '.join(parts)}", markup=False)
            return
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks = {i: self._bars.add_task(f"{name} {part}", total=None, loss="") for i, part in enumerate(parts)}

    def part(self, index: int, done: int, total: int, loss: float) -> None:
        """One part has got so far."""
        shown = "" if math.isnan(loss) else f"loss {loss:.4g}"
        if self._bars is not None:
            self._bars.update(self._tasks[index], completed=done, total=total, loss=shown)
        elif done == total or time.monotonic() - self._since > EVERY:
            self._since = time.monotonic()
            self._console.print(f"{self._name} {self._parts[index]}: {done}/{total} {shown}".rstrip())

    def say(self, line: str) -> None:
        """A line above the bars."""
        self._console.print(line, markup=False)


class Stages(_OnTerminal):
    """One bar over the stages of something that is done once."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            console,
            TextColumn("{task.description:<40}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._task = None if self._bars is None else self._bars.add_task("", total=None)
        self._told = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """A stage begins, or is done."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, description=what, completed=done, total=total)
        elif what != self._told and total > 1:  # what is over in a moment, or fails, needs no line
            self._told = what
            self._console.print(f"{what} ({done + 1}/{total})", markup=False)
