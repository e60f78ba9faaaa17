"""Loading of a run directory into plain values. Files that cannot be read are reported, never skipped silently."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.sections import section_rank

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
        FileNotFoundError: if there is no ``run.json``.
        ValueError: if ``run.json`` is not a JSON object.
    """
    path = Path(run_dir)
    if not (path / "run.json").is_file():
        raise FileNotFoundError(f"a run directory must contain run.json, but {path} does not; pass a run directory")
    problems: list[str] = []
    run_info = _read_json(path / "run.json", problems)
    if not isinstance(run_info, dict):
        raise ValueError(f"run.json must be a JSON object, but {path / 'run.json'} is not: {' '.join(problems)}")
    verdicts = _read_json(path / "verdicts.json", problems) if (path / "verdicts.json").exists() else []
    results = sorted((_load_result(file) for file in (path / "results").glob("*.nc")), key=lambda one: one.sort_key)
    problems += [f"results/{one.file}: {one.problem}" for one in results if one.problem]
    return RunRecord(
        path=path,
        run=_merge_provenance(run_info, path, problems),
        model=_read_model_info(path / "model.json", problems),
        verdicts=_validate_verdicts(verdicts, problems),
        logs=_read_training_logs(path, problems),
        results=results,
        problems=problems,
    )


def _merge_provenance(run_info: dict[str, Any], path: Path, problems: list[str]) -> dict[str, Any]:
    provenance = run_info.get("provenance")
    if not isinstance(provenance, dict):
        return run_info
    versions = {name: provenance[name] for name in VERSION_KEYS if provenance.get(name)}
    timings_file = path / "seconds.json"
    seconds = _read_json(timings_file, problems) if timings_file.exists() else None
    return {**provenance, "versions": versions, "seconds": seconds, **run_info}


def _read_json(file: Path, problems: list[str]) -> Any:
    """Return the parsed file, or None after appending a message to ``problems``."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{file.name} could not be read: {error}")
        return None


def _read_model_info(file: Path, problems: list[str]) -> Mapping[str, Any]:
    info = _read_json(file, problems) if file.exists() else {}
    if isinstance(info, dict) or info is None:
        return info or {}
    problems.append(f"{file.name} must contain a JSON object, but does not")
    return {}


def _validate_verdicts(verdicts: Any, problems: list[str]) -> list[Mapping[str, Any]]:
    if verdicts is None:
        return []
    if not isinstance(verdicts, list) or not all(isinstance(one, dict) for one in verdicts):
        problems.append("verdicts.json must contain a list of JSON objects, but does not")
        return []
    return verdicts


def _load_result(file: Path) -> ResultFile:
    try:
        return ResultFile(file=file.name, data=xr.load_dataset(file, engine="netcdf4"))
    except Exception as error:  # a damaged file can raise anything; the page reports it
        return ResultFile(file=file.name, data=None, problem=f"{type(error).__name__}: {error}")


def _read_training_logs(path: Path, problems: list[str]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Return the columns of every training log, by condition, then by seed in numerical order."""
    logs: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    files = [*sorted(path.glob("models/seed=*/log.csv")), *sorted(path.glob("models/*/seed=*/log.csv"))]
    for file in sorted(files, key=lambda file: len(file.parent.name)):
        seed, condition = file.parent.name.removeprefix("seed="), file.parents[1].name
        try:
            log = _read_log(file)
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
