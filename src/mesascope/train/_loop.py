"""Training loop, readable from top to bottom.

The batch of step n is a pure function of the seed and n. A resumed run therefore needs no generator state, and ends
bitwise where an uninterrupted run ends.
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
from mesascope.models.fused import fused_attention
from mesascope.models.load import load_checkpoint, silence_transformers
from mesascope.models.transformer import Decoder
from mesascope.statistics import evenly_spaced_steps
from mesascope.store import LogFn, Run, RunError, do_nothing, verify_checkpoint
from mesascope.tasks.base import Batch, Task, training_loss
from mesascope.train._history import HistoryRecorder
from mesascope.train.optim import (
    AdamW,
    CosineSchedule,
    LearningRateSchedule,
    OptimizerConfig,
    restore_state,
    scheduled_learning_rate,
    state_tensors,
)

TrainingProgressFn = Callable[[int, int, float], None]

_INIT_STREAM, _DATA_STREAM = 0, 1  # independent random streams of one seed
_BATCHES_PER_DRAW = (
    16  # batches per sample() call, most of which is overhead: 0.13 ms per batch instead of 1.6 ms (affine task)
)
PROGRESS_INTERVAL = 0.1  # seconds between calls of `progress`


class TrainingDiverged(RuntimeError):  # noqa: N818  the name states the event
    """Raised when a loss or gradient is not finite; names the seed, the step and the last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Training configuration.

    Attributes:
        steps: Number of optimizer updates.
        batch_size: Fresh sequences per update.
        optimizer: Configuration of the optimizer, with its peak learning rate.
        warmup: Updates over which the learning rate rises linearly from 0 to its peak.
        schedule: Learning-rate schedule after warm-up.
        clip: Maximum gradient norm; ``None`` disables clipping.
        checkpoints: Number of checkpoints, including the first and the last step.
        spacing: Spacing of the checkpoints: ``log`` (evenly in the logarithm of the step) or ``even``.
        threads: CPU threads. One thread is fastest for small models, and several seeds run in parallel.
        dtype: Data type of weights and activations: float32 or float64.
        history: Record the inputs and output gradients of every linear module at every step.

    >>> TrainingConfig(steps=10, checkpoints=4).checkpoint_steps
    (0, 1, 3, 10)
    """

    steps: int
    batch_size: int = 64
    optimizer: OptimizerConfig = field(default_factory=AdamW)
    warmup: int = 0
    schedule: LearningRateSchedule = field(default_factory=CosineSchedule)
    clip: float | None = 1.0
    checkpoints: int = 12
    spacing: Literal["log", "even"] = "log"
    threads: int = 1
    dtype: Literal["float32", "float64"] = "float32"
    history: bool = False

    def __post_init__(self) -> None:
        """Validate the configuration."""
        for name, minimum in (("steps", 1), ("batch_size", 1), ("warmup", 0), ("checkpoints", 2), ("threads", 1)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, but got {getattr(self, name)}")
        if self.spacing not in ("log", "even"):
            raise ValueError(f"spacing must be log or even, but got {self.spacing!r}")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64, but got {self.dtype!r}")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup must be less than steps, but got {self.warmup} and {self.steps}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, or None for no clipping, but got {self.clip}")

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """The steps at which a checkpoint is saved, in ascending order."""
        spaced = log_spaced_steps if self.spacing == "log" else evenly_spaced_steps
        return spaced(self.steps, self.checkpoints)

    @property
    def weight_dtype(self) -> torch.dtype:
        """The data type of the weights."""
        return {"float32": torch.float32, "float64": torch.float64}[self.dtype]

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of an update.

        Args:
            step: Updates taken before this one.

        Returns:
            The learning rate, warm-up and schedule included.
        """
        peak, schedule = self.optimizer.lr, self.schedule
        return scheduled_learning_rate(step, steps=self.steps, warmup=self.warmup, peak=peak, schedule=schedule)


