"""Seeds of one setting, trained as one program: on a GPU, which small models leave idle most of the time.

Every parameter has the axis ``seed`` in front: one pass forward, one pass back and one update serve all. All else is a
seed's own, as in :func:`mesascope.train.fit`: first weights, data, clipping, log, checkpoints. So a seed's numbers are
those of `fit` but for rounding, and either goes on from what the other has saved.
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
from mesascope.store import Run, Say, ignore, verify
from mesascope.tasks.base import Batch, Task, training_loss
from mesascope.train.loop import (
    TELL_EVERY,
    Progress,
    Training,
    ahead,
    batches,
    begin_training,
    must_be_finite,
    record_recipe,
    save_training,
    threads,
)
from mesascope.train.optim import SGD, AdamW, restore_state, state_tensors

Optimizer = torch.optim.Optimizer


def fit_population(
    task: Task,
    config: DecoderConfig,
    training: Training,
    seeds: Sequence[int],
    run: Run,
    *,
    device: str = "cpu",
    progress: Progress = ignore,
    say: Say = ignore,
    save_every: float = 20.0,
) -> list[Path]:
    """Train the decoders of several seeds as one program, or go on with them where an earlier call was stopped.

    Seeds that have taken fewer steps than the others catch up first; those that are done are left alone.

    Args:
        task: what makes the sequences and judges the predictions; its loss is vectorised where `torch.func.vmap` can.
        config: the decoder.
        training: the rest of the recipe.
        seeds: of the replicates: their first weights and their data.
        run: where checkpoints and logs go, under ``models/seed=SEED``, as `fit` writes them.
        device: where to train.
        progress: hears (steps done, steps in all, mean of the last losses), ten times a second at most.
        say: hears one line when a damaged checkpoint is found.
        save_every: seconds between checkpoints that the next ones overwrite, so that a kill costs no more.

    Returns:
        The folders of the last checkpoints, in the order of the seeds.

    Raises:
        ValueError: the training cannot be shared (:func:`obstacle`), or a seed is given twice.
        TrainingDiverged: a loss or gradient of a seed is not finite; what was saved before stays, of all.
        RunError: the place cannot be written, or holds a seed's training by another recipe.
    """
    if reason := obstacle(training):
        raise ValueError(f"{reason}; train one seed after another by fit")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more, each given once, but got {list(seeds)}; leave out the others")
    with ExitStack() as held, threads(training.threads):
        for seed in sorted(seeds, key=lambda seed: not run.seed_path(seed).exists()):  # a refusal leaves nothing behind
            held.enter_context(run.lock(str(run.seed_path(seed).relative_to(run.path))))
            record_recipe(run, task, config, training, seed)
        loss, taken = math.nan, {seed: _taken(run.resume_point(seed, training.due, say)) for seed in seeds}
        while (start := min(taken.values())) < training.steps:
            stop = min((step for step in taken.values() if step > start), default=training.steps)
            behind = [seed for seed in seeds if taken[seed] == start]
            members = _begin(config, training, behind, run, device, say)
            loss = _train(members, task, training, run, start, stop, progress, save_every)
            taken |= dict.fromkeys(behind, stop)
        progress(training.steps, training.steps, loss)
        for seed in seeds:
            run.remove_resume(seed)
        return [run.checkpoint(seed, training.steps) for seed in seeds]


def obstacle(training: Training) -> str:
    """What about a recipe does not let seeds be trained as one program; empty where nothing does."""
    if training.history:
        return "a population must train without a history, since the recorder hears one model, but got history=True"
    if type(training.optimizer) not in (AdamW, SGD):
        return (
            "a population needs AdamW or SGD, which treat every number alone, "
            f"but got {type(training.optimizer).__name__}"
        )
    return ""


@dataclass(frozen=True, eq=False)
class Members:
    """Decoders that have taken the same number of steps, side by side.

    Attributes:
        seeds: whose they are.
        model: one decoder whose parameters have the axis ``seed`` in front.
        optimizer: of these parameters.
        single: a decoder and its optimiser, as `fit` has them: what one seed is read into when it is saved.
    """

    seeds: Sequence[int]
    model: Decoder
    optimizer: Optimizer
    single: tuple[Decoder, Optimizer]

    @classmethod
    def join(
        cls, training: Training, seeds: Sequence[int], begun: Sequence[tuple[Decoder, Optimizer]], device: str
    ) -> "Members":
        """Lay decoders, and what their optimisers remember, side by side."""
        model = copy.deepcopy(begun[0][0])
        for parameter, *own in zip(model.parameters(), *(each.parameters() for each, _ in begun), strict=True):
            parameter.data = torch.stack([one.detach() for one in own])
        torch.nn.Module.to(model, device)  # in place
        optimizer = training.optimizer.build(model)
        states = [state_tensors(own, each) for each, own in begun]
        restore_state(optimizer, model, {name: _joined([state[name] for state in states]) for name in states[0]})
        return cls(seeds, model, optimizer, begun[0])

    def each(self) -> Iterator[tuple[int, Decoder, Optimizer]]:
        """Every seed with its decoder and optimiser as `fit` would have them, on the CPU, until the next is asked."""
        weights = {name: value.cpu() for name, value in self.model.state_dict().items()}
        state = state_tensors(self.optimizer, self.model)
        model, optimizer = self.single
        for place, seed in enumerate(self.seeds):
            model.load_state_dict({name: value[place] for name, value in weights.items()})
            restore_state(optimizer, model, {name: _own(value, place) for name, value in state.items()})
            yield seed, model, optimizer


def update_all(
    members: Members, task: Task, batch: Batch, training: Training, step: int, kept: int
) -> list[tuple[float, float]]:
    """One update of every seed; gives each one's loss before it and the norm of its gradient.

    Args:
        members: whose weights change in place.
        task: what judges the predictions.
        batch: the sequences of all seeds, one seed's after another's, on the members' device.
        training: the recipe: learning rates and clipping.
        step: updates taken before.
        kept: the step of the last checkpoint, for an error.

    Raises:
        TrainingDiverged: the loss or the gradient of a seed is not finite; all weights are as they were.
    """
    model, optimizer = members.model, members.optimizer
    losses = _losses(task, _predictions(model, _apart(batch.inputs, len(members.seeds))), batch)
    optimizer.zero_grad()
    losses.sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norms = _norms(gradients)
    read = torch.stack([losses.detach(), norms], dim=1).tolist()  # once for all of them: it waits for the device
    for seed, (loss, norm) in zip(members.seeds, read, strict=True):
        where = f"seed {seed} at step {step} (the checkpoint of step {kept} is kept)"
        must_be_finite(loss, "loss", where)
        must_be_finite(norm, "gradient norm", where)
    if training.clip is not None:
        _clip(gradients, norms, training.clip)
    for group in optimizer.param_groups:
        group["lr"] = training.rate(step)
    optimizer.step()
    return [(loss, norm) for loss, norm in read]


def side_by_side(own: Sequence[Batch]) -> Batch:
    """Batches of equal size as one, one after another."""
    first = own[0]
    return Batch(
        inputs=torch.cat([one.inputs for one in own]),
        targets=torch.cat([one.targets for one in own]),
        weight=torch.cat([one.weight for one in own]),
        latents={name: torch.cat([one.latents[name] for one in own]) for name in first.latents},
    )


def _taken(found: Path | None) -> int:
    """The steps that a seed has taken."""
    return 0 if found is None else verify(found)


def _begin(config: DecoderConfig, training: Training, seeds: Sequence[int], run: Run, device: str, say: Say) -> Members:
    """The members to go on with; those that are new have their first checkpoint."""
    begun = []
    for seed in seeds:
        found = run.resume_point(seed, training.due, say)
        model, optimizer, _ = begin_training(config, training, seed, found, "cpu")
        if found is None:
            save_training(run, seed, model, optimizer, 0)
        begun.append((model, optimizer))
    return Members.join(training, seeds, begun, device)


def _train(
    members: Members,
    task: Task,
    training: Training,
    run: Run,
    start: int,
    stop: int,
    progress: Progress,
    save_every: float,
) -> float:
    """The steps from ``start`` to ``stop``, where all are saved; gives the mean of the last losses."""
    device, dtype = members.model.device, training.precision
    streams = zip(*(batches(task, training, seed, start) for seed in members.seeds), strict=True)
    stream = map(side_by_side, streams)
    with ExitStack() as held:
        logs = [held.enter_context(run.log(seed, keep=start)) for seed in members.seeds]
        loss, kept, told, began = math.nan, start, 0.0, time.perf_counter()
        saved = began
        for step, batch in enumerate(islice(stream if device.type == "cpu" else ahead(stream), stop - start), start):
            read = update_all(members, task, batch.to(device, dtype), training, step, kept)
            loss = sum(one for one, _ in read) / len(read)
            done, now = step + 1, time.perf_counter()
            for log, (one, norm) in zip(logs, read, strict=True):
                log.add(step, one, training.rate(step), norm, now - began + log.seconds)
            if done in training.due or done == stop or now - saved > save_every:
                for log in logs:
                    log.sync()
                for seed, model, optimizer in members.each():
                    save_training(run, seed, model, optimizer, done, rolling=done not in training.due)
                kept, saved = done, time.perf_counter()
            if now - told > TELL_EVERY:
                progress(done, training.steps, loss)
                told = now
    return loss


def _predictions(
    model: Decoder, inputs: Float[Tensor, "seed batch pos d_in"] | Int[Tensor, "seed batch pos"]
) -> Float[Tensor, "seed batch pos d_out"]:
    """What each seed's weights make of its sequences."""

    def predict(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, dict(weights), (x,)).logits

    return vmap(predict)(dict(model.named_parameters()), inputs)


