"""Optimizers as configuration values."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.argument_types import validate_fields


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

    def __post_init__(self) -> None:
        """Validate the fields."""
        _validate_optimizer(self)

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

    def __post_init__(self) -> None:
        """Validate the fields."""
        _validate_optimizer(self)

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

    def __post_init__(self) -> None:
        """Validate the fields."""
        _validate_optimizer(self)

    def build_optimizer(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        """Build ``torch.optim.Adafactor``.

        Args:
            model: The model to optimize.

        Returns:
            The optimizer.
        """
        groups, eps = _parameter_groups(model, self.weight_decay), (None, self.min_rms)
        return torch.optim.Adafactor(groups, lr=self.lr, beta2_decay=self.beta2_decay, eps=eps, d=self.clip)


def _validate_optimizer(optimizer: Any) -> None:
    """Raise a ValueError for fields of another type, and for negative or infinite learning rates and weight decays."""
    validate_fields(optimizer)
    for name in ("lr", "weight_decay"):
        if not 0 <= getattr(optimizer, name) < math.inf:
            raise ValueError(f"{name} must be 0 or more and finite, but got {getattr(optimizer, name)}")


def _parameter_groups(model: PreTrainedModel, weight_decay: float) -> list[dict]:
    """Split parameters into those with decay (linear weights) and without (biases, norms, embeddings)."""
    decayed = set(_decaying_weights(model))
    rest = [parameter for parameter in model.parameters() if parameter not in decayed]
    decaying = [parameter for parameter in model.parameters() if parameter in decayed]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _decaying_weights(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield the weights of linear modules, except the embedding and weights tied to it."""
    embedding = set(model.get_input_embeddings().parameters())
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight not in embedding:
            yield module.weight
