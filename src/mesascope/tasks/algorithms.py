"""Candidate algorithms for in-context learning; each predicts from the context pairs of a prompt, in float64.

Iterative algorithms return the prediction after any iteration. All of them are differentiable with respect to the
context, so that the weights they give to it can be compared with those of a model.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.icl.context import ContextExamples, LinearRule

Trajectory = Float[Tensor, "iteration *value batch query out"]
Hyperparameter = float | Float[Tensor, "value 1 1 1 1"]  # one value, or several that are evaluated in one batch
Bounds = tuple[float, float]
StepScaling = Literal["mean", "curvature"]
IterationGrid = tuple[int, ...]
GRADIENT_DESCENT_STEPS = (*range(1, 17), *(each << n for n in range(9) for each in (20, 24, 28, 32)))  # up to 8192
GD_PLUS_PLUS_STEPS = tuple(range(2, 9))  # one step of GD++ is one of gradient descent
NEWTON_STEPS = tuple(range(1, 21))  # 20 steps correspond to about 2^20 steps of gradient descent
NEIGHBOUR_COUNTS = tuple(range(1, 6))
PROXIMAL_STEPS = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Algorithm:
    """A predictor with known steps.

    Attributes:
        name: name of the algorithm.
        predict: maps the context, the iterations to return and the hyperparameters (by name) to predictions.
        iteration_grid: iterations that are evaluated, in increasing order; (1,) if the algorithm is not iterative.
        iteration_unit: name of one iteration, such as "step"; empty if the algorithm is not iterative.
        hyperparameter_bounds: lower and upper bound of each hyperparameter that is fitted; bounds are positive.
    """

    name: str
    predict: Callable[..., Trajectory]
    iteration_grid: IterationGrid = (1,)
    iteration_unit: str = ""
    hyperparameter_bounds: Mapping[str, Bounds] = field(default_factory=dict)

    def display_name(self, iteration: int) -> str:
        """Return the display name at an iteration.

        Args:
            iteration: number of iterations.

        Returns:
            The name, preceded by the number of iterations if the algorithm is iterative.

        >>> gradient_descent().display_name(1), least_squares().display_name(1)
        ('1 step of gradient descent', 'least squares')
        """
        if not self.iteration_unit:
            return self.name
        return f"{iteration} {self.iteration_unit}{'s' if iteration > 1 else ''} of {self.name}"


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineStep:
    """An affine update of a linear rule, rule -> factor @ rule + constant; compositions are of the same form.

    Attributes:
        factor: the matrix.
        constant: the offset.
    """

    factor: Float[Tensor, "*lead feature feature"]
    constant: Float[Tensor, "*lead feature out"]

    def __call__(self, rule: Float[Tensor, "*lead feature out"]) -> Float[Tensor, "*lead feature out"]:
        """Return the rule after the step."""
        return self.factor @ rule + self.constant

    def compose_with(self, other: "AffineStep") -> "AffineStep":
        """Compose this step with a later one.

        Args:
            other: the step that is applied second.

        Returns:
            Both steps as one.
        """
        return AffineStep(factor=other.factor @ self.factor, constant=other(self.constant))


def iterate_step(
    step: AffineStep, rule: Float[Tensor, "*lead feature out"], iteration_grid: IterationGrid
) -> Iterator[Float[Tensor, "..."]]:
    """Iterate a step and yield the rule after each requested number of steps.

    Runs of steps are composed by repeated squaring, so the cost grows with the logarithm of their number.

    Args:
        step: the update.
        rule: the rule before the first step.
        iteration_grid: numbers of steps, in increasing order.

    Yields:
        The rule after each number of steps.
    """
    powers, done = {0: step}, 0  # powers[k] is 2^k steps
    for tick in iteration_grid:
        left, done = tick - done, tick
        for power in range(left.bit_length()):
            if power not in powers:
                powers[power] = powers[power - 1].compose_with(powers[power - 1])
            if left >> power & 1:
                rule = powers[power](rule)
        yield rule


def least_squares() -> Algorithm:
    """Build ordinary least squares on the context; the minimum-norm solution if it is not unique."""

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid) -> Trajectory:
        return context.apply_rule(torch.linalg.pinv(context.context_x, rtol=1e-12) @ context.context_y)[None]

    return Algorithm(name="least squares", predict=predict_queries)


def ridge_regression() -> Algorithm:
    """Build ridge regression on the context, which minimises squared error + ``ridge`` * |rule|^2."""

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid, ridge: Hyperparameter) -> Trajectory:
        eye = torch.eye(context.context_x.shape[-1], dtype=torch.float64, device=context.context_x.device)
        return context.apply_rule(torch.linalg.solve(context.gram_matrix + ridge * eye, context.cross_moment))[None]

    return Algorithm(name="ridge regression", predict=predict_queries, hyperparameter_bounds={"ridge": (1e-3, 1e2)})


def gradient_descent(step_scaling: StepScaling = "mean") -> Algorithm:
    """Build gradient descent on half the squared error of the context, from a rule of zeros.

    Args:
        step_scaling: normalisation of the step size. With ``mean`` the update is ``step`` times the gradient of the
            mean over
            the pairs; with ``curvature`` the step size is ``step`` / (largest eigenvalue of the Gram matrix), so that a
            ``step`` below 2 converges on every prompt.

    Returns:
        The algorithm, with the hyperparameter ``step``.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid, step: Hyperparameter) -> Trajectory:
        gram, moment = context.gram_matrix, context.cross_moment
        rate = step / (
            _largest_eigenvalue(gram)
            if step_scaling == "curvature"
            else context.num_context.clamp_min(1).double()[:, None, None]
        )
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        update = AffineStep(factor=eye - rate * gram, constant=rate * moment)
        rules = iterate_step(update, torch.zeros_like(update.constant), iteration_grid)
        return torch.stack([context.apply_rule(rule) for rule in rules])

    name = "gradient descent" if step_scaling == "mean" else "normalised gradient descent"
    bounds = (0.02, 4.0) if step_scaling == "mean" else (0.05, 1.95)
    return Algorithm(
        name=name,
        predict=predict_queries,
        iteration_grid=GRADIENT_DESCENT_STEPS,
        iteration_unit="step",
        hyperparameter_bounds={"step": bounds},
    )


