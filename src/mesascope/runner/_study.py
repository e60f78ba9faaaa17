"""Execution of a study up to its verdicts."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import xarray as xr

from mesascope.checksums import VERDICTS_HINT, read_verdict_rows
from mesascope.runner._callbacks import Executor, FolderExecutor, ProgressCallback
from mesascope.runner._description import describe_run
from mesascope.runner._dry_run import check_readings
from mesascope.runner._job_states import JobStates
from mesascope.runner._jobs import (
    SimulationJob,
    TrainingJob,
    group_label,
    job_label,
    prepare_task_data,
    run_job,
    train_seed_group,
)
from mesascope.runner._preflight import StudyInvalid, check_models
from mesascope.runner._results import (
    gather_conditions,
    gather_simulations,
    load_finished_job,
    load_finished_results,
)
from mesascope.runner._texts import check_texts
from mesascope.store import Run, RunError, do_nothing
from mesascope.studies.base import SCALES, Study
from mesascope.studies.cell_names import Cell, format_cell, parse_cell, split_reference
from mesascope.studies.cells import CELLS_FOLDER
from mesascope.studies.registry import load_study
from mesascope.studies.verdicts import Verdict, judge_claims
from mesascope.train import ParallelStrategy, validate_parallel
from mesascope.train.population import unsupported_reason

POPULATION_DEVICES = ("cuda",)  # device types on which the seeds of a condition are trained as one program


@dataclass(frozen=True, kw_only=True)
class _CellStudy:
    """A study in one cell of its factors."""

    name: str
    levels: Cell
    study: Study
    is_own: bool  # the study's own setting


@dataclass(frozen=True, kw_only=True)
class _CellRun:
    """The run of a study in one cell of its factors."""

    reference: str  # loads the study in any process
    study: Study
    run: Run


def run_study(
    name: str,
    *,
    scale: str,
    seeds: int | None,
    path: Path,
    device: str,
    executor: Executor,
    progress: ProgressCallback,
    varied: Mapping[str, Sequence[str]] | None = None,
    strategy: ParallelStrategy | None = None,
) -> Run:
    """Run a study up to its verdicts, or resume a run that was stopped.

    The directory holds the study in its own setting; every other cell of its grid is a run of its own under ``cells/``.
    The jobs of all cells are run together.

    Args:
        name: The name of a study, or a ``.py`` file that defines ``STUDY``; ``NAME[FACTOR=LEVEL,...]`` is one cell.
        scale: smoke, laptop or paper.
        seeds: Number of training replicates; the default of the scale if None.
        path: The run's directory.
        device: The device for training and analysis.
        executor: Runs the jobs.
        progress: Receives progress updates.
        varied: Names of levels, by the name of a factor; the study's grid at the scale if None.
        strategy: How all processes of the default process group train each model together; None to train each in one.

    Returns:
        The run, with its results and verdicts.

    Raises:
        ValueError: If the study, the scale, the number of seeds, a factor or a level is invalid.
        RunError: If the directory cannot be used.
        TrainingDiverged: If a loss or gradient is not finite.
    """
    if scale not in SCALES:
        raise ValueError(f"a scale must be one of {', '.join(SCALES)}, but got {scale!r}")
    study = _load_at_scale(name, scale)
    replicates = study.select_seeds(scale, seeds)
    if not replicates:
        raise ValueError(f"seeds must be 1 or more, but got {seeds}; pass the number of models to train")
    if isinstance(executor, FolderExecutor):
        executor = executor.in_run(path, load_finished_job)
    cell_studies = [_select_cell(study, cell, scale) for cell in study.list_cells(scale, varied)]
    cell_paths = [path if one.is_own else path / CELLS_FOLDER / one.name for one in cell_studies]
    if not (path / "run.json").exists():  # a resumed run has been checked
        check_texts(study, study.name)
    if strategy is not None:
        for one in cell_studies:
            _check_parallel(one.study, scale, strategy, _label_cell(name, study, one))
    for one, cell_path in zip(cell_studies, cell_paths, strict=True):
        if not (cell_path / "run.json").exists():
            label = _label_cell(name, study, one)
            check_models(one.study, scale, label)
            if scale != "smoke":  # which itself takes seconds
                check_readings(one.study, scale, label)
    with ExitStack() as stack:
        cells = []
        for one, cell_path in zip(cell_studies, cell_paths, strict=True):
            run = Run.create(cell_path, describe_run(one.study, scale, replicates))
            reference = name if one.is_own else f"{name}[{one.name}]"
            cells.append(_CellRun(reference=reference, study=one.study, run=run))
            stack.enter_context(run.exclusive_lock())
        _run_cells(cells, scale, replicates, device, executor, progress, strategy)
    return cells[0].run


def _load_at_scale(name: str, scale: str) -> Study:
    """Load a study, and refuse settings that are invalid at the scale."""
    base, cell = split_reference(name)
    return load_study(base).at_cell(parse_cell(cell), scale) if cell else load_study(name)


def _check_parallel(study: Study, scale: str, strategy: ParallelStrategy, label: str) -> None:
    """Raise if the processes of the default process group cannot train the models of a study together."""
    for condition in study.conditions:
        try:
            validate_parallel(
                condition.model_at(scale), condition.scales[scale].training, dist.get_world_size(), strategy
            )
        except ValueError as error:
            where = f"the condition {condition.name}" if condition.name else "the main condition"
            raise StudyInvalid(f"{label}, {where}: {error}") from error


def _select_cell(study: Study, cell: Cell, scale: str) -> _CellStudy:
    """Return the study in a cell; the study itself in its own setting."""
    name = format_cell(cell)
    is_own = name in ("", study.cell)
    return _CellStudy(name=name, levels=cell, study=study if is_own else study.at_cell(cell, scale), is_own=is_own)


def _label_cell(name: str, study: Study, cell: _CellStudy) -> str:
    """Return what messages call the study in a cell: its name, and the levels and values that a user chose."""
    settings = split_reference(name)[1]
    own = parse_cell(study.cell) if study.factors else {}
    levels = format_cell({factor: level for factor, level in cell.levels.items() if own.get(factor) != level})
    changed = ",".join(filter(None, [settings, levels]))
    base = study.name.partition("[")[0]
    return f"{base} with {changed}" if changed else base


def _run_cells(
    cells: Sequence[_CellRun],
    scale: str,
    seeds: Sequence[int],
    device: str,
    executor: Executor,
    progress: ProgressCallback,
    strategy: ParallelStrategy | None,
) -> None:
    """Compute the results that are missing, of all cells together, and write the verdicts of every cell."""
    results: dict[str, dict[str, xr.Dataset]] = {}
    for cell in cells:
        _prepare_data(cell.study, scale, cell.run, progress)
        found = load_finished_results(cell.study, scale, cell.run, seeds, progress.log_message)
        results |= {cell.reference: found} if found is not None else {}
    missing = [cell for cell in cells if cell.reference not in results]
    if missing:
        start_time = time.perf_counter()
        results |= _compute_results(missing, scale, seeds, device, executor, progress, strategy)
        seconds = {"training and analysis": round(time.perf_counter() - start_time, 1)}  # of all missing cells
        for cell in missing:
            cell.run.write_seconds(seconds)
    for cell in cells:
        _report_damaged_verdicts(cell.run, progress)
        verdicts = judge_claims(cell.study.claims, results[cell.reference], scale)
        cell.run.write_json("verdicts", [verdict.as_json() for verdict in verdicts])


def _report_damaged_verdicts(run: Run, progress: ProgressCallback) -> None:
    """Log one line if the verdicts are damaged; they are judged again in any case."""
    if (run.path / "verdicts.json").exists():
        try:
            run.read_json("verdicts")
        except RunError as damage:
            progress.log_message(f"{str(damage).partition(';')[0]}; the claims are judged again")


def _prepare_data(study: Study, scale: str, run: Run, progress: ProgressCallback) -> None:
    """Prepare the tasks of all conditions; what they log is stored as notes of the run and shown to the user."""
    notes: list[str] = []
    for condition in study.conditions:
        prepare_task_data(study, condition, scale, run, notes.append)
    if notes != run.record.get("notes", []):
        run.write_notes(notes)
    for line in notes:
        progress.log_message(line)


def _list_jobs(
    cell: _CellRun, scale: str, seeds: Sequence[int], device: str, strategy: ParallelStrategy | None
) -> tuple[list[TrainingJob], list[SimulationJob]]:
    study, path = cell.study, cell.run.path
    jobs = [
        TrainingJob(
            study=cell.reference,
            scale=scale,
            seed=seed,
            condition=condition.name,
            path=path,
            device=device,
            strategy=strategy,
        )
        for condition in study.conditions
        for seed in seeds
    ]
    simulation_jobs = [
        SimulationJob(study=cell.reference, scale=scale, seed=seed, simulation=simulation.name, path=path)
        for simulation in study.simulations
        for seed in seeds
    ]
    return jobs, simulation_jobs


def _compute_results(
    cells: Sequence[_CellRun],
    scale: str,
    seeds: Sequence[int],
    device: str,
    executor: Executor,
    progress: ProgressCallback,
    strategy: ParallelStrategy | None,
) -> dict[str, dict[str, xr.Dataset]]:
    """Run the jobs of all cells, and write their results; return them by the reference of the cell."""
    jobs_by_cell = [_list_jobs(cell, scale, seeds, device, strategy) for cell in cells]
    if strategy is None:
        for cell, (jobs, _) in zip(cells, jobs_by_cell, strict=True):
            _train_seed_groups(cell.study, jobs, executor, progress)
    all_jobs = [job for pair in jobs_by_cell for kind in pair for job in kind]
    progress.start_stage("training and analysis", [job_label(job) for job in all_jobs])
    states = JobStates(all_jobs, {str(cell.run.path): cell.run for cell in cells}, progress)
    outcomes = iter(executor.map_jobs(run_job, all_jobs, progress.update_part, progress.log_message, states))
    results = {}
    for cell, (jobs, simulation_jobs) in zip(cells, jobs_by_cell, strict=True):
        trained, simulated = (list(islice(outcomes, len(kind))) for kind in (jobs, simulation_jobs))
        results[cell.reference] = gather_conditions(cell.study, scale, cell.run, jobs, trained) | gather_simulations(
            cell.study, scale, cell.run, simulation_jobs, simulated
        )
    return results


def _train_seed_groups(
    study: Study, jobs: Sequence[TrainingJob], executor: Executor, progress: ProgressCallback
) -> None:
    """Train the seeds of each condition as one program, where the device makes that faster."""
    if torch.device(jobs[0].device).type not in POPULATION_DEVICES:
        return
    groups = [
        [job for job in jobs if job.condition == condition.name]
        for condition in study.conditions
        if not unsupported_reason(condition.scales[jobs[0].scale].training, condition.model_at(jobs[0].scale))
    ]
    groups = [group for group in groups if len(group) > 1]
    if groups:
        progress.start_stage("joint training", [group_label(group) for group in groups])
        executor.map_jobs(train_seed_group, groups, progress.update_part, progress.log_message, do_nothing)


def load_verdicts(run: Run) -> list[Verdict]:
    """Load the verdicts of a run.

    Args:
        run: The run.

    Returns:
        One verdict per claim.

    Raises:
        RunError: If the run has no verdicts, or they are damaged.
    """
    try:
        return [Verdict.from_json(row) for row in read_verdict_rows(run.path)]
    except TypeError as error:
        raise RunError(
            f"{run.path / 'verdicts.json'} must have the fields of verdicts, but does not ({error}); {VERDICTS_HINT}"
        ) from error
