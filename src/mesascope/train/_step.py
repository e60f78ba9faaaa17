"""One training step, which stops if a number is not finite."""

import math

import torch
from torch.distributed.tensor import DTensor

from mesascope.models.fused import fused_attention
from mesascope.models.transformer import Decoder
from mesascope.tasks.base import Batch, Task, training_loss
from mesascope.train._config import TrainingConfig


class TrainingDiverged(RuntimeError):  # noqa: N818  the name states the event
    """Raised when a loss or gradient is not finite; names the seed, the step and the last checkpoint."""


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
        The task's loss before the update, without an auxiliary loss of the model; the gradient norm; and the factor by
        which clipping scaled the gradient.

    Raises:
        TrainingDiverged: If the loss or the gradient is not finite; the weights are unchanged.
    """
    with fused_attention(model, batch.inputs.shape[1]):
        output = model(batch.inputs)
    loss = training_loss(task, output.logits, batch)
    value = check_finite(loss.item(), "loss", where)
    if output.auxiliary_loss is not None:
        loss = loss + output.auxiliary_loss
    optimizer.zero_grad()
    loss.backward()
    norm, gradient_scale = update_weights(optimizer, training, step, where)
    return value, norm, gradient_scale


def update_weights(
    optimizer: torch.optim.Optimizer, training: TrainingConfig, step: int, where: str
) -> tuple[float, float]:
    """Clip the gradients and take one step of the optimizer.

    Args:
        optimizer: The optimizer, whose parameters have gradients; they can be sharded over processes.
        training: The training configuration, for learning rates and clipping.
        step: Updates taken before this one.
        where: The seed and step, for error messages.

    Returns:
        The gradient norm, and the factor by which clipping scaled the gradient.

    Raises:
        TrainingDiverged: If the gradient is not finite; the weights are unchanged.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    norm_value = check_finite(norm.item(), "gradient norm", where)
    gradient_scale = 1.0
    if training.clip is not None and norm_value > training.clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, training.clip, norm, foreach=True)
        gradient_scale = (training.clip / (norm + 1e-6)).item()  # the factor used by clip_grads_with_norm_
    for group in optimizer.param_groups:
        group["lr"] = training.learning_rate_at(step)
    optimizer.step()
    return norm_value, gradient_scale


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
