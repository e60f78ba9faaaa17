"""A run is shown as bars on a terminal and as plain lines elsewhere."""

import time
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from mesascope.cli._output import print_verdicts
from mesascope.progress import PartCounts, ProgressDisplay


def shown(terminal: bool) -> str:
    text = StringIO()
    with ProgressDisplay(Console(file=text, force_terminal=terminal, width=100, highlight=False)) as display:
        display.start_stage("training", ["seed 0", "seed 1"])
        display.update_part(0, 1, 10, 0.5)
        display.update_part(1, 10, 10, float("nan"))
        time.sleep(0.3)  # bars are drawn ten times a second
        display.log_message("[seed 1] was damaged")
        display.start_stage("measuring", ["seed 0"])
        display.update_part(0, 1, 1, 0.25)
    return text.getvalue()


def test_a_terminal_gets_a_bar_for_each_seed():
    text = shown(terminal=True)
    assert "training seed 0" in text
    assert "1/10" in text
    assert "━" in text
    assert "[seed 1] was damaged" in text


def test_elsewhere_each_line_stands_alone():
    lines = shown(terminal=False).splitlines()
    assert lines == [
        "training: seed 0, seed 1",
        "training seed 0: 1/10 loss 0.5",
        "training seed 1: 10/10",
        "[seed 1] was damaged",
        "measuring: seed 0",
        "measuring seed 0: 1/1 loss 0.25",
    ]


def show_many(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """20 parts: the first is loaded in no time, three last 60 s, one is set aside, two run."""
    text, clock = StringIO(), iter(range(0, 100_000, 20))
    monkeypatch.setattr("mesascope.progress.time.monotonic", lambda: float(next(clock)))
    with ProgressDisplay(Console(file=text, force_terminal=terminal, width=150, highlight=False)) as display:
        display.start_stage("training", [f"seed {seed}" for seed in range(20)])
        for index in range(20):
            display.change_state(index, "running")
            display.update_part(index, 1, 10, 0.5)
            display.change_state(index, "set aside" if index == 3 else "done")
    return text.getvalue()


def test_many_parts_are_one_line(monkeypatch):
    lines = show_many(terminal=False, monkeypatch=monkeypatch).splitlines()
    assert lines[0] == "training: 20 parts"
    assert lines[1] == "training: 0 of 20 done, 1 running, 19 waiting"
    assert lines[-1] == "training: 19 of 20 done, 0 running, 0 waiting, 1 set aside"
    assert not [line for line in lines if "seed" in line]
    assert "━" in show_many(terminal=True, monkeypatch=monkeypatch)


def test_the_time_left_is_that_of_parts_that_were_not_loaded(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mesascope.progress.time.monotonic", lambda: now[0])
    counts = PartCounts(10)
    assert counts.seconds_left is None
    for index, seconds in enumerate((0.1, 60.0, 80.0)):
        counts.change_state(index, "running")
        now[0] += seconds
        counts.change_state(index, "done")
    for index in (3, 4):
        counts.change_state(index, "running")
    assert counts.seconds_left == 70.0 * (5 + 2 / 2) / 2
    counts.change_state(5, "set aside")
    assert str(counts) == "3 of 10 done, 2 running, 4 waiting, 1 set aside, about 3 min left"


def test_the_time_of_a_line_does_not_grow_with_the_number_of_jobs():
    def measure_line(num_parts: int) -> float:
        """Processor time of 200 lines when all jobs but one are done."""
        counts = PartCounts(num_parts)
        for index in range(num_parts - 1):
            counts.change_state(index, "running")
            counts.change_state(index, "done")
        counts.change_state(num_parts - 1, "running")
        start = time.process_time()
        for _ in range(200):
            str(counts)
        return time.process_time() - start

    few, many = min(measure_line(20) for _ in range(3)), min(measure_line(20_000) for _ in range(3))
    assert many < 20 * few


def test_claims_that_are_not_tested_are_only_counted(capsys):
    about = {"statement": "it holds", "value": None, "reason": "a reason", "source": "ours"}
    unseen = about | {"statement": "unseen", "status": "not tested at this scale"}
    verdicts = [SimpleNamespace(kind=kind, **unseen) for kind in ("replication", "check", "replication", "replication")]
    print_verdicts([*verdicts, SimpleNamespace(status="holds", kind="check", **about)], "smoke")
    printed = capsys.readouterr().out
    assert "HOLDS  it holds" in printed
    assert "unseen" not in printed
    assert "3 claims and 1 check are not tested at smoke scale" in printed
    print_verdicts(verdicts[:1], "smoke")
    assert "1 claim is not tested at smoke scale" in capsys.readouterr().out
