"""Losses of the model and of the baselines at each position of held-out sequences, computed chunk by chunk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.tasks.base import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceLosses:
    """Losses of several predictors on the same sequences.

    Predictions of many sequences do not fit in memory, but their losses do: an analysis that needs many sequences is
    computed from the losses of all chunks.

    Attributes:
        predictors: names of the predictors.
        values: loss of each predictor at each position, in ``unit``.
        weight: weight of each position in the loss of the task; 0 where a position is not scored.
        unit: nat, or squared units of the terms.
    """

    predictors: tuple[str, ...]
    values: Float[Tensor, "predictor batch pos"]
    weight: Float[Tensor, "batch pos"]
    unit: str

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.weight)

    @property
    def weighted(self) -> Float[Tensor, "predictor batch pos"]:
        """The losses times the weights; 0 where a position is not scored, even if its loss is infinite."""
        return torch.where(self.weight > 0, self.values * self.weight, 0.0)

    def with_predictors(self, other: "SequenceLosses") -> "SequenceLosses":
        """Return the losses of these predictors, followed by those of others on the same sequences.

        Args:
            other: losses of other predictors.

        Raises:
            ValueError: the numbers of sequences differ.
        """
        if len(self) != len(other):
            raise ValueError(
                f"predictors must be evaluated on the same sequences, but got {len(self)} and {len(other)} of them"
            )
        return SequenceLosses(
            predictors=(*self.predictors, *other.predictors),
            values=torch.cat([self.values, other.values]),
            weight=self.weight,
            unit=self.unit,
        )


def measure_losses(predictions: Mapping[str, Float[Tensor, "batch pos d_out"]], batch: Batch) -> SequenceLosses:
    """Compute the loss of predictions at every position.

    Args:
        predictions: predicted vectors, or logits of tokens, by the name of the predictor.
        batch: the sequences that were predicted.

    Returns:
        the losses, on the CPU.
    """
    losses = [loss_per_position(prediction, batch.targets).cpu() for prediction in predictions.values()]
    return SequenceLosses(
        predictors=tuple(predictions),
        values=torch.stack(losses) if losses else torch.zeros(0, *batch.weight.shape, dtype=torch.float64),
        weight=batch.weight.cpu(),
        unit="nat" if not batch.targets.is_floating_point() else "squared units of the terms",
    )


def concatenate_losses(chunks: Sequence[SequenceLosses]) -> SequenceLosses:
    """Concatenate the losses of chunks of sequences.

    Args:
        chunks: losses of the same predictors, one or more.

    Returns:
        the losses of all sequences.
    """
    return SequenceLosses(
        predictors=chunks[0].predictors,
        values=torch.cat([chunk.values for chunk in chunks], dim=1),
        weight=torch.cat([chunk.weight for chunk in chunks]),
        unit=chunks[0].unit,
    )


def mean_loss_per_sequence(losses: SequenceLosses) -> Float[Tensor, "predictor batch"]:
    """Return the mean loss of each sequence over its positions, with the weights of training.

    Args:
        losses: the losses; sequences without a scored position are left out.
    """
    total_weight = losses.weight.sum(-1)
    scored = total_weight > 0
    return losses.weighted.sum(-1)[:, scored] / total_weight[scored]


def loss_per_position(
    prediction: Float[Tensor, "batch pos d_out"],
    targets: Float[Tensor, "batch pos d_out"] | Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos"]:
    """Return the loss at every position: squared error of vectors, or negative log-likelihood of tokens in nats.

    Args:
        prediction: predicted vectors, or logits of tokens.
        targets: target vectors, or tokens.

    Returns:
        the squared error, summed over coordinates, or the negative log-likelihood.
    """
    if targets.is_floating_point():
        return (prediction.double() - targets.double()).square().sum(-1)
    return -prediction.log_softmax(-1).gather(-1, targets[..., None])[..., 0].double()