def train_model(
    task: Task,
    config: DecoderConfig,
    training: TrainingConfig,
    seed: int,
    run: Run,
    *,
    device: str = "cpu",
    progress: TrainingProgressFn = do_nothing,
    log: LogFn = do_nothing,
    save_every: float = 20.0,
) -> Path:
    """Train one decoder, or resume its training.

    Args:
        task: Samples the sequences and defines the loss.
        config: The decoder configuration.
        training: The training configuration.
        seed: The seed of this replicate, for its initial weights and its data.
        run: Stores checkpoints and the log under ``models/seed=SEED``.
        device: The device to train on.
        progress: Called with (steps done, total steps, last loss), at most ten times a second.
        log: Receives one line for each damaged checkpoint.
        save_every: Seconds between rolling checkpoints, which limit the work that a kill can lose.

    Returns:
        The folder of the last checkpoint.

    Raises:
        TrainingDiverged: If a loss or gradient is not finite; earlier checkpoints remain.
        RunError: If the folder is not writable, or holds this seed trained with another configuration.
    """
    with run.exclusive_lock(str(run.seed_path(seed).relative_to(run.path))), limit_threads(training.threads):
        record_training_config(run, task, config, training, seed)
        checkpoint = run.find_resume_point(seed, training.checkpoint_steps, log)
        model, optimizer, start = initialise_training(config, training, seed, checkpoint, device)
        save = partial(save_checkpoint, run, seed, model, optimizer)
        if checkpoint is None:
            save(0)
        recorder = None
        if training.history:
            recorder = HistoryRecorder(
                model, optimizer, training.optimizer, run.seed_path(seed) / "history", keep_steps=start
            )
        with (
            run.open_log(seed, keep_steps=start) as training_log,
            recorder.attach_hooks() if recorder else nullcontext(),
        ):
            loss, saved_step, last_progress, last_save_time = training_log.loss, start, 0.0, time.perf_counter()
            start_time = last_save_time - training_log.seconds
            stream = sample_batches(task, training, seed, start)
            for step, batch in enumerate(stream if device == "cpu" else prefetch_batches(stream), start):
                where = f"seed {seed} at step {step} (the last checkpoint is step {saved_step})"
                batch = batch.to(device, training.weight_dtype)
                loss, norm, gradient_scale = run_training_step(model, optimizer, task, batch, training, step, where)
                if recorder:
                    recorder.append_step(batch, training.learning_rate_at(step), gradient_scale)
                done, now = step + 1, time.perf_counter()
                training_log.add_row(step, loss, training.learning_rate_at(step), norm, now - start_time)
                if done in training.checkpoint_steps or now - last_save_time > save_every:
                    training_log.sync_to_disk()
                    if recorder:
                        recorder.sync_to_disk()
                    save(done, rolling=done not in training.checkpoint_steps)
                    saved_step, last_save_time = done, now
                if now - last_progress > PROGRESS_INTERVAL:
                    progress(done, training.steps, loss)
                    last_progress = now
        progress(training.steps, training.steps, loss)
        run.remove_resume(seed)
        return run.verified_checkpoint(seed, training.steps)


def log_spaced_steps(steps: int, n: int) -> tuple[int, ...]:
    """Return ``n`` steps from 0 to ``steps``, evenly spaced in the logarithm.

    Args:
        steps: The last step.
        n: Number of steps to return; fewer if there are not enough distinct ones.

    Returns:
        Steps in ascending order, including 0 and ``steps``.

    >>> log_spaced_steps(1000, 5)
    (0, 1, 10, 100, 1000)
    """
    n = min(n, steps + 1)
    points = [0]
    for target in np.geomspace(1, steps, n - 1) if n > 2 else [steps]:
        points.append(max(round(float(target)), points[-1] + 1))
    return tuple(points)


