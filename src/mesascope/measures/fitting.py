"""The numbers of an algorithm that bring its predictions nearest to a model's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.examples import Examples

Answers = Float[Tensor, "batch place out"]
Weight = Float[Tensor, "batch place"]
VALUES = {0: 1, 1: 17, 2: 7}  # of each parameter that are tried side by side, by how many parameters there are
ROUNDS = {0: 0, 1: 3, 2: 5}  # of looking closer, each between the neighbours of the best value so far
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


def fit_all(algorithm: Algorithm, shown: Examples, targets: Sequence[Answers], weight: Weight) -> list[Fitted]:
    """For every one of some predictions, the iteration and the parameters that come nearest to it, from a grid.

    Args:
        algorithm: is run once, with all values of the grid side by side.
        shown: what the prompts show; the first 128 of them are looked at.
        targets: the predictions, of a model or read from its layers.
        weight: how much each place counts.
    """
    return _nearest(algorithm, shown, targets, weight, _spread(algorithm.parameters))


def refine(found: Fitted, shown: Examples, target: Answers, weight: Weight) -> Fitted:
    """The same algorithm with its parameters looked for between the values of the grid, closer and closer.

    Args:
        found: where to start.
        shown, target, weight: as for :func:`fit_all`.
    """
    bounds, count = found.algorithm.parameters, len(found.parameters)
    stride = {name: (high / low) ** (1 / (VALUES[count] - 1)) for name, (low, high) in bounds.items()}
    for _ in range(ROUNDS[count]):
        around = {
            name: (max(value / stride[name], bounds[name][0]), min(value * stride[name], bounds[name][1]))
            for name, value in found.parameters.items()
        }
        (found,) = _nearest(found.algorithm, shown, [target], weight, _spread(around))
        stride = {name: each ** (2 / (VALUES[count] - 1)) for name, each in stride.items()}
    return found


def _nearest(
    algorithm: Algorithm,
    shown: Examples,
    targets: Sequence[Answers],
    weight: Weight,
    values: Mapping[str, Float[Tensor, " value"]],
) -> list[Fitted]:
    """What comes nearest to each of some predictions."""
    shown, weight = shown.rows(slice(ENOUGH)), weight[:ENOUGH]
    side_by_side = {name: each[:, None, None, None, None].to(weight) for name, each in values.items()}
    path = algorithm.predict(shown, algorithm.ticks, **side_by_side)
    found = []
    for target in targets:
        miss = ((path - target[:ENOUGH]).square().sum(-1) * weight).sum((-1, -2))
        miss = torch.where(miss.isfinite(), miss, torch.inf).reshape(len(algorithm.ticks), -1)
        if not miss.isfinite().any():
            raise ValueError(f"{algorithm.name} must come near to a prediction, but predicts no finite number")
        tick, value = divmod(int(miss.argmin()), miss.shape[1])
        parameters = {name: float(each[value]) for name, each in values.items()}
        found.append(Fitted(algorithm=algorithm, iteration=algorithm.ticks[tick], parameters=parameters))
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
