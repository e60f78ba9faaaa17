"""Distributions of scalar task parameters."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mesascope.argument_types import validate_fields


class Distribution(ABC):
    """A distribution of independent scalars."""

    @abstractmethod
    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw a float32 tensor.

        Args:
            shape: shape of the tensor.
            generator: source of randomness.

        Returns:
            Independent samples.
        """


@dataclass(frozen=True)
class Uniform(Distribution):
    """The uniform distribution on [low, high)."""

    low: float
    high: float

    def __post_init__(self) -> None:
        """Validate the fields."""
        validate_fields(self)
        if self.low > self.high:
            raise ValueError(f"low must not exceed high, but got {self.low} > {self.high}")

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw a float32 tensor.

        Args:
            shape: shape of the tensor.
            generator: source of randomness.

        Returns:
            Independent samples.
        """
        return self.low + (self.high - self.low) * torch.rand(shape, generator=generator)


@dataclass(frozen=True)
class Normal(Distribution):
    """The Gaussian distribution with mean 0.

    Attributes:
        std: standard deviation.
    """

    std: float

    def __post_init__(self) -> None:
        """Validate the fields."""
        validate_fields(self)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw a float32 tensor.

        Args:
            shape: shape of the tensor.
            generator: source of randomness.

        Returns:
            Independent samples.
        """
        return self.std * torch.randn(shape, generator=generator)
