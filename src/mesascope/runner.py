"""Execution of a study: train, load checkpoints, run analyses, apply interventions, judge the claims."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import xarray as xr
from torch import Tensor

from mesascope.analyses import Analysis, CheckpointSeries, run_analyses
from mesascope.analyses.training.history_attention import TrainingHistory
from mesascope.axes import with_decoded_tokens
from mesascope.models.load import load_checkpoint
from mesascope.models.transformer import Decoder
from mesascope.store import MANIFEST, HistoryReader, LogFn, Run, do_nothing
from mesascope.store.provenance import collect_provenance
from mesascope.studies.base import SCALES, Condition, Study
from mesascope.studies.registry import load_study
from mesascope.studies.verdicts import Verdict, judge
from mesascope.tasks.base import Batch, Task
from mesascope.train import TrainingConfig, limit_threads, sample_batches, train_model, train_population
from mesascope.train.population import unsupported_reason

POPULATION_DEVICES = ("cuda",)  # device types on which the seeds of a condition are trained as one program
EVALUATION_SEED = 2**40 + 17  # seed of the analysed sequences; training derives its seeds with SeedSequence

JobProgress = Callable[[int, int, int, float], None]


@runtime_checkable
class Executor(Protocol):
    """Applies a function to jobs, in parallel or one after another."""

    def map_jobs(self, fn: Callable[..., Any], jobs: Sequence[Any], progress: JobProgress, log: LogFn) -> list[Any]:
        """Apply ``fn`` to every job.

        Args:
            fn: Called as ``fn(job, progress, log)``.
            jobs: The jobs.
            progress: Receives (job index, done, total, loss).
            log: Receives lines of text.

        Returns:
            The results, in the order of the jobs.
        """
        ...


@runtime_checkable
class ProgressCallback(Protocol):
    """Receives progress updates of a run."""

    def start_stage(self, name: str, parts: Sequence[str]) -> None:
        """Start a stage.

        Args:
            name: The name of the stage.
            parts: The names of its parts, which run in parallel.
        """
        ...

    def update_part(self, index: int, done: int, total: int, loss: float) -> None:
        """Update the progress of one part of the current stage.

        Args:
            index: The index of the part.
            done: Units of work done.
            total: Units of work in total.
            loss: The last training loss; not a number where there is none.
        """
        ...

    def log_message(self, line: str) -> None:
        """Receive a message for the user.

        Args:
            line: One line of text.
        """
        ...


class NullProgress(ProgressCallback):
    """Progress callback that ignores all updates."""

    def start_stage(self, name: str, parts: Sequence[str]) -> None:
        """Ignore the start of a stage."""

    def update_part(self, index: int, done: int, total: int, loss: float) -> None:
        """Ignore the progress of a part."""

    def log_message(self, line: str) -> None:
        """Ignore a message."""


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
    """

    study: str
    scale: str
    seed: int
    condition: str
    path: Path
    device: str


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
    num_seeds = study.seeds[scale] if seeds is None else seeds
    if num_seeds < 1:
        raise ValueError(f"seeds must be 1 or more, but got {num_seeds}; set the number of models to train")
    run = Run.create(path, describe_run(study, scale, num_seeds))
    with run.exclusive_lock():
        notes: list[str] = []
        for condition in study.conditions:
            _prepare_task(study, condition, scale, run, notes.append)
        if notes != run.record.get("notes", []):
            run.write_notes(notes)
        for line in notes:
            progress.log_message(line)
        results = _load_finished(study, scale, run, range(num_seeds), progress)
        if results is None:
            start_time = time.perf_counter()
            jobs = [
                TrainingJob(study=name, scale=scale, seed=seed, condition=condition.name, path=path, device=device)
                for condition in study.conditions
                for seed in range(num_seeds)
            ]
            _train_seed_groups(study, jobs, executor, progress)
            simulation_jobs = [
                SimulationJob(study=name, scale=scale, seed=seed, simulation=simulation.name, path=path)
                for simulation in study.simulations
                for seed in range(num_seeds)
            ]
            all_jobs = [*jobs, *simulation_jobs]
            progress.start_stage("training and analysis", [_job_label(job) for job in all_jobs])
            outcomes = executor.map_jobs(run_job, all_jobs, progress.update_part, progress.log_message)
            results = _gather_conditions(study, scale, run, jobs, outcomes[: len(jobs)])
            results |= _gather_simulations(study, run, simulation_jobs, outcomes[len(jobs) :])
            run.write_json("seconds", {"training and analysis": round(time.perf_counter() - start_time, 1)})
        verdicts = [judge(claim, results, scale) for claim in study.claims]
        run.write_json("verdicts", [verdict.as_json() for verdict in verdicts])
    return run


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
        progress.start_stage("joint training", [_group_label(group) for group in groups])
        executor.map_jobs(train_seed_group, groups, progress.update_part, progress.log_message)


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
    task, seeds = _prepare_task(study, condition, first.scale, run, do_nothing), [job.seed for job in jobs]
    model = condition.model_at(first.scale)
    try:
        train_population(task, model, training, seeds, run, device=first.device, progress=progress, log=log)
    except torch.OutOfMemoryError:
        log(f"{_group_label(jobs)} do not fit on {first.device} together; each is trained separately")


