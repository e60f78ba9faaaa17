"""A ground-truth case: a planted model, its data, and the locations of its mechanisms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from mesascope.ground_truth.detections import Location
from mesascope.tasks.base import Batch, Task

TARGET_NOISE = (
    0.2  # standard deviation of the noise in the targets; predictions of planted models have a scale of about 1
)
TrueLocations = Mapping[str, set[Location]]


@dataclass(frozen=True, kw_only=True)
class GroundTruthCase:
    """A planted model with known mechanisms, parametrised by a draw number.

    Attributes:
        name: unique name.
        description: one sentence.
        task: the task whose loss is used.
        build_model: returns the model of a draw. Nuisance weights and head indices differ between draws.
        sample_batch: returns a batch for that model.
        true_locations: returns the locations of every mechanism, by mechanism. Mechanisms left out occur nowhere.
        components: returns what each location contains, for error messages.
    """

    name: str
    description: str
    task: Task
    build_model: Callable[[int], PreTrainedModel]
    sample_batch: Callable[[int], Batch]
    true_locations: Callable[[int], TrueLocations]
    components: Callable[[int], Mapping[Location, str]] = lambda draw: {}


@final
@dataclass(frozen=True, kw_only=True)
class NextTokenTask(Task):
    """Next-term or next-token prediction on random sequences.

    Attributes:
        draw_sequences: function of (count, generator) that returns sequences one position longer than the inputs.
    """

    draw_sequences: Callable[[int, torch.Generator], Tensor]

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Sample sequences.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            A batch whose targets are the inputs shifted by one position.
        """
        sequences = self.draw_sequences(n, generator)
        return Batch(
            inputs=sequences[:, :-1],
            targets=sequences[:, 1:],
            weight=torch.ones(len(sequences), sequences.shape[1] - 1),
        )

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Return the squared error of vectors, or the cross-entropy of tokens in nats.

        Args:
            prediction: predicted vectors, or logits.
            batch: sequences with their targets.

        Returns:
            The loss at every position, unweighted.
        """
        if batch.targets.is_floating_point():
            return (prediction - batch.targets).square().sum(-1)
        return cross_entropy(prediction.mT, batch.targets, reduction="none")

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Return no baselines: the task has none.

        Args:
            batch: sequences.

        Returns:
            An empty mapping.
        """
        return {}


def replace_targets(model: PreTrainedModel, batch: Batch, generator: torch.Generator) -> Batch:
    """Replace the targets of a batch by noisy predictions of a model.

    Targets are the predictions plus Gaussian noise, or tokens sampled from the predicted distribution. The model is
    therefore optimal on them, and the loss rises when a head that contributes to the predictions is ablated.

    Args:
        model: model that defines the targets.
        batch: sequences.
        generator: source of the noise.

    Returns:
        The same sequences with new targets.
    """
    with torch.no_grad():
        prediction = model(batch.inputs).logits
    if batch.targets.is_floating_point():
        return replace(batch, targets=prediction + TARGET_NOISE * torch.randn(prediction.shape, generator=generator))
    tokens = torch.multinomial(prediction.softmax(-1).flatten(0, 1), 1, generator=generator)
    return replace(batch, targets=tokens.view_as(batch.targets))
