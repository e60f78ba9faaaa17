"""Tables of a report, and the values of results, as pandas DataFrames."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from mesascope.report import run_info, run_tables
from mesascope.report.export.figures import format_name
from mesascope.report.load_run import RunRecord, load_run
from mesascope.report.panels.choose_view import build_panels
from mesascope.report.plotting.figure import Panel
from mesascope.store import LogFn, Run, do_nothing
from mesascope.studies.cells import OWN_SETTING, load_cells, tabulate_claims
from mesascope.studies.verdict_table import collect_verdicts


def collect_tables(run_dir: Path, log: LogFn = do_nothing) -> dict[str, pd.DataFrame]:
    """Return every table that the report of a run shows.

    Args:
        run_dir: the run directory.
        log: receives one line for each file that is damaged or cannot be read.

    Returns:
        Tables by name: ``verdicts`` and ``cells`` of a study, ``model``, ``parameters``, ``environment`` and
        ``timings`` where they are recorded, and ``RESULT-VARIABLE`` for the tables of results, as text.

    Raises:
        RunError: if ``run.json`` or the verdicts are damaged.
    """
    record = load_run(run_dir)
    for problem in record.problems:
        log(problem)
    tables = _tabulate_verdicts(record) | _tabulate_record(record)
    for result in record.results:
        for panel in build_panels(result.data) if result.data is not None else []:
            if panel.kind == "table":
                tables[format_name([f"{Path(result.file).stem}-{panel.name}"])] = _tabulate_panel(panel)
    return tables


def select_table(run_dir: Path, name: str, log: LogFn = do_nothing) -> pd.DataFrame:
    """Return one table of the report of a run.

    Args:
        run_dir: the run directory.
        name: its name, as in :func:`collect_tables`.
        log: receives one line for each file that is damaged or cannot be read.

    Raises:
        RunError: if ``run.json`` or the verdicts are damaged.
        ValueError: if there is no such table.
    """
    tables = collect_tables(run_dir, log)
    if name not in tables:
        raise ValueError(f"a table must be one of {', '.join(tables) or 'none'}, but got {name!r}")
    return tables[name]


def tabulate_results(run_dirs: Sequence[Path], names: Sequence[str]) -> pd.DataFrame:
    """Return the values of results, one row for each value.

    Args:
        run_dirs: the run directories.
        names: results, such as ``similarity``, or single variables, such as ``similarity.score``.

    Returns:
        The columns ``run``, ``result`` and ``variable``, one column for each axis with its labels (or indices), in
        the order in which axes occur, and ``value`` and ``units``. An axis that a variable does not have is empty.

    Raises:
        RunError: if a run or a result is missing or damaged.
        ValueError: if no result is named, or there is no such variable.
    """
    if not names:
        raise ValueError("results must be named, but none is; pass names such as similarity or similarity.score")
    parts = [
        _tabulate_variable(variable, {"run": str(path), "result": result, "variable": str(variable.name)})
        for path in run_dirs
        for result, variable in _select_variables(Run.open(path), names)
    ]
    table = pd.concat(parts, ignore_index=True)
    labels = [name for name in table.columns if name not in ("value", "units")]
    return table.reindex(columns=[*labels, "value", "units"])


def _select_variables(run: Run, names: Sequence[str]) -> list[tuple[str, xr.DataArray]]:
    """Return the variables with the given names, each with the name of its result."""
    variables: list[tuple[str, xr.DataArray]] = []
    for name in names:
        result, _, variable = (name, "", "") if name in run.result_names() else name.partition(".")
        data = run.read_results(result)
        if variable and variable not in data.data_vars:
            raise ValueError(
                f"variables of {result} must be among {', '.join(map(str, data.data_vars))}, but got {variable!r}"
            )
        variables += [(result, data[one]) for one in ([variable] if variable else map(str, data.data_vars))]
    return variables


def _tabulate_variable(variable: xr.DataArray, about: Mapping[str, str]) -> pd.DataFrame:
    axes = [str(dim) for dim in variable.dims]
    labels = [variable[axis].values if axis in variable.coords else range(variable.sizes[axis]) for axis in axes]
    index = pd.MultiIndex.from_product(labels, names=axes) if axes else pd.RangeIndex(1)
    frame = index.to_frame(index=False) if axes else pd.DataFrame(index=index)
    for column, (name, text) in enumerate(about.items()):
        frame.insert(column, name, text)
    values = variable.values.ravel().astype(object)  # so that numbers, booleans and text may stand in one column
    return frame.assign(value=values, units=str(variable.attrs.get("units", "")))


def _tabulate_verdicts(record: RunRecord) -> dict[str, pd.DataFrame]:
    cells = load_cells(record.path)
    if not cells:
        return {}
    tables = {"verdicts": collect_verdicts([record.path])}
    if len(cells) > 1:
        rows = [
            {
                "claim": one.statement,
                "cells": one.support,
                **{cell or OWN_SETTING: status for cell, status in one.statuses.items()},
            }
            for one in tabulate_claims(cells)
        ]
        tables["cells"] = pd.DataFrame(rows)
    return tables


def _tabulate_record(record: RunRecord) -> dict[str, pd.DataFrame]:
    """Return the tables on the model, the parameters, the environment and the timings."""
    groups = run_tables.tabulate_parameters(record.run)
    parameters = [(group, name, value) for group, rows in groups for name, value in rows]
    facts = run_info.summarize_model(record.run, record.model)
    recorded = {
        "model": [*facts, *(row for _, rows in run_tables.tabulate_model(record.model) for row in rows)],
        "environment": run_tables.tabulate_environment(record.run),
        "timings": run_tables.tabulate_timings(record.run),
    }
    tables = {name: pd.DataFrame(rows, columns=["name", "value"]) for name, rows in recorded.items() if rows}
    if parameters:
        tables["parameters"] = pd.DataFrame(parameters, columns=["group", "name", "value"])
    return tables


def _tabulate_panel(panel: Panel) -> pd.DataFrame:
    """Return a table of results as it is shown."""
    units: Any = panel.data["units"]
    names = [f"{name} ({units})" if name == "mean" and units else name for name in panel.data["head"]]
    return pd.DataFrame(panel.data["rows"], columns=names)
