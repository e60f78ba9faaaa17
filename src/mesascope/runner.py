"""The order of the stages: train, open, measure, change, judge. Nothing else knows it."""

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

from mesascope.analyses import Trail, measure_all
from mesascope.analyses.instrument import Instrument
from mesascope.analyses.training.history_attention import Past
from mesascope.axes import spelled
from mesascope.models.load import load_checkpoint
from mesascope.models.transformer import Decoder
from mesascope.store import MANIFEST, History, Run, Say, ignore
from mesascope.store.provenance import provenance
from mesascope.studies.base import SCALES, Arm, Scale, Study
from mesascope.studies.registry import load
from mesascope.studies.verdicts import Verdict, judge
from mesascope.tasks.base import Batch, Task
from mesascope.train import Training, batches, fit, fit_population, threads
from mesascope.train.population import obstacle

TOGETHER = ("cuda",)  # kinds of devices on which the seeds of a setting are trained as one program
HELD_OUT = 2**40 + 17  # the seed of the sequences that are opened; training's seeds are spread by SeedSequence

JobProgress = Callable[[int, int, int, float], None]


@runtime_checkable
class Executor(Protocol):
    """Whatever can apply a function to jobs, at once or one after another."""

    def map(self, fn: Callable[..., Any], jobs: Sequence[Any], progress: JobProgress, say: Say) -> list[Any]:
        """Results in the order of the jobs; ``progress`` hears (job, done, total, loss), ``say`` hears lines."""
        ...


@runtime_checkable
class Watcher(Protocol):
    """Whoever wants to hear how a run gets on."""

    def stage(self, name: str, parts: Sequence[str]) -> None:
        """A stage of these parts begins."""
        ...

    def part(self, index: int, done: int, total: int, loss: float) -> None:
        """A part of the stage has got so far."""
        ...

    def say(self, line: str) -> None:
        """Something a reader should know."""
        ...


