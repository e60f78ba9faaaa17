"""Inference from a few seeds: intervals, one-sided tests with a bounded error rate, and Holm's correction."""

from collections.abc import Sequence
from functools import lru_cache
from math import isfinite
from typing import Any

import numpy as np
from scipy import special, stats

TEST_LEVEL = 0.01  # one-sided level of the t test; skewed seeds raise the error rate, but not beyond ERROR_RATE
SIGN_LEVEL = 0.05  # one-sided level of the sign test
ERROR_RATE = 0.025  # bound on wrong "supported" verdicts, and on wrong "contradicted" verdicts
INTERVAL_LEVEL = 1 - 2 * TEST_LEVEL

Interval = tuple[float, float]


@lru_cache
def min_agreeing_seeds(seeds: int) -> int | None:
    """Return the number of seeds that must lie on one side of a bound: the critical value of the sign test.

    Args:
        seeds: number of seeds.

    Returns:
        the smallest k with P(Binomial(seeds, 1/2) >= k) <= 0.05, or ``None`` if there are fewer than 5 seeds.

    >>> [min_agreeing_seeds(seeds) for seeds in (4, 5, 6, 8, 12)]
    [None, 5, 6, 7, 10]
    """
    agreeing = np.arange(seeds + 1)
    passing = agreeing[stats.binom.sf(agreeing - 1, seeds, 0.5) <= SIGN_LEVEL]
    return int(passing[0]) if len(passing) else None


def t_interval(values: Sequence[float] | np.ndarray, level: float = INTERVAL_LEVEL) -> Interval | None:
    """Return the two-sided t interval of the mean over seeds.

    Args:
        values: one number per seed.
        level: of the interval.

    Returns:
        lower and upper end, or ``None`` for fewer than two seeds.

    >>> t_interval([1.0]), tuple(round(end, 3) for end in t_interval([1.0, 2.0, 3.0], 0.95))
    (None, (-0.484, 4.484))
    """
    if len(values) < 2:
        return None
    half_width = special.stdtrit(len(values) - 1, (1 + level) / 2) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values) - half_width), float(np.mean(values) + half_width)


def p_value_above(values: Sequence[float] | np.ndarray, bound: float = 0.0) -> float:
    """Return the one-sided p-value of the hypothesis that values lie at or below a bound, scaled for verdicts.

    A t test decides, and a sign test guards it: unless enough seeds lie above the bound (:func:`min_agreeing_seeds`),
    the p-value is 1. A t test of five skewed values errs in 3 to 11 % of the cases at a nominal level of 2.5 %, and a
    BCa bootstrap of eight normal values in 6 %. The p-value of the t test is therefore multiplied by
    ``ERROR_RATE / TEST_LEVEL``: at most 2.5 % is reached where the t test reaches 1 %.

    Args:
        values: one number per seed.
        bound: the bound.

    Returns:
        the p-value; the hypothesis is rejected where it is ``ERROR_RATE`` or less.

    >>> round(p_value_above([0.9, 1.0, 1.1, 1.0, 0.8], 0.5), 4), p_value_above([0.9, 1.0, 1.1], 0.5)
    (0.001, 1.0)
    """
    distances = np.asarray(values, dtype=float) - bound
    needed = min_agreeing_seeds(len(distances))
    if needed is None or (distances > 0).sum() < needed:
        return 1.0
    spread = distances.std(ddof=1)
    if spread <= np.finfo(float).eps * np.abs(distances).max():
        return 0.0
    t = distances.mean() / spread * len(distances) ** 0.5
    return min(1.0, float(special.stdtr(len(distances) - 1, -t)) * ERROR_RATE / TEST_LEVEL)


def p_value_higher_rate(hits: int, trials: int, control_hits: int, control_trials: int) -> float:
    """Return the one-sided p-value of Fisher's exact test that a rate is no higher than that of a control.

    Args:
        hits: number of models that have the property.
        trials: number of models.
        control_hits: number of control models that have it.
        control_trials: number of control models.

    Returns:
        the p-value.

    >>> round(p_value_higher_rate(5, 5, 0, 5), 4)
    0.004
    """
    table = [[hits, trials - hits], [control_hits, control_trials - control_hits]]
    result: Any = stats.fisher_exact(table, alternative="greater")  # scipy does not type its result
    return float(result.pvalue)


def rate_interval(hits: int, trials: int, level: float = INTERVAL_LEVEL) -> Interval | None:
    """Return the two-sided exact (Clopper-Pearson) interval of a rate.

    Args:
        hits: number of models that have the property.
        trials: number of models.
        level: of the interval.

    Returns:
        lower and upper end, or ``None`` without a model.

    >>> [tuple(round(end, 3) for end in rate_interval(hits, 5)) for hits in (0, 5)]
    [(0.0, 0.602), (0.398, 1.0)]
    """
    if not trials:
        return None
    interval = stats.binomtest(hits, trials).proportion_ci(level, "exact")
    return float(interval.low), float(interval.high)


def upper_rate_bound(hits: int, trials: int) -> float:
    """Return the upper end of the one-sided exact (Clopper-Pearson) interval of a rate.

    Args:
        hits: number of models that have the property.
        trials: number of models, 1 or more.

    Returns:
        the bound at the level 1 - ``ERROR_RATE``.

    >>> round(upper_rate_bound(0, 8), 3)
    0.369
    """
    bound = stats.binomtest(hits, trials, alternative="less").proportion_ci(1 - ERROR_RATE, "exact").high
    return float(bound)


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, which bound the probability of any false rejection among all of them.

    Args:
        p_values: one per claim; NaN for a claim that is not tested, which does not count.

    Returns:
        the adjusted p-values in the same order.

    >>> adjust_holm([0.01, 0.04, 0.02])
    [0.03, 0.04, 0.04]
    """
    tested = [index for index, p in enumerate(p_values) if isfinite(p)]
    adjusted, largest = list(p_values), 0.0
    for rank, index in enumerate(sorted(tested, key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, p_values[index] * (len(tested) - rank)))
        adjusted[index] = largest
    return adjusted
