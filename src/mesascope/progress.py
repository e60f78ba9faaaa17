"""Progress display: progress bars on a terminal and in a notebook, plain lines elsewhere."""

import importlib.util
import math
import time
from collections import Counter
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
MAX_PARTS = 12  # with more, all parts are shown as one
LOADED_FRACTION = 0.1  # of the longest duration; shorter parts were loaded from storage


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


class PartCounts:
    """The number of parts of a stage in each state, and the time that is left.

    Args:
        num_parts: Number of parts.
    """

    def __init__(self, num_parts: int) -> None:
        self._states = dict.fromkeys(range(num_parts), "waiting")
        self._counts = Counter(self._states.values())  # all messages of all jobs read them
        self._start_times: dict[int, float] = {}
        self._durations: list[float] = []  # of parts that were not loaded
        self._total_duration = self._max_duration = 0.0

    def change_state(self, index: int, state: str) -> None:
        """Record the new state of a part.

        Args:
            index: The index of the part.
            state: ``waiting``, ``running``, ``done`` or ``set aside``.
        """
        if state == "running":
            self._start_times[index] = time.monotonic()
        elif state == "done" and index in self._start_times:
            self._add_duration(time.monotonic() - self._start_times[index])
        self._counts[self._states[index]] -= 1
        self._counts[state] += 1
        self._states[index] = state

    def _add_duration(self, seconds: float) -> None:
        if seconds > self._max_duration:
            self._max_duration = seconds
            self._durations = [one for one in self._durations if one >= LOADED_FRACTION * seconds]
            self._total_duration = sum(self._durations)
        if seconds >= LOADED_FRACTION * self._max_duration:
            self._durations.append(seconds)
            self._total_duration += seconds

    def count(self, state: str) -> int:
        """Return the number of parts in a state.

        Args:
            state: The state.
        """
        return self._counts[state]

    @property
    def num_finished(self) -> int:
        """Number of parts that are done or set aside."""
        return self.count("done") + self.count("set aside")

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until all parts are finished, from the mean duration; None before the first is done."""
        running, waiting = self.count("running"), self.count("waiting")
        if not self._durations or not running:
            return None
        return self._total_duration / len(self._durations) * (waiting + running / 2) / running

    def __str__(self) -> str:
        """Return the counts and the time that is left, in one line."""
        counts = ", ".join(f"{self.count(state)} {state}" for state in ("running", "waiting"))
        set_aside = f", {self.count('set aside')} set aside" if self.count("set aside") else ""
        left = "" if self.seconds_left is None else f", about {_format_duration(self.seconds_left)} left"
        return f"{self.count('done')} of {len(self._states)} done, {counts}{set_aside}{left}"


def _format_duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


class ProgressDisplay(_TerminalProgress):
    """Progress callback that draws one bar per part of a stage, or one bar for all parts if there are many.

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
        self._counts = PartCounts(0)

    def start_stage(self, name: str, parts: Sequence[str]) -> None:
        """Start a stage; its bars replace those of the previous one.

        Args:
            name: The name of the stage.
            parts: The names of its parts.
        """
        self._name, self._parts, self._last_line_time = name, parts, 0.0
        self._counts = PartCounts(len(parts))
        if self._bars is None:
            listed = f"{len(parts)} parts" if self._shows_counts else ", ".join(parts)
            self._console.print(f"{name}: {listed}", markup=False, soft_wrap=True)
            return
        for task in self._tasks.values():
            self._bars.remove_task(task)
        if self._shows_counts:
            self._tasks = {0: self._bars.add_task(name, total=len(parts), loss="")}
        else:
            rows = enumerate(parts)
            self._tasks = {i: self._bars.add_task(f"{name} {part}", total=None, loss="") for i, part in rows}

    @property
    def _shows_counts(self) -> bool:
        return len(self._parts) > MAX_PARTS

    def change_state(self, index: int, state: str) -> None:
        """Update the state of one part.

        Args:
            index: The index of the part.
            state: ``waiting``, ``running``, ``done`` or ``set aside``.
        """
        self._counts.change_state(index, state)
        if self._shows_counts:
            self._show_counts()

    def _show_counts(self) -> None:
        finished, now = self._counts.num_finished, time.monotonic()
        if self._bars is not None:
            self._bars.update(self._tasks[0], completed=finished, loss=str(self._counts))
        elif finished == len(self._parts) or now - self._last_line_time > LINE_INTERVAL:
            self._last_line_time = now
            self._console.print(f"{self._name}: {self._counts}", markup=False, soft_wrap=True)

    def update_part(self, index: int, done: int, total: int, loss: float) -> None:
        """Update the progress of one part.

        Args:
            index: The index of the part.
            done: Units of work done.
            total: Units of work in total.
            loss: The last training loss; not a number where there is none.
        """
        if self._shows_counts:
            self._show_counts()
            return
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
