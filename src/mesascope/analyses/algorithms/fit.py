"""Fit of the hyperparameters of an algorithm to the predictions of a model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.icl.context import ContextExamples

Answers = Float[Tensor, "batch place out"]
Weight = Float[Tensor, "batch place"]
GRID_SIZE = {0: 1, 1: 17, 2: 7}  # grid points of each hyperparameter, by the number of hyperparameters
MAX_EVALUATIONS = 24  # of the refinement, for each hyperparameter
NUM_NEIGHBOURS = 4  # iterations before and after the best on the grid that are refined
MAX_SEQUENCES = 128  # sequences to fit on
EDGE_WIDTH = 0.01  # of the range of a hyperparameter, on a logarithmic scale


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedAlgorithm:
    """An algorithm with fitted hyperparameters.

    Attributes:
        algorithm: the algorithm.
        iteration: number of iterations.
        hyperparameters: the other hyperparameters, by name.
    """

    algorithm: Algorithm
    iteration: int
    hyperparameters: Mapping[str, float]

    @property
    def name(self) -> str:
        """The display name, with the number of iterations."""
        return self.algorithm.display_name(self.iteration)

    @property
    def num_fitted(self) -> int:
        """The number of fitted hyperparameters, the number of iterations included."""
        return len(self.algorithm.hyperparameter_bounds) + (len(self.algorithm.iteration_grid) > 1)

    @property
    def at_edge(self) -> tuple[str, ...]:
        """The fitted hyperparameters whose values lie at an edge of their grid, so that others may fit better.

        A hyperparameter is at an edge if it lies within 1 % of its range from a bound, on a logarithmic scale. For the
        number of iterations only the upper end is an edge.
        """
        grid = self.algorithm.iteration_grid
        edges = [name for name, value in self.hyperparameters.items() if self._is_near_bound(name, value)]
        return (*(["iterations"] if len(grid) > 1 and self.iteration == grid[-1] else []), *edges)

    def _is_near_bound(self, name: str, value: float) -> bool:
        low, high = (math.log(bound) for bound in self.algorithm.hyperparameter_bounds[name])
        return min(math.log(value) - low, high - math.log(value)) <= EDGE_WIDTH * (high - low)

    def __call__(self, context: ContextExamples) -> Answers:
        """Return the predictions of the algorithm at the queries.

        Args:
            context: in-context examples and queries.

        Returns:
            the predictions.
        """
        return self.algorithm.predict(context, (self.iteration,), **self.hyperparameters)[0]


def fit_hyperparameters(
    algorithm: Algorithm, context: ContextExamples, target: Answers, weight: Weight
) -> FittedAlgorithm:
    """Fit the number of iterations and the hyperparameters of an algorithm to some predictions.

    All iterations are evaluated on a grid of hyperparameters. Many steps of one size nearly equal fewer of another, so
    the best iteration on the grid and its neighbours are then refined between the grid points (Nelder & Mead); if a
    neighbour becomes the best, the neighbours of that one are refined too, until the best one does not change.

    Args:
        algorithm: the algorithm.
        context: in-context examples and queries; the first 128 sequences are used.
        target: the predictions to fit.
        weight: weight of each query.

    Returns:
        the algorithm with its hyperparameters.

    Raises:
        ValueError: no prediction of the algorithm is finite.
    """
    context, target, weight = (
        context.select_sequences(slice(MAX_SEQUENCES)),
        target[:MAX_SEQUENCES],
        weight[:MAX_SEQUENCES],
    )
    values = _log_grid(algorithm.hyperparameter_bounds)
    (coarse,) = _grid_squared_errors(algorithm, context, [target], weight, values)
    if not coarse.isfinite().any():
        raise ValueError(f"{algorithm.name} must make finite predictions, but makes none; narrow its bounds")
    previous, best = -1, int(coarse.amin(1).argmin())
    if not values:
        return FittedAlgorithm(algorithm=algorithm, iteration=algorithm.iteration_grid[best], hyperparameters={})
    refined: dict[int, tuple[float, Mapping[str, float]]] = {}
    while best != previous:
        previous = best
        for number in range(max(0, previous - NUM_NEIGHBOURS), min(len(coarse), previous + NUM_NEIGHBOURS + 1)):
            if number not in refined:
                one = replace(algorithm, iteration_grid=(algorithm.iteration_grid[number],))
                start = {name: float(each[int(coarse[number].argmin())]) for name, each in values.items()}
                refined[number] = _refine_hyperparameters(one, context, target, weight, start)
        best = min(refined, key=lambda number: refined[number][0])
    return FittedAlgorithm(
        algorithm=algorithm, iteration=algorithm.iteration_grid[best], hyperparameters=refined[best][1]
    )


def fit_iterations(
    fitted_algorithm: FittedAlgorithm, context: ContextExamples, targets: Sequence[Answers], weight: Weight
) -> list[FittedAlgorithm]:
    """Fit the number of iterations of a fitted algorithm to other predictions, with all other hyperparameters fixed.

    The hyperparameters of an algorithm without iterations are fitted on the grid.

    Args:
        fitted_algorithm: the algorithm as fitted to other predictions.
        context: in-context examples and queries; the first 128 sequences are used.
        targets: the predictions to fit, each by itself.
        weight: weight of each query.

    Returns:
        a fitted algorithm for each of the predictions.
    """
    algorithm, fixed = fitted_algorithm.algorithm, fitted_algorithm.hyperparameters
    values = _log_grid({} if algorithm.iteration_unit else algorithm.hyperparameter_bounds)
    if algorithm.iteration_unit:
        values = {name: torch.tensor([value], dtype=torch.float64) for name, value in fixed.items()}
    context, weight = context.select_sequences(slice(MAX_SEQUENCES)), weight[:MAX_SEQUENCES]
    fitted = []
    for errors in _grid_squared_errors(
        algorithm, context, [target[:MAX_SEQUENCES] for target in targets], weight, values
    ):
        tick, value = divmod(int(errors.argmin()), errors.shape[1])
        parameters = {name: float(each[value]) for name, each in values.items()}
        fitted.append(
            FittedAlgorithm(algorithm=algorithm, iteration=algorithm.iteration_grid[tick], hyperparameters=parameters)
        )
    return fitted


def _refine_hyperparameters(
    algorithm: Algorithm, context: ContextExamples, target: Answers, weight: Weight, start: Mapping[str, float]
) -> tuple[float, Mapping[str, float]]:
    # Nelder-Mead in the logarithm of the hyperparameters, from the best point of the grid

    def squared_error_at(point: Float[np.ndarray, "_"]) -> float:
        values = {
            name: torch.tensor([math.exp(each)], dtype=torch.float64) for name, each in zip(start, point, strict=True)
        }
        (squared_error,) = _grid_squared_errors(algorithm, context, [target], weight, values)
        return min(float(squared_error), np.finfo(float).max)

    low, high = np.log(list(algorithm.hyperparameter_bounds.values())).T
    point, stride = np.clip(np.log(list(start.values())), low, high), (high - low) / (GRID_SIZE[len(start)] - 1)
    corners = np.vstack([point, point + np.diag(np.where(point + stride > high, -stride, stride)) / 2])
    options = {"initial_simplex": corners, "maxfev": MAX_EVALUATIONS * len(start), "xatol": 1e-6, "fatol": 0.0}
    result = minimize(
        squared_error_at, point, method="Nelder-Mead", bounds=list(zip(low, high, strict=True)), options=options
    )
    return float(result.fun), {name: math.exp(each) for name, each in zip(start, result.x, strict=True)}


def _grid_squared_errors(
    algorithm: Algorithm,
    context: ContextExamples,
    targets: Sequence[Answers],
    weight: Weight,
    values: Mapping[str, Float[Tensor, " value"]],
) -> list[Float[Tensor, "iteration value"]]:
    # infinite where the predictions of the algorithm overflow
    on_new_axes = {name: each.to(weight)[:, None, None, None, None] for name, each in values.items()}
    path = algorithm.predict(context, algorithm.iteration_grid, **on_new_axes)
    errors = []
    for target in targets:
        error = ((path - target).square().sum(-1) * weight).sum((-1, -2)).reshape(len(algorithm.iteration_grid), -1)
        errors.append(torch.where(error.isfinite(), error, torch.inf))
    return errors


def _log_grid(bounds: Mapping[str, tuple[float, float]]) -> dict[str, Float[Tensor, " value"]]:
    # all combinations of values, one flat list for each hyperparameter
    if not bounds:
        return {}
    per_parameter = [
        torch.logspace(math.log2(low), math.log2(high), GRID_SIZE[len(bounds)], base=2, dtype=torch.float64)
        for low, high in bounds.values()
    ]
    grid = torch.meshgrid(*per_parameter, indexing="ij")
    return {name: each.flatten() for name, each in zip(bounds, grid, strict=True)}