class Silent:
    """A watcher that keeps to itself."""

    def stage(self, name: str, parts: Sequence[str]) -> None:
        """Nothing."""

    def part(self, index: int, done: int, total: int, loss: float) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One seed of one setting of a study, as another process can take it up."""

    study: str
    scale: str
    seed: int
    arm: int
    path: Path
    device: str


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """One seed of one reduced model of a study, as another process can take it up."""

    study: str
    scale: str
    seed: int
    theory: int
    path: Path


def run_study(
    name: str,
    *,
    scale: str,
    seeds: int | None,
    path: Path,
    device: str,
    executor: Executor,
    watcher: Watcher,
) -> Run:
    """Run a study to its verdicts, or go on with it where it was stopped.

    Args:
        name: of a study, or a ``.py`` file that holds ``STUDY``.
        scale: smoke, laptop or paper.
        seeds: training replicates; as many as the scale says by default.
        path: the run's directory.
        device: where to train and measure.
        executor: what works on the seeds.
        watcher: hears how it gets on.

    Returns:
        The run, with results and verdicts in it.

    Raises:
        ValueError: what is asked for does not exist; RunError: the directory cannot be used; TrainingDiverged.
    """
    study = load(name)
    count = _scale(study, scale).seeds if seeds is None else seeds
    if count < 1:
        raise ValueError(f"seeds must be 1 or more, but got {count}; give how many models to train")
    run = Run.create(path, describe(study, scale, count))
    with run.lock():
        said: list[str] = []
        for arm in study.settings:
            _prepared(study, arm, scale, run, said.append)
        if said != run.record.get("notes", []):
            run.note(said)
        for line in said:
            watcher.say(line)
        results = _finished(study, scale, run, range(count), watcher)
        if results is None:
            began = time.perf_counter()
            jobs = [
                Job(study=name, scale=scale, seed=seed, arm=arm, path=path, device=device)
                for arm in range(len(study.settings))
                for seed in range(count)
            ]
            _train_together(study, jobs, executor, watcher)
            simulations = [
                Simulation(study=name, scale=scale, seed=seed, theory=theory, path=path)
                for theory in range(len(study.theories))
                for seed in range(count)
            ]
            everything = [*jobs, *simulations]
            watcher.stage("training and measuring", [_called(study, one) for one in everything])
            found = executor.map(work, everything, watcher.part, watcher.say)
            results = _gather(study, scale, run, jobs, found[: len(jobs)])
            results |= _gather_theories(study, run, simulations, found[len(jobs) :])
            run.write_json("seconds", {"training and measuring": round(time.perf_counter() - began, 1)})
        verdicts = [judge(claim, results, scale) for claim in study.claims]
        run.write_json("verdicts", [verdict.as_json() for verdict in verdicts])
    return run


def _train_together(study: Study, jobs: Sequence[Job], executor: Executor, watcher: Watcher) -> None:
    """Train what one program can train at once, where that is faster; the jobs find it trained."""
    if torch.device(jobs[0].device).type not in TOGETHER:
        return
    crews = [
        [job for job in jobs if job.arm == number]
        for number, arm in enumerate(study.settings)
        if not obstacle(arm.setups[jobs[0].scale].training)
    ]
    crews = [crew for crew in crews if len(crew) > 1]
    if crews:
        watcher.stage("training together", [_crew(study.settings[crew[0].arm], crew) for crew in crews])
        executor.map(train_together, crews, watcher.part, watcher.say)


def train_together(
    jobs: Sequence[Job], progress: Callable[[int, int, float], None] = ignore, say: Say = ignore
) -> None:
    """Train the seeds of one setting as one program; where memory is short, leave them to their jobs."""
    first = jobs[0]
    study = load(first.study)
    arm = study.settings[first.arm]
    run, training = Run.open(first.path).of(arm.name), arm.setups[first.scale].training
    task, seeds = _prepared(study, arm, first.scale, run, ignore), [job.seed for job in jobs]
    try:
        fit_population(
            task, arm.model_at(first.scale), training, seeds, run, device=first.device, progress=progress, say=say
        )
    except torch.OutOfMemoryError:
        say(f"{_crew(arm, jobs)} do not fit on {first.device} at once; each is trained by itself")


def work(
    job: Job | Simulation, progress: Callable[[int, int, float], None] = ignore, say: Say = ignore
) -> dict[str, xr.Dataset]:
    """Train one seed of a setting and apply the instruments to its checkpoints, or simulate one of a reduced model.

    Jobs are plain values, so that any process can take them up.

    Returns:
        what each instrument found, along the axis ``step``, or what was seen of the reduced model, by the name of the
        results.
    """
    if isinstance(job, Simulation):
        return _simulated(job, progress)
    study = load(job.study)
    with threads(study.settings[job.arm].setups[job.scale].training.threads):
        return _work(study, job, progress, say)


def _work(study: Study, job: Job, progress: Callable[[int, int, float], None], say: Say) -> dict[str, xr.Dataset]:
    """The same, with the right number of threads."""
    arm = study.settings[job.arm]
    run, setup = Run.open(job.path).of(arm.name), arm.setups[job.scale]
    task, training = _prepared(study, arm, job.scale, run, ignore), setup.training
    model = arm.model_at(job.scale)
    fit(task, model, training, job.seed, run, device=job.device, progress=progress, say=say)
    drawn = task.validation().sample(setup.sequences, torch.Generator().manual_seed(HELD_OUT))
    batch = drawn.to(job.device, training.precision)
    over_steps = [one for one in arm.instruments if one not in arm.trails]
    found: dict[str, list[xr.Dataset]] = {one.name: [] for one in over_steps}
    opened = _Opened(arm=arm, task=task, training=training, run=run, seed=job.seed, batch=batch, device=job.device)
    for place, step in enumerate(training.due):
        due = [one for one in over_steps if step in one.at(training.due)]
        for name, dataset in opened.apply(step, due).items():
            found[name].append(spelled(dataset, task.spell).expand_dims(step=[step]))
        progress(place + 1, len(training.due), float("nan"))
    joined = {one.name: xr.concat(found[one.name], dim="step", combine_attrs="override") for one in over_steps}
    joined |= {one.name: one(opened.trail) for one in arm.trails}
    return {arm.result(one): _titled(arm, one, joined[one.name]) for one in arm.instruments}


def _simulated(job: Simulation, progress: Callable[[int, int, float], None]) -> dict[str, xr.Dataset]:
    """One seed of a reduced model; what was simulated before is not simulated again."""
    theory, run = load(job.study).theories[job.theory], Run.open(job.path)
    name = f"{theory.name}-seed={job.seed}"
    found = run.kept(name)
    if found is None:
        with threads(1):
            found = theory.setups[job.scale].simulate(job.seed, progress)
        run.keep(name, found)
    progress(1, 1, float("nan"))
    return {theory.name: found}


def describe(study: Study, scale: str, seeds: int) -> dict[str, Any]:
    """What a run is, in JSON's types: everything that decides its numbers."""
    settings = {arm.name: _parameters(arm, scale) for arm in study.settings}
    settings |= {
        theory.name: {"title": theory.title, "reduced model": _plain(theory.setups[scale])} for theory in study.theories
    }
    return {
        "study": study.name,
        "title": study.title,
        "about": study.about,
        "scale": scale,
        "seeds": list(range(seeds)),
        "citation": {**asdict(study.citation), "bibtex": study.citation.bibtex},
        "parameters": settings.pop("") | settings,
    }


