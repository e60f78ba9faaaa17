"""Reads a run directory into plain values; what cannot be read is named, never skipped."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

VERSIONS = ("mesascope", "torch", "transformers", "numpy", "python")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One file of results: the Dataset, or the reason why it could not be read."""

    file: str
    data: xr.Dataset | None
    problem: str = ""

    @property
    def title(self) -> str:
        """The heading its author gave it, else the name of the file."""
        given = self.data.attrs.get("title") if self.data is not None else None
        return str(given or Path(self.file).stem.replace("_", " "))

    @property
    def place(self) -> tuple[float, str]:
        """Where it stands on the page: by ``order``, then by name; unreadable files come last."""
        return (float("inf") if self.data is None else _number(self.data.attrs.get("order")), self.file)


@dataclass(frozen=True, kw_only=True)
class Record:
    """All that a page is made from; logs by setting (its own without a name), then by seed."""

    path: Path
    run: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)
    verdicts: Sequence[Mapping[str, Any]] = ()
    logs: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]] = field(default_factory=dict)
    results: Sequence[Result] = ()
    problems: Sequence[str] = ()


def read(run: Path) -> Record:
    """Read a run directory.

    Raises:
        FileNotFoundError: there is no ``run.json``, so this is not a run.
        ValueError: ``run.json`` is not a JSON object.
    """
    path = Path(run)
    if not (path / "run.json").is_file():
        raise FileNotFoundError(f"a run directory must hold run.json, but {path} does not; give the folder of a run")
    problems: list[str] = []
    about = _json(path / "run.json", problems)
    if not isinstance(about, dict):
        raise ValueError(f"run.json must be a JSON object, but {path / 'run.json'} is not: {' '.join(problems)}")
    verdicts = _json(path / "verdicts.json", problems) if (path / "verdicts.json").exists() else []
    results = sorted((_result(file) for file in (path / "results").glob("*.nc")), key=lambda one: one.place)
    problems += [f"results/{one.file}: {one.problem}" for one in results if one.problem]
    return Record(
        path=path,
        run=_told(about, path, problems),
        model=_facts(path / "model.json", problems),
        verdicts=_records(verdicts, problems),
        logs=_logs(path, problems),
        results=results,
        problems=problems,
    )


def _told(about: dict[str, Any], path: Path, problems: list[str]) -> dict[str, Any]:
    """What ``run.json`` says, its provenance beside the rest, and what the stages took."""
    provenance = about.get("provenance")
    if not isinstance(provenance, dict):
        return about
    versions = {name: provenance[name] for name in VERSIONS if provenance.get(name)}
    timed = path / "seconds.json"
    seconds = _json(timed, problems) if timed.exists() else None
    return {**provenance, "versions": versions, "seconds": seconds, **about}


def _json(file: Path, problems: list[str]) -> Any:
    """The value in a file, or None and a named problem."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{file.name} could not be read: {error}")
        return None


def _facts(file: Path, problems: list[str]) -> Mapping[str, Any]:
    """What is known of the model, if anything was written down."""
    found = _json(file, problems) if file.exists() else {}
    if isinstance(found, dict) or found is None:
        return found or {}
    problems.append(f"{file.name} must hold an object, but does not")
    return {}


def _records(found: Any, problems: list[str]) -> list[Mapping[str, Any]]:
    """The verdicts that are objects; anything else is a problem."""
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        problems.append("verdicts.json must hold a list of objects, but does not")
        return []
    return found


def _result(file: Path) -> Result:
    """One netCDF file, loaded and closed."""
    try:
        return Result(file=file.name, data=xr.load_dataset(file, engine="netcdf4"))
    except Exception as error:  # a damaged file fails in any way at all; the page names it
        return Result(file=file.name, data=None, problem=f"{type(error).__name__}: {error}")


def _logs(path: Path, problems: list[str]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """The training logs of every setting, by seed, in the order of the seeds' numbers."""
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    files = [*sorted(path.glob("models/seed=*/log.csv")), *sorted(path.glob("models/*/seed=*/log.csv"))]
    for file in sorted(files, key=lambda file: len(file.parent.name)):
        seed, arm = file.parent.name.removeprefix("seed="), file.parents[1].name
        try:
            log = _log(file)
        except (OSError, ValueError, csv.Error) as error:
            problems.append(f"{file.relative_to(path)} could not be read: {error}")
            continue
        if len(log.get("step", ())):
            found.setdefault("" if arm == "models" else arm, {})[seed] = log
    return dict(sorted(found.items()))


def _log(file: Path) -> dict[str, np.ndarray]:
    """The columns of a log; a cell that is no number is NaN, as is a line cut short."""
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    names = [name for name in (rows[0] if rows else {}) if name]
    columns = {name: np.array([_number(row.get(name), np.nan) for row in rows]) for name in names}
    kept = np.isfinite(columns.get("step", np.empty(0)))
    return {name: column[kept] for name, column in columns.items()}


def _number(value: Any, otherwise: float = 1e6) -> float:
    """A float, or what stands for a missing one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return otherwise
