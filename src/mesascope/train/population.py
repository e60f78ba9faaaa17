"""Training of several seeds as one vectorised program, for GPUs that small models leave mostly idle.

Every parameter has a leading axis ``seed``, so one forward pass, one backward pass and one update serve all seeds.
Everything else belongs to a seed, as in :func:`mesascope.train.train_model`: initial weights, data, clipping, log and
checkpoints. The numbers of a seed equal those of `train_model` up to rounding, and each resumes from the checkpoints of
the other.
"""

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.func import functional_call, vmap

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.store import LogFn, Run, do_nothing, verify_checkpoint
from mesascope.tasks.base import Batch, Task, training_loss
from mesascope.train._loop import (
    PROGRESS_INTERVAL,
    TrainingConfig,
    TrainingProgressFn,
    check_finite,
    initialise_training,
    limit_threads,
    prefetch_batches,
    record_training_config,
    sample_batches,
    save_checkpoint,
)
from mesascope.train.optim import SGD, AdamW, restore_state, state_tensors

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
    if reason := unsupported_reason(training):
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


def unsupported_reason(training: TrainingConfig) -> str:
    """Return why seeds cannot be trained as one program; empty if they can.

    Args:
        training: The training configuration.

    Returns:
        The reason, or an empty string.
    """
    if training.history:
        return "a population must train without a history, which records a single model, but got history=True"
    if type(training.optimizer) not in (AdamW, SGD):
        return (
            f"a population must use AdamW or SGD, which update elementwise, but got {type(training.optimizer).__name__}"
        )
    return ""


@dataclass(frozen=True, eq=False)
class DecoderPopulation:
    """Decoders of several seeds that have taken the same number of updates.

    Attributes:
        seeds: The training replicates.
        model: One decoder whose parameters have a leading axis ``seed``.
        optimizer: The optimizer of these parameters.
        single: A decoder and optimizer as in `train_model`, into which one seed is copied when it is saved.
    """

    seeds: Sequence[int]
    model: Decoder
    optimizer: Optimizer
    single: tuple[Decoder, Optimizer]

    @classmethod
    def stack_decoders(
        cls, training: TrainingConfig, seeds: Sequence[int], decoders: Sequence[tuple[Decoder, Optimizer]], device: str
    ) -> "DecoderPopulation":
        """Stack decoders and their optimizer states along the axis ``seed``.

        Args:
            training: The training configuration.
            seeds: The training replicates.
            decoders: One decoder and optimizer per seed.
            device: The device to train on.

        Returns:
            The stacked decoders.
        """
        model = copy.deepcopy(decoders[0][0])
        for parameter, *per_seed in zip(
            model.parameters(), *(decoder.parameters() for decoder, _ in decoders), strict=True
        ):
            parameter.data = torch.stack([tensor.detach() for tensor in per_seed])
        torch.nn.Module.to(model, device)  # in place
        optimizer = training.optimizer.build_optimizer(model)
        states = [state_tensors(seed_optimizer, decoder) for decoder, seed_optimizer in decoders]
        restore_state(optimizer, model, {name: _stack_state([state[name] for state in states]) for name in states[0]})
        return cls(seeds, model, optimizer, decoders[0])

    def iterate_decoders(self) -> Iterator[tuple[int, Decoder, Optimizer]]:
        """Iterate over the seeds, with decoder and optimizer on the CPU.

        Returns:
            An iterator over (seed, decoder, optimizer); the next item overwrites the decoder and optimizer.
        """
        weights = {name: value.cpu() for name, value in self.model.state_dict().items()}
        state = state_tensors(self.optimizer, self.model)
        model, optimizer = self.single
        for index, seed in enumerate(self.seeds):
            model.load_state_dict({name: value[index] for name, value in weights.items()})
            restore_state(optimizer, model, {name: _select_seed(value, index) for name, value in state.items()})
            yield seed, model, optimizer


def update_population(
    members: DecoderPopulation, task: Task, batch: Batch, training: TrainingConfig, step: int, saved_step: int
) -> list[tuple[float, float]]:
    """Take one training step for every seed.

    Args:
        members: The decoders; their weights are updated in place.
        task: Defines the loss.
        batch: The sequences of all seeds, concatenated in the order of the seeds, on the members' device.
        training: The training configuration, for learning rates and clipping.
        step: Updates taken before this one.
        saved_step: The step of the last checkpoint, for error messages.

    Returns:
        The loss before the update and the gradient norm, for each seed.

    Raises:
        TrainingDiverged: If the loss or the gradient of a seed is not finite; all weights are unchanged.
    """
    model, optimizer = members.model, members.optimizer
    losses = _compute_losses(task, _predict_all(model, _split_by_seed(batch.inputs, len(members.seeds))), batch)
    optimizer.zero_grad()
    losses.sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norms = _gradient_norms(gradients)
    values = torch.stack([losses.detach(), norms], dim=1).tolist()  # one device synchronisation for all seeds
    for seed, (loss, norm) in zip(members.seeds, values, strict=True):
        where = f"seed {seed} at step {step} (the last checkpoint is step {saved_step})"
        check_finite(loss, "loss", where)
        check_finite(norm, "gradient norm", where)
    if training.clip is not None:
        _clip_gradients(gradients, norms, training.clip)
    for group in optimizer.param_groups:
        group["lr"] = training.learning_rate_at(step)
    optimizer.step()
    return [(loss, norm) for loss, norm in values]


