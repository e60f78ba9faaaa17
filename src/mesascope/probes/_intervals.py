"""Intervals of fractions over sequences."""

import numpy as np
from jaxtyping import Int
from torch import Tensor

CONFIDENCE_LEVEL = 0.95


def effective_count(sequences: Int[Tensor, " row"]) -> float:
    """Return the number of sequences that rows are worth if all rows of a sequence agree (Kish 1965).

    With m rows in a sequence it is sum(m)^2 / sum(m^2): the number of sequences if all have as many rows.

    Args:
        sequences: the sequence of every row.

    >>> import torch
    >>> effective_count(torch.tensor([0, 0, 1, 1])), effective_count(torch.tensor([0, 0, 0, 1]))
    (2.0, 1.6)
    """
    sizes = sequences.unique(return_counts=True)[1].double()
    return float(sizes.sum().square() / sizes.square().sum())


def binomial_interval(fraction: float, count: float, level: float = CONFIDENCE_LEVEL) -> tuple[float, float]:
    """Return the exact interval of a fraction of independent trials (Clopper & Pearson 1934).

    The number of trials may be fractional. A mean of numbers between 0 and 1 varies no more than a fraction of as many
    trials, so that the interval is conservative for means of accuracies in sequences.

    Args:
        fraction: of the trials that succeeded.
        count: number of trials.
        level: probability that the interval contains the true fraction.

    >>> [round(end, 3) for end in binomial_interval(0.5, 10)], binomial_interval(1.0, 10)[1]
    ([0.187, 0.813], 1.0)
    """
    from scipy.stats import beta  # slow to import

    hits, tail = fraction * count, (1 - level) / 2
    low = float(beta.ppf(tail, hits, count - hits + 1)) if fraction > 0 else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, count - hits)) if fraction < 1 else 1.0
    return (0.0 if np.isnan(low) else low), (1.0 if np.isnan(high) else high)
