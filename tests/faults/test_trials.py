"""A few seeds of every trial of faults."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from faults.disk import FullDisk
from faults.kills import Stoppable
from faults.publication import PUBLISH, Publication
from faults.trial_result import END, START, TrialResult, format_table, write_table
from mesascope.train import SGD, TrainingConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stoppable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stoppable]:
    """An undisturbed run; reports load everything, but draw nothing, which takes most of the time."""
    with mock.patch("mesascope.report.page._render_record", return_value="page"):
        yield Stoppable(tmp_path_factory.mktemp("stoppable"), "serial")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_stopped_run_is_resumed(stoppable, seed):
    assert stoppable.try_once(seed) == ("resumed, bit-identical", "")


def test_a_run_on_a_full_disk_is_resumed(stoppable, tmp_path):
    assert FullDisk(tmp_path, stoppable).try_once(0) == ("named, then resumed, bit-identical", "")


@pytest.mark.slow
def test_a_stopped_publication_is_repeated(stoppable, tmp_path):
    publication = Publication(tmp_path, stoppable)
    assert publication.try_once(0) == ("repeated, bit-identical", "")
    publication.prepare()
    assert list(publication.list_torn(PUBLISH)) == []
    (publication.place / "README.md").write_text("bef")
    assert list(publication.list_torn(PUBLISH)) == ["README.md"]


@pytest.mark.slow
@pytest.mark.parametrize(("commands", "calls"), [(6, 0), (0, 30)])
def test_odd_calls_and_commands_are_refused_in_one_line(commands, calls):
    """In a process of its own, where no import hook of the tests checks types first."""
    others = "--kills 0 --worker-kills 0 --publications 0 --disks 0 --corruptions 0 --folders 0"
    words = f"--no-page --jobs 1 {others} --commands {commands} --calls {calls}".split()
    path = os.pathsep.join([str(ROOT / "src"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 faults" in done.stdout


@pytest.mark.parametrize(("name", "value"), [("steps", "3"), ("history", 1.5), ("clip", float("nan")), ("steps", True)])
def test_a_field_of_another_type_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be ") as caught:
        TrainingConfig(**{"steps": 3, name: value})
    assert len(str(caught.value).splitlines()) == 1


def test_an_infinite_learning_rate_is_refused():
    with pytest.raises(ValueError, match="lr must be 0 or more and finite, but got inf"):
        SGD(lr=float("inf"))


def test_the_table_has_a_row_per_trial(tmp_path):
    result = TrialResult(name="trial", seeds="0-1")
    result.add("held")
    result.add("held", "a fault")
    assert "| trial | 0-1 | 2 | 1 fault, 1 held | 1 |" in format_table([result])
    page = tmp_path / "page.md"
    page.write_text(f"a\n{START}\nold\n{END}\nb\n")
    write_table([result], page)
    assert page.read_text().startswith(f"a\n{START}\n")
    assert page.read_text().endswith(f"{END}\nb\n")
    assert "old" not in page.read_text()
