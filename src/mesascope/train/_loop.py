"""Training loop, readable from top to bottom.

The batch of step n is a pure function of the seed and n. A resumed run therefore needs no generator state, and ends
bitwise where an uninterrupted run ends.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

from mesascope.argument_types import validate_arguments
from mesascope.models.config import DecoderConfig
from mesascope.store import HISTORY_FOLDER, LogFn, Run, do_nothing
from mesascope.tasks.base import Task
from mesascope.train._batches import prefetch_batches, sample_batches
from mesascope.train._checkpoints import initialise_training, record_training_config, save_checkpoint
from mesascope.train._config import TrainingConfig
from mesascope.train._history import HistoryRecorder
from mesascope.train._step import run_training_step

TrainingProgressFn = Callable[[int, int, float], None]

PROGRESS_INTERVAL = 0.1  # seconds between calls of `progress`


@validate_arguments
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
        ValueError: If an argument has the wrong type, or there is no such device.
        TrainingDiverged: If a loss or gradient is not finite; earlier checkpoints remain.
        RunError: If the folder is not writable, or holds this seed trained with another configuration.
    """
    _validate_device(device)
    with run.exclusive_lock(str(run.seed_path(seed).relative_to(run.path))), limit_threads(training.threads):
        record_training_config(run, task, config, training, seed)
        checkpoint = run.find_resume_point(seed, training.checkpoint_steps, log)
        model, optimizer, start = initialise_training(config, training, seed, checkpoint, device)
        save = partial(save_checkpoint, run, seed, model, optimizer)
        if checkpoint is None:
            save(0)
        recorder = None
        if training.history:
            folder, identity = run.seed_path(seed) / HISTORY_FOLDER, run.training_identity(seed)
            recorder = HistoryRecorder(model, optimizer, training.optimizer, folder, start, identity)
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


def _validate_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
        is_available = torch.device(device).type != "meta"
    except (RuntimeError, AssertionError):  # of builds of torch without this device
        is_available = False
    if not is_available:
        raise ValueError(f"device must be a device of this machine, but got {device!r}; pass cpu")


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