def run_job(
    job: TrainingJob | SimulationJob, progress: Callable[[int, int, float], None] = do_nothing, log: LogFn = do_nothing
) -> dict[str, xr.Dataset]:
    """Run one job: train a seed and analyse its checkpoints, or simulate a toy model.

    Args:
        job: The job.
        progress: Called with (done, total, loss).
        log: Receives lines of text.

    Returns:
        The result of each analysis along the axis ``step``, or of the toy model, by result name.
    """
    if isinstance(job, SimulationJob):
        return _simulate(job, progress)
    study = load_study(job.study)
    with limit_threads(study.condition(job.condition).scales[job.scale].training.threads):
        return _train_and_analyse(study, job, progress, log)


def _train_and_analyse(
    study: Study, job: TrainingJob, progress: Callable[[int, int, float], None], log: LogFn
) -> dict[str, xr.Dataset]:
    condition = study.condition(job.condition)
    run, config = Run.open(job.path).for_condition(condition.name), condition.scales[job.scale]
    task, training = _prepare_task(study, condition, job.scale, run, do_nothing), config.training
    model = condition.model_at(job.scale)
    train_model(task, model, training, job.seed, run, device=job.device, progress=progress, log=log)
    held_out = task.validation_task().sample(config.sequences, torch.Generator().manual_seed(EVALUATION_SEED))
    checkpoints = _SeedCheckpoints(
        task=task,
        training=training,
        run=run,
        seed=job.seed,
        batch=held_out.to(job.device, training.weight_dtype),
        device=job.device,
    )
    per_step = [one for one in condition.analyses if one.input != "checkpoints"]
    by_analysis: dict[str, list[xr.Dataset]] = {one.name: [] for one in per_step}
    for done, step in enumerate(training.checkpoint_steps, start=1):
        due = [one for one in per_step if step in one.select_steps(training.checkpoint_steps)]
        for name, dataset in checkpoints.analyse(step, due).items():
            by_analysis[name].append(with_decoded_tokens(dataset, task.decode_token).expand_dims(step=[step]))
        progress(done, len(training.checkpoint_steps), float("nan"))
    results = {name: xr.concat(steps, dim="step", combine_attrs="override") for name, steps in by_analysis.items()}
    results |= {one.name: one(checkpoints.series) for one in condition.analyses if one.input == "checkpoints"}
    return {condition.result_name(one): _with_title(condition, one, results[one.name]) for one in condition.analyses}


def _simulate(job: SimulationJob, progress: Callable[[int, int, float], None]) -> dict[str, xr.Dataset]:
    """Simulate one seed of a toy model, unless its result is stored already."""
    simulation, run = load_study(job.study).simulation(job.simulation), Run.open(job.path)
    name = f"{simulation.name}-seed={job.seed}"
    dataset = run.load_partial(name)
    if dataset is None:
        with limit_threads(1):
            dataset = simulation.scales[job.scale].simulate(job.seed, progress)
        run.save_partial(name, dataset)
    progress(1, 1, float("nan"))
    return {simulation.name: dataset}


