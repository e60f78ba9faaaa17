"""Seeded trials: a run is stopped by signals at random moments, 1 to 3 times, then resumed to its end."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from io import StringIO
from pathlib import Path

import psutil

from faults.file_events import FileEvents
from faults.forked import NOT_STARTED, call_main, list_orphans, run_forked, start_forked, wait_for
from faults.small_study import STUDY, list_differences, read_outputs
from faults.trial_result import TrialResult, run_seeds

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
WORKER = "SIGKILL of a child"
GROUP_SHARE = 0.5  # of the signals go to all processes of a run, as those of terminals and of `timeout` do
EVENT_SHARE = 0.6  # of the stops of serial runs that come at a change of a file; the others come at a random time
MAX_SECONDS = 300
HINT = "interrupted; run the same command again to resume"


class Stoppable:
    """An undisturbed run, and trials in which the same run is stopped.

    Args:
        folder: An empty folder.
        executor: ``serial`` or ``processes``.
    """

    def __init__(self, folder: Path, executor: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.executor, self.study, self.output = folder, executor, folder / "small.py", folder / "output"
        self.study.write_text(STUDY)
        self.finished = folder / "finished"
        self._import_everything()
        self.seconds, self.changes = count_changes(
            partial(call_main, self.words(self.finished)), self.finished, self.output
        )
        self.outputs = read_outputs(self.finished)

    def _import_everything(self) -> None:
        """Run once in this process, so that no forked one has to import modules."""
        words = ["run", str(self.study), "--scale", "smoke", "--on", "serial", "--out", str(self.folder / "first")]
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            assert call_main(words) == 0

    def words(self, path: Path) -> list[str]:
        """The command of a run."""
        return ["run", str(self.study), "--scale", "smoke", "--on", self.executor, "--out", str(path)]

    def try_once(self, seed: int) -> tuple[str, str]:
        """Stop a run and resume it; return the outcome and the faults."""
        draw, path = random.Random(seed), self.folder / "stopped"
        faults, stops = [], []
        try:
            for _ in range(draw.randint(1, 3)):
                stop, fault = self._stop_once(draw, path)
                stops.append(stop)
                faults += [f"{stop}: {fault}"] if fault else []
            code = run_forked(lambda: call_main(self.words(path)), self.output, MAX_SECONDS)
            faults += [f"resumed with exit code {code}: {self.output.read_text()}"] if code else []
            faults += [f"other values in {name}" for name in list_differences(path, self.outputs)]
            faults += [f"left over: {name}" for name in list_left_over(path)]
        finally:
            shutil.rmtree(path, ignore_errors=True)
        prefix = f"{self.executor}, seed {seed}, {', '.join(stops)}: "
        return "resumed, bit-identical", "; ".join(map(prefix.__add__, faults))

    def _stop_once(self, draw: random.Random, path: Path) -> tuple[str, str]:
        serial = self.executor == "serial"
        number = draw.choice([*SIGNALS, *([] if serial else [None])])
        command = partial(call_main, self.words(path))
        child = start_and_stop(draw, command, path, self.output, self.seconds, self.changes if serial else 0, number)
        code = wait_for(child)
        printed = self.output.read_text()
        orphans = list_orphans(child)
        name = WORKER if number is None else signal.Signals(number).name
        return name, "; ".join([*judge_stop(code, number, printed), *(f"orphan {one}" for one in orphans)])


def count_changes(command: Callable[[], int | None], folder: Path, output: Path) -> tuple[float, int]:
    """Return the seconds that a command takes, and the number of changes of files below a folder."""
    counted = output.with_name("count")

    def count() -> int:
        events = FileEvents(folder, 0, lambda event, file: None)
        code = command() or 0
        counted.write_text(str(events.count))
        return code

    started = time.perf_counter()
    code = run_forked(count, output, MAX_SECONDS)
    assert code == 0, output.read_text()
    return time.perf_counter() - started, int(counted.read_text())


def start_and_stop(
    draw: random.Random,
    command: Callable[[], int | None],
    folder: Path,
    output: Path,
    seconds: float,
    changes: int,
    number: signal.Signals | None,
) -> int:
    """Start a command in a process, and send it a signal at a change of a file or at a random time.

    Args:
        draw: Draws the moment.
        command: The command.
        folder: Where it changes files.
        output: Receives what it prints.
        seconds: How long it takes.
        changes: How many changes of files it makes; 0 for a signal at a random time only.
        number: The signal; None for SIGKILL of a process that it has started.

    Returns:
        The process id.
    """
    if not changes or draw.random() >= EVENT_SHARE:
        child = start_forked(command, output, MAX_SECONDS)
        time.sleep(draw.uniform(0, seconds))
        send_signal(child, number, draw)
        return child
    first = draw.randrange(changes)

    def stop_at_change() -> int:
        def stop(event: str, file: str) -> None:
            if events.count == first + 1:
                os.kill(os.getpid(), number or signal.SIGKILL)

        events = FileEvents(folder, first, stop)
        return command() or 0

    return start_forked(stop_at_change, output, MAX_SECONDS)


def send_signal(child: int, number: signal.Signals | None, draw: random.Random) -> None:
    """Send a signal to a process or its group, or SIGKILL to one of the processes that it has started."""
    with suppress(ProcessLookupError, psutil.Error):
        if number is not None:
            (os.killpg if draw.random() < GROUP_SHARE else os.kill)(child, number)
        elif started := psutil.Process(child).children(recursive=True):
            draw.choice(started).kill()  # a worker, the fork server or the resource tracker


def judge_stop(code: int, number: signal.Signals | None, printed: str) -> list[str]:
    """Return what is wrong with the end of a process that got a signal; it may have finished before."""
    lines = [line for line in printed.splitlines() if line.startswith(("mesascope: ", HINT))]
    checks: dict[str, Callable[[], bool]] = {
        f"a traceback: {printed}": lambda: "Traceback" in printed,
        f"exit code {code}: {printed}": lambda: (
            code not in {0, -signal.SIGKILL if number == signal.SIGKILL else 130, 2, NOT_STARTED}
        ),
        f"exit code {code} for {number}": lambda: code == 2 and number is not None,
        f"{len(lines)} messages: {printed}": lambda: code in (2, 130) and len(lines) != 1,
    }
    return [name for name, is_wrong in checks.items() if is_wrong()]


def list_left_over(path: Path) -> list[str]:
    """Return the temporary files that a run has left."""
    return [str(one.relative_to(path)) for one in path.rglob("*") if one.name.startswith(".tmp-")]


def run_kills(folder: Path, seeds: range, executor: str, log: Callable[[str], None] = lambda line: None) -> TrialResult:
    """Stop one run per seed."""
    name = f"SIGKILL, SIGINT and SIGTERM at random moments, `--on {executor}`"
    return run_seeds(name, seeds, Stoppable(folder, executor).try_once, log)
