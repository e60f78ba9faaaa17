"""Seeded trials: the drawing of a report or the publication of a run is stopped by signals, then repeated."""

import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

from faults.forked import call_main, list_orphans, run_forked, wait_for
from faults.kills import MAX_SECONDS, SIGNALS, Stoppable, count_changes, judge_stop, list_left_over, start_and_stop
from faults.trial_result import TrialResult, run_seeds
from mesascope.checksums import identify_run, read_run_record, seal_page
from mesascope.studies import published
from mesascope.studies.registry import load_study

DOCS = Path(__file__).parents[2] / "docs"
REPORT, PUBLISH = "mesascope report", "docs/build.py"
LOCKS = {".lock", ".lock-holder"}


class Publication:
    """A finished run with a report and pages, and trials in which they are written again.

    Args:
        folder: A folder.
        stoppable: The finished run.
    """

    def __init__(self, folder: Path, stoppable: Stoppable) -> None:
        self.finished, self.output, self.place = stoppable.finished, stoppable.output, folder / "place"
        self.run, self.study = self.place / "run", stoppable.study
        self.commands: dict[str, Callable[[], int | None]] = {
            REPORT: partial(call_main, ["report", str(self.run)]),
            PUBLISH: self._publish,
        }
        self.before = self.prepare()
        self.costs, self.after = {}, {}
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            self._publish()  # imports everything, so that no forked process has to
        for name, command in self.commands.items():
            self.prepare()
            self.costs[name] = count_changes(command, self.place, self.output)
            self.after[name] = read_files(self.place)

    def try_once(self, seed: int) -> tuple[str, str]:
        """Stop a command at a random moment, then repeat it; return the outcome and the faults."""
        draw = random.Random(seed)
        name, number = draw.choice(list(self.commands)), draw.choice(SIGNALS)
        self.prepare()
        child = start_and_stop(draw, self.commands[name], self.place, self.output, *self.costs[name], number)
        code, printed = wait_for(child), self.output.read_text()
        faults = judge_stop(code, number, printed) if name == REPORT else []  # a script has no message of its own
        faults += [f"orphan {one}" for one in list_orphans(child)]
        faults += [f"{one} is not whole" for one in self.list_torn(name)]
        code = run_forked(self.commands[name], self.output, MAX_SECONDS)
        faults += [f"repeated with exit code {code}: {self.output.read_text()}"] if code else []
        found, expected = read_files(self.place), self.after[name]
        faults += [f"other content of {one}" for one in {**found, **expected} if found.get(one) != expected.get(one)]
        faults += [f"left over: {one}" for one in list_left_over(self.place)]
        prefix = f"{name}, seed {seed}, {signal.Signals(number).name}: "
        return "repeated, bit-identical", "; ".join(map(prefix.__add__, faults))

    def prepare(self) -> dict[str, bytes]:
        """Restore all files as they were before the report and the pages are written again."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.finished, self.run)
        (self.run / "report.html").write_text(seal_page("an older report", identify_run(read_run_record(self.run))))
        (self.place / "README.md").write_text("before\n<!-- verdicts: begin -->\n<!-- verdicts: end -->\nafter\n")
        shutil.copy(published.PUBLISHED, self.place / "published.json")
        return read_files(self.place)

    def list_torn(self, name: str) -> Iterator[str]:
        """Yield the files that are neither as before nor as after the command."""
        for file, content in read_files(self.place).items():
            if content not in (self.before.get(file), self.after[name].get(file)) and ".tmp-" not in file:
                yield file
        yield from sorted(self.before.keys() - read_files(self.place).keys())

    def _publish(self) -> int:
        with import_build() as build:
            pages = {"PAGES": self.place / "pages", "FIGURES": self.place / "pages" / "figures"}
            with (
                mock.patch.multiple(build, README=self.place / "README.md", **pages),
                mock.patch.object(published, "PUBLISHED", self.place / "published.json"),
                mock.patch.object(build.registry, "load_study", self._load_study),
                mock.patch.object(sys, "argv", ["build.py", str(self.run)]),
            ):
                build.main()
        return 0

    def _load_study(self, name: str) -> Any:
        """Load a study by its name; that of the run is a file."""
        return load_study(str(self.study) if name == "fragile" else name)


@contextmanager
def import_build() -> Iterator[Any]:
    """The script that writes the pages, as a module."""
    sys.path.insert(0, str(DOCS))
    try:
        import build

        yield build
    finally:
        sys.path.remove(str(DOCS))


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files but those of locks, by path."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in LOCKS]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def run_publications(folder: Path, seeds: range, log: Callable[[str], None] = lambda line: None) -> TrialResult:
    """Stop one report or publication per seed."""
    publication = Publication(folder, Stoppable(folder, "serial"))
    return run_seeds("stopped reports and publications", seeds, publication.try_once, log)
