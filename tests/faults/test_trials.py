"""A few seeds of every trial of faults."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults.disk import run_full_disks
from faults.kills import run_kills
from faults.trial_result import END, START, TrialResult, format_table, write_table
from mesascope.train import SGD, TrainingConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quick_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports load everything, but draw nothing, which takes most of the time."""
    monkeypatch.setattr("mesascope.report.page._render_record", lambda record: "page")


def test_stopped_runs_are_resumed(tmp_path):
    result = run_kills(tmp_path, range(3), "serial")
    assert result.faults == []
    assert len(result.outcomes) == 3


def test_runs_on_full_disks_are_resumed(tmp_path):
    assert run_full_disks(tmp_path, range(2)).faults == []


def test_odd_calls_and_commands_are_refused_in_one_line():
    """In a process of its own, where no import hook of the tests checks types first."""
    words = [
        "--no-page",
        *"--jobs 1 --kills 0 --worker-kills 0 --publications 0 --disks 0 --corruptions 0 --folders 0".split(),
    ]
    path = os.pathsep.join([str(ROOT / "src"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *words, "--commands", "8", "--calls", "40"],
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
