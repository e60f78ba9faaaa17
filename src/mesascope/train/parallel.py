"""Training of one model by several processes, each of which computes a share of every batch.

Every process samples the whole batch of (seed, step) and takes its share, so that data do not depend on the number of
processes. The first process alone writes to the run, in the files of :func:`mesascope.train.train_model`.
"""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import torch.distributed as dist

from mesascope.argument_types import validate_arguments
from mesascope.models.config import DecoderConfig
from mesascope.store import LogFn, Run, do_nothing
from mesascope.tasks.base import Task
from mesascope.train._batches import prefetch_batches, sample_batches
from mesascope.train._checkpoints import record_training_config, save_checkpoint
from mesascope.train._config import TrainingConfig
from mesascope.train._loop import PROGRESS_INTERVAL, TrainingProgressFn, limit_threads
from mesascope.train._parallel_model import ParallelModel, ParallelStrategy, broadcast_value
from mesascope.train.optim import SGD, AdamW


@validate_arguments
def train_parallel(
    task: Task,
    config: DecoderConfig,
    training: TrainingConfig,
    seed: int,
    run: Run,
    *,
    strategy: ParallelStrategy = "ddp",
    device: str = "cpu",
    progress: TrainingProgressFn = do_nothing,
    log: LogFn = do_nothing,
    save_every: float = 20.0,
) -> Path:
    """Train one decoder with all processes of the default process group, or resume its training.

    All processes call this function with the same arguments. Losses and weights equal those of one process up to
    rounding. A resumed training with the same number of processes ends bitwise where an uninterrupted one ends;
    checkpoints of another number of processes can be resumed too, up to rounding.

    Args:
        task: Samples the sequences and defines the loss; the loss of a sequence must not depend on the others.
        config: The decoder configuration.
        training: The training configuration.
        seed: The seed of this replicate, for its initial weights and its data.
        run: Stores checkpoints and the log under ``models/seed=SEED``; all processes must be able to read it.
        strategy: ``ddp`` (every process has all weights) or ``fsdp`` (every process has a part of them).
        device: The device of this process.
        progress: Called in the first process with (steps done, total steps, last loss), at most ten times a second.
        log: Receives in the first process one line for each damaged checkpoint.
        save_every: Seconds between rolling checkpoints, which limit the work that a kill can lose.

    Returns:
        The folder of the last checkpoint.

    Raises:
        ValueError: If there is no process group, or the configuration is unsupported (:func:`validate_parallel`).
        TrainingDiverged: If a loss or gradient is not finite; earlier checkpoints remain.
        RunError: If the folder is not writable, or holds this seed trained with another configuration.
    """
    if not dist.is_initialized():
        raise ValueError(
            "training by several processes must have a process group, but there is none; start the processes with "
            "torchrun, and call torch.distributed.init_process_group first"
        )
    validate_parallel(config, training, dist.get_world_size(), strategy)
    is_first, saved_steps = dist.get_rank() == 0, training.checkpoint_steps
    with ExitStack() as stack:
        stack.enter_context(limit_threads(training.threads))
        checkpoint = None
        if is_first:
            stack.enter_context(run.exclusive_lock(str(run.seed_path(seed).relative_to(run.path))))
            record_training_config(run, task, config, training, seed)
            checkpoint = run.find_resume_point(seed, saved_steps, log)
        checkpoint = broadcast_value(checkpoint)
        members = ParallelModel(config, training, seed, checkpoint, strategy, device)
        start = members.num_updates

        def save(step: int) -> None:
            if (gathered := members.gather()) is not None:
                save_checkpoint(run, seed, *gathered, step, rolling=step not in saved_steps)

        if checkpoint is None:
            save(0)
        training_log = stack.enter_context(run.open_log(seed, keep_steps=start)) if is_first else None
        loss, saved_step, last_progress, last_save_time = float("nan"), start, 0.0, time.perf_counter()
        loss = training_log.loss if training_log else loss
        start_time = last_save_time - (training_log.seconds if training_log else 0.0)
        stream = sample_batches(task, training, seed, start)
        for step, batch in enumerate(stream if device == "cpu" else prefetch_batches(stream), start):
            where = f"seed {seed} at step {step} (the last checkpoint is step {saved_step})"
            is_late = time.perf_counter() - last_save_time > save_every
            loss, norm, is_late = members.take_step(task, batch, step, where, request_save=is_late)
            done, now = step + 1, time.perf_counter()
            if training_log:
                training_log.add_row(step, loss, training.learning_rate_at(step), norm, now - start_time)
            if done in saved_steps or is_late:
                if training_log:
                    training_log.sync_to_disk()
                save(done)
                saved_step, last_save_time = done, now
            if is_first and now - last_progress > PROGRESS_INTERVAL:
                progress(done, training.steps, loss)
                last_progress = now
        if is_first:
            progress(training.steps, training.steps, loss)
            run.remove_resume(seed)
            run.verified_checkpoint(seed, training.steps)
        dist.barrier()
        return run.seed_path(seed) / f"step={training.steps}"


def validate_parallel(config: DecoderConfig, training: TrainingConfig, num_processes: int, strategy: str) -> None:
    """Check that several processes can train a model together.

    Args:
        config: The decoder configuration.
        training: The training configuration.
        num_processes: Number of processes.
        strategy: ``ddp`` or ``fsdp``.

    Raises:
        ValueError: If they cannot; the message says why.
    """
    if strategy not in get_args(ParallelStrategy):
        raise ValueError(f"strategy must be ddp or fsdp, but got {strategy!r}")
    if training.batch_size % num_processes:
        raise ValueError(
            f"batch_size must be a multiple of the number of processes, but got {training.batch_size} and "
            f"{num_processes}; change training.batch_size or the number of processes"
        )
    if type(config) is not DecoderConfig:
        raise ValueError(
            f"several processes must train a decoder, but the configuration is of type {type(config).__name__}; train "
            "it in one process"
        )
    if training.history:
        raise ValueError(
            "several processes must train without a history, which records whole batches, but got history=True; train "
            "in one process"
        )
    if strategy == "fsdp" and type(training.optimizer) not in (AdamW, SGD):
        raise ValueError(
            "with fsdp, the optimizer must be AdamW or SGD, which update elementwise, but got "
            f"{type(training.optimizer).__name__}; use strategy=ddp"
        )
