"""Problems of sparse linear regression: their sizes, and random draws."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

ProblemInputs = Float[Tensor, "problem example feature"]
ProblemTargets = Float[Tensor, "problem example"]
Coefficients = Float[Tensor, "problem feature"]
GramMatrix = Float[Tensor, "problem feature feature"]


@dataclass(frozen=True, kw_only=True)
class ProblemSetting:
    """Sizes of a sparse regression problem.

    Attributes:
        features: number of coordinates.
        nonzero: number of nonzero coefficients.
        examples: number of examples.
        noise: standard deviation of the noise of the targets.
    """

    features: int = 16
    nonzero: int = 4
    examples: int = 20
    noise: float = 0.5

    def __post_init__(self) -> None:
        """Validate the sizes."""
        if not 1 <= self.nonzero <= self.features or self.examples < 1 or self.noise < 0:
            raise ValueError(
                "nonzero must lie between 1 and features, examples be 1 or more and noise 0 or more, but got "
                f"{self.nonzero}, {self.features}, {self.examples} and {self.noise}"
            )

    @property
    def name(self) -> str:
        """A label with all sizes: nonzero coefficients, features, examples n and noise σ."""
        return f"{self.nonzero} of {self.features}, n = {self.examples}, σ = {self.noise:g}"

    def sample_problems(
        self, count: int, generator: torch.Generator
    ) -> tuple[ProblemInputs, ProblemTargets, Coefficients]:
        """Sample problems with standard normal inputs and nonzero coefficients.

        Args:
            count: number of problems.
            generator: source of randomness.

        Returns:
            inputs, targets and coefficients.
        """
        x = torch.randn(count, self.examples, self.features, generator=generator, dtype=torch.float64)
        coefficients = torch.randn(count, self.features, generator=generator, dtype=torch.float64)
        rank = torch.rand(count, self.features, generator=generator).argsort(1).argsort(1)
        coefficients = coefficients * (rank < self.nonzero)
        noise = self.noise * torch.randn(count, self.examples, generator=generator, dtype=torch.float64)
        return x, torch.einsum("pef,pf->pe", x, coefficients) + noise, coefficients


PROBLEM_SETTINGS = (
    ProblemSetting(),
    ProblemSetting(examples=10, noise=0.0),
    ProblemSetting(features=64, examples=40, noise=0.1),
    ProblemSetting(examples=40),
    ProblemSetting(noise=0.0),  # more examples than features and no noise: preprocessing increases the risk
)


def compute_mean_products(x: ProblemInputs, y: ProblemTargets) -> tuple[GramMatrix, Coefficients]:
    """Return the mean products over examples of the coordinates of the inputs, and of inputs and targets.

    Args:
        x, y: examples.
    """
    return x.mT @ x / x.shape[1], torch.einsum("pef,pe->pf", x, y) / x.shape[1]
