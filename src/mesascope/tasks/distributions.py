"""Distributions that a task draws its numbers from: values one can read, compare and store."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Draw(ABC):
    """Independent numbers from one distribution."""

    @abstractmethod
    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw a float32 tensor of this shape."""


@dataclass(frozen=True)
class Uniform(Draw):
    """Uniform on [low, high)."""

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse an empty range."""
        if self.low > self.high:
            raise ValueError(f"low must not exceed high, but got {self.low} > {self.high}")

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw a float32 tensor of this shape."""
        return self.low + (self.high - self.low) * torch.rand(shape, generator=generator)


@dataclass(frozen=True)
class Normal(Draw):
    """Gaussian with mean 0 and this standard deviation."""

    std: float

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw a float32 tensor of this shape."""
        return self.std * torch.randn(shape, generator=generator)
