"""Classes of functions from vectors to numbers that a prompt may show: values one can read, compare and store.

Those of Garg et al., What Can Transformers Learn In-Context? (arXiv 2208.01066); each is scaled so that its answers
have about unit variance on standard normal inputs, which is ours.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Inputs = Float[Tensor, "batch point feature"]
Answers = Float[Tensor, "batch point out"]


class Functions(ABC):
    """A distribution of functions."""

    @abstractmethod
    def draw(self, n: int, dim: int, generator: torch.Generator) -> Callable[[Inputs], Answers]:
        """One function for each of ``n`` sequences, as one that takes all their inputs."""


@dataclass(frozen=True, kw_only=True)
class Linear(Functions):
    """w x with w from N(0, scale^2 / dim).

    Attributes:
        scale: the standard deviation of the answers.
        nonzero: how many coordinates of w are not 0, each drawn as if they were all; all by default (sparse linear).
    """

    scale: float = 1.0
    nonzero: int | None = None

    def draw(self, n: int, dim: int, generator: torch.Generator) -> Callable[[Inputs], Answers]:
        """The rule of each sequence."""
        kept = dim if self.nonzero is None else self.nonzero
        if not 1 <= kept <= dim:
            raise ValueError(f"nonzero must lie in 1..{dim}, the dimension of the inputs, but got {kept}")
        weight = torch.randn(n, dim, generator=generator)
        if kept < dim:
            place = torch.rand(n, dim, generator=generator).argsort(1).argsort(1)
            weight = weight * (place < kept)
        weight = weight * self.scale / kept**0.5
        return lambda x: torch.einsum("bpf,bf->bp", x, weight.to(x))[..., None]


@dataclass(frozen=True, kw_only=True)
class TwoLayers(Functions):
    """A network with one hidden layer of rectifiers, all weights Gaussian.

    Attributes:
        hidden: units.
    """

    hidden: int = 20

    def draw(self, n: int, dim: int, generator: torch.Generator) -> Callable[[Inputs], Answers]:
        """The network of each sequence."""
        into = torch.randn(n, dim, self.hidden, generator=generator) / dim**0.5
        out = torch.randn(n, self.hidden, 1, generator=generator) * (2 / self.hidden) ** 0.5
        return lambda x: (x @ into.to(x)).relu() @ out.to(x)


@dataclass(frozen=True, kw_only=True)
class Trees(Functions):
    """Full binary decision trees: at every node the sign of one random coordinate decides, leaves are N(0, 1).

    Attributes:
        depth: decisions from the root to a leaf.
    """

    depth: int = 3

    def draw(self, n: int, dim: int, generator: torch.Generator) -> Callable[[Inputs], Answers]:
        """The tree of each sequence: nodes in order of depth, the children of node i being 2 i + 1 and 2 i + 2."""
        asks = torch.randint(0, dim, (n, 2**self.depth - 1), generator=generator)
        leaves = torch.randn(n, 2**self.depth, generator=generator)

        def answer(x: Inputs) -> Answers:
            node = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
            for _ in range(self.depth):
                coordinate = asks.to(x.device).gather(1, node)
                right = x.gather(2, coordinate[..., None])[..., 0] > 0
                node = 2 * node + 1 + right.long()
            return leaves.to(x).gather(1, node - (2**self.depth - 1))[..., None]

        return answer