def concatenate_batches(per_seed: Sequence[Batch]) -> Batch:
    """Concatenate batches of equal size along the axis ``batch``.

    Args:
        per_seed: One batch per seed.

    Returns:
        One batch.
    """
    first = per_seed[0]
    return Batch(
        inputs=torch.cat([batch.inputs for batch in per_seed]),
        targets=torch.cat([batch.targets for batch in per_seed]),
        weight=torch.cat([batch.weight for batch in per_seed]),
        latents={name: torch.cat([batch.latents[name] for batch in per_seed]) for name in first.latents},
    )


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
    streams = zip(*(sample_batches(task, training, seed, start) for seed in members.seeds), strict=True)
    stream = map(concatenate_batches, streams)
    with ExitStack() as stack:
        logs = [stack.enter_context(run.open_log(seed, keep_steps=start)) for seed in members.seeds]
        loss, saved_step, last_progress, start_time = math.nan, start, 0.0, time.perf_counter()
        last_save_time = start_time
        for step, batch in enumerate(
            islice(stream if device.type == "cpu" else prefetch_batches(stream), stop - start), start
        ):
            values = update_population(members, task, batch.to(device, dtype), training, step, saved_step)
            loss = sum(seed_loss for seed_loss, _ in values) / len(values)
            done, now = step + 1, time.perf_counter()
            for log, (seed_loss, norm) in zip(logs, values, strict=True):
                log.add_row(step, seed_loss, training.learning_rate_at(step), norm, now - start_time + log.seconds)
            if done in training.checkpoint_steps or done == stop or now - last_save_time > save_every:
                for log in logs:
                    log.sync_to_disk()
                for seed, model, optimizer in members.iterate_decoders():
                    save_checkpoint(run, seed, model, optimizer, done, rolling=done not in training.checkpoint_steps)
                saved_step, last_save_time = done, time.perf_counter()
            if now - last_progress > PROGRESS_INTERVAL:
                progress(done, training.steps, loss)
                last_progress = now
    return loss


def _predict_all(
    model: Decoder, inputs: Float[Tensor, "seed batch pos d_in"] | Int[Tensor, "seed batch pos"]
) -> Float[Tensor, "seed batch pos d_out"]:
    def predict_one(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, dict(weights), (x,)).logits

    return vmap(predict_one)(dict(model.named_parameters()), inputs)


def _compute_losses(
    task: Task, predictions: Float[Tensor, "seed batch pos d_out"], batch: Batch
) -> Float[Tensor, "seed"]:
    """Return the training loss of each seed, vectorised unless the task's loss depends on values."""
    n, size = len(predictions), len(batch) // len(predictions)
    fields = {name: _split_by_seed(getattr(batch, name), n) for name in ("inputs", "targets", "weight")}
    latents = {name: _split_by_seed(value, n) for name, value in batch.latents.items()}

    def compute_loss(prediction: Tensor, fields: Mapping[str, Tensor], latents: Mapping[str, Tensor]) -> Tensor:
        return training_loss(task, prediction, Batch(**fields, latents=latents))

    try:
        return vmap(compute_loss)(predictions, fields, latents)
    except RuntimeError:  # vmap does not allow values to be read
        per_seed = (batch[first : first + size] for first in range(0, len(batch), size))
        return torch.stack([training_loss(task, *both) for both in zip(predictions, per_seed, strict=True)])


def _gradient_norms(gradients: Sequence[Shaped[Tensor, "seed ..."]]) -> Float[Tensor, "seed"]:
    parts = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(parts), dim=0)


def _clip_gradients(
    gradients: Sequence[Shaped[Tensor, "seed ..."]], norms: Float[Tensor, "seed"], max_norm: float
) -> None:
    """Clip, in place, the gradients of seeds whose norm exceeds ``max_norm``, as `train_model` does."""
    scale = torch.where(norms > max_norm, max_norm / (norms + 1e-6), 1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


def _split_by_seed(x: Shaped[Tensor, "rows *rest"], seeds: int) -> Shaped[Tensor, "seed batch *rest"]:
    return x.unflatten(0, (seeds, -1))


def _stack_state(per_seed: Sequence[Shaped[Tensor, "*shape"]]) -> Shaped[Tensor, "*stacked"]:
    """Stack optimizer state over seeds; step counts, which are equal for all seeds, are not stacked."""
    return torch.stack(list(per_seed)) if per_seed[0].ndim else per_seed[0]


def _select_seed(value: Shaped[Tensor, "*stacked"], index: int) -> Shaped[Tensor, "*shape"]:
    return value[index] if value.ndim else value
