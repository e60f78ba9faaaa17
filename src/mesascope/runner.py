"""The order of the stages: train, open, measure, change, judge. Nothing else knows it."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import xarray as xr

from mesascope.instruments import Instrument
from mesascope.measures import measure_all
from mesascope.models.load import load_checkpoint
from mesascope.store import MANIFEST, Run, Say, ignore
from mesascope.store.provenance import provenance
from mesascope.studies.base import SCALES, Scale, Study
from mesascope.studies.catalogue import load
from mesascope.studies.verdicts import Verdict, judge
from mesascope.tasks.base import Batch
from mesascope.train import fit, threads

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

    def stage(self, name: str, total: int) -> None:
        """A stage of so many parts begins."""
        ...

    def part(self, index: int, done: int, total: int, loss: float) -> None:
        """A part of the stage has got so far."""
        ...

    def say(self, line: str) -> None:
        """Something a reader should know."""
        ...


class Silent:
    """A watcher that keeps to itself."""

    def stage(self, name: str, total: int) -> None:
        """Nothing."""

    def part(self, index: int, done: int, total: int, loss: float) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One seed of a study, as another process can take it up."""

    study: str
    scale: str
    seed: int
    path: Path
    device: str


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
    wanted = _scale(study, scale)
    count = wanted.seeds if seeds is None else seeds
    if count < 1:
        raise ValueError(f"seeds must be 1 or more, but got {count}; give how many models to train")
    run = Run.create(path, describe(study, scale, count))
    with run.lock():
        results = _finished(study, wanted, run, range(count), watcher)
        if results is None:
            began = time.perf_counter()
            watcher.stage("training and measuring", count)
            jobs = [Job(study=name, scale=scale, seed=seed, path=path, device=device) for seed in range(count)]
            results = _gather(study, wanted, run, executor.map(work, jobs, watcher.part, watcher.say))
            run.write_json("seconds", {"training and measuring": round(time.perf_counter() - began, 1)})
        verdicts = [judge(claim, results, scale) for claim in study.claims]
        run.write_json("verdicts", [verdict.as_json() for verdict in verdicts])
    return run


def work(job: Job, progress: Callable[[int, int, float], None] = ignore, say: Say = ignore) -> dict[str, xr.Dataset]:
    """Train one seed of a study and apply the instruments to its checkpoints; plain values, so any process can.

    Returns:
        what each instrument found, along the axis ``step``, by its name.
    """
    study = load(job.study)
    with threads(study.scales[job.scale].training.threads):
        return _work(study, job, progress, say)


def _work(study: Study, job: Job, progress: Callable[[int, int, float], None], say: Say) -> dict[str, xr.Dataset]:
    """The same, with the right number of threads."""
    run, scale = Run.open(job.path), study.scales[job.scale]
    fit(study.task, study.model, scale.training, job.seed, run, device=job.device, progress=progress, say=say)
    batch = study.task.sample(scale.sequences, torch.Generator().manual_seed(HELD_OUT)).to(job.device)
    steps, instruments = scale.training.due, (*study.measures, *study.sweeps)
    found: dict[str, list[xr.Dataset]] = {one.name: [] for one in instruments}
    for place, step in enumerate(steps):
        model = load_checkpoint(run.checkpoint(job.seed, step), device=job.device)
        for name, dataset in _apply(study, model, batch, [one for one in instruments if step in one.at(steps)]).items():
            found[name].append(dataset.expand_dims(step=[step]))
        progress(place + 1, len(steps), float("nan"))
    return {name: xr.concat(parts, dim="step", combine_attrs="override") for name, parts in found.items()}


def describe(study: Study, scale: str, seeds: int) -> dict[str, Any]:
    """What a run is, in JSON's types: everything that decides its numbers."""
    chosen = study.scales[scale]
    return {
        "study": study.name,
        "title": study.title,
        "about": study.about,
        "scale": scale,
        "seeds": list(range(seeds)),
        "citation": {**asdict(study.citation), "bibtex": study.citation.bibtex},
        "parameters": {
            "task": _plain(study.task),
            "model": {k: v for k, v in study.model.to_diff_dict().items() if k != "transformers_version"},
            "training": _plain(chosen.training),
            "sequences": chosen.sequences,
        },
    }


def verdicts_of(run: Run) -> list[Verdict]:
    """The verdicts that a run holds."""
    return [Verdict.from_json(row) for row in run.read_json("verdicts")]


def _scale(study: Study, scale: str) -> Scale:
    """The scale of this name."""
    if scale not in study.scales:
        raise ValueError(f"a scale must be one of {', '.join(SCALES)}, but got {scale!r}")
    return study.scales[scale]


def _finished(
    study: Study, scale: Scale, run: Run, seeds: Sequence[int], watcher: Watcher
) -> dict[str, xr.Dataset] | None:
    """The results that are there, if all checkpoints are good and this very code measured them on these weights."""
    steps = list(scale.training.due)
    if any(run.checkpoints(seed, watcher.say) != steps for seed in seeds):
        return None
    names = [one.name for one in (*study.measures, *study.sweeps)]
    if not set(names) <= set(run.results()):
        return None
    results, now = {name: run.read_results(name) for name in names}, _stamp(run, seeds, steps)
    same = all(found.attrs.get(key) == value for found in results.values() for key, value in now.items())
    return results if same else None


def _gather(
    study: Study, scale: Scale, run: Run, per_seed: Sequence[Mapping[str, xr.Dataset]]
) -> dict[str, xr.Dataset]:
    """The seeds' results along the axis ``seed``, written to the run."""
    seeds = list(range(len(per_seed)))
    stamp = {**_stamp(run, seeds, scale.training.due), "sequences": scale.sequences}
    results = {}
    for one in (*study.measures, *study.sweeps):
        joined = xr.concat([found[one.name] for found in per_seed], dim="seed", combine_attrs="override")
        results[one.name] = joined.assign_coords(seed=seeds).assign_attrs(stamp)
        run.write_results(one.name, results[one.name])
    return results


def _apply(study: Study, model: Any, batch: Batch, instruments: Sequence[Instrument]) -> dict[str, xr.Dataset]:
    """Measures share one capture; sweeps have their own passes."""
    measures = [one for one in study.measures if one in instruments]
    found = measure_all(model, batch, measures, oracles=study.task.oracles(batch)) if measures else {}
    sweeps = [one for one in study.sweeps if one in instruments]
    return found | {one.name: one(model, study.task, batch) for one in sweeps}


def _stamp(run: Run, seeds: Sequence[int], steps: Sequence[int]) -> dict[str, str]:
    """What decides a result beside the run's description: the weights, and the code that measures now."""
    digest = hashlib.sha256()
    for seed in seeds:
        for step in steps:
            digest.update((run.seed_path(seed) / f"step={step}" / MANIFEST).read_bytes())
    code = provenance()
    return {"weights": digest.hexdigest(), **{name: code[name] for name in ("mesascope", "revision", "torch")}}


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
