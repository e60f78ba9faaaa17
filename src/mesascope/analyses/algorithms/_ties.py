"""Ties between algorithms: which of them a bootstrap over sequences distinguishes, and names for those it does not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mesascope.analyses.algorithms.agreement import PredictionsAtQueries
from mesascope.analyses.algorithms.fit import FittedAlgorithm
from mesascope.tasks.icl.base import InContextTask

SIGNIFICANCE_LEVEL = 0.025  # one-sided
RESOLUTION = 1e-3  # of similarity: smaller differences are not resolved, since hyperparameters are fitted no finer
MAX_RELATIVE_DISTANCE = 1e9  # times the variance: cap on the distance of diverging predictions, which may be infinite
TIE_NOTE = "cannot be distinguished here"

PerSequence = Float[Tensor, " batch"]
ByAlgorithm = Float[Tensor, "algorithm batch"]
ResampleCounts = Float[Tensor, "batch draw"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Scores of algorithms on sequences of one kind, by which ties can be broken.

    Attributes:
        score: score of each algorithm on every sequence; higher is better.
        uninformative: score of an algorithm that has nothing to do with the model.
        scale: differences up to :data:`RESOLUTION` times this are ties.
    """

    score: ByAlgorithm
    uninformative: PerSequence
    scale: PerSequence

    def find_better(self, counts: ResampleCounts, level: float) -> Bool[Tensor, "algorithm algorithm"]:
        """Return which algorithm (first axis) is better than which (second axis), and better than uninformative.

        Args:
            counts: how often each sequence occurs in each resample.
            level: significance level, one-sided.
        """
        informative = ((self.score - self.uninformative) @ counts).quantile(level, dim=1) > 0
        resampled, resolution = self.score @ counts, RESOLUTION * (self.scale @ counts)
        better = [(one - resampled - resolution).quantile(level, dim=1) > 0 for one in resampled]
        return torch.stack(better) & informative[:, None]


def cap_errors(queries: PredictionsAtQueries, answers: Sequence[Float[Tensor, "..."]]) -> ByAlgorithm:
    """Compute the squared distance of the predictions from those of each algorithm; finite where they diverge.

    Args:
        queries: predictions of the model.
        answers: predictions of each algorithm.

    Returns:
        the distance by algorithm and sequence, at most 10^9 times the variance.
    """
    errors = torch.stack([queries.squared_error(each) for each in answers])
    return errors.clamp_max(MAX_RELATIVE_DISTANCE * float(queries.total_variance.mean()))


def error_scale(task: InContextTask, queries: PredictionsAtQueries) -> PerSequence:
    """Return the scale of squared errors below which differences are not resolved.

    It is the variance of the predictions or, in tasks with a reference such as the last term of a sequence, their
    squared distance from it if that is less: the terms of a converging sequence are nearly equal.

    Args:
        task: the task.
        queries: predictions of the model.
    """
    variance, reference = queries.total_variance, task.reference_predictions(queries.context)
    if reference is None:
        return variance
    distance = queries.squared_error(reference)
    return distance if float(distance.sum()) < float(variance.sum()) else variance


def find_candidates(errors: ByAlgorithm, scale: PerSequence, counts: ResampleCounts) -> list[int]:
    """Return the algorithms that are not distinguishable from the one with the smallest error.

    Args:
        errors: squared distances of the predictions.
        scale: differences up to :data:`RESOLUTION` times this are ties.
        counts: how often each sequence occurs in each resample.
    """
    nearest = int(errors.sum(1).argmin())
    lead = (errors - errors[nearest] - RESOLUTION * scale) @ counts
    return [n for n, low in enumerate(lead.quantile(SIGNIFICANCE_LEVEL, dim=1).tolist()) if not low > 0]


def break_ties(candidates: Sequence[int], evidence: Sequence[Evidence], counts: ResampleCounts) -> list[int]:
    """Drop the candidates that another one beats on some evidence, and that do not beat that one on any.

    The significance level is divided by the number of pieces of evidence.

    Args:
        candidates: algorithms with equal predictions.
        evidence: scores of all algorithms.
        counts: how often each sequence occurs in each resample.

    Returns:
        the algorithms that are still tied; all candidates if each of them is beaten.
    """
    if len(candidates) < 2 or not evidence:
        return list(candidates)
    level = SIGNIFICANCE_LEVEL / len(evidence)
    beats = torch.stack([each.find_better(counts, level) for each in evidence]).any(0)
    left = [n for n in candidates if not any(beats[other, n] and not beats[n, other] for other in candidates)]
    return left or list(candidates)


def name_tied(tied: Sequence[int], fitted: Sequence[FittedAlgorithm]) -> str:
    """Return the name of the tied algorithm with the fewest fitted hyperparameters, or of all such algorithms.

    Args:
        tied: indices of the algorithms that cannot be distinguished.
        fitted: all algorithms.

    Returns:
        one name, or the names of all that have the fewest hyperparameters, with a note.
    """
    fewest = min(fitted[n].num_fitted for n in tied)
    names = [fitted[n].name for n in tied if fitted[n].num_fitted == fewest]
    return names[0] if len(names) == 1 else f"{' or '.join(names)} ({TIE_NOTE})"
