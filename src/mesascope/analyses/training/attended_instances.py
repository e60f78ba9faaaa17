"""Search of a training history for the instances that queries attend to most and least."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.store import HistoryReader

NUM_ATTENDED = 10  # number of most and of least attended instances (Wu & Varshney 2024)
RUN_LENGTH = 64  # consecutive rows whose largest and smallest weights are computed together
BLOCK_ROWS = 16_384  # rows of the history in memory at once
Queries = Float[Tensor, "query d_in"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AttendedInstances:
    """The training instances that queries attend to most and least, by their index in the history.

    Attributes:
        top, bottom: indices of the instances, most extreme first; the instances of one step are contiguous, in the
            order of its batch.
        top_weight, bottom_weight: their <x_n, x>.
    """

    top: Int[Tensor, "head query rank"]
    bottom: Int[Tensor, "head query rank"]
    top_weight: Float[Tensor, "head query rank"]
    bottom_weight: Float[Tensor, "head query rank"]


def find_attended_instances(
    history: HistoryReader, column: str, queries: Queries, *, heads: int = 1, num_attended: int = NUM_ATTENDED
) -> AttendedInstances:
    """Find the instances with the largest and the smallest <x_n, x> in the whole history.

    Args:
        history: a history with this column of inputs.
        column: name of the column, such as ``layers.0.attention.q_proj.in``.
        queries: the vectors x, of the same width.
        heads: number of equal parts into which all vectors are split; each part attends on its own.
        num_attended: number of instances at each end.

    Returns:
        the instances with the largest and smallest inner products, most extreme first.

    Raises:
        ValueError: there are fewer instances, or the widths differ.
    """
    validate_width(history, column, queries)
    total = history.steps * history.columns[column].rows
    if total < num_attended:
        raise ValueError(f"a history must have at least {num_attended} instances, but has {total}; train for longer")
    search = AttentionSearch(queries, heads=heads, num_attended=num_attended)
    for start, (rows,) in history.iterate_blocks(column, rows=BLOCK_ROWS):
        search.search_block(torch.from_numpy(rows), start)
    return search.attended_instances


class AttentionSearch:
    """Search for the instances that queries attend to most and least, in blocks of instances.

    Args:
        queries: the vectors x.
        heads: number of equal parts into which all vectors are split.
        num_attended: number of instances at each end.
    """

    def __init__(self, queries: Queries, *, heads: int = 1, num_attended: int = NUM_ATTENDED) -> None:
        self._queries = queries.to(torch.float32).unflatten(1, (heads, -1)).transpose(0, 1).contiguous()
        self._top = _ExtremeWeights(heads, len(queries), num_attended, largest=True)
        self._bottom = _ExtremeWeights(heads, len(queries), num_attended, largest=False)
        self._buffer = torch.empty(0)

    @property
    def attended_instances(self) -> AttendedInstances:
        """The instances with the extreme weights among all blocks searched so far."""
        return AttendedInstances(
            top=self._top.indices,
            bottom=self._bottom.indices,
            top_weight=self._top.weights,
            bottom_weight=self._bottom.weights,
        )

    def search_block(self, rows: Float[Tensor, "row d_in"], start: int) -> None:
        """Search a block of instances.

        Args:
            rows: the inputs x_n of the block.
            start: index of its first instance in the history.
        """
        heads, count, _ = self._queries.shape
        split = rows.to(torch.float32).unflatten(1, (heads, -1))
        if self._buffer.shape != (count, len(rows)):
            self._buffer = torch.empty(count, len(rows))
        whole = len(rows) // RUN_LENGTH * RUN_LENGTH
        for head in range(heads):
            scores = torch.mm(self._queries[head], split[:, head].T, out=self._buffer)
            low, high = torch.aminmax(scores[:, :whole].unflatten(1, (-1, RUN_LENGTH)), dim=2)
            self._top.update_from_block(head, scores, high, start)
            self._bottom.update_from_block(head, scores, low, start)


class _ExtremeWeights:
    """The largest or the smallest weights so far, for every head and query, and their indices."""

    def __init__(self, heads: int, queries: int, num_attended: int, *, largest: bool) -> None:
        worst = -torch.inf if largest else torch.inf
        self.weights = torch.full((heads, queries, num_attended), worst)
        self.indices = torch.zeros(heads, queries, num_attended, dtype=torch.long)
        self._largest = largest

    def update_from_block(
        self, head: int, scores: Float[Tensor, "query row"], ends: Float[Tensor, "query run"], start: int
    ) -> None:
        """Search one block.

        The most extreme weights are in the runs with the most extreme ends, so only those runs are searched.
        """
        num_attended = self.weights.shape[2]
        rows = torch.arange(ends.shape[1] * RUN_LENGTH, scores.shape[1]).expand(
            len(scores), -1
        )  # the rows after the last whole run
        if ends.shape[1]:
            runs = ends.topk(min(num_attended, ends.shape[1]), dim=1, largest=self._largest).indices
            rows = torch.cat([(runs[:, :, None] * RUN_LENGTH + torch.arange(RUN_LENGTH)).flatten(1), rows], dim=1)
        weights = torch.cat([self.weights[head], scores.gather(1, rows)], dim=1)
        indices = torch.cat([self.indices[head], rows + start], dim=1)
        self.weights[head], best = weights.topk(num_attended, dim=1, largest=self._largest)
        self.indices[head] = indices.gather(1, best)


def validate_width(history: HistoryReader, column: str, queries: Queries) -> None:
    """Check that queries have the width of a column of the history.

    Args:
        history: a history with this column.
        column: name of the column.
        queries: the vectors.

    Raises:
        ValueError: the widths differ.
    """
    width = history.columns[column].width
    if queries.shape[1] != width:
        raise ValueError(f"queries must have the {width} features of {column}, but have {queries.shape[1]}")
