"""Counting algorithms for symbol sequences; predictions are probabilities of the next symbol.

The input of a context pair is two concatenated one-hot vectors: of the current symbol and of the previous one.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.algorithms import Algorithm, Hyperparameter, IterationGrid, Trajectory
from mesascope.tasks.icl.context import ContextExamples

SMOOTHED_COUNTS = ("unigram", "bigram", "trigram")
PSEUDOCOUNT_BOUNDS = (1e-3, 10.0)
CONFIDENCE_BOUNDS = (0.01, 1.0)
MatchWeights = Float[Tensor, "batch query pair"]


def counting_algorithms(num_symbols: int) -> Sequence[Algorithm]:
    """Return all counting algorithms.

    Unigram counts, bigram counts given the current symbol (the statistic of an induction head) and trigram counts given
    the current and the previous symbol, each smoothed with ``pseudocount``; the symbol that followed the most recent
    match of the current symbol, with probability ``confidence``; and the current symbol itself, likewise.

    Args:
        num_symbols: number of symbols.

    Returns:
        The algorithms, with unique names.
    """
    return [
        _count_matches("unigram", lambda context: torch.ones_like(_match_query(context, slice(num_symbols)))),
        _count_matches("bigram", lambda context: _match_query(context, slice(num_symbols))),
        _count_matches("trigram", lambda context: _match_pair(context, num_symbols)),
        _predict_most_recent_match(num_symbols),
        _repeat_query(num_symbols),
    ]


def _match_query(context: ContextExamples, features: slice) -> MatchWeights:
    """Return a mask of the context pairs that agree with the query in the given features."""
    return torch.einsum("bpnf,bpf->bpn", context.context_x[..., features], context.query_x[..., features])


def _match_pair(context: ContextExamples, num_symbols: int) -> MatchWeights:
    """Return a mask of the context pairs that agree with the query in the current and the previous symbol."""
    previous = _match_query(context, slice(num_symbols, 2 * num_symbols)).clamp_max(1)
    return _match_query(context, slice(num_symbols)) * previous


def _count_matches(name: str, match_mask) -> Algorithm:

    def predict_queries(
        context: ContextExamples, iteration_grid: IterationGrid, pseudocount: Hyperparameter
    ) -> Trajectory:
        count = torch.einsum("bpn,bpns->bps", match_mask(context), context.context_y)
        smoothed = count + pseudocount
        return (smoothed / smoothed.sum(-1, keepdim=True))[None]

    return Algorithm(name=name, predict=predict_queries, hyperparameter_bounds={"pseudocount": PSEUDOCOUNT_BOUNDS})


def _predict_most_recent_match(num_symbols: int) -> Algorithm:
    """Predict the symbol that followed the most recent match, or the uniform distribution without a match."""

    def predict_queries(
        context: ContextExamples, iteration_grid: IterationGrid, confidence: Hyperparameter
    ) -> Trajectory:
        match = _match_query(context, slice(num_symbols))
        pair_index = torch.arange(1, match.shape[-1] + 1, device=match.device)
        latest = (match * pair_index).argmax(-1)
        probabilities = context.context_y.gather(2, latest[..., None, None].expand(-1, -1, 1, num_symbols))[:, :, 0]
        probabilities = torch.where(match.sum(-1, keepdim=True) > 0, probabilities, 1 / num_symbols)
        return (confidence * probabilities + (1 - confidence) / num_symbols)[None]

    return Algorithm(
        name="most recent match", predict=predict_queries, hyperparameter_bounds={"confidence": CONFIDENCE_BOUNDS}
    )


def _repeat_query(num_symbols: int) -> Algorithm:

    def predict_queries(
        context: ContextExamples, iteration_grid: IterationGrid, confidence: Hyperparameter
    ) -> Trajectory:
        return (confidence * context.query_x[..., :num_symbols] + (1 - confidence) / num_symbols)[None]

    return Algorithm(
        name="repeat current symbol", predict=predict_queries, hyperparameter_bounds={"confidence": CONFIDENCE_BOUNDS}
    )
