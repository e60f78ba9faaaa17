"""Results of a run over all seeds: written with the stamp of their origin, and loaded again if it still holds."""

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from mesascope.analyses import Analysis
from mesascope.axes import concat_seeds
from mesascope.runner._evaluation import count_evaluation_sequences
from mesascope.runner._jobs import SimulationJob, TrainingJob, name_simulation_part, prepare_task_data
from mesascope.runner._seed_results import load_seed_results, load_stamped
from mesascope.runner._stamps import stamp_condition, stamp_simulation
from mesascope.store import LogFn, Run, RunError, do_nothing
from mesascope.studies.base import Condition, Study
from mesascope.studies.registry import load_study


def load_finished_results(
    study: Study, scale: str, run: Run, seeds: Sequence[int], log: LogFn
) -> dict[str, xr.Dataset] | None:
    """Load all results if they are intact and the same code computed them from the weights in this directory.

    Args:
        study: The study.
        scale: The name of the scale.
        run: The run.
        seeds: The training replicates.
        log: Receives one line if a result is damaged.

    Returns:
        The results by name, or None if the study must be run.

    Raises:
        RunError: If the training of a seed is complete, but one of its files is damaged.
    """
    complete = all(_has_all_checkpoints(condition, scale, run, seeds) for condition in study.conditions)
    if not complete or not set(study.results) <= set(run.result_names()):
        return None
    try:
        results = {name: run.read_results(name) for name in study.results}
    except RunError as damage:
        log(f"{str(damage).partition(';')[0]}; it is analysed again")
        return None
    stamps = _stamp_results(study, scale, run, seeds)
    same = all(results[name].attrs.get(key) == value for name, stamp in stamps.items() for key, value in stamp.items())
    return results if same else None


def load_finished_job(job: object) -> dict[str, xr.Dataset] | None:
    """Load the results of one job if it has finished, so that it need not wait for a machine.

    Args:
        job: The job.

    Returns:
        What :func:`run_job` returns; None if the job has not finished, or one of its files is damaged, or if it is no
        job of one seed.
    """
    if not isinstance(job, TrainingJob | SimulationJob):
        return None
    study, run = load_study(job.study), Run.open(job.path)
    if isinstance(job, SimulationJob):
        simulation = study.simulation(job.simulation)
        stamp = stamp_simulation(simulation, job.scale, [job.seed])
        dataset = load_stamped(run, name_simulation_part(simulation, job.seed), stamp)
        return None if dataset is None else {simulation.name: dataset}
    condition = study.condition(job.condition)
    try:
        if not _has_all_checkpoints(condition, job.scale, run, [job.seed]):
            return None
        stamp = _condition_stamp(study, run, condition, job.scale, [job.seed])
        return load_seed_results(run.for_condition(condition.name), condition, job.seed, stamp)
    except RunError:  # the job names the damage, and repairs it where it can
        return None


def _stamp_results(study: Study, scale: str, run: Run, seeds: Sequence[int]) -> dict[str, dict[str, str]]:
    """Return the stamp that each result must have, by result name."""
    stamps = {simulation.name: stamp_simulation(simulation, scale, seeds) for simulation in study.simulations}
    for condition in study.conditions:
        names = map(condition.result_name, condition.analyses)
        stamps |= dict.fromkeys(names, _condition_stamp(study, run, condition, scale, seeds))
    return stamps


def _has_all_checkpoints(condition: Condition, scale: str, run: Run, seeds: Sequence[int]) -> bool:
    """Return whether all seeds are trained; their checkpoints and training records are then verified."""
    models, steps = run.for_condition(condition.name), condition.scales[scale].training.checkpoint_steps
    if not all((models.seed_path(seed) / f"step={step}").exists() for seed in seeds for step in steps):
        return False
    for seed in seeds:
        models.verify_training_record(seed, steps[-1])
        for step in steps:
            models.verified_checkpoint(seed, step)
    return True


def gather_conditions(
    study: Study, scale: str, run: Run, jobs: Sequence[TrainingJob], outcomes: Sequence[Mapping[str, xr.Dataset]]
) -> dict[str, xr.Dataset]:
    """Concatenate the results of all seeds along the axis ``seed``, and write them.

    Args:
        study: The study.
        scale: The name of the scale.
        run: The run.
        jobs: The jobs of all conditions and seeds.
        outcomes: The result of each job.

    Returns:
        The results by name.
    """
    results = {}
    for condition in study.conditions:
        by_seed = {job.seed: one for job, one in zip(jobs, outcomes, strict=True) if job.condition == condition.name}
        stamp = _condition_stamp(study, run, condition, scale, list(by_seed))
        for analysis in condition.analyses:
            name = condition.result_name(analysis)
            attrs: dict[str, Any] = {**stamp, "sequences": _count_sequences(condition, analysis, scale)}
            results[name] = concat_seeds({seed: one[name] for seed, one in by_seed.items()}).assign_attrs(attrs)
            run.write_results(name, results[name])
    return results


def _count_sequences(condition: Condition, analysis: Analysis, scale: str) -> int:
    return count_evaluation_sequences(condition, scale) if analysis.evaluation else condition.scales[scale].sequences


def gather_simulations(
    study: Study, scale: str, run: Run, jobs: Sequence[SimulationJob], outcomes: Sequence[Mapping[str, xr.Dataset]]
) -> dict[str, xr.Dataset]:
    """Concatenate the results of the toy models along the axis ``seed``, and write them.

    Args:
        study: The study.
        scale: The name of the scale.
        run: The run.
        jobs: The jobs of all simulations and seeds.
        outcomes: The result of each job.

    Returns:
        The results by name.
    """
    results = {}
    for simulation in study.simulations:
        name = simulation.name
        by_seed = {job.seed: one[name] for job, one in zip(jobs, outcomes, strict=True) if job.simulation == name}
        attrs = {"simulation": name, "title": simulation.title, "description": simulation.description}
        attrs |= stamp_simulation(simulation, scale, list(by_seed))
        results[name] = concat_seeds(by_seed).assign_attrs(attrs)
        run.write_results(name, results[name])
    return results


def _condition_stamp(study: Study, run: Run, condition: Condition, scale: str, seeds: Sequence[int]) -> dict[str, str]:
    task = prepare_task_data(study, condition, scale, run, do_nothing)
    return stamp_condition(run, condition, task, scale, seeds)
