"""Rows of features with their labels, validated: one row per position of a sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.argument_types import describe_value, validate_tensor

Labels = Tensor | Sequence[Any]
Features = Float[Tensor, "batch *pos feature"]
MIN_SEQUENCES = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledRows:
    """Features and labels of positions.

    Attributes:
        features: the features in their own precision.
        labels: the label of every row.
        sequences: the sequence of every row.
    """

    features: Float[Tensor, "row feature"]
    labels: Int[Tensor, " row"]
    sequences: Int[Tensor, " row"]

    def select_sequences(self, chosen: Int[Tensor, "_"]) -> "LabelledRows":
        """Return the rows of some sequences.

        Args:
            chosen: indices of sequences.
        """
        rows = torch.isin(self.sequences, chosen)
        return LabelledRows(features=self.features[rows], labels=self.labels[rows], sequences=self.sequences[rows])

    def with_labels(self, labels: Int[Tensor, " row"]) -> "LabelledRows":
        """Return the same features with other labels.

        Args:
            labels: one label per row.
        """
        return LabelledRows(features=self.features, labels=labels, sequences=self.sequences)


def collect_rows(features: Features, labels: Labels, mask: Labels | None = None) -> LabelledRows:
    """Validate features and labels, and return the rows that count.

    Args:
        features: (batch, feature), or (batch, pos, feature).
        labels: integers, one per row, or one per sequence.
        mask: true or 1 where a row counts; one per row, or one per sequence.

    Raises:
        ValueError: the shapes do not fit, a label is no integer, or a feature is not finite.
    """
    validate_tensor("features", features)
    if features.ndim not in (2, 3) or 0 in features.shape:
        raise ValueError(
            "features must be (batch, feature) or (batch, pos, feature) and not empty, but got "
            f"{tuple(features.shape)}; select one layer and head of a capture"
        )
    features = features.detach().cpu()
    by_row = read_integers("labels", labels, features.shape[:-1])
    counts = read_mask(mask, features.shape[:-1])
    sequences = torch.arange(len(features)).reshape([-1] + [1] * (features.ndim - 2)).expand(features.shape[:-1])
    rows = LabelledRows(features=features[counts], labels=by_row[counts], sequences=sequences[counts])
    if not rows.features.isfinite().all():
        number = int((~rows.features.isfinite()).sum())
        raise ValueError(f"features must be finite, but {number} of their entries are not; check the model")
    return rows


def read_integers(name: str, values: Labels, shape: torch.Size) -> Int[Tensor, "..."]:
    """Return integers in the shape of the rows; those given per sequence are repeated over positions.

    Args:
        name: what the message calls them.
        values: integers, one per row or one per sequence.
        shape: (batch) or (batch, pos).

    Raises:
        ValueError: they are no integers, or their number is wrong.
    """
    try:
        tensor = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name} must be integers, but got {describe_value(values)}; number the classes") from None
    if tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(f"{name} must be integers, but got {describe_value(values)}; number the classes")
    if tensor.shape == shape[:1]:
        tensor = tensor.reshape([-1] + [1] * (len(shape) - 1)).expand(shape)
    if tensor.shape != shape:
        raise ValueError(
            f"{name} must be one per row, {tuple(shape)}, or one per sequence, {tuple(shape[:1])}, but got "
            f"{tuple(tensor.shape)}; give every sequence its own"
        )
    return tensor.long()


def read_list(name: str, values: Labels) -> Int[Tensor, " item"]:
    """Return a list of integers.

    Args:
        name: what the message calls them.
        values: integers.

    Raises:
        ValueError: they are no integers, or no list.
    """
    if getattr(values, "ndim", 1) != 1:
        raise ValueError(f"{name} must be a list of integers, but got {describe_value(values)}")
    return read_integers(name, values, torch.Size([len(values)]))


def read_mask(mask: Labels | None, shape: torch.Size) -> Bool[Tensor, "..."]:
    """Return where rows count; everywhere by default.

    Args:
        mask: true or 1 where a row counts.
        shape: (batch) or (batch, pos).

    Raises:
        ValueError: it has other numbers or another shape, or no row counts.
    """
    if mask is None:
        return torch.ones(shape, dtype=torch.bool)
    numbers = read_integers("mask", mask, shape)
    if not ((numbers == 0) | (numbers == 1)).all() or not numbers.any():
        raise ValueError(
            "mask must be 1 in the rows that count and 0 elsewhere, and 1 in some row; pass a boolean mask"
        )
    return numbers.bool()


def split_sequences(
    rows: LabelledRows, train: Labels | None, test: Labels | None, generator: torch.Generator
) -> tuple[Int[Tensor, " train"], Int[Tensor, " test"]]:
    """Return disjoint training and test sequences; by default random halves of those that have a row.

    Args:
        rows: all rows.
        train: indices of training sequences; by default all that are not for testing.
        test: indices of test sequences; by default all that are not for training.
        generator: source of the random halves.

    Raises:
        ValueError: an index is wrong, the two overlap, or one has fewer than two sequences.
    """
    present = rows.sequences.unique()
    first, second = (_read_indices(name, side, present) for name, side in (("train", train), ("test", test)))
    if first is not None:
        sides = first, present[~torch.isin(present, first)] if second is None else second
    elif second is not None:
        sides = present[~torch.isin(present, second)], second
    else:
        order = present[torch.randperm(len(present), generator=generator)]
        sides = order[: len(order) // 2], order[len(order) // 2 :]
    common = sides[0][torch.isin(sides[0], sides[1])]
    if len(common):
        raise ValueError(
            f"training and test sequences must be disjoint, but sequence {int(common[0])} is in both; remove it"
        )
    for name, side in zip(("training", "test"), sides, strict=True):
        if len(side) < MIN_SEQUENCES:
            raise ValueError(f"there must be two {name} sequences or more, but there are {len(side)}; add sequences")
    return sides[0], sides[1]


def _read_indices(name: str, values: Labels | None, present: Int[Tensor, "_"]) -> Int[Tensor, "_"] | None:
    if values is None:
        return None
    indices, count = read_list(name, values).unique(), len(values)
    if len(indices) < count or not torch.isin(indices, present).all():
        raise ValueError(
            f"{name} must be different indices of sequences with a row that counts, from {int(present[0])} to "
            f"{int(present[-1])}, but got {describe_value(values)}"
        )
    return indices
