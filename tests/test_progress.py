"""A run is shown as bars on a terminal and as plain lines elsewhere."""

import time
from io import StringIO
from types import SimpleNamespace

from rich.console import Console

from mesascope.cli._output import print_verdicts
from mesascope.progress import ProgressDisplay


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
