"""Training of several seeds as one vectorised program, for GPUs that small models leave mostly idle.

Every parameter has a leading axis ``seed``, so one forward pass, one backward pass and one update serve all seeds.
Everything else belongs to a seed, as in :func:`mesascope.train.train_model`: initial weights, data, clipping, log and
checkpoints. The numbers of a seed equal those of `train_model` up to rounding, and each resumes from the checkpoints of
the other.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import torch

from mesascope.models.config import DecoderConfig
from mesascope.store import LogFn, Run, TrainingLog, do_nothing, verify_checkpoint
from mesascope.tasks.base import Batch, Task
from mesascope.train._batches import prefetch_batches, sample_batches
from mesascope.train._checkpoints import initialise_training, record_training_config, save_checkpoint
from mesascope.train._config import TrainingConfig
from mesascope.train._loop import PROGRESS_INTERVAL, TrainingProgressFn, limit_threads
from mesascope.train._population_step import DecoderPopulation, concatenate_batches, update_population
from mesascope.train.optim import SGD, AdamW

Optimizer = torch.optim.Optimizer


def train_population(
    task: Task,
    config: DecoderConfig,
    training: TrainingConfig,
    seeds: Sequence[int],
    run: Run,
    *,
    device: str = "cpu",
    progress: TrainingProgressFn = do_nothing,
    log: LogFn = do_nothing,
    save_every: float = 20.0,
) -> list[Path]:
    """Train the decoders of several seeds as one program, or resume their training.

    Seeds with fewer updates than the others catch up first; finished ones are not changed.

    Args:
        task: Samples the sequences and defines the loss, which is vectorised where `torch.func.vmap` can.
        config: The decoder configuration.
        training: The training configuration.
        seeds: The training replicates, for their initial weights and their data.
        run: Stores checkpoints and logs under ``models/seed=SEED``, in the format of `train_model`.
        device: The device to train on.
        progress: Called with (steps done, total steps, mean of the last losses), at most ten times a second.
        log: Receives one line for each damaged checkpoint.
        save_every: Seconds between rolling checkpoints, which limit the work that a kill can lose.

    Returns:
        The folders of the last checkpoints, in the order of the seeds.

    Raises:
        ValueError: If the configuration is unsupported (:func:`unsupported_reason`), or a seed is given twice.
        TrainingDiverged: If a loss or gradient of any seed is not finite; earlier checkpoints remain.
        RunError: If the folder is not writable, or holds a seed trained with another configuration.
    """
    if reason := unsupported_reason(training, config):
        raise ValueError(f"{reason}; train the seeds one by one")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more, each given once, but got {list(seeds)}; remove duplicates")
    with ExitStack() as locks, limit_threads(training.threads):
        # existing seeds first, so that an error creates no new folders
        for seed in sorted(seeds, key=lambda seed: not run.seed_path(seed).exists()):
            locks.enter_context(run.exclusive_lock(str(run.seed_path(seed).relative_to(run.path))))
            record_training_config(run, task, config, training, seed)
        loss, steps_taken = (
            math.nan,
            {seed: _count_steps(run.find_resume_point(seed, training.checkpoint_steps, log)) for seed in seeds},
        )
        while (start := min(steps_taken.values())) < training.steps:
            stop = min((step for step in steps_taken.values() if step > start), default=training.steps)
            slowest = [seed for seed in seeds if steps_taken[seed] == start]
            members = _initialise_members(config, training, slowest, run, device, log)
            loss = _train_members(members, task, training, run, start, stop, progress, save_every)
            steps_taken |= dict.fromkeys(slowest, stop)
        progress(training.steps, training.steps, loss)
        for seed in seeds:
            run.remove_resume(seed)
        return [run.verified_checkpoint(seed, training.steps) for seed in seeds]


def unsupported_reason(training: TrainingConfig, config: DecoderConfig) -> str:
    """Return why seeds cannot be trained as one program; empty if they can.

    Args:
        training: The training configuration.
        config: The decoder configuration.

    Returns:
        The reason, or an empty string.
    """
    if type(config) is not DecoderConfig:
        return f"a population must be of decoders, but the configuration is of type {type(config).__name__}"
    if training.history:
        return "a population must train without a history, which records a single model, but got history=True"
    if type(training.optimizer) not in (AdamW, SGD):
        return (
            f"a population must use AdamW or SGD, which update elementwise, but got {type(training.optimizer).__name__}"
        )
    return ""


def _count_steps(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else verify_checkpoint(checkpoint)


def _initialise_members(
    config: DecoderConfig, training: TrainingConfig, seeds: Sequence[int], run: Run, device: str, log: LogFn
) -> DecoderPopulation:
    """Build or load the members; new ones get their first checkpoint."""
    decoders = []
    for seed in seeds:
        checkpoint = run.find_resume_point(seed, training.checkpoint_steps, log)
        model, optimizer, _ = initialise_training(config, training, seed, checkpoint, "cpu")
        if checkpoint is None:
            save_checkpoint(run, seed, model, optimizer, 0)
        decoders.append((model, optimizer))
    return DecoderPopulation.stack_decoders(training, seeds, decoders, device)


def _train_members(
    members: DecoderPopulation,
    task: Task,
    training: TrainingConfig,
    run: Run,
    start: int,
    stop: int,
    progress: TrainingProgressFn,
    save_every: float,
) -> float:
    """Train from ``start`` to ``stop``, save all members there, and return the mean of the last losses."""
    device, dtype = members.model.device, training.weight_dtype
    with ExitStack() as stack:
        logs = [stack.enter_context(run.open_log(seed, keep_steps=start)) for seed in members.seeds]
        loss, saved_step, last_progress, start_time = math.nan, start, 0.0, time.perf_counter()
        last_save_time = start_time
        for step, batch in enumerate(_stream_batches(members, task, training, start, stop), start):
            values = update_population(members, task, batch.to(device, dtype), training, step, saved_step)
            loss = sum(seed_loss for seed_loss, _ in values) / len(values)
            done, now = step + 1, time.perf_counter()
            for log, (seed_loss, norm) in zip(logs, values, strict=True):
                log.add_row(step, seed_loss, training.learning_rate_at(step), norm, now - start_time + log.seconds)
            if done in training.checkpoint_steps or done == stop or now - last_save_time > save_every:
                _save_members(members, logs, run, done, rolling=done not in training.checkpoint_steps)
                saved_step, last_save_time = done, time.perf_counter()
            if now - last_progress > PROGRESS_INTERVAL:
                progress(done, training.steps, loss)
                last_progress = now
    return loss


def _stream_batches(
    members: DecoderPopulation, task: Task, training: TrainingConfig, start: int, stop: int
) -> Iterator[Batch]:
    """Iterate over the batches of the steps from ``start`` to ``stop``, of all seeds together."""
    streams = zip(*(sample_batches(task, training, seed, start) for seed in members.seeds), strict=True)
    stream = map(concatenate_batches, streams)
    return islice(stream if members.model.device.type == "cpu" else prefetch_batches(stream), stop - start)


def _save_members(
    members: DecoderPopulation, logs: Sequence[TrainingLog], run: Run, step: int, *, rolling: bool
) -> None:
    """Sync the logs, then save every seed."""
    for log in logs:
        log.sync_to_disk()
    for seed, model, optimizer in members.iterate_decoders():
        save_checkpoint(run, seed, model, optimizer, step, rolling=rolling)