def sample_batch(task: Task, training: TrainingConfig, seed: int, step: int) -> Batch:
    """Return the batch of one step, a pure function of the configuration, the seed and the step.

    Args:
        task: Samples the sequences.
        training: The training configuration.
        seed: The training replicate.
        step: Updates taken before this one.

    Returns:
        The batch, on the CPU.
    """
    return next(sample_batches(task, training, seed, step))


def sample_batches(task: Task, training: TrainingConfig, seed: int, start: int = 0) -> Iterator[Batch]:
    """Iterate over the batches of the steps from ``start`` to the last.

    Args:
        task: Samples the sequences.
        training: The training configuration.
        seed: The training replicate.
        start: The first step.

    Returns:
        An iterator over batches on the CPU, sliced from larger samples.
    """
    size = training.batch_size
    for draw in range(start // _BATCHES_PER_DRAW, -(-training.steps // _BATCHES_PER_DRAW)):
        sampled = task.sample(
            size * _BATCHES_PER_DRAW, torch.Generator().manual_seed(_derive_seed(seed, _DATA_STREAM, draw))
        )
        for step in range(max(start, draw * _BATCHES_PER_DRAW), min(training.steps, (draw + 1) * _BATCHES_PER_DRAW)):
            first = step % _BATCHES_PER_DRAW * size
            yield sampled[first : first + size]


def prefetch_batches(batch_stream: Iterator[Batch]) -> Iterator[Batch]:
    """Prefetch batches in a background thread, so that a GPU does not wait for the CPU.

    Args:
        batch_stream: The batches to prefetch.

    Returns:
        An iterator over the same batches.
    """
    # the same number of torch threads as in the main thread: it can change the last bit of a sum
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        next_batch = pool.submit(next, batch_stream, None)
        while (batch := next_batch.result()) is not None:
            next_batch = pool.submit(next, batch_stream, None)
            yield batch


def run_training_step(
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    task: Task,
    batch: Batch,
    training: TrainingConfig,
    step: int,
    where: str,
) -> tuple[float, float, float]:
    """Take one training step: forward pass, backward pass, clipping and optimizer update.

    Args:
        model: The model, in training mode; its weights are updated in place.
        optimizer: The optimizer of its parameters.
        task: Defines the loss.
        batch: Sequences of the task, on the model's device.
        training: The training configuration, for learning rates and clipping.
        step: Updates taken before this one.
        where: The seed and step, for error messages.

    Returns:
        The loss before the update, the gradient norm, and the factor by which clipping scaled the gradient.

    Raises:
        TrainingDiverged: If the loss or the gradient is not finite; the weights are unchanged.
    """
    with fused_attention(model, batch.inputs.shape[1]):
        prediction = model(batch.inputs).logits
    loss = training_loss(task, prediction, batch)
    value = check_finite(loss.item(), "loss", where)
    optimizer.zero_grad()
    loss.backward()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    norm_value = check_finite(norm.item(), "gradient norm", where)
    gradient_scale = 1.0
    if training.clip is not None and norm_value > training.clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, training.clip, norm, foreach=True)
        gradient_scale = (training.clip / (norm + 1e-6)).item()  # the factor used by clip_grads_with_norm_
    for group in optimizer.param_groups:
        group["lr"] = training.learning_rate_at(step)
    optimizer.step()
    return value, norm_value, gradient_scale


def check_finite(value: float, what: str, where: str) -> float:
    """Return ``value`` if it is finite.

    Args:
        value: The number to check.
        what: The name of the number, for the error message.
        where: The seed and step, for the error message.

    Returns:
        The same value.

    Raises:
        TrainingDiverged: If the value is infinite or not a number.
    """
    if not math.isfinite(value):
        raise TrainingDiverged(
            f"training must stay finite, but the {what} became {value} for {where}; lower the learning rate, "
            "raise warmup, or set clip"
        )
    return value


