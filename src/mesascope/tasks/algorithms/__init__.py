"""Candidate algorithms for in-context learning; each predicts from the context pairs of a prompt, in float64.

Iterative algorithms return the prediction after any iteration. All of them are differentiable with respect to the
context, so that the weights they give to it can be compared with those of a model.
"""

from mesascope.tasks.algorithms._base import Algorithm, Bounds, Hyperparameter, IterationGrid, StepScaling, Trajectory
from mesascope.tasks.algorithms._direct import (
    NEIGHBOUR_COUNTS,
    averaging_estimator,
    copy_query,
    last_pairs_least_squares,
    least_squares,
    linear_extrapolation,
    nearest_neighbours,
    ridge_regression,
)
from mesascope.tasks.algorithms._iterative import (
    GD_PLUS_PLUS_STEPS,
    GRADIENT_DESCENT_STEPS,
    NEWTON_STEPS,
    VARIABLE_STEPS,
    gd_plus_plus,
    gradient_descent,
    newton_iteration,
    preprocessed_gradient_descent,
    variable_step_descent,
)
from mesascope.tasks.algorithms._lasso import compute_duality_gap, lasso_regression, solve_lasso
from mesascope.tasks.algorithms._steps import AffineStep, iterate_step

__all__ = [
    "GD_PLUS_PLUS_STEPS",
    "GRADIENT_DESCENT_STEPS",
    "NEIGHBOUR_COUNTS",
    "NEWTON_STEPS",
    "VARIABLE_STEPS",
    "AffineStep",
    "Algorithm",
    "Bounds",
    "Hyperparameter",
    "IterationGrid",
    "StepScaling",
    "Trajectory",
    "averaging_estimator",
    "compute_duality_gap",
    "copy_query",
    "gd_plus_plus",
    "gradient_descent",
    "iterate_step",
    "lasso_regression",
    "last_pairs_least_squares",
    "least_squares",
    "linear_extrapolation",
    "nearest_neighbours",
    "newton_iteration",
    "preprocessed_gradient_descent",
    "ridge_regression",
    "solve_lasso",
    "variable_step_descent",
]
