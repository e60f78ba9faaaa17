"""One table of the verdicts of several runs."""

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from mesascope.checksums import RunError
from mesascope.store import Run
from mesascope.studies.verdict_table import COLUMNS, collect_verdicts
from mesascope.table_formats import format_table

STATEMENT = "a_b | 5 % of {x} \\ c & d"


def write_run(path: Path, cell: str = "", **changes: object) -> Path:
    """Write a run with one verdict."""
    run = Run.create(path, {"study": "mine", "scale": "smoke", "cell": cell, "seeds": [0, 1]})
    verdict = {
        "name": "claim",
        "statement": STATEMENT,
        "source": "ours",
        "status": "supported",
        "kind": "replication",
        "value": 0.123456,
        "control": 1.0,
        "difference": [-1.0, -0.5],
        "p_value": None,
    }
    run.write_json("verdicts", [verdict | changes])
    return path


def test_every_cell_of_every_run_is_in_the_table(tmp_path: Path):
    first = write_run(tmp_path / "first", "heads=1")
    write_run(first / "cells" / "heads=2", "heads=2", status="inconclusive")
    second = write_run(tmp_path / "second", value=None, control=None, difference=None)
    table = collect_verdicts([first, second])
    assert table.columns.tolist() == list(COLUMNS)
    assert table["cell"].tolist() == ["heads=1", "heads=2", ""]
    assert table["verdict"].tolist() == ["supported", "inconclusive", "supported"]
    assert table["difference"].tolist()[:2] == [-0.75, -0.75]
    assert table["value"].isna().tolist() == [False, False, True]
    assert table["seeds"].tolist() == [2, 2, 2]


def test_csv_keeps_all_digits(tmp_path: Path):
    table = collect_verdicts([write_run(tmp_path / "run")])
    read = pd.read_csv(io.StringIO(format_table(table, "csv")))
    assert read["value"].tolist() == [0.123456]
    assert read["claim"].tolist() == [STATEMENT]


def test_markdown_and_latex_escape_what_is_special(tmp_path: Path):
    table = collect_verdicts([write_run(tmp_path / "run")])
    markdown = format_table(table, "markdown").splitlines()
    assert len(markdown) == 3
    assert r"a\_b \| 5 % of {x} \\ c \& d" in markdown[2]
    assert "| 0.1235 | 1 | -0.75 |  |" in markdown[2]
    latex = format_table(table, "latex")
    assert r"a\_b \textbar{} 5 \% of \{x\} \textbackslash{} c \& d" in latex
    assert latex.startswith(r"\begin{tabular}{" + len(COLUMNS) * "l" + "}")


def test_every_cell_of_markdown_and_latex_is_one_cell():
    table = pd.DataFrame({"a|b": ["x|y\nz", "[1, 2] & 3"], "#": ["<b>*c*</b>", "−1.5 × 10⁻⁴ ± 2 ≤ 3"]})
    head, _, *rows = format_table(table, "markdown").splitlines()
    assert [len(re.split(r"(?<!\\)\|", line)) for line in (head, *rows)] == [4, 4, 4]
    assert rows[0] == r"| x\|y z | \<b\>\*c\*\</b\> |"
    latex = format_table(table, "latex").splitlines()
    assert latex[2] == r"a\textbar{}b & \# \\"
    assert latex[5] == r"{[}1, 2] \& 3 & $-$1.5 $\times$ 10$^{-4}$ $\pm$ 2 $\leq$ 3 \\"


def test_what_has_no_verdicts_and_unknown_formats_are_refused(tmp_path: Path):
    unfinished = Run.create(tmp_path / "run", {"study": "mine"})
    with pytest.raises(RunError, match="must have verdicts, but has none; finish the run first"):
        collect_verdicts([unfinished.path])
    with pytest.raises(ValueError, match="a format must be one of csv, markdown, latex, but got 'xml'"):
        format_table(pd.DataFrame(json.loads("[]")), "xml")
