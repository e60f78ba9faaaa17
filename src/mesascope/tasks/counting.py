"""Counting algorithms for symbol sequences; predictions are probabilities of the next symbol.

The input of a context pair is two concatenated one-hot vectors: of the current symbol and of the previous one.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.algorithms import Algorithm, Hyperparameter, IterationGrid, Trajectory
from mesascope.tasks.icl.context import ContextExamples

SMOOTHED_COUNTS = ("single symbols", "pairs", "triples")
PSEUDOCOUNT_BOUNDS = (1e-3, 10.0)
CONFIDENCE_BOUNDS = (0.01, 1.0)
MatchWeights = Float[Tensor, "batch query pair"]


def counting_algorithms(num_symbols: int) -> Sequence[Algorithm]:
    """Return all counting algorithms.

    Unigram counts (single symbols), bigram counts given the current symbol (pairs, the statistic of an induction head)
    and trigram counts given the current and previous symbols (triples), each with the pseudocount ``added``; the symbol
    that followed the last match of the current symbol, with probability ``sure`` (last match); and the current symbol
    itself.

    Args:
        num_symbols: number of symbols.

    Returns:
        The algorithms, with unique names.
    """
    return [
        _count_matches("single symbols", lambda context: torch.ones_like(_match_query(context, slice(num_symbols)))),
        _count_matches("pairs", lambda context: _match_query(context, slice(num_symbols))),
        _count_matches("triples", lambda context: _match_pair(context, num_symbols)),
        _predict_last_match(num_symbols),
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

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid, added: Hyperparameter) -> Trajectory:
        count = torch.einsum("bpn,bpns->bps", match_mask(context), context.context_y)
        smoothed = count + added
        return (smoothed / smoothed.sum(-1, keepdim=True))[None]

    return Algorithm(name=name, predict=predict_queries, hyperparameter_bounds={"added": PSEUDOCOUNT_BOUNDS})


def _predict_last_match(num_symbols: int) -> Algorithm:
    """Predict the symbol that followed the last match, or the uniform distribution without a match."""

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid, sure: Hyperparameter) -> Trajectory:
        match = _match_query(context, slice(num_symbols))
        pair_index = torch.arange(1, match.shape[-1] + 1, device=match.device)
        latest = (match * pair_index).argmax(-1)
        probabilities = context.context_y.gather(2, latest[..., None, None].expand(-1, -1, 1, num_symbols))[:, :, 0]
        probabilities = torch.where(match.sum(-1, keepdim=True) > 0, probabilities, 1 / num_symbols)
        return (sure * probabilities + (1 - sure) / num_symbols)[None]

    return Algorithm(name="the last match", predict=predict_queries, hyperparameter_bounds={"sure": CONFIDENCE_BOUNDS})


def _repeat_query(num_symbols: int) -> Algorithm:

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid, sure: Hyperparameter) -> Trajectory:
        return (sure * context.query_x[..., :num_symbols] + (1 - sure) / num_symbols)[None]

    return Algorithm(name="the same again", predict=predict_queries, hyperparameter_bounds={"sure": CONFIDENCE_BOUNDS})