def preprocessed_gradient_descent() -> Algorithm:
    """Build gradient descent on rescaled inputs (Chen et al. 2024).

    Every coordinate of the inputs is multiplied by its mean product with the targets, which is large where a sparse
    rule is nonzero. The step size is ``step`` / (largest eigenvalue of the rescaled Gram matrix).
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid, step: Hyperparameter) -> Trajectory:
        if context.context_y.shape[-1] != 1:
            raise ValueError(f"preprocessing needs targets of dimension 1, but got {context.context_y.shape[-1]}")
        scale = context.cross_moment / context.num_context.clamp_min(1).double()[:, None, None]
        gram, moment = scale * context.gram_matrix * scale.mT, scale * context.cross_moment
        rate = step / _largest_eigenvalue(gram)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        update = AffineStep(factor=eye - rate * gram, constant=rate * moment)
        rules = iterate_step(update, torch.zeros_like(update.constant), iteration_grid)
        return torch.stack([context.apply_rule(scale * rule) for rule in rules])

    return Algorithm(
        name="preprocessed gradient descent",
        predict=predict_queries,
        iteration_grid=GRADIENT_DESCENT_STEPS,
        iteration_unit="step",
        hyperparameter_bounds={"step": (0.05, 1.95)},
    )


def gd_plus_plus() -> Algorithm:
    """Build GD++ (von Oswald et al. 2023), gradient descent that also transforms the inputs between steps.

    Before every step after the first, inputs are multiplied by I - ``gamma`` * (their mean outer product), which
    flattens the curvature; the rule is fitted to the transformed inputs. One step is the same as plain gradient
    descent, so the iteration grid starts at 2.
    """

    def predict_queries(
        context: ContextExamples, iteration_grid: IterationGrid, step: Hyperparameter, gamma: Hyperparameter
    ) -> Trajectory:
        context_x, residual, query_x = context.context_x, context.context_y, context.query_x[:, :, None]
        count = context.num_context.clamp_min(1).double()[:, None, None]
        prediction, trajectory = torch.zeros_like(context.context_y[:, :, :1]), []
        for tick in range(1, max(iteration_grid) + 1):
            change = step / count * (context_x.mT @ residual)
            prediction = prediction + query_x @ change
            residual = residual - context_x @ change
            correction = gamma / count * (context_x.mT @ context_x)
            context_x, query_x = context_x - context_x @ correction, query_x - query_x @ correction
            if tick in iteration_grid:
                trajectory.append(prediction[..., 0, :])
        return torch.stack(trajectory)

    bounds = {"step": (0.02, 4.0), "gamma": (1e-3, 1.0)}
    return Algorithm(
        name="GD++",
        predict=predict_queries,
        iteration_grid=GD_PLUS_PLUS_STEPS,
        iteration_unit="step",
        hyperparameter_bounds=bounds,
    )


def newton_iteration() -> Algorithm:
    """Build Newton's iteration for the inverse of the Gram matrix S (Schulz).

    The iteration is M <- 2 M - M S M, starting from M = ``start`` S / |S|^2.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid, start: Hyperparameter) -> Trajectory:
        gram, moment = context.gram_matrix, context.cross_moment
        largest = _largest_eigenvalue(gram)
        inverse, trajectory = gram / largest * (start / largest), []
        for tick in range(1, max(iteration_grid) + 1):
            inverse = 2 * inverse - inverse @ gram @ inverse
            if tick in iteration_grid:
                trajectory.append(context.apply_rule(inverse @ moment))
        return torch.stack(trajectory)

    return Algorithm(
        name="Newton's iteration",
        predict=predict_queries,
        iteration_grid=NEWTON_STEPS,
        iteration_unit="step",
        hyperparameter_bounds={"start": (0.1, 1.95)},
    )


