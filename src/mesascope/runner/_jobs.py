"""Jobs of a run: training and analysis of one seed, simulation of a toy model, joint training of several seeds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import xarray as xr

from mesascope.analyses import Analysis
from mesascope.analyses.nulls import UNTRAINED, with_draws
from mesascope.axes import with_decoded_tokens
from mesascope.runner._checkpoints import SeedCheckpoints, open_checkpoints
from mesascope.runner._evaluation import count_evaluation_sequences, draw_evaluation_batches
from mesascope.runner._seed_results import load_seed_results, load_stamped, save_seed_results, save_stamped
from mesascope.runner._stamps import stamp_condition, stamp_simulation
from mesascope.store import LogFn, Run, do_nothing
from mesascope.studies.base import Condition, Simulation, Study
from mesascope.studies.cell_names import split_reference
from mesascope.studies.registry import load_study
from mesascope.tasks.base import Task
from mesascope.train import ParallelStrategy, limit_threads, train_model, train_parallel, train_population


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Training and analysis of one seed of one condition; picklable, so that any process can run it.

    Attributes:
        study: The name or file of the study.
        scale: The name of the scale.
        seed: The training replicate.
        condition: The name of the condition; empty for the main condition.
        path: The run's directory.
        device: The device to train on.
        strategy: How all processes of the default process group train the model together; None to train it in one.
    """

    study: str
    scale: str
    seed: int
    condition: str
    path: Path
    device: str
    strategy: ParallelStrategy | None = None

    def __str__(self) -> str:
        """Return the text by which the job is shown to the user."""
        return job_label(self)


@dataclass(frozen=True, kw_only=True)
class SimulationJob:
    """Simulation of one seed of one toy model; picklable, so that any process can run it.

    Attributes:
        study: The name or file of the study.
        scale: The name of the scale.
        seed: The replicate.
        simulation: The name of the simulation.
        path: The run's directory.
    """

    study: str
    scale: str
    seed: int
    simulation: str
    path: Path

    def __str__(self) -> str:
        """Return the text by which the job is shown to the user."""
        return job_label(self)


def train_seed_group(
    jobs: Sequence[TrainingJob], progress: Callable[[int, int, float], None] = do_nothing, log: LogFn = do_nothing
) -> None:
    """Train the seeds of one condition as one program; if memory is short, leave them to their own jobs.

    Args:
        jobs: The jobs of one condition.
        progress: Called with (steps done, total steps, mean of the last losses).
        log: Receives one line if the seeds do not fit in memory.
    """
    first = jobs[0]
    study = load_study(first.study)
    condition = study.condition(first.condition)
    run, training = Run.open(first.path).for_condition(condition.name), condition.scales[first.scale].training
    task, seeds = prepare_task_data(study, condition, first.scale, run, do_nothing), [job.seed for job in jobs]
    model = condition.model_at(first.scale)
    try:
        train_population(task, model, training, seeds, run, device=first.device, progress=progress, log=log)
    except torch.OutOfMemoryError:
        log(f"{group_label(jobs)} do not fit on {first.device} together; each is trained separately")


def run_job(
    job: TrainingJob | SimulationJob, progress: Callable[[int, int, float], None] = do_nothing, log: LogFn = do_nothing
) -> dict[str, xr.Dataset]:
    """Run one job: train a seed and analyse its checkpoints, or simulate a toy model.

    Args:
        job: The job.
        progress: Called with (done, total, loss).
        log: Receives lines of text.

    Returns:
        The result of each analysis along the axis ``step``, or of the toy model, by result name; nothing if this is one
        of several processes that train a model together, and not the first.
    """
    if isinstance(job, SimulationJob):
        return _simulate(job, progress, log)
    study = load_study(job.study)
    with limit_threads(study.condition(job.condition).scales[job.scale].training.threads):
        return _train_and_analyse(study, job, progress, log)


def _train_and_analyse(
    study: Study, job: TrainingJob, progress: Callable[[int, int, float], None], log: LogFn
) -> dict[str, xr.Dataset]:
    condition = study.condition(job.condition)
    run, config = Run.open(job.path).for_condition(condition.name), condition.scales[job.scale]
    task = prepare_task_data(study, condition, job.scale, run, do_nothing)
    model = condition.model_at(job.scale)
    train = train_model if job.strategy is None else partial(train_parallel, strategy=job.strategy)
    train(task, model, config.training, job.seed, run, device=job.device, progress=progress, log=log)
    if job.strategy is not None and dist.get_rank() > 0:
        return {}  # the first process analyses
    stamp = stamp_condition(run, condition, task, job.scale, [job.seed])
    with run.exclusive_lock(str(run.seed_path(job.seed).relative_to(run.path))):
        results = load_seed_results(run, condition, job.seed, stamp, log)
        if results is None:
            results = _analyse(condition, job, run, task, progress)
            save_seed_results(run, condition, job.seed, stamp, results)
    return results


