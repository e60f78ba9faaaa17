"""The lasso, solved in float64 until a duality gap is reached; one solver for tasks and toy models."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.tasks.algorithms._base import Algorithm, Hyperparameter, IterationGrid, Trajectory
from mesascope.tasks.icl.context import ContextExamples

Coefficients = Float[Tensor, "problem feature"]
GramMatrix = Float[Tensor, "problem feature feature"]
PerProblem = Float[Tensor, " problem"]

GAP_TOLERANCE = 1e-12  # as a fraction of the loss of zero coefficients
GAP_CHECK_INTERVAL = 20  # proximal steps between two computations of the duality gap
NORM_SLACK = 1e-6  # relative, for rounding
MAX_PATH_EVENTS = 8  # for each feature
MAX_PROXIMAL_STEPS = 100_000
EVENT_RESOLUTION = 1e-10  # relative: penalties at which coefficients become nonzero together
SUPPORT_RIDGE = 1e-14  # of the trace of the Gram matrix, so that collinear inputs do not make the system singular


def lasso_regression() -> Algorithm:
    """Build the lasso, which minimises half the mean squared error of the context + ``penalty`` * |rule|_1."""

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid, penalty: Hyperparameter) -> Trajectory:
        count = context.num_context.clamp_min(1).double()[:, None]
        moment = context.cross_moment.mT / count[..., None]
        gram = (context.gram_matrix / count[..., None])[:, :, None].expand(*moment.shape, -1)
        mean_square = context.context_y.square().sum(2) / count
        values = penalty.flatten().to(moment) if isinstance(penalty, Tensor) else moment.new_tensor([penalty])
        coefficients = solve_lasso(gram.flatten(0, 2), moment.flatten(0, 2), mean_square.flatten(), values)
        rules = coefficients.unflatten(1, moment.shape[:-1]).mT
        return context.apply_rule(rules if isinstance(penalty, Tensor) else rules[0])[None]

    return Algorithm(name="lasso", predict=predict_queries, hyperparameter_bounds={"penalty": (1e-4, 1.0)})


def solve_lasso(
    gram: GramMatrix, moment: Coefficients, mean_square: PerProblem, penalties: Float[Tensor, " value"]
) -> Float[Tensor, "value problem feature"]:
    """Compute the coefficients that minimise half the mean squared error plus a penalty times their L1 norm.

    The solutions are piecewise linear in the penalty; the path is followed from the largest penalty down (homotopy;
    Osborne et al. 2000, Efron et al. 2004). It gives the signs of the coefficients, and given these the coefficients
    solve a linear system. A problem is solved when the duality gap, an upper bound on its loss minus the minimum, is
    at most :data:`GAP_TOLERANCE` times the loss of zero coefficients, or is the rounding error of its own terms where
    that is more. Problems that are not, such as those with
    collinear inputs, are solved by accelerated proximal gradient descent. The result is differentiable with respect to
    ``gram`` and ``moment``.

    Args:
        gram: mean products of the coordinates of the inputs.
        moment: mean products of inputs and targets.
        mean_square: mean squared targets.
        penalties: each above 0, in any order.

    Returns:
        the coefficients for every penalty, in float64.

    Raises:
        ValueError: a penalty is not above 0, or a problem is not solved in :data:`MAX_PROXIMAL_STEPS` proximal steps.
    """
    if not bool((penalties > 0).all()):
        raise ValueError(f"penalties must be above 0, but got {penalties.tolist()}; use least squares for no penalty")
    gram, moment, count = gram.double(), moment.double(), len(penalties)
    whole_gram, whole_moment = (each.repeat(count, *[1] * (each.ndim - 1)) for each in (gram, moment))
    penalty = penalties.double().repeat_interleave(len(moment))
    with torch.no_grad():
        signs = _follow_path(gram, moment, penalties.double()).flatten(0, 1)
        mean_squares = mean_square.double().repeat(count)
        problems = _Problems.start(whole_gram, whole_moment, mean_squares, penalty)
        unsolved = problems.select(~problems.are_solved_by(signs))
        if len(unsolved.index):
            _descend(unsolved, signs)
    return _solve_on_support(whole_gram, whole_moment - penalty[:, None] * signs, signs).unflatten(0, (count, -1))


def compute_duality_gap(
    gram: GramMatrix, moment: Coefficients, mean_square: PerProblem, weights: Coefficients, penalty: PerProblem | float
) -> PerProblem:
    """Compute the duality gap of a lasso, an upper bound on its loss minus the minimum.

    The dual variable is the residual, scaled down until its mean product with no coordinate exceeds the penalty.

    Args:
        gram: mean products of the coordinates of the inputs.
        moment: mean products of inputs and targets.
        mean_square: mean squared targets.
        weights: the coefficients.
        penalty: the factor on their L1 norm.

    Returns:
        the gap of each problem.
    """
    product = _multiply_vectors(gram, weights)
    residual = mean_square - ((2 * moment - product) * weights).sum(1)
    projection = mean_square - (moment * weights).sum(1)
    shrinkage = (penalty / (moment - product).abs().amax(1).clamp_min(1e-300)).clamp_max(1)
    dual = shrinkage * projection - shrinkage.square() * residual / 2
    return residual / 2 + penalty * weights.abs().sum(1) - dual


def _follow_path(
    gram: GramMatrix, moment: Coefficients, penalties: Float[Tensor, " value"]
) -> Float[Tensor, "value problem feature"]:
    """Return the signs of the coefficients for every penalty, as the path of solutions gives them."""
    found = moment.new_zeros(len(penalties), *moment.shape)
    level = moment.abs().amax(1, keepdim=True)
    signs = moment.sign() * (moment.abs() >= level * (1 - EVENT_RESOLUTION))
    index, smallest = torch.arange(len(moment), device=moment.device), penalties.min()
    for _ in range(MAX_PATH_EVENTS * moment.shape[1]):
        is_open = level[:, 0] > smallest
        index, gram, moment, signs, level = (each[is_open] for each in (index, gram, moment, signs, level))
        if not len(index):
            break
        found[:, index] = torch.where(penalties[:, None, None] < level, signs, found[:, index])
        level, signs = _find_next_event(gram, moment, signs, level)
    return found


def _find_next_event(
    gram: GramMatrix, moment: Coefficients, signs: Coefficients, level: Float[Tensor, "problem 1"]
) -> tuple[Float[Tensor, "problem 1"], Coefficients]:
    """Return the next smaller penalty at which a coefficient becomes 0 or nonzero, and the signs below it."""
    # with penalty p the coefficients are constant - p * slope, and the correlations residual + p * growth
    constant, slope = (_solve_on_support(gram, each * signs.abs(), signs) for each in (moment, signs))
    residual, growth = moment - _multiply_vectors(gram, constant), _multiply_vectors(gram, slope)
    is_active = signs != 0
    candidates = torch.stack(
        [
            torch.where(is_active, constant / slope, 0),  # becomes 0
            torch.where(is_active, 0, residual / (1 - growth)),  # becomes positive
            torch.where(is_active, 0, residual / (-1 - growth)),  # becomes negative
        ]
    )
    is_below = (candidates > 0) & (candidates < level * (1 - EVENT_RESOLUTION))
    candidates = torch.where(is_below, candidates, 0)
    next_level = candidates.amax((0, 2))[:, None]
    drops, becomes_positive, becomes_negative = candidates >= (next_level * (1 - EVENT_RESOLUTION)).clamp_min(1e-300)
    return next_level, torch.where(drops, 0, signs) + becomes_positive.double() - becomes_negative.double()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problems:
    """Problems that are not solved yet, and the state of their descent."""

    index: Int[Tensor, " problem"]
    gram: GramMatrix
    moment: Coefficients
    mean_square: PerProblem
    penalty: PerProblem
    rate: Float[Tensor, "problem 1"]
    weights: Coefficients
    extrapolated: Coefficients  # the next step descends from here
    momentum: Float[Tensor, "problem 1"]

    @classmethod
    def start(cls, gram: GramMatrix, moment: Coefficients, mean_square: PerProblem, penalty: PerProblem) -> "_Problems":
        curvature = torch.linalg.eigvalsh(gram)[:, -1:].clamp_min(torch.finfo(torch.float64).tiny)
        weights = torch.zeros_like(moment)
        return cls(
            index=torch.arange(len(moment), device=moment.device),
            gram=gram,
            moment=moment,
            mean_square=mean_square,
            penalty=penalty,
            rate=1 / curvature,
            weights=weights,
            extrapolated=weights,
            momentum=torch.ones_like(moment[:, :1]),
        )

    def select(self, rows: Bool[Tensor, " problem"]) -> "_Problems":
        return _Problems(**{one.name: getattr(self, one.name)[rows] for one in fields(self)})

    def are_solved_by(self, signs: Coefficients) -> Bool[Tensor, " problem"]:
        weights = _solve_on_support(self.gram, self.moment - self.penalty[:, None] * signs, signs)
        gap = compute_duality_gap(self.gram, self.moment, self.mean_square, weights, self.penalty)
        norm = weights.abs().sum(1)
        # an error of the correlations changes the gap by itself times the L1 norm
        rounding = torch.finfo(torch.float64).eps * weights.shape[1] * norm
        rounding = rounding * _multiply_vectors(self.gram.abs(), weights.abs()).amax(1)
        # no solution has a larger norm; that of a singular system with the wrong signs may be of any size
        is_bounded = self.penalty * norm <= (1 + NORM_SLACK) * self.mean_square / 2
        return is_bounded & (gap <= GAP_TOLERANCE / 2 * self.mean_square + rounding)

    def take_step(self) -> "_Problems":
        """Take a step of FISTA (Beck and Teboulle 2009) with adaptive restart (O'Donoghue and Candès 2015)."""
        descended = self.extrapolated + self.rate * (self.moment - _multiply_vectors(self.gram, self.extrapolated))
        new = descended.sign() * (descended.abs() - self.rate * self.penalty[:, None]).clamp_min(0)
        change = new - self.weights
        overshoots = ((self.extrapolated - new) * change).sum(1, keepdim=True) > 0
        momentum = torch.where(overshoots, 1.0, self.momentum)
        next_momentum = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        extrapolated = new + (momentum - 1) / next_momentum * change
        return replace(self, weights=new, extrapolated=extrapolated, momentum=next_momentum)


def _descend(problems: _Problems, signs: Float[Tensor, "all_problems feature"]) -> None:
    """Write the signs of the coefficients of the solutions into ``signs``."""
    count = len(problems.index)
    for step in range(MAX_PROXIMAL_STEPS + 1):
        if step % GAP_CHECK_INTERVAL == 0:
            is_solved = problems.are_solved_by(problems.weights.sign())
            signs[problems.index[is_solved]] = problems.weights[is_solved].sign()
            problems = problems.select(~is_solved)
            if not len(problems.index):
                return
        problems = problems.take_step()
    raise ValueError(
        f"the lasso must reach a duality gap of {GAP_TOLERANCE:g} of the loss of zero coefficients in "
        f"{MAX_PROXIMAL_STEPS} steps, but {len(problems.index)} of {count} problems did not; use a larger penalty"
    )


def _solve_on_support(gram: GramMatrix, products: Coefficients, signs: Coefficients) -> Coefficients:
    """Solve the linear system of the coefficients with nonzero signs; the others are 0."""
    inside = signs.abs()
    system = inside[:, :, None] * gram * inside[:, None] + torch.diag_embed(1 - inside)
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    factors, pivots, _ = torch.linalg.lu_factor_ex(system + torch.diag_embed(SUPPORT_RIDGE * trace * inside))
    products = (inside * products)[..., None]
    weights = torch.linalg.lu_solve(factors, pivots, products)
    # one step of iterative refinement removes the effect of the ridge
    return (weights + torch.linalg.lu_solve(factors, pivots, products - system @ weights))[..., 0]


def _multiply_vectors(gram: GramMatrix, vectors: Coefficients) -> Coefficients:
    return (gram @ vectors[..., None])[..., 0]
