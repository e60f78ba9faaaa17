"""One-hot inputs of in-context regression."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class OneHotInputs:
    """One-hot inputs, each along one coordinate axis (Huang et al. 2023, arXiv 2310.05249).

    Attributes:
        dominant: probability of the first coordinate; all coordinates are equally likely by default.
    """

    dominant: float | None = None

    def __post_init__(self) -> None:
        """Validate the fields."""
        if self.dominant is not None and not 0 < self.dominant < 1:
            raise ValueError(f"dominant must lie between 0 and 1, but got {self.dominant}")

    def sample_indices(
        self, shape: tuple[int, int], dim: int, generator: torch.Generator
    ) -> Int[Tensor, "batch point"]:
        """Sample the coordinate of every input.

        Args:
            shape: number of sequences and of inputs per sequence.
            dim: number of coordinates.
            generator: source of randomness.

        Returns:
            Coordinate indices.
        """
        probabilities = self.index_probabilities(dim).float()
        return torch.multinomial(probabilities, shape[0] * shape[1], replacement=True, generator=generator).view(shape)

    def index_probabilities(self, dim: int) -> Float[Tensor, "feature"]:
        """Return the probability of each coordinate, in float64.

        Args:
            dim: number of coordinates.

        Returns:
            Probabilities that sum to 1.

        >>> OneHotInputs().index_probabilities(4).tolist(), OneHotInputs(dominant=0.5).index_probabilities(3).tolist()
        ([0.25, 0.25, 0.25, 0.25], [0.5, 0.25, 0.25])
        """
        first = 1 / dim if self.dominant is None else self.dominant
        probabilities = torch.full(
            (dim,), (1 - first) / max(dim - 1, 1) if self.dominant else first, dtype=torch.float64
        )
        probabilities[0] = first
        return probabilities
