"""Optimizers and learning-rate schedules as configuration values."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@runtime_checkable
class OptimizerConfig(Protocol):
    """Configuration of an optimizer."""

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        ...

    def build_optimizer(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        """Build the optimizer of a model.

        Args:
            model: The model to optimize.

        Returns:
            The optimizer of its parameters.
        """
        ...


@runtime_checkable
class LearningRateSchedule(Protocol):
    """Learning-rate schedule from the end of warm-up to the end of training."""

    def rate_factor(self, progress: float) -> float:
        """Return the learning rate as a fraction of its peak.

        Args:
            progress: The fraction of training done since warm-up, in [0, 1].

        Returns:
            The multiplicative factor of the peak learning rate.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); only linear weights decay.

    Attributes:
        lr: Peak learning rate.
        betas: Decay rates of the first and second moment estimates.
        eps: Added to the denominator.
        weight_decay: Weight decay of linear weights.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def build_optimizer(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        """Build ``torch.optim.AdamW``, fused: one kernel call updates all parameters.

        Args:
            model: The model to optimize.

        Returns:
            The optimizer.
        """
        groups = _parameter_groups(model, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with heavy-ball momentum; only linear weights decay.

    Attributes:
        lr: Peak learning rate.
        momentum: Momentum factor.
        weight_decay: L2 penalty, added to the gradient of linear weights.
    """

    lr: float = 1e-2
    momentum: float = 0.0
    weight_decay: float = 0.0

    def build_optimizer(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        """Build ``torch.optim.SGD``, fused: one kernel call updates all parameters.

        Args:
            model: The model to optimize.

        Returns:
            The optimizer.
        """
        groups = _parameter_groups(model, self.weight_decay)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, fused=True)


@dataclass(frozen=True, kw_only=True)
class AdaFactor:
    """AdaFactor, the optimizer of T5 (Shazeer & Stern 2018): updates are relative to each tensor's root mean square.

    The gradient is divided by the root of an average of its square; for matrices, the average is factored into row and
    column averages. An update whose relative root mean square exceeds ``clip`` is scaled down to it. Updates therefore
    grow with the norm of their tensor. PyTorch's version caps the relative step size at 1 / sqrt(t), where t counts the
    updates, the current one included.

    Attributes:
        lr: Peak relative step size.
        beta2_decay: The newest square has weight t^beta2_decay in the average.
        min_rms: Lower bound on the root mean square of a tensor, so that tensors of zeros can change.
        clip: Maximum root mean square of an update, in units of the relative step size.
        weight_decay: Weight decay of linear weights, multiplied by the step size.
    """

    lr: float = 1e-2
    beta2_decay: float = -0.8
    min_rms: float = 1e-3
    clip: float = 1.0
    weight_decay: float = 0.0

    def build_optimizer(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        """Build ``torch.optim.Adafactor``.

        Args:
            model: The model to optimize.

        Returns:
            The optimizer.
        """
        groups, eps = _parameter_groups(model, self.weight_decay), (None, self.min_rms)
        return torch.optim.Adafactor(groups, lr=self.lr, beta2_decay=self.beta2_decay, eps=eps, d=self.clip)


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule:
    """Constant learning rate."""

    def rate_factor(self, progress: float) -> float:
        """Return 1.

        Args:
            progress: The fraction of training done since warm-up; unused.
        """
        return 1.0


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Cosine decay from the peak learning rate to ``final_fraction`` of it.

    Attributes:
        final_fraction: The final learning rate, as a fraction of the peak.
    """

    final_fraction: float = 0.0

    def rate_factor(self, progress: float) -> float:
        """Return f + (1 - f) (1 + cos(pi progress)) / 2, with f = ``final_fraction``.

        Args:
            progress: The fraction of training done since warm-up, in [0, 1].

        Returns:
            The multiplicative factor of the peak learning rate.
        """
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class LinearSchedule:
    """Linear decay from the peak learning rate to ``final_fraction`` of it.

    Attributes:
        final_fraction: The final learning rate, as a fraction of the peak.
    """

    final_fraction: float = 0.0

    def rate_factor(self, progress: float) -> float:
        """Return 1 - (1 - f) progress, with f = ``final_fraction``.

        Args:
            progress: The fraction of training done since warm-up, in [0, 1].

        Returns:
            The multiplicative factor of the peak learning rate.
        """
        return 1 - (1 - self.final_fraction) * progress


@dataclass(frozen=True, kw_only=True)
class InverseSqrtSchedule:
    """Inverse square-root decay after a constant phase, as in T5 (Raffel et al. 2020).

    With ``constant_fraction`` = k / n, for the first k of n steps, this is T5's 1 / sqrt(max(t, k)), up to a constant
    factor.

    Attributes:
        constant_fraction: The fraction of training at the peak learning rate.

    Raises:
        ValueError: If ``constant_fraction`` is not between 0 and 1.
    """

    constant_fraction: float = 0.01

    def __post_init__(self) -> None:
        """Reject fractions whose learning rate would be infinite at the start, or would never decay."""
        if not 0 < self.constant_fraction < 1:
            raise ValueError(f"constant_fraction must be between 0 and 1, but got {self.constant_fraction}")

    def rate_factor(self, progress: float) -> float:
        """Return sqrt(c / max(progress, c)), with c = ``constant_fraction``.

        Args:
            progress: The fraction of training done since warm-up, in [0, 1].

        Returns:
            The multiplicative factor of the peak learning rate.
        """
        return math.sqrt(self.constant_fraction / max(progress, self.constant_fraction))


def scheduled_learning_rate(
    step: int, *, steps: int, warmup: int, peak: float, schedule: LearningRateSchedule
) -> float:
    """Return the learning rate of one update: linear warm-up, then the schedule.

    Args:
        step: Updates taken before this one.
        steps: Total number of updates.
        warmup: Number of warm-up updates.
        peak: Peak learning rate.
        schedule: The schedule after warm-up.

    Returns:
        The learning rate.

    >>> [scheduled_learning_rate(n, steps=6, warmup=2, peak=1.0, schedule=LinearSchedule()) for n in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * schedule.rate_factor((step - warmup) / (steps - warmup))


def _parameter_groups(model: PreTrainedModel, weight_decay: float) -> list[dict]:
    """Split parameters into those with decay (linear weights) and without (biases, norms, embeddings)."""
    decayed = set(_decaying_weights(model))
    rest = [parameter for parameter in model.parameters() if parameter not in decayed]
    decaying = [parameter for parameter in model.parameters() if parameter in decayed]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _decaying_weights(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield the weights of linear modules, except the embedding and weights tied to it."""
    embedding = model.get_input_embeddings().weight
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight is not embedding:
            yield module.weight