def verdicts_of(run: Run) -> list[Verdict]:
    """The verdicts that a run holds."""
    return [Verdict.from_json(row) for row in run.read_json("verdicts")]


def _scale(study: Study, scale: str) -> Scale:
    """The scale of this name."""
    if scale not in study.scales:
        raise ValueError(f"a scale must be one of {', '.join(SCALES)}, but got {scale!r}")
    return study.scales[scale]


def _parameters(arm: Arm, scale: str) -> dict[str, Any]:
    """What one setting is made of."""
    setup = arm.setups[scale]
    named = {"title": arm.title} if arm.title else {}
    return named | {
        "task": _plain(arm.task_at(scale)),
        "model": {k: v for k, v in arm.model_at(scale).to_diff_dict().items() if k != "transformers_version"},
        "training": _plain(setup.training),
        "sequences": setup.sequences,
    }


def _prepared(study: Study, arm: Arm, scale: str, run: Run, say: Say) -> Task:
    """The task of a setting with all it needs at hand, kept with the run: once for all settings that have this task."""
    task = arm.task_at(scale)
    first = next(each for each in study.settings if each.task_at(scale) == task)
    return task.prepared(run.path / "data" / (first.name or "own"), say)


def _called(study: Study, job: Job | Simulation) -> str:
    """One seed of a setting or of a reduced model, as it is shown."""
    of = study.theories[job.theory].name if isinstance(job, Simulation) else study.settings[job.arm].name
    return f"{of} seed {job.seed}".strip()


def _crew(arm: Arm, jobs: Sequence[Job]) -> str:
    """The seeds of a setting, as they are shown."""
    return f"{arm.name} seeds {jobs[0].seed} to {jobs[-1].seed}".strip()


def _titled(arm: Arm, one: Instrument, found: xr.Dataset) -> xr.Dataset:
    """One instrument's results, saying whose they are."""
    return found.assign_attrs(title=f"{one.title}: {arm.title}") if arm.title else found


def _finished(
    study: Study, scale: str, run: Run, seeds: Sequence[int], watcher: Watcher
) -> dict[str, xr.Dataset] | None:
    """The results that are there, if all checkpoints are good and this very code measured them on these weights."""
    for arm in study.settings:
        steps = list(arm.setups[scale].training.due)
        if any(run.of(arm.name).checkpoints(seed, watcher.say) != steps for seed in seeds):
            return None
    if not set(study.results) <= set(run.results()):
        return None
    results = {name: run.read_results(name) for name in study.results}
    stamps = {theory.name: _simulated_stamp(seeds) for theory in study.theories}
    for arm in study.settings:
        stamps |= dict.fromkeys(map(arm.result, arm.instruments), _stamp(study, run, arm, scale, seeds))
    same = all(results[name].attrs.get(key) == value for name, stamp in stamps.items() for key, value in stamp.items())
    return results if same else None


