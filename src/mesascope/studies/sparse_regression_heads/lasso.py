"""The lasso: coefficients with a small L1 norm, by accelerated proximal gradient descent."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.studies.sparse_regression_heads.problems import (
    Coefficients,
    GramMatrix,
    ProblemInputs,
    ProblemTargets,
    compute_mean_products,
)

MAX_LASSO_STEPS = 5_000
GAP_CHECK_INTERVAL = 10  # proximal steps between two computations of the duality gap
GAP_TOLERANCE = 1e-5  # as a fraction of the loss of zero coefficients


def lasso_estimates(
    x: ProblemInputs, y: ProblemTargets, penalty: float, initial: Coefficients | None = None
) -> Coefficients:
    """Compute the coefficients that minimise half the mean squared error plus ``penalty`` times their L1 norm.

    Accelerated proximal gradient (FISTA; Beck and Teboulle 2009) with adaptive restart (O'Donoghue and Candès 2015). A
    problem is solved when its duality gap, an upper bound on the distance from the minimum, is below
    :data:`GAP_TOLERANCE` times the loss of zero coefficients.

    Args:
        x, y: examples.
        penalty: above 0.
        initial: initial coefficients, such as those for a larger penalty; 0 by default.

    Returns:
        the coefficients, (problem, feature).

    Raises:
        ValueError: the penalty is not above 0, or a problem is not solved in :data:`MAX_LASSO_STEPS` steps.
    """
    if penalty <= 0:
        raise ValueError(f"penalty must be above 0, but got {penalty}; use least squares for no penalty")
    return _minimise_lasso(_LassoState.start(x, y, initial), penalty)


@dataclass(frozen=True, kw_only=True, eq=False)
class _LassoState:
    """Descent on the problems that are not solved yet.

    Attributes:
        index: of each problem among all problems.
        gram: mean products of the coordinates of the inputs.
        moment: mean products of inputs and targets.
        mean_square: mean squared targets.
        rate: step size.
        weights: coefficients.
        extrapolated: coefficients from which the next step descends.
        momentum: weight of the extrapolation.
    """

    index: Int[Tensor, " problem"]
    gram: GramMatrix
    moment: Coefficients
    mean_square: Float[Tensor, " problem"]
    rate: Float[Tensor, "problem 1"]
    weights: Coefficients
    extrapolated: Coefficients
    momentum: Float[Tensor, "problem 1"]

    @classmethod
    def start(cls, x: ProblemInputs, y: ProblemTargets, initial: Coefficients | None) -> "_LassoState":
        gram, moment = compute_mean_products(x, y)
        weights = torch.zeros_like(moment) if initial is None else initial.clone()
        return cls(
            index=torch.arange(len(x)),
            gram=gram,
            moment=moment,
            mean_square=y.square().mean(1),
            rate=1 / torch.linalg.eigvalsh(gram)[:, -1:],
            weights=weights,
            extrapolated=weights.clone(),
            momentum=torch.ones(len(x), 1, dtype=x.dtype),
        )

    def drop_solved(self, penalty: float) -> "_LassoState":
        gap = duality_gap(self.gram, self.moment, self.mean_square, self.weights, penalty)
        is_open = gap > GAP_TOLERANCE * self.mean_square
        return _LassoState(**{field.name: getattr(self, field.name)[is_open] for field in fields(self)})

    def take_step(self, penalty: float) -> "_LassoState":
        descended = self.extrapolated + self.rate * (self.moment - _multiply_vectors(self.gram, self.extrapolated))
        new = descended.sign() * (descended.abs() - self.rate * penalty).clamp_min(0)
        change = new - self.weights
        overshoots = ((self.extrapolated - new) * change).sum(1, keepdim=True) > 0
        momentum = torch.where(overshoots, 1.0, self.momentum)
        next_momentum = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        extrapolated = new + (momentum - 1) / next_momentum * change
        return replace(self, weights=new, extrapolated=extrapolated, momentum=next_momentum)


def _minimise_lasso(state: _LassoState, penalty: float) -> Coefficients:
    solution, count = state.weights.clone(), len(state.index)
    for step in range(MAX_LASSO_STEPS + 1):
        if step % GAP_CHECK_INTERVAL == 0:
            solution[state.index] = state.weights
            state = state.drop_solved(penalty)
            if not len(state.index):
                return solution
        state = state.take_step(penalty)
    raise ValueError(
        f"the lasso must converge in {MAX_LASSO_STEPS} steps, but {len(state.index)} of {count} problems did not; use "
        "a larger penalty"
    )


def duality_gap(
    gram: GramMatrix,
    moment: Coefficients,
    mean_square: Float[Tensor, " problem"],
    weights: Coefficients,
    penalty: float,
) -> Float[Tensor, " problem"]:
    """Compute the duality gap of a lasso, an upper bound on its loss minus the minimum.

    The dual variable is the residual, scaled down until its mean product with no coordinate exceeds the penalty.

    Args:
        gram, moment: mean products of the coordinates of the inputs, and of inputs and targets.
        mean_square: mean squared targets.
        weights, penalty: coefficients, and the factor on their L1 norm.

    Returns:
        the gap of each problem.
    """
    product = _multiply_vectors(gram, weights)
    residual = mean_square - ((2 * moment - product) * weights).sum(1)
    projection = mean_square - (moment * weights).sum(1)
    shrinkage = (penalty / (moment - product).abs().amax(1).clamp_min(penalty)).clamp_max(1)
    dual = shrinkage * projection - shrinkage.square() * residual / 2
    return residual / 2 + penalty * weights.abs().sum(1) - dual


def _multiply_vectors(gram: GramMatrix, vectors: Coefficients) -> Coefficients:
    return (gram @ vectors[..., None])[..., 0]
