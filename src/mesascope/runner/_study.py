"""Execution of a study up to its verdicts."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
import xarray as xr

from mesascope.runner._callbacks import Executor, ProgressCallback
from mesascope.runner._description import describe_run
from mesascope.runner._jobs import (
    SimulationJob,
    TrainingJob,
    group_label,
    job_label,
    prepare_task_data,
    run_job,
    train_seed_group,
)
from mesascope.runner._results import gather_conditions, gather_simulations, load_finished_results
from mesascope.store import Run
from mesascope.studies.base import SCALES, Study
from mesascope.studies.registry import load_study
from mesascope.studies.verdicts import Verdict, judge_claims
from mesascope.train.population import unsupported_reason

POPULATION_DEVICES = ("cuda",)  # device types on which the seeds of a condition are trained as one program


def run_study(
    name: str,
    *,
    scale: str,
    seeds: int | None,
    path: Path,
    device: str,
    executor: Executor,
    progress: ProgressCallback,
) -> Run:
    """Run a study up to its verdicts, or resume a run that was stopped.

    Args:
        name: The name of a study, or a ``.py`` file that defines ``STUDY``.
        scale: smoke, laptop or paper.
        seeds: Number of training replicates; the default of the scale if None.
        path: The run's directory.
        device: The device for training and analysis.
        executor: Runs the jobs.
        progress: Receives progress updates.

    Returns:
        The run, with its results and verdicts.

    Raises:
        ValueError: If the study, the scale or the number of seeds is invalid.
        RunError: If the directory cannot be used.
        TrainingDiverged: If a loss or gradient is not finite.
    """
    study = load_study(name)
    if scale not in SCALES:
        raise ValueError(f"a scale must be one of {', '.join(SCALES)}, but got {scale!r}")
    replicates = study.select_seeds(scale, seeds)
    if not replicates:
        raise ValueError(f"seeds must be 1 or more, but got {seeds}; pass the number of models to train")
    run = Run.create(path, describe_run(study, scale, replicates))
    with run.exclusive_lock():
        _prepare_data(study, scale, run, progress)
        results = load_finished_results(study, scale, run, replicates, progress.log_message)
        if results is None:
            start_time = time.perf_counter()
            jobs, simulation_jobs = _list_jobs(study, name, scale, replicates, path, device)
            results = _compute_results(study, run, jobs, simulation_jobs, executor, progress)
            run.write_json("seconds", {"training and analysis": round(time.perf_counter() - start_time, 1)})
        verdicts = judge_claims(study.claims, results, scale)
        run.write_json("verdicts", [verdict.as_json() for verdict in verdicts])
    return run


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
    study: Study, name: str, scale: str, seeds: Sequence[int], path: Path, device: str
) -> tuple[list[TrainingJob], list[SimulationJob]]:
    jobs = [
        TrainingJob(study=name, scale=scale, seed=seed, condition=condition.name, path=path, device=device)
        for condition in study.conditions
        for seed in seeds
    ]
    simulation_jobs = [
        SimulationJob(study=name, scale=scale, seed=seed, simulation=simulation.name, path=path)
        for simulation in study.simulations
        for seed in seeds
    ]
    return jobs, simulation_jobs


def _compute_results(
    study: Study,
    run: Run,
    jobs: Sequence[TrainingJob],
    simulation_jobs: Sequence[SimulationJob],
    executor: Executor,
    progress: ProgressCallback,
) -> dict[str, xr.Dataset]:
    """Run all jobs, and write their results."""
    _train_seed_groups(study, jobs, executor, progress)
    all_jobs = [*jobs, *simulation_jobs]
    progress.start_stage("training and analysis", [job_label(job) for job in all_jobs])
    outcomes = executor.map_jobs(run_job, all_jobs, progress.update_part, progress.log_message)
    results = gather_conditions(study, jobs[0].scale, run, jobs, outcomes[: len(jobs)])
    return results | gather_simulations(study, run, simulation_jobs, outcomes[len(jobs) :])


def _train_seed_groups(
    study: Study, jobs: Sequence[TrainingJob], executor: Executor, progress: ProgressCallback
) -> None:
    """Train the seeds of each condition as one program, where the device makes that faster."""
    if torch.device(jobs[0].device).type not in POPULATION_DEVICES:
        return
    groups = [
        [job for job in jobs if job.condition == condition.name]
        for condition in study.conditions
        if not unsupported_reason(condition.scales[jobs[0].scale].training)
    ]
    groups = [group for group in groups if len(group) > 1]
    if groups:
        progress.start_stage("joint training", [group_label(group) for group in groups])
        executor.map_jobs(train_seed_group, groups, progress.update_part, progress.log_message)


def load_verdicts(run: Run) -> list[Verdict]:
    """Load the verdicts of a run.

    Args:
        run: The run.

    Returns:
        One verdict per claim.

    Raises:
        RunError: If the run has no verdicts.
    """
    return [Verdict.from_json(row) for row in run.read_json("verdicts")]
