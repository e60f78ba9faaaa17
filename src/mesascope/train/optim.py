"""Optimisers and learning-rate schedules as values, and an optimiser's state as plain tensors."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel


@runtime_checkable
class Rule(Protocol):
    """How parameters follow their gradients."""

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        ...

    def build(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        """The optimiser of this model's parameters."""
        ...


@runtime_checkable
class Schedule(Protocol):
    """How the learning rate goes from the end of warm-up to the end of training."""

    def factor(self, progress: float) -> float:
        """The share of the peak rate at ``progress`` in [0, 1]."""
        ...


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); ``weight_decay`` falls on linear maps alone."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def build(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        """The fused form: one call for all parameters."""
        groups = _groups(model, self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Gradient descent with heavy-ball momentum; ``weight_decay`` is added to the gradient of linear maps."""

    lr: float = 1e-2
    momentum: float = 0.0
    weight_decay: float = 0.0

    def build(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        """The fused form: one call for all parameters."""
        return torch.optim.SGD(_groups(model, self.weight_decay), lr=self.lr, momentum=self.momentum, fused=True)


@dataclass(frozen=True, kw_only=True)
class AdaFactor:
    """The rule of T5 (Shazeer & Stern 2018): every tensor moves by a share ``lr`` of its own root mean square.

    Gradients are divided by roots of averages of their squares, of which a matrix keeps those of rows and of columns
    alone; a move whose root mean square is above ``clip`` times that share is shortened to it. So the moves of a tensor
    grow with its norm. PyTorch's form, which takes 1 / sqrt(t) for any ``lr`` above it, t being the updates so far, the
    new one with them.

    Attributes:
        lr: the share.
        beta2_decay: how fast averages forget: the newest square weighs t^beta2_decay.
        least: the root mean square that a smaller one is taken for, so that a tensor of zeros can move.
        clip: in units of the share.
        weight_decay: what falls on linear maps alone, times the rate.
    """

    lr: float = 1e-2
    beta2_decay: float = -0.8
    least: float = 1e-3
    clip: float = 1.0
    weight_decay: float = 0.0

    def build(self, model: PreTrainedModel) -> torch.optim.Optimizer:
        """PyTorch's."""
        return torch.optim.Adafactor(
            _groups(model, self.weight_decay),
            lr=self.lr,
            beta2_decay=self.beta2_decay,
            eps=(None, self.least),
            d=self.clip,
        )


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The peak rate to the end."""

    def factor(self, progress: float) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from the peak down to the share ``final`` of it."""

    final: float = 0.0

    def factor(self, progress: float) -> float:
        """final + (1 - final) (1 + cos(pi progress)) / 2."""
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A straight line from the peak down to the share ``final`` of it."""

    final: float = 0.0

    def factor(self, progress: float) -> float:
        """1 - (1 - final) progress."""
        return 1 - (1 - self.final) * progress


@dataclass(frozen=True, kw_only=True)
class InverseSqrt:
    """The peak until the share ``early`` of training, then down as one over the square root of what is done of it.

    With ``early`` = k / n, for k of n steps, it is that of T5, 1 / sqrt(max(t, k)), but for a factor (Raffel et al.
    2020).

    Raises:
        ValueError: ``early`` is no share above 0.
    """

    early: float = 0.01

    def __post_init__(self) -> None:
        """Refuse a rate that would be infinite at the start, or never fall."""
        if not 0 < self.early < 1:
            raise ValueError(f"early must be a share of training between 0 and 1, but got {self.early}")

    def factor(self, progress: float) -> float:
        """sqrt(early / max(progress, early))."""
        return math.sqrt(self.early / max(progress, self.early))


def learning_rate(step: int, *, steps: int, warmup: int, peak: float, schedule: Schedule) -> float:
    """The rate of the update after ``step`` others: up a straight line for ``warmup`` updates, then the schedule.

    >>> [learning_rate(n, steps=6, warmup=2, peak=1.0, schedule=Linear()) for n in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * schedule.factor((step - warmup) / (steps - warmup))


def state_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """All that the optimiser remembers, by ``PARAMETER/KEY``."""
    return {
        f"{name}/{key}": value.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def restore_state(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Shaped[Tensor, "..."]]
) -> None:
    """Give the optimiser what :func:`state_tensors` took from it, bit for bit.

    Raises:
        ValueError: a tensor belongs to no parameter.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, key = path.rsplit("/", 1)
        if name not in order:
            raise ValueError(f"optimiser state must belong to the model, but it has no parameter {name}")
        state.setdefault(order.index(name), {})[key] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _groups(model: PreTrainedModel, weight_decay: float) -> list[dict]:
    """Parameters with decay (the matrices of linear maps inside) and without (biases, norms, embeddings)."""
    decayed = set(_matrices(model))
    rest = [parameter for parameter in model.parameters() if parameter not in decayed]
    kept = [parameter for parameter in model.parameters() if parameter in decayed]
    return [{"params": kept, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def _matrices(model: PreTrainedModel) -> Iterator[Tensor]:
    """The weights of linear maps, but for the embedding and what is tied to it."""
    embedding = model.get_input_embeddings().weight
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight is not embedding:
            yield module.weight
