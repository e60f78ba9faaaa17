"""Affine updates of a linear rule, iterated by repeated squaring."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.algorithms._base import IterationGrid


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
    """Iterate a step, at a cost that grows with the logarithm of the number of steps.

    Args:
        step: the update.
        rule: the initial rule.
        iteration_grid: numbers of steps, in increasing order.

    Yields:
        The rule after each number of steps.
    """
    powers = {0: step}  # powers[k] is 2^k steps
    for done, tick in pairwise((0, *iteration_grid)):
        left = tick - done
        for power in range(left.bit_length()):
            if power not in powers:
                powers[power] = powers[power - 1].compose_with(powers[power - 1])
            rule = powers[power](rule) if left >> power & 1 else rule
        yield rule
