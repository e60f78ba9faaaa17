"""Training, as a loop to be read from top to bottom.

The batch of step n is a pure function of the seed and n, so that a resumed run needs no generator's state and
ends, bit for bit, where an undisturbed one ends.
"""

import copy
import inspect
import math
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mesascope.models.config import DecoderConfig
from mesascope.models.fused import fused
from mesascope.models.load import load_checkpoint, quiet
from mesascope.models.transformer import Decoder
from mesascope.store import Run, RunError, Say, ignore, verify
from mesascope.tasks.base import Batch, Task, training_loss
from mesascope.train.history import Recorder
from mesascope.train.optim import AdamW, Cosine, Rule, Schedule, learning_rate, restore_state, state_tensors

Progress = Callable[[int, int, float], None]

_INIT, _DATA = 0, 1  # streams of randomness under one seed
_DRAW = 16  # batches drawn at once: drawing is mostly overhead (1.6 ms a batch alone, 0.13 ms so; affine task)
TELL_EVERY = 0.1  # seconds between calls of `progress`


class TrainingDiverged(RuntimeError):  # noqa: N818  it says what happened
    """A loss or gradient is no longer a finite number; names the seed, the step and the checkpoint that is kept."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained.

    Attributes:
        steps: optimiser updates.
        batch_size: fresh sequences per update.
        optimizer: the rule of the updates, with its peak learning rate.
        warmup: updates over which the rate rises from 0 to its peak.
        schedule: how the rate goes on from there.
        clip: the largest gradient norm; ``None`` for any.
        checkpoints: how many, the first and the last step among them.
        spacing: of the checkpoints: ``log``, evenly in the logarithm of the step, or ``even``.
        threads: processor threads; 1 is the fastest for small models, and several seeds run at once.
        dtype: of weights and sums: float32 or float64.
        history: write down what every linear map reads and the error signals that come back, at every step.

    >>> Training(steps=10, checkpoints=4).due
    (0, 1, 3, 10)
    """

    steps: int
    batch_size: int = 64
    optimizer: Rule = field(default_factory=AdamW)
    warmup: int = 0
    schedule: Schedule = field(default_factory=Cosine)
    clip: float | None = 1.0
    checkpoints: int = 12
    spacing: Literal["log", "even"] = "log"
    threads: int = 1
    dtype: Literal["float32", "float64"] = "float32"
    history: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        for name, least in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("checkpoints", 2), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but got {getattr(self, name)}")
        if self.spacing not in ("log", "even"):
            raise ValueError(f"spacing must be log or even, but got {self.spacing!r}")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64, but got {self.dtype!r}")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup must be less than steps, but got {self.warmup} and {self.steps}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, or None for no clipping, but got {self.clip}")

    @property
    def due(self) -> tuple[int, ...]:
        """The steps that leave a checkpoint."""
        spaced = log_spaced if self.spacing == "log" else evenly_spaced
        return spaced(self.steps, self.checkpoints)

    @property
    def precision(self) -> torch.dtype:
        """What weights are trained in."""
        return {"float32": torch.float32, "float64": torch.float64}[self.dtype]

    def rate(self, step: int) -> float:
        """The learning rate of the update after ``step`` others."""
        peak, schedule = self.optimizer.lr, self.schedule
        return learning_rate(step, steps=self.steps, warmup=self.warmup, peak=peak, schedule=schedule)