def describe_run(study: Study, scale: str, seeds: int) -> dict[str, Any]:
    """Describe a run in JSON types: everything that determines its numbers.

    Args:
        study: The study.
        scale: The name of the scale.
        seeds: Number of training replicates.

    Returns:
        The description stored in ``run.json``.
    """
    parameters = {condition.name: _condition_parameters(condition, scale) for condition in study.conditions}
    parameters |= {
        simulation.name: {"title": simulation.title, "toy model": _to_plain(simulation.scales[scale])}
        for simulation in study.simulations
    }
    return {
        "study": study.name,
        "title": study.title,
        "description": study.description,
        "scale": scale,
        "seeds": list(range(seeds)),
        "citation": {**asdict(study.citation), "bibtex": study.citation.bibtex},
        "parameters": parameters.pop("") | parameters,
    }


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


def _condition_parameters(condition: Condition, scale: str) -> dict[str, Any]:
    config = condition.scales[scale]
    title = {"title": condition.title} if condition.title else {}
    return title | {
        "task": _to_plain(condition.task_at(scale)),
        "model": {k: v for k, v in condition.model_at(scale).to_diff_dict().items() if k != "transformers_version"},
        "training": _to_plain(config.training),
        "sequences": config.sequences,
    }


def _prepare_task(study: Study, condition: Condition, scale: str, run: Run, log: LogFn) -> Task:
    """Prepare the task of a condition in the run's data folder; conditions with equal tasks share one folder."""
    task = condition.task_at(scale)
    first = next(other for other in study.conditions if other.task_at(scale) == task)
    return task.prepare(run.path / "data" / (first.name or "own"), log)


def _job_label(job: TrainingJob | SimulationJob) -> str:
    name = job.simulation if isinstance(job, SimulationJob) else job.condition
    return f"{name} seed {job.seed}".strip()


def _group_label(jobs: Sequence[TrainingJob]) -> str:
    return f"{jobs[0].condition} seeds {jobs[0].seed} to {jobs[-1].seed}".strip()