def _analyse(
    condition: Condition, job: TrainingJob, run: Run, task: Task, progress: Callable[[int, int, float], None]
) -> dict[str, xr.Dataset]:
    config = condition.scales[job.scale]
    held_out = draw_evaluation_batches(
        task.validation_task(), config.sequences, count_evaluation_sequences(condition, job.scale), job.seed
    )
    batches = tuple(batch.to(job.device, config.training.weight_dtype) for batch in held_out)
    checkpoints = open_checkpoints(task, config.training, run, job.seed, batches, job.device)
    return analyse_checkpoints(condition, checkpoints, checkpoints.steps, progress)


def analyse_checkpoints(
    condition: Condition,
    checkpoints: SeedCheckpoints,
    steps: Sequence[int],
    progress: Callable[[int, int, float], None] = do_nothing,
) -> dict[str, xr.Dataset]:
    """Run all analyses of a condition.

    Args:
        condition: The condition.
        checkpoints: The checkpoints of one seed.
        steps: The steps of those that are analysed one by one; analyses of all checkpoints use all of them.
        progress: Called with (steps done, total steps, NaN).

    Returns:
        The results by result name.
    """
    results = _analyse_steps(condition, checkpoints, steps, progress)
    for name, draws in checkpoints.analyse_untrained(condition.analyses).items():
        results[name] = with_draws(results[name], UNTRAINED, draws)
    results |= {one.name: one(checkpoints.series) for one in condition.analyses if one.input == "checkpoints"}
    return {condition.result_name(one): _with_title(condition, one, results[one.name]) for one in condition.analyses}


def _analyse_steps(
    condition: Condition,
    checkpoints: SeedCheckpoints,
    steps: Sequence[int],
    progress: Callable[[int, int, float], None],
) -> dict[str, xr.Dataset]:
    """Run the analyses of single checkpoints at each of their steps; results have the axis ``step``."""
    decode_token = checkpoints.task.decode_token
    per_step = [one for one in condition.analyses if one.input != "checkpoints"]
    by_analysis: dict[str, list[xr.Dataset]] = {one.name: [] for one in per_step}
    for done, step in enumerate(steps, start=1):
        due = [one for one in per_step if step in one.select_steps(steps)]
        for name, dataset in checkpoints.analyse(step, due).items():
            by_analysis[name].append(with_decoded_tokens(dataset, decode_token).expand_dims(step=[step]))
        progress(done, len(steps), float("nan"))
    return {
        name: xr.concat(parts, dim="step", join="outer", combine_attrs="override")
        for name, parts in by_analysis.items()
    }


def _simulate(job: SimulationJob, progress: Callable[[int, int, float], None], log: LogFn) -> dict[str, xr.Dataset]:
    """Simulate one seed of a toy model, unless its result is stored already."""
    simulation, run = load_study(job.study).simulation(job.simulation), Run.open(job.path)
    name, stamp = name_simulation_part(simulation, job.seed), stamp_simulation(simulation, job.scale, [job.seed])
    dataset = load_stamped(run, name, stamp, log)
    if dataset is None:
        with limit_threads(1):
            dataset = simulation.scales[job.scale].simulate(job.seed, progress)
        save_stamped(run, name, stamp, dataset)
    progress(1, 1, float("nan"))
    return {simulation.name: dataset}


def name_simulation_part(simulation: Simulation, seed: int) -> str:
    """Return the name under which the result of one seed of a toy model is stored.

    Args:
        simulation: The simulation.
        seed: The replicate.
    """
    return f"{simulation.name}-seed={seed}"


def _with_title(condition: Condition, analysis: Analysis, dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign_attrs(title=f"{analysis.title}: {condition.title}") if condition.title else dataset


def job_label(job: TrainingJob | SimulationJob) -> str:
    """Return the text by which a job is shown to the user.

    Args:
        job: The job.
    """
    name = job.simulation if isinstance(job, SimulationJob) else job.condition
    return f"{split_reference(job.study)[1]} {name} seed {job.seed}".strip().replace("  ", " ")


def group_label(jobs: Sequence[TrainingJob]) -> str:
    """Return the text by which jobs that are trained together are shown to the user.

    Args:
        jobs: The jobs of one condition.
    """
    return f"{jobs[0].condition} seeds {jobs[0].seed} to {jobs[-1].seed}".strip()


def prepare_task_data(study: Study, condition: Condition, scale: str, run: Run, log: LogFn) -> Task:
    """Prepare the task of a condition in the run's data folder; conditions with equal tasks share one folder.

    Args:
        study: The study.
        condition: One of its conditions.
        scale: The name of the scale.
        run: The run.
        log: Receives lines of text.

    Returns:
        The task, ready to sample.
    """
    task = condition.task_at(scale)
    first = next(other for other in study.conditions if other.task_at(scale) == task)
    return task.prepare(run.path / "data" / (first.name or "own"), log)