def averaging_estimator() -> Algorithm:
    """Build the averaging estimator, whose rule is the mean of input times target.

    It is correct for white inputs in the limit of many examples.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid) -> Trajectory:
        return context.apply_rule(context.cross_moment / context.num_context.clamp_min(1).double()[:, None, None])[None]

    return Algorithm(name="averaging", predict=predict_queries)


def nearest_neighbours() -> Algorithm:
    """Build k nearest neighbours, the mean target of the k nearest context inputs.

    The iteration is k, at most the context length.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid) -> Trajectory:
        pairs = context.context_x.shape[2]
        not_in_context = torch.arange(pairs, device=context.num_context.device) >= context.num_context[:, None]
        squared_distance = (
            (context.context_x - context.query_x[:, :, None]).square().sum(-1).masked_fill(not_in_context, torch.inf)
        )
        nearest = squared_distance.argsort(-1)[..., None].expand(-1, -1, -1, context.context_y.shape[-1])
        total = context.context_y.gather(2, nearest).cumsum(2)
        trajectory = [
            total[:, :, min(k, pairs) - 1] / context.num_context.clamp(min=1, max=k).double()[:, None]
            for k in iteration_grid
        ]
        return torch.stack(trajectory)

    return Algorithm(
        name="nearest neighbours", predict=predict_queries, iteration_grid=NEIGHBOUR_COUNTS, iteration_unit="neighbour"
    )


def lasso_regression() -> Algorithm:
    """Build the lasso, which minimises half the mean squared error of the context + ``penalty`` * |rule|_1.

    Solved by accelerated proximal gradient descent (FISTA, Beck & Teboulle 2009).
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid, penalty: Hyperparameter) -> Trajectory:
        count = context.num_context.clamp_min(1).double()[:, None, None]
        gram, moment = context.gram_matrix / count, context.cross_moment / count
        rate = 1 / _largest_eigenvalue(gram)
        rule = extrapolated = torch.zeros_like(penalty * moment)
        momentum = 1.0
        for _ in range(PROXIMAL_STEPS):
            moved = extrapolated - rate * (gram @ extrapolated - moment)
            new = moved.sign() * (moved.abs() - penalty * rate).clamp_min(0)
            next_momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            extrapolated, rule, momentum = new + (momentum - 1) / next_momentum * (new - rule), new, next_momentum
        return context.apply_rule(rule)[None]

    return Algorithm(name="lasso", predict=predict_queries, hyperparameter_bounds={"penalty": (1e-4, 1.0)})


def copy_query(features: slice) -> Algorithm:
    """Build a predictor that copies features of the query input.

    Args:
        features: the features that are copied.

    Returns:
        The algorithm, without hyperparameters.
    """
    return Algorithm(name="copying", predict=lambda context, iteration_grid: context.query_x[None, :, :, features])


def linear_extrapolation(features: slice) -> Algorithm:
    """Build linear extrapolation from the last context input through the query input.

    With an empty context the query input is copied.

    Args:
        features: the features that are extrapolated.

    Returns:
        The algorithm, without hyperparameters.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid) -> Trajectory:
        last = (context.num_context - 1).clamp_min(0)
        previous = context.context_x[:, torch.arange(len(last), device=last.device), last][..., features]
        query_x = context.query_x[..., features]
        return torch.where((context.num_context > 0)[:, None], 2 * query_x - previous, query_x)[None]

    return Algorithm(name="straight line", predict=predict_queries)


def last_pairs_least_squares(count: int) -> Algorithm:
    """Build least squares on the most recent context pairs; the minimum-norm solution if it is not unique.

    Args:
        count: number of pairs.

    Returns:
        The algorithm, without hyperparameters.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid) -> Trajectory:
        pair = torch.arange(context.context_x.shape[2], device=context.num_context.device)
        mask = (pair >= context.num_context[:, None] - count)[None, :, :, None].to(context.context_x)
        rule: LinearRule = torch.linalg.pinv(context.context_x * mask, rtol=1e-12) @ (context.context_y * mask)
        return context.apply_rule(rule)[None]

    return Algorithm(name=f"the last {count} pairs", predict=predict_queries)


def _largest_eigenvalue(gram: Float[Tensor, "batch query feature feature"]) -> Float[Tensor, "batch query 1 1"]:
    values = torch.linalg.eigvalsh(gram)[..., -1, None, None]
    return values.clamp_min(torch.finfo(torch.float64).tiny)  # an empty context has a Gram matrix of zeros