def fit(
    task: Task,
    config: DecoderConfig,
    training: Training,
    seed: int,
    run: Run,
    *,
    device: str = "cpu",
    progress: Progress = ignore,
    say: Say = ignore,
    save_every: float = 20.0,
) -> Path:
    """Train one decoder, or go on with it where an earlier call was stopped.

    Args:
        task: what makes the sequences and judges the predictions.
        config: the decoder.
        training: the rest of the recipe.
        seed: of this replicate: its first weights and its data.
        run: where checkpoints and the log go, under ``models/seed=SEED``.
        device: where to train.
        progress: hears (steps done, steps in all, last loss), ten times a second at most.
        say: hears one line when a damaged checkpoint is found.
        save_every: seconds between checkpoints that the next one overwrites, so that a kill costs no more.

    Returns:
        The folder of the last checkpoint.

    Raises:
        TrainingDiverged: a loss or gradient is not finite; what was saved before stays.
        RunError: the place cannot be written, or holds this seed's training by another recipe.
    """
    with run.lock(str(run.seed_path(seed).relative_to(run.path))), threads(training.threads):
        record_recipe(run, task, config, training, seed)
        found = run.resume_point(seed, training.due, say)
        model, optimizer, start = begin_training(config, training, seed, found, device)
        save = partial(save_training, run, seed, model, optimizer)
        if found is None:
            save(0)
        recorder = None
        if training.history:
            recorder = Recorder(model, optimizer, training.optimizer, run.seed_path(seed) / "history", keep=start)
        with run.log(seed, keep=start) as log, recorder.listening() if recorder else nullcontext():
            loss, kept, told, saved = log.loss, start, 0.0, time.perf_counter()
            began = saved - log.seconds
            stream = batches(task, training, seed, start)
            for step, batch in enumerate(stream if device == "cpu" else ahead(stream), start):
                where = f"seed {seed} at step {step} (the checkpoint of step {kept} is kept)"
                batch = batch.to(device, training.precision)
                loss, norm, share = update(model, optimizer, task, batch, training, step, where)
                if recorder:
                    recorder.add(batch, training.rate(step), share)
                done, now = step + 1, time.perf_counter()
                log.add(step, loss, training.rate(step), norm, now - began)
                if done in training.due or now - saved > save_every:
                    log.sync()
                    if recorder:
                        recorder.sync()
                    save(done, rolling=done not in training.due)
                    kept, saved = done, now
                if now - told > TELL_EVERY:
                    progress(done, training.steps, loss)
                    told = now
        progress(training.steps, training.steps, loss)
        run.remove_resume(seed)
        return run.checkpoint(seed, training.steps)


def log_spaced(steps: int, n: int) -> tuple[int, ...]:
    """``n`` steps (fewer if there are not so many), 0 and ``steps`` among them, evenly spaced in the logarithm.

    >>> log_spaced(1000, 5)
    (0, 1, 10, 100, 1000)
    """
    n = min(n, steps + 1)
    points = [0]
    for wished in np.geomspace(1, steps, n - 1) if n > 2 else [steps]:
        points.append(max(round(float(wished)), points[-1] + 1))
    return tuple(points)


def evenly_spaced(steps: int, n: int) -> tuple[int, ...]:
    """``n`` steps (fewer if there are not so many), 0 and ``steps`` among them, evenly spaced.

    >>> evenly_spaced(10, 5)
    (0, 2, 5, 8, 10)
    """
    return tuple(sorted({round(float(step)) for step in np.linspace(0, steps, min(n, steps + 1))}))


def batch_of(task: Task, training: Training, seed: int, step: int) -> Batch:
    """The batch of one step: a pure function of the recipe, the seed and the step."""
    return next(batches(task, training, seed, step))


