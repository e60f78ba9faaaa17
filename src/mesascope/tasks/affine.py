"""Recurrences that are continued in context: affine maps in one to eight dimensions, and polynomials.

The task of Bhargav & Gu, Interpreting Affine Recurrence Learning in GPT-style Transformers (arXiv 2410.17438): x[n+1] =
a x[n] + b with (a, b) drawn anew for every sequence. The paper does not report its ranges, so the defaults are ours; it
names vectors and polynomials as future work.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.distributions import Distribution, Normal, Uniform
from mesascope.tasks.icl.recurrence import Recurrence


@final
@dataclass(frozen=True, kw_only=True)
class Affine(Recurrence):
    """The affine recurrence x' = A x + b.

    In one dimension A is a number a of either sign, and all kinds of matrix coincide.

    Attributes:
        dim: dimension of a term, 1 to 8.
        matrix: distribution of A before it is scaled to its spectral radius: independent entries on the diagonal, a
            rotation or reflection (Haar), or independent Gaussian entries.
        spectral_radius: spectral radius of A; |a| in one dimension. Above 1 the terms grow.
        offset: distribution of each coordinate of b.
        start: distribution of each coordinate of x[0].
        unit_rms: divide b and x[0] by the root mean square of the terms x[0], ..., x[length], so that the terms of
            every sequence have root mean square 1; A is unchanged. The divisor depends on later terms too, so the first
            terms tell a little about the size of later ones. If False, the few sequences with the largest terms
            dominate the loss: in two dimensions, with dense matrices and the other defaults, 1 % of the sequences
            carry over 40 % of the squared error of copying.

    >>> batch = Affine(length=8).sample(2, torch.Generator().manual_seed(0))
    >>> batch.inputs.shape, batch.targets.shape
    (torch.Size([2, 8, 1]), torch.Size([2, 8, 1]))
    """

    dim: int = 1
    matrix: Literal["diagonal", "orthogonal", "dense"] = "diagonal"
    spectral_radius: Distribution = Uniform(0.0, 1.0)
    offset: Distribution = Normal(1.0)
    start: Distribution = Normal(1.0)
    unit_rms: bool = False

    def __post_init__(self) -> None:
        """Validate the fields."""
        if not 1 <= self.dim <= 8:
            raise ValueError(f"dim must lie in 1..8, but got {self.dim}")
        if self.matrix not in ("diagonal", "orthogonal", "dense"):
            raise ValueError(f"matrix must be diagonal, orthogonal or dense, but got {self.matrix!r}")
        super().__post_init__()

    @property
    def input_dim(self) -> int:
        """The dimension of a term."""
        return self.dim

    @property
    def num_coefficients(self) -> int:
        """One coefficient per coordinate and one for the offset."""
        return self.dim + 1

    def compute_features(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos feature"]:
        """Compute the features (1, x).

        Args:
            x: terms.

        Returns:
            The features of every term.
        """
        return torch.cat([torch.ones_like(x[..., :1]), x], dim=-1)

    def sample_rules(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch feature d_in"], Float[Tensor, "batch d_in"]]:
        """Sample rules (b stacked on A transposed) and first terms.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The rule, such that (1, x) @ rule = A x + b, and the first term of every sequence.
        """
        unscaled = self._sample_matrices(n, generator)
        largest = torch.linalg.eigvals(unscaled).abs().amax(-1).float()
        largest = largest.clamp_min(torch.finfo(torch.float32).tiny)  # a matrix of exactly 0, once in 2^24, stays 0
        matrix = unscaled * (self.spectral_radius.sample((n,), generator) / largest)[:, None, None]
        offset = self.offset.sample((n, 1, self.dim), generator)
        start = self.start.sample((n, self.dim), generator)
        if self.unit_rms:
            offset, start = self._scale_to_unit_rms(offset, matrix, start)
        return torch.cat([offset, matrix.mT], dim=1), start

    def _scale_to_unit_rms(
        self, offset: Float[Tensor, "batch 1 d_in"], matrix: Float[Tensor, "batch d_in d_in"], start: Tensor
    ) -> tuple[Float[Tensor, "batch 1 d_in"], Float[Tensor, "batch d_in"]]:
        """Divide offsets and first terms by the root mean square of the terms; a sequence of zeros stays 0."""
        terms = self.iterate_rule(torch.cat([offset, matrix.mT], dim=1), start)
        rms = terms.square().mean((1, 2)).sqrt().float().clamp_min(torch.finfo(torch.float32).tiny)
        return offset / rms[:, None, None], start / rms[:, None]

    def distribution_shifts(self) -> Mapping[str, "Affine"]:
        """Return tasks with growing terms, larger initial values or offsets, and others where they differ.

        If ``dim`` > 1, these include other matrices; if ``unit_rms``, terms of any size.
        """
        shifts = {
            "spectral radius above 1": replace(self, spectral_radius=Uniform(1.0, 1.1)),
            "initial value × 3": replace(self, start=Normal(3.0)),
            "offset × 3": replace(self, offset=Normal(3.0)),
        }
        if self.dim > 1:
            other = "dense" if self.matrix != "dense" else "orthogonal"
            shifts[f"{other} matrices"] = replace(self, matrix=other)
        if self.unit_rms:
            shifts["terms of any size"] = replace(self, unit_rms=False)
        return shifts

    def _sample_matrices(self, n: int, generator: torch.Generator) -> Float[Tensor, "batch d_in d_in"]:
        if self.matrix == "diagonal" or self.dim == 1:
            return torch.diag_embed(Uniform(-1.0, 1.0).sample((n, self.dim), generator))
        gaussian = torch.randn(n, self.dim, self.dim, generator=generator)
        if self.matrix == "dense":
            return gaussian
        q, r = torch.linalg.qr(gaussian)
        return q * torch.diagonal(r, dim1=-2, dim2=-1).sign()[:, None, :]


@final
@dataclass(frozen=True, kw_only=True)
class Polynomial(Recurrence):
    """The polynomial recurrence x' = p(x) of degree 2 or 3, with every term in [-1, 1].

    p = sum_k c_k T_k with Chebyshev polynomials T_k and sum |c_k| = size <= 1. Since |T_k| <= 1 on [-1, 1], the terms
    never leave this interval.

    Attributes:
        degree: 2 or 3.
        coefficient_norm: distribution of sum |c_k|; near 1 the recurrence may be chaotic, near 0 it forgets its start
            at once.

    >>> Polynomial(degree=3).sample(64, torch.Generator().manual_seed(0)).targets.abs().max() <= 1
    tensor(True)
    """

    degree: int = 2
    coefficient_norm: Uniform = Uniform(0.5, 1.0)

    def __post_init__(self) -> None:
        """Validate the fields."""
        if self.degree not in (2, 3):
            raise ValueError(f"degree must be 2 or 3, but got {self.degree}")
        if not 0 <= self.coefficient_norm.low <= self.coefficient_norm.high <= 1:
            raise ValueError(
                f"coefficient_norm must lie in [0, 1] so that the terms stay bounded, but got {self.coefficient_norm}"
            )
        super().__post_init__()

    @property
    def input_dim(self) -> int:
        """The dimension of a term, 1."""
        return 1

    @property
    def num_coefficients(self) -> int:
        """One coefficient per power and one for the constant."""
        return self.degree + 1

    def compute_features(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos feature"]:
        """Compute the Chebyshev features T_0(x), ..., T_degree(x).

        Args:
            x: terms.

        Returns:
            The features of every term.
        """
        chebyshev = [torch.ones_like(x), x]
        for _ in range(self.degree - 1):
            chebyshev.append(2 * x * chebyshev[-1] - chebyshev[-2])
        return torch.cat(chebyshev, dim=-1)

    def sample_rules(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch feature d_in"], Float[Tensor, "batch d_in"]]:
        """Sample Gaussian coefficients, scaled to the sampled size, and uniform first terms.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The rule and the first term of every sequence.
        """
        rule = torch.randn(n, self.num_coefficients, 1, generator=generator)
        rule = rule / rule.abs().sum(1, keepdim=True) * self.coefficient_norm.sample((n, 1, 1), generator)
        return rule, Uniform(-1.0, 1.0).sample((n, 1), generator)

    def distribution_shifts(self) -> Mapping[str, "Polynomial"]:
        """Return tasks with small coefficients, coefficients of norm 1, and the other degree."""
        return {
            "small coefficients": replace(self, coefficient_norm=Uniform(0.2, 0.5)),
            "coefficients of norm 1": replace(self, coefficient_norm=Uniform(1.0, 1.0)),
            f"degree {5 - self.degree}": replace(self, degree=5 - self.degree),
        }
