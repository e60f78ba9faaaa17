"""Function classes for in-context regression, mapping vectors to scalars.

The classes of Garg et al., What Can Transformers Learn In-Context? (arXiv 2208.01066). Each is scaled so that its
targets have about unit variance on standard normal inputs; this scaling is ours.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

FunctionInputs = Float[Tensor, "batch point feature"]
FunctionValues = Float[Tensor, "batch point out"]


class FunctionClass(ABC):
    """A distribution of functions."""

    @abstractmethod
    def sample_functions(
        self, n: int, dim: int, generator: torch.Generator
    ) -> Callable[[FunctionInputs], FunctionValues]:
        """Sample one function per sequence.

        Args:
            n: number of sequences.
            dim: dimension of the inputs.
            generator: source of randomness.

        Returns:
            A callable that maps the inputs of all sequences to their targets.
        """


@dataclass(frozen=True, kw_only=True)
class LinearFunctions(FunctionClass):
    """Linear functions w x with w from N(0, scale^2 / dim).

    Attributes:
        scale: standard deviation of the targets on standard normal inputs.
        num_nonzero: number of nonzero coordinates of w (sparse linear functions); all by default. The targets have the
            same variance for any number.
    """

    scale: float = 1.0
    num_nonzero: int | None = None

    def sample_functions(
        self, n: int, dim: int, generator: torch.Generator
    ) -> Callable[[FunctionInputs], FunctionValues]:
        """Sample one linear rule per sequence.

        Raises:
            ValueError: ``num_nonzero`` is not between 1 and ``dim``.
        """
        num_nonzero = dim if self.num_nonzero is None else self.num_nonzero
        if not 1 <= num_nonzero <= dim:
            raise ValueError(f"nonzero must lie in 1..{dim}, the dimension of the inputs, but got {num_nonzero}")
        weight = torch.randn(n, dim, generator=generator)
        if num_nonzero < dim:
            rank = torch.rand(n, dim, generator=generator).argsort(1).argsort(1)
            weight = weight * (rank < num_nonzero)
        weight = weight * self.scale / num_nonzero**0.5
        return lambda x: torch.einsum("bpf,bf->bp", x, weight.to(x))[..., None]


@dataclass(frozen=True, kw_only=True)
class TwoLayerNetworks(FunctionClass):
    """Networks with one hidden ReLU layer and Gaussian weights.

    Attributes:
        num_hidden: number of hidden units.
    """

    num_hidden: int = 20

    def sample_functions(
        self, n: int, dim: int, generator: torch.Generator
    ) -> Callable[[FunctionInputs], FunctionValues]:
        """Sample one network per sequence."""
        w_in = torch.randn(n, dim, self.num_hidden, generator=generator) / dim**0.5
        w_out = torch.randn(n, self.num_hidden, 1, generator=generator) * (2 / self.num_hidden) ** 0.5
        return lambda x: (x @ w_in.to(x)).relu() @ w_out.to(x)


@dataclass(frozen=True, kw_only=True)
class DecisionTrees(FunctionClass):
    """Full binary decision trees: each node tests the sign of a random coordinate, and leaf values are N(0, 1).

    Attributes:
        depth: number of decisions from the root to a leaf.
    """

    depth: int = 3

    def sample_functions(
        self, n: int, dim: int, generator: torch.Generator
    ) -> Callable[[FunctionInputs], FunctionValues]:
        """Sample one tree per sequence, with nodes in breadth-first order (children of i: 2 i + 1, 2 i + 2)."""
        tested_coordinate = torch.randint(0, dim, (n, 2**self.depth - 1), generator=generator)
        leaves = torch.randn(n, 2**self.depth, generator=generator)

        def evaluate_trees(x: FunctionInputs) -> FunctionValues:
            node = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
            for _ in range(self.depth):
                coordinate = tested_coordinate.to(x.device).gather(1, node)
                right = x.gather(2, coordinate[..., None])[..., 0] > 0
                node = 2 * node + 1 + right.long()
            return leaves.to(x).gather(1, node - (2**self.depth - 1))[..., None]

        return evaluate_trees
