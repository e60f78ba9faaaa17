"""Somebody who sweeps over settings, and puts the verdicts of all cells into a table of a paper, by docs/exports.md."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mesascope

pytestmark = pytest.mark.slow

FILE = Path(__file__).with_name("own_study.py")
STATEMENT = "A head pays 20 % more attention to the first term than before training."
SWEEP = ("training.steps=20", "training.optimizer.lr=1e-2,1e-3", "model.num_attention_heads=1,2")
CELLS = 1 + 4  # the study's own setting, and those of the sweep


def parse_latex(table: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table for booktabs; every row must have as many cells as the tabular has columns."""
    found = re.fullmatch(
        r"\\begin\{tabular\}\{(l+)\}\n\\toprule\n(.*)\n\\midrule\n(.*)\n\\bottomrule\n\\end\{tabular\}\n",
        table,
        re.DOTALL,
    )
    assert found is not None, table
    columns, header, body = found.groups()
    rows = [re.split(r"(?<!\\) & ", line.removesuffix(" \\\\")) for line in (header, *body.splitlines())]
    assert all(len(row) == len(columns) for row in rows)
    return rows[0], rows[1:]


def test_a_sweep_becomes_tables(tmp_path: Path, command: Callable):
    """Two learning rates by two numbers of heads, with few steps and one seed."""
    run = tmp_path / "sweep"
    words = ["run", FILE, "--scale", "smoke", "--seeds", "1", "--out", run]
    for values in SWEEP:
        words += ["--vary", values]
    code, out, err = command(*words)
    assert code == 0, err
    assert f"Verdicts in {CELLS} cells (those above: as in the study)" in out

    # the verdicts of all cells, for the paper and for a spreadsheet
    code, latex, err = command("table", run, "--format", "latex")
    assert (code, err) == (0, "")
    header, rows = parse_latex(latex)
    assert len(rows) == CELLS
    cells = [row[header.index("cell")] for row in rows]
    assert len(set(cells)) == CELLS
    assert cells[0] == "as in the study"
    assert sum("num\\_attention\\_heads=1" in cell for cell in cells) == 2
    assert {row[header.index("claim")] for row in rows} == {STATEMENT.replace("%", "\\%")}
    assert not re.search(r"(?<!\\)[%_#]", latex)  # what LaTeX reserves is escaped
    csv = pd.read_csv(io.StringIO(command("table", run)[1]))
    assert csv["verdict"].tolist() == [row[header.index("verdict")] for row in rows]
    assert csv["value"].notna().all()

    # the values of a result, and the tables of the report
    values = pd.read_csv(io.StringIO(command("table", run, "--results", "first_attention.score")[1]))
    trained = values[values["step"] == 120].pivot(index="layer", columns="head", values="value")
    np.testing.assert_allclose(trained, mesascope.Run.open(run)["first_attention"]["score"].values[0, -1], rtol=1e-6)
    tables = mesascope.tables(run)
    assert set(tables) >= {"verdicts", "cells", "parameters", "environment"}
    _, rows = parse_latex(command("table", run, "--name", "cells", "--format", "latex")[1])
    assert len(rows) == len(tables["cells"]) == 1  # one claim
    assert tables["cells"].columns.tolist()[:3] == ["claim", "cells", "as in the study"]
    assert rows[0][-CELLS:] == csv["verdict"].tolist()


def test_one_setting_is_a_run_of_its_own(tmp_path: Path, command: Callable, monkeypatch: pytest.MonkeyPatch):
    """`--set` names the folder; two runs make one table."""
    monkeypatch.chdir(tmp_path)
    words = ("run", FILE, "--scale", "smoke", "--seeds", "1")
    for steps in ("20", "30"):
        code, _, err = command(*words, "--set", f"training.steps={steps}")
        assert code == 0, err
    runs = sorted(str(path) for path in Path("runs").iterdir())
    assert runs == [f"runs/first-term-smoke-training.steps={steps}" for steps in ("20", "30")]
    _, rows = parse_latex(command("table", *runs, "--format", "latex")[1])
    assert len(rows) == 2
    listed = command("runs", "runs")[1]
    assert all(run in listed for run in runs)
    code, _, err = command(*words, "--set", "training.steps=20", "--vary", "training.optimizer.lr=1e-2,1e-3")
    assert (code, err.count("\n")) == (2, 1)
    assert "--set must be given without --vary, but got both; write --vary training.steps=20" in err
    code, _, err = command(*words, "--set", "training.stepz=20")
    assert (code, err.count("\n")) == (2, 1)
    assert "training.stepz" in err