def _with_title(condition: Condition, analysis: Analysis, dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign_attrs(title=f"{analysis.title}: {condition.title}") if condition.title else dataset


def _load_finished(
    study: Study, scale: str, run: Run, seeds: Sequence[int], progress: ProgressCallback
) -> dict[str, xr.Dataset] | None:
    """Load all results if the checkpoints are valid and the same code version computed them from these weights."""
    for condition in study.conditions:
        steps = list(condition.scales[scale].training.checkpoint_steps)
        if any(
            run.for_condition(condition.name).list_checkpoints(seed, progress.log_message) != steps for seed in seeds
        ):
            return None
    if not set(study.results) <= set(run.result_names()):
        return None
    results = {name: run.read_results(name) for name in study.results}
    stamps = {simulation.name: _simulation_stamp(seeds) for simulation in study.simulations}
    for condition in study.conditions:
        names = map(condition.result_name, condition.analyses)
        stamps |= dict.fromkeys(names, _condition_stamp(study, run, condition, scale, seeds))
    same = all(results[name].attrs.get(key) == value for name, stamp in stamps.items() for key, value in stamp.items())
    return results if same else None


def _gather_conditions(
    study: Study, scale: str, run: Run, jobs: Sequence[TrainingJob], outcomes: Sequence[Mapping[str, xr.Dataset]]
) -> dict[str, xr.Dataset]:
    """Concatenate the results of all seeds along the axis ``seed``, and write them."""
    results = {}
    for condition in study.conditions:
        by_seed = {job.seed: one for job, one in zip(jobs, outcomes, strict=True) if job.condition == condition.name}
        stamp = _condition_stamp(study, run, condition, scale, list(by_seed))
        attrs = {**stamp, "sequences": condition.scales[scale].sequences}
        for name in map(condition.result_name, condition.analyses):
            results[name] = _concat_seeds({seed: one[name] for seed, one in by_seed.items()}, attrs)
            run.write_results(name, results[name])
    return results


def _gather_simulations(
    study: Study, run: Run, jobs: Sequence[SimulationJob], outcomes: Sequence[Mapping[str, xr.Dataset]]
) -> dict[str, xr.Dataset]:
    """Concatenate the results of the toy models along the axis ``seed``, and write them."""
    results = {}
    for simulation in study.simulations:
        name = simulation.name
        by_seed = {job.seed: one[name] for job, one in zip(jobs, outcomes, strict=True) if job.simulation == name}
        attrs = {"simulation": name, "title": simulation.title, "description": simulation.description}
        results[name] = _concat_seeds(by_seed, attrs | _simulation_stamp(list(by_seed)))
        run.write_results(name, results[name])
    return results


def _concat_seeds(by_seed: Mapping[int, xr.Dataset], attrs: Mapping[str, Any]) -> xr.Dataset:
    joined = xr.concat(list(by_seed.values()), dim="seed", combine_attrs="override")
    return joined.assign_coords(seed=list(by_seed)).assign_attrs(attrs)


@dataclass(frozen=True, kw_only=True)
class _SeedCheckpoints:
    """The checkpoints of one seed, to which analyses are applied."""

    task: Task
    training: TrainingConfig
    run: Run
    seed: int
    batch: Batch
    device: str

    def analyse(self, step: int, analyses: Sequence[Analysis]) -> dict[str, xr.Dataset]:
        """Run analyses on one checkpoint; those of captures share one forward pass."""
        if not analyses:
            return {}
        model, of_captures = self._load(step), [one for one in analyses if one.input == "capture"]
        results = run_analyses(model, self.batch, of_captures, baselines=self._baselines) if of_captures else {}
        history = self._history(step) if any(one.input == "history" for one in analyses) else None
        for one in analyses:
            if one.input == "model":
                results[one.name] = one(model, self.task, self.batch)
            elif one.input == "history":
                results[one.name] = one(history, model, self.batch)
        return results

    @property
    def series(self) -> CheckpointSeries:
        """The series of all checkpoints, each loaded on demand."""
        return CheckpointSeries(steps=self.training.checkpoint_steps, load=self._load)

    @cached_property
    def _baselines(self) -> Mapping[str, Tensor]:
        """Predictions of the task's baselines on these sequences; the same for all checkpoints."""
        return self.task.baselines(self.batch)

    def _load(self, step: int) -> Decoder:
        return load_checkpoint(self.run.verified_checkpoint(self.seed, step), device=self.device)

    def _history(self, step: int) -> TrainingHistory:
        history = HistoryReader(self.run.seed_path(self.seed) / "history", step)
        replay = partial(sample_batches, self.task, self.training, self.seed)
        return TrainingHistory(history=history, initial=self._load(0), replay=replay)


def _condition_stamp(study: Study, run: Run, condition: Condition, scale: str, seeds: Sequence[int]) -> dict[str, str]:
    """Return what determines a result besides the run's description: weights, data and code version."""
    digest = hashlib.sha256()
    for seed in seeds:
        for step in condition.scales[scale].training.checkpoint_steps:
            digest.update((run.for_condition(condition.name).seed_path(seed) / f"step={step}" / MANIFEST).read_bytes())
    data = _prepare_task(study, condition, scale, run, do_nothing).token_digest
    return {"weights": digest.hexdigest(), **({"data": data} if data else {}), **_code_version()}


def _simulation_stamp(seeds: Sequence[int]) -> dict[str, str]:
    return {"seeds simulated": ", ".join(map(str, seeds)), **_code_version()}


def _code_version() -> dict[str, str]:
    provenance = collect_provenance()
    return {name: provenance[name] for name in ("mesascope", "revision", "torch")}


def _to_plain(value: Any) -> Any:
    """Convert a frozen dataclass to a mapping that names its class."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            "kind": type(value).__name__,
            **{one.name: _to_plain(getattr(value, one.name)) for one in fields(value)},
        }
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    return value