def initialise_training(
    config: DecoderConfig, training: TrainingConfig, seed: int, checkpoint: Path | None, device: str
) -> tuple[Decoder, torch.optim.Optimizer, int]:
    """Build the model and the optimizer, and load a checkpoint if there is one.

    Args:
        config: The decoder configuration.
        training: The training configuration.
        seed: The training replicate; it determines the initial weights.
        checkpoint: The checkpoint to resume from, or None.
        device: The device to train on.

    Returns:
        The model in training mode, its optimizer, and the number of updates taken.

    Raises:
        CheckpointDamaged: If the checkpoint does not match its manifest.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_derive_seed(seed, _INIT_STREAM))
        model = Decoder(copy.deepcopy(config)).train()
    torch.nn.Module.to(model, dtype=training.weight_dtype)  # in place
    if checkpoint is not None:
        # copied, not used in place: memory-mapped weights can be aligned differently, which changes the order of sums
        # in a matrix product, and so the last bit
        model.load_state_dict(load_checkpoint(checkpoint).state_dict(), strict=True)
    torch.nn.Module.to(model, device)  # in place
    optimizer = training.optimizer.build_optimizer(model)
    if checkpoint is None:
        return model, optimizer, 0
    restore_state(optimizer, model, load_file(checkpoint / "state.safetensors"))
    return model, optimizer, verify_checkpoint(checkpoint)


def save_checkpoint(
    run: Run, seed: int, model: Decoder, optimizer: torch.optim.Optimizer, step: int, *, rolling: bool = False
) -> None:
    """Save the weights and the optimizer state, all that resuming needs.

    Args:
        run: Stores the checkpoint.
        seed: The training replicate.
        model: The model.
        optimizer: Its optimizer.
        step: Updates taken.
        rolling: Write the rolling checkpoint, which the next one overwrites.

    Raises:
        RunError: If the file system refuses.
    """

    def write_files(folder: Path) -> None:
        with silence_transformers():
            model.save_pretrained(folder)
        save_file(state_tensors(optimizer, model), folder / "state.safetensors")

    run.write_checkpoint(seed, step, write_files, rolling=rolling)


def record_training_config(run: Run, task: Task, config: DecoderConfig, training: TrainingConfig, seed: int) -> None:
    """Store the training configuration next to the checkpoints, or check that it matches the stored one.

    Args:
        run: The run.
        task: The task.
        config: The decoder configuration.
        training: The training configuration.
        seed: The training replicate.

    Raises:
        RunError: If the folder holds checkpoints of another configuration.
    """
    name = str(run.seed_path(seed).relative_to(run.path) / "training")
    settings = {
        "task": _describe_value(task),
        "model": {key: getattr(config, key) for key in _config_arguments(DecoderConfig)},
        "training": _describe_value(training),
        "seed": seed,
        "torch seed": _derive_seed(seed, _INIT_STREAM),
        **({"data": task.token_digest} if task.token_digest else {}),
    }
    if not (run.path / f"{name}.json").exists():
        run.write_json(name, settings)
        return
    stored = run.read_json(name)
    differing = [key for key in settings if stored.get(key) != settings[key]]
    if differing:
        raise RunError(
            f"{run.seed_path(seed)} must be trained with one configuration, but holds another "
            f"{' and '.join(differing)}; choose another directory, or delete that folder"
        )


def _describe_value(value: object) -> str:
    """Return the representation of a value without memory addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _config_arguments(config: type[DecoderConfig]) -> list[str]:
    arguments = inspect.signature(config.__init__).parameters.values()
    return [*(a.name for a in arguments if a.kind is a.KEYWORD_ONLY), "tie_word_embeddings"]


def _derive_seed(*path: int) -> int:
    """Derive a seed for torch generators from a path of integers."""
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0])


@contextmanager
def limit_threads(n: int) -> Iterator[None]:
    """Set the number of torch CPU threads for the duration of a ``with`` block.

    Args:
        n: Number of threads.

    Returns:
        A context manager that restores the previous number.
    """
    previous = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
