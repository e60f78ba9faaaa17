"""A planted model of the bench, and what is true of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from mesascope.ground_truth.findings import Place
from mesascope.tasks.base import Batch, Task

NOISE = 0.2  # of targets; what planted models predict has a size of about 1
Truth = Mapping[str, set[Place]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A planted model, drawn anew by number.

    Attributes:
        name: what it is called.
        about: one sentence.
        task: whose loss is meant.
        build: the model; its nuisance weights and the places of its heads differ from draw to draw.
        sequences: a batch for it.
        truth: where each mechanism is; one that is not named is nowhere.
        called: what is at each place.
    """

    name: str
    about: str
    task: Task
    build: Callable[[int], PreTrainedModel]
    sequences: Callable[[int], Batch]
    truth: Callable[[int], Truth]
    called: Callable[[int], Mapping[Place, str]] = lambda draw: {}


@final
@dataclass(frozen=True, kw_only=True)
class Following(Task):
    """The next term or token of random sequences.

    Attributes:
        draw: makes so many sequences with a generator, each one longer than what is read.
    """

    draw: Callable[[int, torch.Generator], Tensor]

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sequences."""
        drawn = self.draw(n, generator)
        return Batch(inputs=drawn[:, :-1], targets=drawn[:, 1:], weight=torch.ones(len(drawn), drawn.shape[1] - 1))

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Squared error; cross-entropy, in nats, of tokens."""
        if batch.targets.is_floating_point():
            return (prediction - batch.targets).square().sum(-1)
        return cross_entropy(prediction.mT, batch.targets, reduction="none")

    def oracles(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """None."""
        return {}


def answered(model: PreTrainedModel, batch: Batch, generator: torch.Generator) -> Batch:
    """The same sequences, with targets that a model predicts as well as can be: its own predictions plus noise, or
    tokens drawn from them. So what a head adds to the predictions is right, and without it the loss rises.
    """
    with torch.no_grad():
        prediction = model(batch.inputs).logits
    if batch.targets.is_floating_point():
        return replace(batch, targets=prediction + NOISE * torch.randn(prediction.shape, generator=generator))
    drawn = torch.multinomial(prediction.softmax(-1).flatten(0, 1), 1, generator=generator)
    return replace(batch, targets=drawn.view_as(batch.targets))
