"""Labels of the instances of a training history."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.store import HistoryReader

MIN_STRIDE = 1_000_003  # minimum distance of neighbouring instances in the permutation of the control


class InstanceLabels:
    """The labels of all instances, on disk.

    Args:
        history: the history of the instances.
        names: names of the labels.
    """

    def __init__(self, history: HistoryReader, names: list[str]) -> None:
        self._history = history
        self._columns = [history.metadata["labels"].index(name) for name in names]
        self._total = history.steps * history.columns["labels"].rows

    def __len__(self) -> int:
        """Return the number of instances."""
        return self._total

    def labels_at(self, indices: Int[Tensor, "*rest"]) -> Int[Tensor, "*rest label"]:
        """Return the labels of instances.

        Args:
            indices: indices of the instances.

        Returns:
            labels, along a new last axis.
        """
        return torch.from_numpy(self._history.read_rows("labels", indices.numpy())[..., self._columns]).long()

    def permuted_labels_at(self, indices: Int[Tensor, "*rest"]) -> Int[Tensor, "*rest label"]:
        """Return the labels of instances under a fixed permutation of all instances that separates neighbours.

        Args:
            indices: indices of the instances.

        Returns:
            labels, along a new last axis.
        """
        stride = next(odd for odd in range(MIN_STRIDE, 2 * MIN_STRIDE) if math.gcd(odd, max(self._total, 1)) == 1)
        return self.labels_at((indices * stride + stride // 3) % max(self._total, 1))

    def label_frequency(self, query_labels: Int[Tensor, "query label"]) -> Float[Tensor, " label"]:
        """Return the fraction of instances that have the label of a query, averaged over queries.

        Args:
            query_labels: labels of the queries.

        Returns:
            one fraction per label; NaN without instances.
        """
        if not self._total:
            return torch.full((len(self._columns),), torch.nan, dtype=torch.float64)
        total_frequency = torch.zeros(len(self._columns), dtype=torch.float64)
        for _, (rows,) in self._history.iterate_blocks("labels"):
            for k, column in enumerate(self._columns):
                label_values, counts = torch.from_numpy(rows[:, column]).unique(return_counts=True)
                total_frequency[k] += ((label_values[None] == query_labels[:, k, None]) * counts).sum(1).double().mean()
        return total_frequency / self._total