def _gather(
    study: Study, scale: str, run: Run, jobs: Sequence[Job], found: Sequence[Mapping[str, xr.Dataset]]
) -> dict[str, xr.Dataset]:
    """The seeds' results along the axis ``seed``, written to the run."""
    results = {}
    for number, arm in enumerate(study.settings):
        own = {job.seed: one for job, one in zip(jobs, found, strict=True) if job.arm == number}
        stamp = {**_stamp(study, run, arm, scale, list(own)), "sequences": arm.setups[scale].sequences}
        for name in map(arm.result, arm.instruments):
            joined = xr.concat([one[name] for one in own.values()], dim="seed", combine_attrs="override")
            results[name] = joined.assign_coords(seed=list(own)).assign_attrs(stamp)
            run.write_results(name, results[name])
    return results


def _gather_theories(
    study: Study, run: Run, jobs: Sequence[Simulation], found: Sequence[Mapping[str, xr.Dataset]]
) -> dict[str, xr.Dataset]:
    """The same for reduced models."""
    results = {}
    for number, theory in enumerate(study.theories):
        own = {job.seed: one for job, one in zip(jobs, found, strict=True) if job.theory == number}
        joined = xr.concat([one[theory.name] for one in own.values()], dim="seed", combine_attrs="override")
        told = {"instrument": theory.name, "title": theory.title, "about": theory.about, "order": theory.order}
        results[theory.name] = joined.assign_coords(seed=list(own)).assign_attrs(told | _simulated_stamp(list(own)))
        run.write_results(theory.name, results[theory.name])
    return results


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """One seed's checkpoints, to which instruments are applied."""

    arm: Arm
    task: Task
    training: Training
    run: Run
    seed: int
    batch: Batch
    device: str

    def apply(self, step: int, instruments: Sequence[Instrument]) -> dict[str, xr.Dataset]:
        """Measures share one capture; sweeps have their own passes; retrospects read what training left behind."""
        if not instruments:
            return {}
        model, batch = self._model(step), self.batch
        measures = [one for one in self.arm.measures if one in instruments]
        found = measure_all(model, batch, measures, oracles=self._oracles) if measures else {}
        found |= {one.name: one(model, self.task, batch) for one in self.arm.sweeps if one in instruments}
        looking_back = [one for one in self.arm.retrospects if one in instruments]
        if looking_back:
            past = self._past(step)
            found |= {one.name: one(past, model, batch) for one in looking_back}
        return found

    @property
    def trail(self) -> Trail:
        """All checkpoints, each opened when it is asked for."""
        return Trail(steps=self.training.due, load=self._model)

    @cached_property
    def _oracles(self) -> Mapping[str, Tensor]:
        """What the task's oracles predict on these sequences, whatever the checkpoint."""
        return self.task.oracles(self.batch)

    def _model(self, step: int) -> Decoder:
        """The model at a step."""
        return load_checkpoint(self.run.checkpoint(self.seed, step), device=self.device)

    def _past(self, step: int) -> Past:
        """What training left behind up to a step."""
        history = History(self.run.seed_path(self.seed) / "history", step)
        replay = partial(batches, self.task, self.training, self.seed)
        return Past(history=history, initial=self._model(0), replay=replay)


def _stamp(study: Study, run: Run, arm: Arm, scale: str, seeds: Sequence[int]) -> dict[str, str]:
    """What decides a result beside the run's description: weights, data, and the code that measures now."""
    digest = hashlib.sha256()
    for seed in seeds:
        for step in arm.setups[scale].training.due:
            digest.update((run.of(arm.name).seed_path(seed) / f"step={step}" / MANIFEST).read_bytes())
    data = _prepared(study, arm, scale, run, ignore).digest
    return {"weights": digest.hexdigest(), **({"data": data} if data else {}), **_code()}


def _simulated_stamp(seeds: Sequence[int]) -> dict[str, str]:
    """The same for a reduced model."""
    return {"seeds simulated": ", ".join(map(str, seeds)), **_code()}


def _code() -> dict[str, str]:
    """The code that measures now."""
    known = provenance()
    return {name: known[name] for name in ("mesascope", "revision", "torch")}


def _plain(value: Any) -> Any:
    """A frozen value as a mapping that names its class."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {"kind": type(value).__name__, **shown}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
