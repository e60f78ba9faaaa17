"""Ridge regression with a penalty chosen by generalised cross-validation; one decomposition serves all targets."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.argument_types import validate_arguments

# in units of the mean square of the features; at the square of float32's precision, what is left to shrink is rounding
LOG10_PENALTIES = tuple(power / 2 for power in range(-28, 13))
Features = Float[Tensor, "row feature"]
Targets = Float[Tensor, "row out"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RidgeFit:
    """An affine map, and the penalty that was chosen for it.

    Attributes:
        weight: the map from features to targets.
        intercept: the constant that is added; 0 if the features were not centred.
        log10_penalty: decimal logarithm of the penalty, in units of the mean square of the (centred) features.
    """

    weight: Float[Tensor, "feature out"]
    intercept: Float[Tensor, " out"]
    log10_penalty: float

    def predict(self, x: Float[Tensor, "*rest feature"]) -> Float[Tensor, "*rest out"]:
        """Return the predicted targets in float64.

        Args:
            x: features.
        """
        return x.double() @ self.weight + self.intercept


@dataclass(frozen=True, kw_only=True, eq=False)
class RidgeDesign:
    """Singular value decomposition of the features, from which ridge regressions of any targets follow.

    Attributes:
        left: left singular vectors.
        singular_values: the singular values that exceed rounding.
        right: right singular vectors.
        mean: what was subtracted from the features; ``None`` if they were not centred.
    """

    left: Float[Tensor, "row rank"]
    singular_values: Float[Tensor, " rank"]
    right: Float[Tensor, "rank feature"]
    mean: Float[Tensor, " feature"] | None

    def fit(self, y: Targets) -> RidgeFit:
        """Fit all targets with one penalty, chosen by generalised cross-validation (Golub, Heath & Wahba 1979).

        Where several penalties are equally good, the largest is chosen.

        Args:
            y: targets, one row for each row of the features.

        Returns:
            the map, with the chosen penalty.
        """
        scores = self.score_penalties(y)
        best = max(range(len(scores)), key=lambda index: (-float(scores[index]), index))
        return self.solve(y, LOG10_PENALTIES[best])

    def score_penalties(self, y: Targets) -> Float[Tensor, " penalty"]:
        """Return the generalised cross-validation score of each penalty of `LOG10_PENALTIES`.

        For the hat matrix A of a penalty and n rows it is ``|y - A y|^2 / (n - trace A)^2``.

        Args:
            y: targets, one row for each row of the features.

        Returns:
            the scores; lower is better.
        """
        y = self._center(y)
        projected = self.left.T @ y
        ridges = torch.stack([self._scale_penalty(log10_penalty) for log10_penalty in LOG10_PENALTIES])[:, None]
        remaining = ridges / (self.singular_values.square() + ridges)
        num_outside = len(y) - len(self.singular_values) - (self.mean is not None)
        outside = (y.square().sum() - projected.square().sum()).clamp_min(0) if num_outside > 0 else 0.0
        error = remaining.square() @ projected.square().sum(1) + outside
        return error / (num_outside + remaining.sum(1)).square()

    def solve(self, y: Targets, log10_penalty: float) -> RidgeFit:
        """Fit the targets with a given penalty: minimise ``mean |y - w x|^2 + penalty * mean x^2 * |w|^2``.

        Args:
            y: targets, one row for each row of the features.
            log10_penalty: decimal logarithm of the penalty; with ``inf`` the map is 0.

        Returns:
            the map.
        """
        inverse = self.singular_values / (self.singular_values.square() + self._scale_penalty(log10_penalty))
        weight = self.right.T @ (inverse[:, None] * (self.left.T @ self._center(y)))
        intercept = weight.new_zeros(weight.shape[1]) if self.mean is None else y.double().mean(0) - self.mean @ weight
        return RidgeFit(weight=weight, intercept=intercept, log10_penalty=log10_penalty)

    def _scale_penalty(self, log10_penalty: float) -> Float[Tensor, ""]:
        return 10.0**log10_penalty * self.singular_values.square().sum() / self.right.shape[1]

    def _center(self, y: Targets) -> Targets:
        return y.double() if self.mean is None else y.double() - y.double().mean(0)


@validate_arguments
def decompose_features(x: Features, *, center: bool = True, exact: bool = True) -> RidgeDesign:
    """Decompose the features of a ridge regression in float64.

    Args:
        x: features; there may be fewer rows than features.
        center: subtract the mean, so that the intercept is not penalised.
        exact: compute small singular values exactly. Otherwise the smaller of the two products of the features with
            themselves is diagonalised, which takes a quarter of the time; directions with less than about 1e-8 of the
            largest singular value are lost.

    Returns:
        the decomposition.

    Raises:
        ValueError: there are fewer than two rows, or some features are not finite.
    """
    if len(x) < 2:
        raise ValueError(f"ridge regression needs two rows or more, but got {len(x)}; use more sequences")
    if not x.isfinite().all():
        raise ValueError("ridge regression needs finite features, but some are not; check the model and its training")
    mean = x.double().mean(0) if center else None
    x = x.double() if mean is None else x.double() - mean
    left, singular_values, right, precision = _decompose_exactly(x) if exact else _decompose_product(x)
    is_kept = singular_values > precision * singular_values.max()
    return RidgeDesign(left=left[:, is_kept], singular_values=singular_values[is_kept], right=right[is_kept], mean=mean)


@validate_arguments
def fit_ridge(x: Features, y: Targets) -> RidgeFit:
    """Fit an affine map by ridge regression; the intercept is not penalised.

    Args:
        x: features; there may be fewer rows than features.
        y: targets.

    Returns:
        the map, with the penalty chosen by generalised cross-validation.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    >>> fit = fit_ridge(x, 2 * x + 1)
    >>> fit.weight.round(decimals=6).tolist(), fit.intercept.round(decimals=6).tolist()
    ([[2.0]], [1.0])
    """
    return decompose_features(x).fit(y)


Decomposition = tuple[Float[Tensor, "row rank"], Float[Tensor, " rank"], Float[Tensor, "rank feature"], float]


def _decompose_exactly(x: Features) -> Decomposition:
    precision = torch.finfo(x.dtype).eps * max(x.shape)
    if len(x) <= x.shape[1]:
        return *torch.linalg.svd(x, full_matrices=False), precision
    basis, triangle = torch.linalg.qr(x)
    left, singular_values, right = torch.linalg.svd(triangle)
    return basis @ left, singular_values, right, precision


def _decompose_product(x: Features) -> Decomposition:
    precision = (torch.finfo(x.dtype).eps * max(x.shape)) ** 0.5
    is_tall = len(x) > x.shape[1]
    squares, basis = torch.linalg.eigh(x.T @ x if is_tall else x @ x.T)
    singular_values = squares.clamp_min(0).sqrt()
    other = (x @ basis if is_tall else x.T @ basis) / singular_values.clamp_min(torch.finfo(x.dtype).tiny)
    left, right = (other, basis) if is_tall else (basis, other)
    return left, singular_values, right.T, precision
