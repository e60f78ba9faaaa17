"""State of every job of a run, read from its folder without importing torch."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mesascope.checksums import RunError, identify_run, is_older_format, parse_json, read_listed, read_run_record
from mesascope.folder_locks import find_lock_holder
from mesascope.studies.cells import CELLS_FOLDER, OWN_SETTING

STATES = ("waiting", "training", "stopped", "trained", "analysed", "set aside")
TAIL_BYTES = 4096  # of log.csv, which has one line per step


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """The state of one job.

    Attributes:
        cell: The cell of the study's factors; empty without factors.
        condition: The condition, or the toy model; empty for the main condition.
        seed: The training replicate.
        state: ``waiting``, ``training`` (a process works on it), ``stopped`` (trained in part), ``trained``,
            ``analysed``, or ``set aside`` (it ended too many worker processes).
        step: Training steps that are stored.
        steps: Training steps in total; 0 for a toy model.
    """

    cell: str
    condition: str
    seed: int
    state: str
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The state of a run.

    Attributes:
        path: The directory.
        study: The name of the study.
        scale: The name of the scale.
        holder: The process that uses the run; None if no process does.
        seconds_since_change: Seconds since a file of a model or a result changed.
        jobs: The state of every job of every cell that has been started.
    """

    path: str
    study: str
    scale: str
    holder: str | None
    seconds_since_change: float
    jobs: tuple[JobStatus, ...]

    @property
    def counts(self) -> dict[str, int]:
        """The number of jobs in each state that occurs."""
        states = [job.state for job in self.jobs]
        return {state: states.count(state) for state in STATES if state in states}

    def as_json(self) -> dict[str, Any]:
        """Return the status in JSON types."""
        return asdict(self)


def read_run_status(path: Path) -> RunStatus:
    """Read the state of a run of a study.

    Args:
        path: The directory of the run.

    Returns:
        The state of every job.

    Raises:
        RunError: If there is no run of a study, or its ``run.json`` is damaged.
    """
    record = read_run_record(path)
    if not isinstance(record.get("seeds"), list) or not isinstance(record.get("parameters"), dict):
        raise RunError(f"a status must be that of a run of a study, but {path} holds another run; see `mesascope runs`")
    folders = [path, *(file.parent for file in sorted((path / CELLS_FOLDER).glob("*/run.json")))]
    records = [record, *map(read_run_record, folders[1:])]
    jobs = [job for folder, one in zip(folders, records, strict=True) for job in _list_jobs(folder, one)]
    return RunStatus(
        path=str(path),
        study=str(record.get("study")),
        scale=str(record.get("scale")),
        holder=find_lock_holder(path),
        seconds_since_change=round(time.time() - max(map(_last_change, folders)), 1),
        jobs=tuple(jobs),
    )


def _list_jobs(folder: Path, record: Mapping[str, Any]) -> Iterator[JobStatus]:
    """Yield the state of every job of one cell."""
    parameters, cell = record["parameters"], str(record.get("cell", ""))
    cell = cell or (OWN_SETTING if folder.parent.name != CELLS_FOLDER and (folder / CELLS_FOLDER).is_dir() else "")
    others = {
        name: one
        for name, one in parameters.items()
        if isinstance(one, dict) and {"training", "toy model"} & one.keys()
    }
    stored = _find_stored(folder / "parts", others)
    is_judged = (folder / "verdicts.json").exists()
    set_aside = _read_set_aside(folder, record)
    for name, one in {"": parameters, **others}.items():
        steps = int(one["training"]["steps"]) if "training" in one else 0
        for seed in record["seeds"]:
            models = folder / "models" / name / f"seed={seed}"
            step = _read_step(models / "log.csv") if steps else 0
            is_stored = is_judged or (name, str(seed)) in stored
            state = _find_state(models, step, steps, is_stored)
            if (name, seed) in set_aside and state != "analysed":
                state = "set aside"
            yield JobStatus(cell=cell, condition=name, seed=seed, state=state, step=step, steps=steps)


def _find_state(models: Path, step: int, steps: int, is_stored: bool) -> str:
    if step >= steps and is_stored:
        return "analysed"
    if steps and find_lock_holder(models) is not None:
        return "training"
    return "waiting" if step == 0 else "stopped" if step < steps else "trained"


def _find_stored(folder: Path, others: Iterable[str]) -> set[tuple[str, str]]:
    """Return condition or toy model, and seed, of every partial result; the name of the main condition is empty."""
    stored = set()
    for file in folder.glob("*-seed=*.part"):
        result, _, seed = file.name.removesuffix(".part").rpartition("-seed=")
        owners = [name for name in others if result == name or result.startswith(f"{name}_")]
        stored |= {(name, seed) for name in owners or [""]}
    return stored


def _read_step(log: Path) -> int:
    """Return the number of training steps in a log; 0 if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
        return int(lines[-1].partition(b",")[0]) + 1
    except (OSError, IndexError, ValueError):  # no log, no line, or only the header
        return 0


def _read_set_aside(folder: Path, record: Mapping[str, Any]) -> set[tuple[str, int]]:
    file = folder / "set_aside.json"
    if not file.exists() or is_older_format(record):
        return set()
    hint = "run again to try these jobs again"
    rows = parse_json(read_listed(file, identify_run(record), hint), file, hint)
    return {(row.get("condition", row.get("simulation", "")), row["seed"]) for row in rows}


def _last_change(folder: Path) -> float:
    """Return the time at which a job last changed a file of a run."""
    patterns = (
        "run.json",
        "verdicts.json",
        "parts",
        "models/seed=*/log.csv",
        "models/*/seed=*/log.csv",
        "models/*/seed=*",
    )
    return max((file.stat().st_mtime for pattern in patterns for file in folder.glob(pattern)), default=0.0)
