"""Iterative algorithms for linear rules: gradient descent and its variants, Newton's iteration."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.algorithms._base import Algorithm, Bounds, Hyperparameter, IterationGrid, StepScaling, Trajectory
from mesascope.tasks.algorithms._steps import AffineStep, iterate_step
from mesascope.tasks.icl.context import ContextExamples

GRADIENT_DESCENT_STEPS = (*range(1, 17), *(each << n for n in range(9) for each in (20, 24, 28, 32)))  # up to 8192
GD_PLUS_PLUS_STEPS = tuple(range(2, 9))  # one step of GD++ is one of gradient descent
VARIABLE_STEPS = GD_PLUS_PLUS_STEPS  # as many as its rival
NEWTON_STEPS = tuple(range(1, 21))  # 20 steps correspond to about 2^20 steps of gradient descent


def gradient_descent(step_scaling: StepScaling = "mean") -> Algorithm:
    """Build gradient descent on half the squared error of the context, from a rule of zeros.

    Args:
        step_scaling: normalisation of the step size. With ``mean`` the update is ``step`` times the gradient of the
            mean over the pairs; with ``curvature`` the step size is ``step`` / (largest eigenvalue of the Gram matrix),
            so that a ``step`` below 2 converges on every prompt.

    Returns:
        The algorithm, with the hyperparameter ``step``.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid, step: Hyperparameter) -> Trajectory:
        gram, moment = context.gram_matrix, context.cross_moment
        rate = step / (_count_pairs(context) if step_scaling == "mean" else _largest_eigenvalue(gram))
        rules = _descend(gram, moment, rate, iteration_grid)
        return torch.stack([context.apply_rule(rule) for rule in rules])

    if step_scaling == "mean":
        return _name_descent("gradient descent", predict_queries, (0.02, 4.0))
    return _name_descent("normalised gradient descent", predict_queries, (0.05, 1.95))


def preprocessed_gradient_descent() -> Algorithm:
    """Build gradient descent on rescaled inputs (Chen et al. 2024).

    Every coordinate of the inputs is multiplied by its mean product with the targets, which is large where a sparse
    rule is nonzero. The step size is ``step`` / (largest eigenvalue of the rescaled Gram matrix).
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid, step: Hyperparameter) -> Trajectory:
        if context.context_y.shape[-1] != 1:
            raise ValueError(f"preprocessing needs targets of dimension 1, but got {context.context_y.shape[-1]}")
        scale = context.cross_moment / _count_pairs(context)
        gram, moment = scale * context.gram_matrix * scale.mT, scale * context.cross_moment
        rules = _descend(gram, moment, step / _largest_eigenvalue(gram), iteration_grid)
        return torch.stack([context.apply_rule(scale * rule) for rule in rules])

    return _name_descent("preprocessed gradient descent", predict_queries, (0.05, 1.95))


def variable_step_descent() -> Algorithm:
    """Build gradient descent whose step size changes by the factor ``ratio`` from each step to the next.

    Two steps have any two step sizes. It has as many hyperparameters as GD++ and is its rival: two plain steps of
    different sizes are closer to GD++ than to two equal steps.
    """

    def predict_queries(
        context: ContextExamples, iteration_grid: IterationGrid, step: Hyperparameter, ratio: Hyperparameter
    ) -> Trajectory:
        count, trajectory = _count_pairs(context), []
        gram, moment = context.gram_matrix / count, context.cross_moment / count
        rule, rate = torch.zeros_like(step * ratio * moment), step
        for tick in range(1, max(iteration_grid) + 1):
            rule = rule - rate * (gram @ rule - moment)
            rate = rate * ratio
            if tick in iteration_grid:
                trajectory.append(context.apply_rule(rule))
        return torch.stack(trajectory)

    return Algorithm(
        name="variable-step gradient descent",
        predict=predict_queries,
        iteration_grid=VARIABLE_STEPS,
        iteration_unit="step",
        hyperparameter_bounds={"step": (0.02, 4.0), "ratio": (1 / 32, 32.0)},
    )


def gd_plus_plus() -> Algorithm:
    """Build GD++ (von Oswald et al. 2023), gradient descent that also transforms the inputs between steps.

    Before every step after the first, inputs are multiplied by I - ``gamma`` * (their mean outer product), which
    flattens the curvature; the rule is fitted to the transformed inputs. One step is the same as plain gradient
    descent, so the iteration grid starts at 2.
    """
    return Algorithm(
        name="GD++",
        predict=_predict_gd_plus_plus,
        iteration_grid=GD_PLUS_PLUS_STEPS,
        iteration_unit="step",
        hyperparameter_bounds={"step": (0.02, 4.0), "gamma": (1e-3, 1.0)},
    )


def _predict_gd_plus_plus(
    context: ContextExamples, iteration_grid: IterationGrid, step: Hyperparameter, gamma: Hyperparameter
) -> Trajectory:
    context_x, residual, query_x = context.context_x, context.context_y, context.query_x[:, :, None]
    count = _count_pairs(context)
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


def newton_iteration() -> Algorithm:
    """Build Newton's iteration for the inverse of the Gram matrix S (Schulz).

    The iteration is M <- 2 M - M S M, starting from M = ``start`` S / |S|^2.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid, start: Hyperparameter) -> Trajectory:
        gram, moment, largest = context.gram_matrix, context.cross_moment, _largest_eigenvalue(context.gram_matrix)
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


def _name_descent(name: str, predict: Callable[..., Trajectory], bounds: Bounds) -> Algorithm:
    """Build the algorithm whose iterations are the steps of gradient descent."""
    return Algorithm(
        name=name,
        predict=predict,
        iteration_grid=GRADIENT_DESCENT_STEPS,
        iteration_unit="step",
        hyperparameter_bounds={"step": bounds},
    )


def _descend(gram: Tensor, moment: Tensor, rate: Tensor, iteration_grid: IterationGrid) -> Iterator[Tensor]:
    """Yield the rules of gradient descent from zero, after each requested number of steps."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    update = AffineStep(factor=eye - rate * gram, constant=rate * moment)
    return iterate_step(update, torch.zeros_like(update.constant), iteration_grid)


def _count_pairs(context: ContextExamples) -> Float[Tensor, "query 1 1"]:
    """Return the number of context pairs of each query; 1 for an empty context, so that it can divide."""
    return context.num_context.clamp_min(1).double()[:, None, None]


def _largest_eigenvalue(gram: Float[Tensor, "batch query feature feature"]) -> Float[Tensor, "batch query 1 1"]:
    values = torch.linalg.eigvalsh(gram)[..., -1, None, None]
    return values.clamp_min(torch.finfo(torch.float64).tiny)  # an empty context has a Gram matrix of zeros