def _losses(task: Task, predictions: Float[Tensor, "seed batch pos d_out"], batch: Batch) -> Float[Tensor, "seed"]:
    """Each seed's training loss: of all at once, or one after another if the task's loss looks at values."""
    n, size = len(predictions), len(batch) // len(predictions)
    fields = {name: _apart(getattr(batch, name), n) for name in ("inputs", "targets", "weight")}
    latents = {name: _apart(value, n) for name, value in batch.latents.items()}

    def judge(prediction: Tensor, fields: Mapping[str, Tensor], latents: Mapping[str, Tensor]) -> Tensor:
        return training_loss(task, prediction, Batch(**fields, latents=latents))

    try:
        return vmap(judge)(predictions, fields, latents)
    except RuntimeError:  # values are not there while it is vectorised
        own = (batch[first : first + size] for first in range(0, len(batch), size))
        return torch.stack([training_loss(task, *both) for both in zip(predictions, own, strict=True)])


def _norms(gradients: Sequence[Shaped[Tensor, "seed ..."]]) -> Float[Tensor, "seed"]:
    """The norm of each seed's gradient."""
    parts = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(parts), dim=0)


def _clip(gradients: Sequence[Shaped[Tensor, "seed ..."]], norms: Float[Tensor, "seed"], most: float) -> None:
    """Shorten, in place, the gradients of the seeds whose norm is above the most that is allowed, as `fit` does."""
    share = torch.where(norms > most, most / (norms + 1e-6), 1.0)
    for gradient in gradients:
        gradient.mul_(share.view(-1, *[1] * (gradient.ndim - 1)))


def _apart(x: Shaped[Tensor, "rows *rest"], seeds: int) -> Shaped[Tensor, "seed batch *rest"]:
    """What lies one seed after another, with an axis of its own for them."""
    return x.unflatten(0, (seeds, -1))


def _joined(own: Sequence[Shaped[Tensor, "*shape"]]) -> Shaped[Tensor, "*stacked"]:
    """What optimisers remember, side by side; the count of their steps, which is the same for all, once."""
    return torch.stack(list(own)) if own[0].ndim else own[0]


def _own(value: Shaped[Tensor, "*stacked"], place: int) -> Shaped[Tensor, "*shape"]:
    """The part of one seed."""
    return value[place] if value.ndim else value
