"""The numbers of an algorithm that bring its predictions nearest to a model's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.icl.context import Examples

Answers = Float[Tensor, "batch place out"]
Weight = Float[Tensor, "batch place"]
VALUES = {0: 1, 1: 17, 2: 7}  # of each parameter that are tried side by side, by how many parameters there are
EVALUATIONS = 24  # for each parameter, of looking closer
BESIDE = 4  # how many iterations before and after the best on the grid are looked at more closely
ENOUGH = 128  # sequences to fit on


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
        return len(self.algorithm.parameters) + (len(self.algorithm.ticks) > 1)

    def __call__(self, shown: Examples) -> Answers:
        """What it predicts."""
        return self.algorithm.predict(shown, (self.iteration,), **self.parameters)[0]


def fit(algorithm: Algorithm, shown: Examples, target: Answers, weight: Weight) -> Fitted:
    """The iteration and the parameters that come nearest to some predictions.

    All iterations are tried on a grid of parameters. Since many steps of one size are nearly fewer of another, the best
    one there and those beside it are then looked at with parameters between the values of the grid; and if another is
    the best then, those beside that one, until none is better.

    Args:
        algorithm: which.
        shown: what the prompts show; the first 128 of them are looked at.
        target: the predictions.
        weight: how much each place counts.

    Raises:
        ValueError: the algorithm predicts no finite number.
    """
    shown, target, weight = shown.rows(slice(ENOUGH)), target[:ENOUGH], weight[:ENOUGH]
    values = _spread(algorithm.parameters)
    (coarse,) = _misses(algorithm, shown, [target], weight, values)
    if not coarse.isfinite().any():
        raise ValueError(f"{algorithm.name} must come near to a prediction, but predicts no finite number")
    middle, best = -1, int(coarse.amin(1).argmin())
    if not values:
        return Fitted(algorithm=algorithm, iteration=algorithm.ticks[best], parameters={})
    found: dict[int, tuple[float, Mapping[str, float]]] = {}
    while best != middle:
        middle = best
        for number in range(max(0, middle - BESIDE), min(len(coarse), middle + BESIDE + 1)):
            if number not in found:
                one = replace(algorithm, ticks=(algorithm.ticks[number],))
                start = {name: float(each[int(coarse[number].argmin())]) for name, each in values.items()}
                found[number] = _closer(one, shown, target, weight, start)
        best = min(found, key=lambda number: found[number][0])
    return Fitted(algorithm=algorithm, iteration=algorithm.ticks[best], parameters=found[best][1])


def fit_iterations(found: Fitted, shown: Examples, targets: Sequence[Answers], weight: Weight) -> list[Fitted]:
    """For each of some predictions, the iteration that comes nearest, all other numbers as they are; of an algorithm
    without iterations, the other numbers, from a grid.

    Args:
        found: the algorithm as it was fitted to something else.
        shown, weight: as for :func:`fit`.
        targets: the predictions.
    """
    algorithm, numbers = found.algorithm, found.parameters
    values = _spread({} if algorithm.unit else algorithm.parameters)
    if algorithm.unit:
        values = {name: torch.tensor([value], dtype=torch.float64) for name, value in numbers.items()}
    shown, weight = shown.rows(slice(ENOUGH)), weight[:ENOUGH]
    fitted = []
    for miss in _misses(algorithm, shown, [target[:ENOUGH] for target in targets], weight, values):
        tick, value = divmod(int(miss.argmin()), miss.shape[1])
        parameters = {name: float(each[value]) for name, each in values.items()}
        fitted.append(Fitted(algorithm=algorithm, iteration=algorithm.ticks[tick], parameters=parameters))
    return fitted


def _closer(
    one: Algorithm, shown: Examples, target: Answers, weight: Weight, start: Mapping[str, float]
) -> tuple[float, Mapping[str, float]]:
    """How near one iteration can come, and with which parameters near those of the grid (Nelder & Mead, in the
    logarithm).
    """

    def miss(point: Float[np.ndarray, "_"]) -> float:
        values = {
            name: torch.tensor([math.exp(each)], dtype=torch.float64) for name, each in zip(start, point, strict=True)
        }
        (found,) = _misses(one, shown, [target], weight, values)
        return min(float(found), np.finfo(float).max)

    low, high = np.log(list(one.parameters.values())).T
    point, stride = np.clip(np.log(list(start.values())), low, high), (high - low) / (VALUES[len(start)] - 1)
    corners = np.vstack([point, point + np.diag(np.where(point + stride > high, -stride, stride)) / 2])
    options = {"initial_simplex": corners, "maxfev": EVALUATIONS * len(start), "xatol": 1e-6, "fatol": 0.0}
    result = minimize(miss, point, method="Nelder-Mead", bounds=list(zip(low, high, strict=True)), options=options)
    return float(result.fun), {name: math.exp(each) for name, each in zip(start, result.x, strict=True)}


def _misses(
    algorithm: Algorithm,
    shown: Examples,
    targets: Sequence[Answers],
    weight: Weight,
    values: Mapping[str, Float[Tensor, " value"]],
) -> list[Float[Tensor, "iteration value"]]:
    """For each of some predictions, the squared distance after every iteration with every value; infinite where the
    algorithm leaves all numbers.
    """
    side_by_side = {name: each.to(weight)[:, None, None, None, None] for name, each in values.items()}
    path = algorithm.predict(shown, algorithm.ticks, **side_by_side)
    found = []
    for target in targets:
        miss = ((path - target).square().sum(-1) * weight).sum((-1, -2)).reshape(len(algorithm.ticks), -1)
        found.append(torch.where(miss.isfinite(), miss, torch.inf))
    return found


def _spread(bounds: Mapping[str, tuple[float, float]]) -> dict[str, Float[Tensor, " value"]]:
    """All combinations of values between bounds, evenly spaced in the logarithm: one list for each parameter."""
    if not bounds:
        return {}
    lines = [
        torch.logspace(math.log2(low), math.log2(high), VALUES[len(bounds)], base=2, dtype=torch.float64)
        for low, high in bounds.values()
    ]
    grid = torch.meshgrid(*lines, indexing="ij")
    return {name: each.flatten() for name, each in zip(bounds, grid, strict=True)}
