"""Loading of a run directory into plain values. Files that cannot be read are reported, never skipped silently."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mesascope.checksums import RunError, read_verdict_rows
from mesascope.report.formula_problems import find_formula_problems
from mesascope.report.sections import section_rank
from mesascope.store import Run
from mesascope.studies.cells import load_cells

NO_CHECKSUMS = "this run was written by an older version without checksums, so damage to its files cannot be detected"
VERSION_KEYS = ("mesascope", "torch", "transformers", "numpy", "python")


@dataclass(frozen=True, kw_only=True)
class ResultFile:
    """A result file: its Dataset, or the reason why it could not be read."""

    file: str
    data: xr.Dataset | None
    problem: str = ""

    @property
    def title(self) -> str:
        """The attribute ``title`` of the Dataset; the file name if there is none."""
        given = self.data.attrs.get("title") if self.data is not None else None
        return str(given or Path(self.file).stem.replace("_", " "))

    @property
    def sort_key(self) -> tuple[float, str]:
        """The sort key on the page: the position of its section, then the file name. Unreadable files sort last."""
        if self.data is None:
            return float("inf"), self.file
        analysis, simulation = (str(self.data.attrs.get(name, "")) for name in ("analysis", "simulation"))
        return section_rank(analysis, simulation), self.file


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The contents of a run directory.

    Attributes:
        path: the run directory.
        run: ``run.json`` merged with its provenance and the seconds of each stage.
        model: ``model.json``; empty if there is none.
        verdicts: the verdicts of the claims; empty for an inspection.
        logs: the columns of each training log, by condition (``""`` for the study's own), then by seed.
        results: the result files in page order.
        problems: one message for each file that could not be read.
    """

    path: Path
    run: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)
    verdicts: Sequence[Mapping[str, Any]] = ()
    logs: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]] = field(default_factory=dict)
    results: Sequence[ResultFile] = ()
    problems: Sequence[str] = ()


def load_run(run_dir: Path) -> RunRecord:
    """Load a run directory.

    Args:
        run_dir: the run directory; only ``run.json`` is required.

    Returns:
        Everything that the report needs. Files that cannot be read are listed in its ``problems``.

    Raises:
        RunError: if ``run.json`` is missing or damaged.
    """
    run = Run.open(run_dir)
    path, problems = run.path, [] if run.has_checksums else [NO_CHECKSUMS]
    names = sorted({*run.result_names(), *run.listed_results()})
    results = sorted((_load_result(run, name) for name in names), key=lambda one: one.sort_key)
    problems += [f"results/{one.file}: {one.problem}" for one in results if one.problem]
    verdicts, logs = _read_verdicts(run, problems), _read_training_logs(run, problems)
    problems += _find_damaged_cells(path, problems)
    record = {key: value for key, value in run.record.items() if key != "format"}
    problems += find_formula_problems(record, verdicts, results)
    return RunRecord(
        path=path,
        run=_merge_provenance(record, run, problems),
        model=_read_object(run, "model", problems),
        verdicts=verdicts,
        logs=logs,
        results=results,
        problems=problems,
    )


def _merge_provenance(run_info: dict[str, Any], run: Run, problems: list[str]) -> dict[str, Any]:
    provenance = run_info.get("provenance")
    if not isinstance(provenance, dict):
        return run_info
    versions = {name: provenance[name] for name in VERSION_KEYS if provenance.get(name)}
    return {**provenance, "versions": versions, "seconds": _read_seconds(run, problems), **run_info}


def _read_seconds(run: Run, problems: list[str]) -> dict[str, Any]:
    file = run.path / "seconds.json"
    if not run.has_checksums or not file.exists():
        return _read_object(run, "seconds", problems)
    try:
        return run.read_seconds()
    except RunError as error:
        problems.append(f"seconds.json could not be read: {error}")
        return {}


def _read_object(run: Run, name: str, problems: list[str]) -> dict[str, Any]:
    """Return a JSON object; empty if there is no such file, or after appending a message to ``problems``."""
    if not (run.path / f"{name}.json").exists():
        return {}
    try:
        value = run.read_json(name)
    except RunError as error:
        problems.append(f"{name}.json could not be read: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{name}.json must contain a JSON object, but does not")
        return {}
    return value


def _read_verdicts(run: Run, problems: list[str]) -> list[dict[str, Any]]:
    if not (run.path / "verdicts.json").exists():
        return []
    try:
        return read_verdict_rows(run.path, run.record)
    except RunError as error:
        problems.append(f"verdicts.json could not be read: {error}")
        return []


def _find_damaged_cells(path: Path, problems: list[str]) -> list[str]:
    """Return a message if the verdicts of a cell are damaged, unless it is among the problems already."""
    try:
        load_cells(path)
    except RunError as error:
        return [] if any(str(error) in problem for problem in problems) else [str(error)]
    return []


def _load_result(run: Run, name: str) -> ResultFile:
    try:
        return ResultFile(file=f"{name}.nc", data=run.read_results(name))
    except RunError as error:
        return ResultFile(file=f"{name}.nc", data=None, problem=str(error))


def _read_training_logs(run: Run, problems: list[str]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Return the columns of every training log, by condition, then by seed in numerical order."""
    logs: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    path = run.path
    found = {file.with_suffix(".csv") for depth in ("", "*/") for file in path.glob(f"models/{depth}seed=*/log.*")}
    for file in sorted(sorted(found), key=lambda file: len(file.parent.name)):
        seed, condition = file.parent.name.removeprefix("seed="), file.parents[1].name
        models = run.for_condition("" if condition == "models" else condition)
        try:
            log = models.read_log(int(seed)) if run.has_checksums else _read_log(file)
        except (OSError, ValueError, csv.Error) as error:
            problems.append(f"{file.relative_to(path)} could not be read: {error}")
            continue
        if len(log.get("step", ())):
            logs.setdefault("" if condition == "models" else condition, {})[seed] = log
    return dict(sorted(logs.items()))


def _read_log(file: Path) -> dict[str, np.ndarray]:
    """Return the columns of a log. Cells that are not numbers become NaN; rows without a finite step are dropped."""
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    names = [name for name in (rows[0] if rows else {}) if name]
    columns = {name: np.array([_to_float(row.get(name), np.nan) for row in rows]) for name in names}
    has_step = np.isfinite(columns.get("step", np.empty(0)))
    return {name: column[has_step] for name, column in columns.items()}


def _to_float(value: Any, default: float = 1e6) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return default
