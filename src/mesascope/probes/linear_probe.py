"""Linear probes: multinomial logistic regression with a penalty chosen by cross-validation over sequences."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits
from torch import Tensor

from mesascope.argument_types import validate_arguments
from mesascope.probes._principal_axes import find_principal_axes
from mesascope.probes._rows import Features, LabelledRows, Labels, collect_rows

LOG10_PENALTIES = tuple(float(power) for power in range(1, -7, -1))  # strong to weak
MAX_ITERATIONS = 5_000
PATIENCE = 2  # weaker penalties without improvement, after which the search ends


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProbe:
    """An affine map from features to the scores of classes.

    Attributes:
        weight: map from features to scores.
        intercept: constant part of the scores.
        classes: the label of each score.
        log10_penalty: decimal logarithm of the penalty, in units of the mean variance of the features.
    """

    weight: Float[Tensor, "feature class"]
    intercept: Float[Tensor, " class"]
    classes: Int[Tensor, " class"]
    log10_penalty: float

    def compute_scores(self, features: Float[Tensor, "*rest feature"]) -> Float[Tensor, "*rest class"]:
        """Return the score of every class: its log probability up to a constant.

        Args:
            features: features.
        """
        return features.detach().cpu().double() @ self.weight + self.intercept

    def predict(self, features: Float[Tensor, "*rest feature"]) -> Int[Tensor, "*rest"]:
        """Return the label of the highest score.

        Args:
            features: features.
        """
        return self.classes[self.compute_scores(features).argmax(-1)]


@validate_arguments
def fit_probe(
    features: Features, labels: Labels, *, mask: Labels | None = None, folds: int = 5, seed: int = 0
) -> LinearProbe:
    """Fit a linear probe to all sequences: multinomial logistic regression with an L2 penalty.

    It minimises the mean cross-entropy plus ``penalty / 2 * v * |weight|^2`` with the mean variance ``v`` of the
    features; the intercept is not penalised. Of the penalties 10, 1, ..., 1e-6, that with the lowest cross-entropy on
    left-out sequences is chosen, and of equally good ones the strongest. The search ends after two weaker penalties
    without improvement. Directions of the features below their rounding are left out.

    Args:
        features: (batch, feature), or (batch, pos, feature).
        labels: integers, one per row, or one per sequence.
        mask: 1 where a row counts; all by default.
        folds: number of folds of the cross-validation; each sequence is in one fold.
        seed: seed of the folds.

    Returns:
        The probe.

    Raises:
        ValueError: labels or features are invalid, there are fewer than two classes or sequences, or the fit does not
            converge.

    >>> x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    >>> fitted = fit_probe(x, x[:, 0] > 0)
    >>> bool((fitted.predict(x) == (x[:, 0] > 0)).float().mean() > 0.9)
    True
    """
    return fit_rows(collect_rows(features, labels, mask), folds, torch.Generator().manual_seed(seed))


def fit_rows(rows: LabelledRows, folds: int, generator: torch.Generator) -> LinearProbe:
    """Fit a linear probe to rows, as `fit_probe` does.

    Args:
        rows: features and labels.
        folds: number of folds.
        generator: source of the folds.

    Returns:
        The probe.

    Raises:
        ValueError: as for `fit_probe`.
    """
    classes, targets = rows.labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"training labels must have two classes or more, but all {len(targets)} are {classes.tolist()[0]}; "
            "choose sequences of several classes"
        )
    coordinates, back, mean = _rotate(rows.features)
    if not coordinates.shape[1]:
        log_counts = targets.bincount().double().log()
        weight = torch.zeros(len(mean), len(classes), dtype=torch.float64)
        return LinearProbe(weight=weight, intercept=log_counts, classes=classes, log10_penalty=LOG10_PENALTIES[0])
    fold = _draw_folds(rows.sequences, folds, generator)
    with threadpool_limits(1):  # each fit is small, and threads that wait for each other take many times as long
        log10_penalty = _choose_penalty(coordinates, targets, fold)
        *_, (_, slope, constant) = _iterate_fits(coordinates, targets, log10_penalty)
    weight = back @ slope
    return LinearProbe(weight=weight, intercept=constant - mean @ weight, classes=classes, log10_penalty=log10_penalty)


def _rotate(
    features: Float[Tensor, "row feature"],
) -> tuple[Float[Tensor, "row rank"], Float[Tensor, "feature rank"], Float[Tensor, " feature"]]:
    """Return coordinates with a mean variance of 1 along principal axes, the map to them, and the mean."""
    mean, left, singular_values, right = find_principal_axes(features)
    scale = float(singular_values.square().sum() / features.numel()) ** 0.5 or 1.0
    return left * (singular_values / scale), right.T / scale, mean


def _draw_folds(sequences: Int[Tensor, " row"], folds: int, generator: torch.Generator) -> Int[Tensor, " row"]:
    """Return the fold of every row; all rows of a sequence are in one fold."""
    present, number = sequences.unique(return_inverse=True)
    if folds < 2 or len(present) < 2:
        raise ValueError(
            f"cross-validation needs two folds and two sequences or more, but got {folds} folds and {len(present)} "
            "sequences; add sequences"
        )
    fold = torch.empty(len(present), dtype=torch.long)
    fold[torch.randperm(len(present), generator=generator)] = torch.arange(len(present)) % min(folds, len(present))
    return fold[number]


def _choose_penalty(
    coordinates: Float[Tensor, "row rank"], targets: Int[Tensor, " row"], fold: Int[Tensor, " row"]
) -> float:
    """Return the penalty with the lowest cross-entropy on left-out rows whose class the fit has seen."""
    fits, scored = [], []
    for number in range(int(fold.max()) + 1):
        fitted = fold != number
        seen = targets[fitted].unique()
        rows = ~fitted & torch.isin(targets, seen)
        if len(seen) > 1 and rows.any():
            fits.append(_iterate_fits(coordinates[fitted], torch.searchsorted(seen, targets[fitted])))
            scored.append((coordinates[rows], torch.searchsorted(seen, targets[rows])))
    if not fits:
        raise ValueError(
            "cross-validation needs two classes in the sequences that are not left out, but each fold leaves one; "
            "add sequences of several classes"
        )
    best, lowest, waited = LOG10_PENALTIES[0], float("inf"), 0
    for by_fold in zip(*fits, strict=True):
        error = 0.0
        for (_, slope, constant), (x, y) in zip(by_fold, scored, strict=True):
            error += float(torch.nn.functional.cross_entropy(x @ slope + constant, y, reduction="sum"))
        best, waited = (by_fold[0][0], 0) if error < lowest else (best, waited + 1)
        lowest = min(lowest, error)
        if waited == PATIENCE:
            break
    return best


def _iterate_fits(
    coordinates: Float[Tensor, "row rank"], targets: Int[Tensor, " row"], last: float = LOG10_PENALTIES[-1]
) -> Iterator[tuple[float, Float[Tensor, "rank class"], Float[Tensor, " class"]]]:
    """Yield penalty, weight and intercept from the strongest penalty to the last; each fit begins at the one before."""
    from sklearn.exceptions import ConvergenceWarning  # slow to import
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=MAX_ITERATIONS, tol=1e-5, warm_start=True)
    x, y = coordinates.numpy(), targets.numpy()
    for log10_penalty in (one for one in LOG10_PENALTIES if one >= last):
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                model.set_params(C=1 / (10**log10_penalty * len(y))).fit(x, y)
            except ConvergenceWarning:
                raise ValueError(
                    f"the probe must converge, but with the penalty 1e{log10_penalty:g} it has not after "
                    f"{MAX_ITERATIONS} iterations; use more sequences or fewer features"
                ) from None
        slope, constant = torch.tensor(model.coef_.T), torch.tensor(model.intercept_)
        if slope.shape[1] == 1:  # two classes: the score of the second, from that of the first
            slope, constant = (torch.cat([torch.zeros_like(one), one], -1) for one in (slope, constant))
        yield log10_penalty, slope, constant
