"""In-context examples: the input-target pairs of a prompt and its query inputs."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

QueryInputs = Float[Tensor, "batch query feature"]
LinearRule = Float[Tensor, "batch query feature out"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ContextExamples:
    """The context pairs and the query input at selected positions of every sequence, in float64.

    Attributes:
        context_x: inputs of the context pairs before each query; rows of zeros mask pairs that come later.
        context_y: targets of these pairs, masked likewise.
        query_x: input of each query.
        num_context: number of context pairs before each query.
        positions: position of each query in the sequence.
    """

    context_x: Float[Tensor, "batch query pair feature"]
    context_y: Float[Tensor, "batch query pair out"]
    query_x: QueryInputs
    num_context: Int[Tensor, " query"]
    positions: tuple[int, ...]

    def with_shuffled_context(self, order: Int[Tensor, " batch"]) -> "ContextExamples":
        """Return the same queries with the contexts of other sequences.

        Args:
            order: index of the sequence that each context is taken from.

        Returns:
            The examples with shuffled contexts.
        """
        return replace(self, context_x=self.context_x[order], context_y=self.context_y[order])

    def select_sequences(self, sequences: slice) -> "ContextExamples":
        """Select sequences.

        Args:
            sequences: range of sequences.

        Returns:
            The examples of the selected sequences.
        """
        return replace(
            self,
            context_x=self.context_x[sequences],
            context_y=self.context_y[sequences],
            query_x=self.query_x[sequences],
        )

    @property
    def gram_matrix(self) -> Float[Tensor, "batch query feature feature"]:
        """The Gram matrix X^T X of the context inputs."""
        return self.context_x.mT @ self.context_x

    @property
    def cross_moment(self) -> LinearRule:
        """The cross moment X^T Y of context inputs and targets."""
        return self.context_x.mT @ self.context_y

    def apply_rule(
        self, rule: Float[Tensor, "*lead batch query feature out"]
    ) -> Float[Tensor, "*lead batch query out"]:
        """Apply a linear rule to the query inputs.

        Args:
            rule: coefficients for every query; further leading axes are allowed.

        Returns:
            The predictions of the rule.
        """
        return (self.query_x[..., None, :] @ rule)[..., 0, :]

    def scatter_to_positions(
        self, predictions: Float[Tensor, "*lead batch query out"], length: int
    ) -> Float[Tensor, "..."]:
        """Scatter predictions at the queries to the positions of a sequence.

        Args:
            predictions: predictions at the queries.
            length: number of positions of the sequence.

        Returns:
            Predictions at every position; 0 at positions without a query.
        """
        whole = predictions.new_zeros(*predictions.shape[:-2], length, predictions.shape[-1])
        whole[..., list(self.positions), :] = predictions
        return whole


def build_context(
    features: Float[Tensor, "batch point feature"],
    targets: Float[Tensor, "batch point out"],
    positions: tuple[int, ...],
    queries: tuple[int, ...] | None = None,
) -> ContextExamples:
    """Build in-context examples in which each query follows all earlier points.

    Args:
        features: input of every point.
        targets: target of every point; the last one is never part of a context.
        positions: position in the sequence of each query.
        queries: indices of the points that are queries; all by default.

    Returns:
        The context pairs and inputs of all queries, in float64.
    """
    count = features.shape[1]
    query = torch.tensor(range(count) if queries is None else queries, device=features.device)
    pair = torch.arange(max(count - 1, 1), device=features.device)
    mask = (pair[None, :] < query[:, None])[None, :, :, None].to(torch.float64)
    return ContextExamples(
        context_x=features[:, : len(pair)].double()[:, None] * mask,
        context_y=targets[:, : len(pair)].double()[:, None] * mask,
        query_x=features[:, query].double(),
        num_context=query,
        positions=positions,
    )
