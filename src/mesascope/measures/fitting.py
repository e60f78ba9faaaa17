"""The numbers of an algorithm that bring its predictions nearest to a model's."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.examples import Examples

Answers = Float[Tensor, "batch place out"]
Weight = Float[Tensor, "batch place"]
GRID = {0: 1, 1: 17, 2: 7}  # values of each parameter that are tried first, by how many parameters there are
ROUNDS = 40  # evaluations of the refinement that follows


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """An algorithm with its numbers.

    Attributes:
        algorithm: which.
        iteration: how many iterations.
        parameters: the others, by name.
    """

    algorithm: Algorithm
    iteration: int
    parameters: Mapping[str, float]

    @property
    def name(self) -> str:
        """What it is called with its iterations."""
        return self.algorithm.called(self.iteration)

    @property
    def free(self) -> int:
        """How many numbers were fitted."""
        return len(self.algorithm.parameters) + (self.algorithm.iterations > 1)

    def __call__(self, shown: Examples) -> Answers:
        """What it predicts."""
        return self.algorithm.predict(shown, **self.parameters)[self.iteration - self.algorithm.first]


def fit_all(algorithm: Algorithm, shown: Examples, targets: Sequence[Answers], weight: Weight) -> list[Fitted]:
    """For every one of some predictions, the iteration and the parameters that come nearest to it, from a grid.

    Args:
        algorithm: is run once for each point of the grid.
        shown: what the prompts show.
        targets: the predictions, of a model or read from its layers.
        weight: how much each place counts.
    """
    best: list[tuple[float, Fitted | None]] = [(float("inf"), None) for _ in targets]
    for values in itertools.product(*_grids(algorithm)):
        parameters = dict(zip(algorithm.parameters, values, strict=True))
        path = algorithm.predict(shown, **parameters)
        for number, target in enumerate(targets):
            miss = _misses(path, target, weight)
            at = int(miss.argmin())
            if float(miss[at]) < best[number][0]:
                fitted = Fitted(algorithm=algorithm, iteration=at + algorithm.first, parameters=parameters)
                best[number] = (float(miss[at]), fitted)
    found = [fitted for _, fitted in best if fitted is not None]
    if len(found) < len(targets):
        raise ValueError(f"{algorithm.name} must come near to a prediction, but predicts no finite number")
    return found


def refine(found: Fitted, shown: Examples, target: Answers, weight: Weight) -> Fitted:
    """The same algorithm with its parameters moved between the points of the grid (Nelder & Mead, in the logarithm).

    Args:
        found: where to start.
        shown, target, weight: as for :func:`fit_all`.
    """
    algorithm, names = found.algorithm, list(found.parameters)
    if not names:
        return found
    low, high = np.log(list(algorithm.parameters.values())).T
    start = np.log(list(found.parameters.values()))
    stride = (high - low) / (GRID[len(names)] - 1)
    corners = np.vstack([start, *(start + np.diag(np.where(start + stride > high, -stride, stride)) / 2)])

    def miss(point: Float[np.ndarray, "_"]) -> float:
        values = dict(zip(names, np.exp(point).tolist(), strict=True))
        worst = _misses(algorithm.predict(shown, **values), target, weight).min()
        return float(worst) if worst.isfinite() else np.finfo(float).max

    options = {"initial_simplex": corners, "maxfev": ROUNDS * len(names), "xatol": 1e-4, "fatol": 0.0}
    result = minimize(miss, start, method="Nelder-Mead", bounds=list(zip(low, high, strict=True)), options=options)
    parameters = dict(zip(names, np.exp(result.x).tolist(), strict=True))
    at = int(_misses(algorithm.predict(shown, **parameters), target, weight).argmin())
    return Fitted(algorithm=algorithm, iteration=at + algorithm.first, parameters=parameters)


def _grids(algorithm: Algorithm) -> list[list[float]]:
    """The values of every parameter that are tried, evenly spaced in the logarithm."""
    count = GRID[len(algorithm.parameters)]
    return [np.geomspace(low, high, count).tolist() for low, high in algorithm.parameters.values()]


def _misses(
    path: Float[Tensor, "iteration batch place out"], target: Answers, weight: Weight
) -> Float[Tensor, " iteration"]:
    """The weighted squared distance after every iteration; infinite where an iteration has left all numbers."""
    miss = ((path - target).square().sum(-1) * weight).sum((1, 2))
    return torch.where(miss.isfinite(), miss, torch.inf)
