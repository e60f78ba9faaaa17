"""One training step of several seeds: decoders with a leading axis ``seed``, their losses and gradients."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.func import functional_call, vmap

from mesascope.models.transformer import Decoder
from mesascope.tasks.base import Batch, Task, training_loss
from mesascope.train._config import TrainingConfig
from mesascope.train._optimizer_state import restore_state, state_tensors
from mesascope.train._step import check_finite

Optimizer = torch.optim.Optimizer


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
            The population.
        """
        model = copy.deepcopy(decoders[0][0])
        per_decoder = [decoder.parameters() for decoder, _ in decoders]
        for parameter, *per_seed in zip(model.parameters(), *per_decoder, strict=True):
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