def batches(task: Task, training: Training, seed: int, start: int = 0) -> Iterator[Batch]:
    """The batches of the steps from ``start`` to the last, cut from larger draws."""
    size = training.batch_size
    for draw in range(start // _DRAW, -(-training.steps // _DRAW)):
        drawn = task.sample(size * _DRAW, torch.Generator().manual_seed(_entropy(seed, _DATA, draw)))
        for step in range(max(start, draw * _DRAW), min(training.steps, (draw + 1) * _DRAW)):
            first = step % _DRAW * size
            yield drawn[first : first + size]


def ahead(drawn: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, each drawn by a thread of its own while the one before is used.

    For a device that works while the processor waits; it draws with as many threads of torch as there are now, since
    their number may change the last bit of a sum.
    """
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as drawer:
        coming = drawer.submit(next, drawn, None)
        while (batch := coming.result()) is not None:
            coming = drawer.submit(next, drawn, None)
            yield batch


def update(
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    task: Task,
    batch: Batch,
    training: Training,
    step: int,
    where: str,
) -> tuple[float, float, float]:
    """One update; gives the loss before it, the norm of its gradient, and the share of that which clipping left.

    Args:
        model: in training mode; its weights change in place.
        optimizer: of its parameters.
        task: what judges the predictions.
        batch: sequences of the task, on the model's device.
        training: the recipe: learning rates and clipping.
        step: updates taken before.
        where: words for an error: which seed, which step.

    Raises:
        TrainingDiverged: the loss or the gradient is not finite; the weights are as they were.
    """
    with fused(model, batch.inputs.shape[1]):
        prediction = model(batch.inputs).logits
    loss = training_loss(task, prediction, batch)
    value = must_be_finite(loss.item(), "loss", where)
    optimizer.zero_grad()
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    length = must_be_finite(norm.item(), "gradient norm", where)
    share = 1.0
    if training.clip is not None and length > training.clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, training.clip, norm, foreach=True)
        share = (training.clip / (norm + 1e-6)).item()  # what that call multiplies with
    for group in optimizer.param_groups:
        group["lr"] = training.rate(step)
    optimizer.step()
    return value, length, share


def must_be_finite(value: float, what: str, where: str) -> float:
    """The value, or the end of training."""
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"training must stay finite, but the {what} became {value} for {where}; lower the learning rate, "
            "raise warmup, or set clip"
        )
    return value


def begin_training(
    config: DecoderConfig, training: Training, seed: int, found: Path | None, device: str
) -> tuple[Decoder, torch.optim.Optimizer, int]:
    """The model and optimiser to go on with, and the steps taken so far.

    Weights are copied into the fresh model: memory that a file was mapped to may be aligned in another way, which
    changes the order of sums in a matrix product and so the last bit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_entropy(seed, _INIT))
        model = Decoder(copy.deepcopy(config)).train()
    torch.nn.Module.to(model, dtype=training.precision)  # in place
    if found is not None:
        model.load_state_dict(load_checkpoint(found).state_dict(), strict=True)
    torch.nn.Module.to(model, device)  # in place
    optimizer = training.optimizer.build(model)
    if found is None:
        return model, optimizer, 0
    restore_state(optimizer, model, load_file(found / "state.safetensors"))
    return model, optimizer, verify(found)


def save_training(
    run: Run, seed: int, model: Decoder, optimizer: torch.optim.Optimizer, step: int, *, rolling: bool = False
) -> None:
    """Write the model and the optimiser's state: all that training goes on from."""

    def fill(folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)
        save_file(state_tensors(optimizer, model), folder / "state.safetensors")

    run.write_checkpoint(seed, step, fill, rolling=rolling)


def record_recipe(run: Run, task: Task, config: DecoderConfig, training: Training, seed: int) -> None:
    """Note the recipe beside the checkpoints, or refuse to go on with those of another."""
    name = str(run.seed_path(seed).relative_to(run.path) / "training")
    recipe = {
        "task": _words(task),
        "model": {key: getattr(config, key) for key in _fields(DecoderConfig)},
        "training": _words(training),
        "seed": seed,
        "torch seed": _entropy(seed, _INIT),
        **({"data": task.digest} if task.digest else {}),
    }
    if not (run.path / f"{name}.json").exists():
        run.write_json(name, recipe)
        return
    there = run.read_json(name)
    differing = [key for key in recipe if there.get(key) != recipe[key]]
    if differing:
        raise RunError(
            f"{run.seed_path(seed)} must be trained by one recipe, but holds another {' and '.join(differing)}; "
            "choose another directory, or delete that folder"
        )


def _words(value: object) -> str:
    """A value's fields as text, without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _fields(config: type[DecoderConfig]) -> list[str]:
    """What a decoder is made of, by the names of its configuration's arguments."""
    arguments = inspect.signature(config.__init__).parameters.values()
    return [*(a.name for a in arguments if a.kind is a.KEYWORD_ONLY), "tie_word_embeddings"]


def _entropy(*path: int) -> int:
    """A number for torch's generators from the seed and the place where it is used."""
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0])


@contextmanager
def threads(n: int) -> Iterator[None]:
    """So many threads of torch inside; as it was before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
