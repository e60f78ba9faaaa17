"""A run is shown as bars on a terminal and as plain lines elsewhere."""

import time
from io import StringIO

from rich.console import Console

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
