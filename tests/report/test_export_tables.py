"""Tables of a report and values of results as DataFrames, and on the command line."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import mesascope
from mesascope.report import render_report
from mesascope.report.export import tabulate_results
from mesascope.store import Run, RunError


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with a result of numbers, booleans and text on different axes."""
    run = Run.create(tmp_path / "run", {"study": "mine", "title": "Mine", "parameters": {"task": {"length": 8}}})
    score = xr.DataArray(
        [[0.1, np.nan], [0.3, 1e-9]], dims=("layer", "stat"), coords={"stat": ["a,b", "c|d"]}, attrs={"units": "nat"}
    )
    data = {"score": score, "has_role": ("layer", [True, False]), "name": ((), "x & y"), "mean": 0.5}
    run.write_results("roles", xr.Dataset(data, attrs={"title": "Roles"}))
    return run


def test_results_have_one_row_for_each_value_of_each_variable(run: Run):
    table = tabulate_results([run.path], ["roles"])
    assert table.columns.tolist() == ["run", "result", "variable", "layer", "stat", "value", "units"]
    assert table["variable"].value_counts().to_dict() == {"score": 4, "has_role": 2, "name": 1, "mean": 1}
    score = table[table["variable"] == "score"]
    assert score["layer"].tolist() == [0, 0, 1, 1]
    assert score["stat"].tolist() == ["a,b", "c|d"] * 2
    np.testing.assert_array_equal(score["value"].astype(float), run["roles"]["score"].values.ravel())
    assert score["units"].unique().tolist() == ["nat"]
    assert table[table["variable"] == "name"]["value"].tolist() == ["x & y"]


def test_one_variable_of_several_runs_is_one_table(run: Run, command):
    code, printed, _ = command("table", run.path, run.path, "--results", "roles.score")
    assert code == 0
    read = pd.read_csv(io.StringIO(printed))
    assert read.columns.tolist() == ["run", "result", "variable", "layer", "stat", "value", "units"]
    np.testing.assert_array_equal(read["value"], [0.1, np.nan, 0.3, 1e-9] * 2)
    assert read["stat"].tolist() == ["a,b", "c|d"] * 4
    assert r"c\|d" in command("table", run.path, "--results", "roles.score", "--format", "markdown")[1]


def test_every_table_of_a_report_is_a_data_frame(run: Run, study_run: Path, command):
    tables = mesascope.tables(run)
    assert {"environment", "parameters", "roles-name"} <= set(tables)
    assert tables["parameters"].to_dict("records") == [{"group": "task", "name": "length", "value": "8"}]
    assert tables["roles-name"]["value"].tolist() == ["x␣&␣y"]
    shown = render_report(study_run)
    for name, table in mesascope.tables(study_run).items():
        assert isinstance(table, pd.DataFrame), name
        assert len(table), name
        if name not in ("verdicts", "cells"):
            assert str(table.iloc[0, -1]).replace("&", "&amp;") in shown, name
    code, printed, _ = command("table", run.path, "--name", "roles-name", "--format", "latex")
    assert code == 0
    assert r"x␣\&␣y" in printed


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--results", "rolls"], "results must be one of ['roles'], but got 'rolls'"),
        (["--results", "roles.scare"], "variables of roles must be among has_role, mean, name, score, but got 'scare'"),
        (["--results", ","], "results must be named, but none is"),
        (["--name", "verdict"], "a table must be one of environment, parameters, roles-"),
        (["--name", "roles-name", "--results", "roles"], "--name must be given with one run and without --results"),
        (["--results", "roles", "--format", "xml"], "a format must be one of csv, markdown, latex, but got 'xml'"),
    ],
)
def test_a_mistake_is_one_line(run: Run, command, words: list[str], line: str):
    code, printed, err = command("table", run.path, *words)
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert line in err


def test_a_damaged_result_is_refused(run: Run):
    file = run.path / "results/roles.nc"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"roles\.nc"):
        tabulate_results([run.path], ["roles"])
