"""Recurrences to be continued in context: affine maps in one to eight dimensions, and polynomials.

The setting of Bhargav & Gu, Interpreting Affine Recurrence Learning in GPT-style Transformers
(arXiv 2410.17438): x[n+1] = a x[n] + b with (a, b) fresh in every sequence. The paper's ranges were not
found, so the defaults are ours; vectors and polynomials are what it names as future work.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.tasks import algorithms, baselines
from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch
from mesascope.tasks.distributions import Draw, Normal, Uniform
from mesascope.tasks.icl.base import InContext
from mesascope.tasks.icl.context import Examples, examples_before


@dataclass(frozen=True, kw_only=True)
class Recurrence(InContext):
    """x[n+1] = W phi(x[n]) for known features phi and a rule W that is fresh in every sequence.

    Attributes:
        length: terms that are read; the last one predicted is x[length].
        unidentified_weight: the weight in the training loss of positions where the rule is not yet determined
            (fewer pairs than coefficients). Their error is mostly irreducible, so at full weight it drowns
            the gradient of all the others.
    """

    length: int = 20
    unidentified_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        if self.length < self.coefficients + 2:
            raise ValueError(
                f"length must be at least {self.coefficients + 2}, so that the rule is determined somewhere, "
                f"but got {self.length}"
            )
        if not 0 <= self.unidentified_weight <= 1:
            raise ValueError(f"unidentified_weight must lie in [0, 1], but got {self.unidentified_weight}")

    @property
    @abstractmethod
    def width(self) -> int:
        """The dimension of a term."""

    @property
    @abstractmethod
    def coefficients(self) -> int:
        """How many features there are: so many pairs determine the rule."""

    @abstractmethod
    def features(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos feature"]:
        """phi(x), a constant 1 among them."""

    @abstractmethod
    def draw(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch feature d_in"], Float[Tensor, "batch d_in"]]:
        """Fresh rules and first terms."""

    @property
    def identified_from(self) -> int:
        """The first position at which the pairs seen so far determine the rule."""
        return self.coefficients

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sequences; computed in float64 and rounded once."""
        rule, start = self.draw(n, generator)
        terms = [start.double()]
        for _ in range(self.length):
            terms.append(torch.einsum("bf,bfo->bo", self.features(terms[-1][:, None])[:, 0], rule.double()))
        x = torch.stack(terms, dim=1).float()
        weight = torch.ones(n, self.length)
        weight[:, : self.identified_from] = self.unidentified_weight
        return Batch(inputs=x[:, :-1], targets=x[:, 1:], weight=weight, latents={"rule": rule, "start": start})

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Squared error, summed over the coordinates of a term; in squared units of the terms."""
        return (prediction - batch.targets).square().sum(-1)

    def oracles(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Copying, straight line, closed form, least squares, ridge, gradient descent, and nothing."""
        x, phi = batch.inputs, self.features(batch.inputs)
        return {
            "zero": baselines.zero(x),
            "copy": baselines.copy(x),
            "extrapolate": baselines.extrapolate(x),
            "closed form": baselines.closed_form(x, phi),
            "least squares": baselines.least_squares(x, phi),
            "ridge 0.01": baselines.ridge(x, phi, penalty=0.01),
            "ridge 0.1": baselines.ridge(x, phi, penalty=0.1),
            **{f"gradient descent {k}": baselines.gradient_descent(x, phi, steps=k) for k in (1, 2, 4, 8, 16)},
        }

    def examples(self, inputs: Float[Tensor, "batch pos d_in"]) -> Examples:
        """Every term is shown as the answer to the one before it."""
        answers = torch.cat([inputs[:, 1:], torch.zeros_like(inputs[:, :1])], dim=1)
        return examples_before(self.features(inputs), answers, at=tuple(range(inputs.shape[1])))

    def algorithms(self) -> Sequence[Algorithm]:
        """Copying, a straight line, the rule of the last pairs, and ways to the rule of all pairs."""
        term = slice(1, 1 + self.width)  # of the features, which begin with 1 and the term
        return [
            algorithms.copying(term),
            algorithms.extrapolation(term),
            algorithms.last_pairs(self.coefficients),
            algorithms.least_squares(),
            algorithms.ridge(),
            algorithms.gradient_descent("curvature"),
            algorithms.newton(),
        ]


@final
@dataclass(frozen=True, kw_only=True)
class Affine(Recurrence):
    """x' = A x + b. In one dimension A is a number a, of either sign, and all kinds of matrix are the same.

    Attributes:
        dim: the dimension of a term, 1 to 8.
        matrix: how A is drawn before it is scaled to its spectral radius: independent entries on the diagonal,
            a rotation or reflection (Haar), or independent Gaussian entries.
        radius: the spectral radius of A; in one dimension |a|. Above 1 the terms grow.
        offset: each coordinate of b.
        start: each coordinate of x[0].

    >>> batch = Affine(length=8).sample(2, torch.Generator().manual_seed(0))
    >>> batch.inputs.shape, batch.targets.shape
    (torch.Size([2, 8, 1]), torch.Size([2, 8, 1]))
    """

    dim: int = 1
    matrix: Literal["diagonal", "orthogonal", "dense"] = "diagonal"
    radius: Draw = Uniform(0.0, 1.0)
    offset: Draw = Normal(1.0)
    start: Draw = Normal(1.0)

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        if not 1 <= self.dim <= 8:
            raise ValueError(f"dim must lie in 1..8, but got {self.dim}")
        if self.matrix not in ("diagonal", "orthogonal", "dense"):
            raise ValueError(f"matrix must be diagonal, orthogonal or dense, but got {self.matrix!r}")
        super().__post_init__()

    @property
    def width(self) -> int:
        """The dimension of a term."""
        return self.dim

    @property
    def coefficients(self) -> int:
        """One for each coordinate and one for the offset."""
        return self.dim + 1

    def features(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos feature"]:
        """(1, x)."""
        return torch.cat([torch.ones_like(x[..., :1]), x], dim=-1)

    def draw(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch feature d_in"], Float[Tensor, "batch d_in"]]:
        """b above A transposed, so that (1, x) times it is A x + b."""
        shape = self._shape(n, generator)
        largest = torch.linalg.eigvals(shape).abs().amax(-1).float()
        largest = largest.clamp_min(torch.finfo(torch.float32).tiny)  # a draw of exactly 0, once in 2^24, stays 0
        matrix = shape * (self.radius.sample((n,), generator) / largest)[:, None, None]
        offset = self.offset.sample((n, 1, self.dim), generator)
        return torch.cat([offset, matrix.mT], dim=1), self.start.sample((n, self.dim), generator)

    def shifts(self) -> Mapping[str, "Affine"]:
        """Growing terms, a far start, large offsets, and other matrices where there are any."""
        found = {
            "terms that grow": replace(self, radius=Uniform(1.0, 1.1)),
            "start far away": replace(self, start=Normal(3.0)),
            "offset three times as large": replace(self, offset=Normal(3.0)),
        }
        if self.dim > 1:
            other = "dense" if self.matrix != "dense" else "orthogonal"
            found[f"{other} matrices"] = replace(self, matrix=other)
        return found

    def _shape(self, n: int, generator: torch.Generator) -> Float[Tensor, "batch d_in d_in"]:
        """Matrices of the chosen kind, not yet scaled."""
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
    """x' = p(x) with p of degree 2 or 3, and every term in [-1, 1].

    p = sum_k c_k T_k with Chebyshev polynomials T_k and sum |c_k| = size <= 1: since |T_k| <= 1 on
    [-1, 1], the terms can never leave it.

    Attributes:
        degree: 2 or 3.
        size: sum |c_k|; near 1 the rule may be chaotic, near 0 it forgets its start at once.

    >>> Polynomial(degree=3).sample(64, torch.Generator().manual_seed(0)).targets.abs().max() <= 1
    tensor(True)
    """

    degree: int = 2
    size: Uniform = Uniform(0.5, 1.0)

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        if self.degree not in (2, 3):
            raise ValueError(f"degree must be 2 or 3, but got {self.degree}")
        if not 0 <= self.size.low <= self.size.high <= 1:
            raise ValueError(f"size must lie in [0, 1] so that the terms stay bounded, but got {self.size}")
        super().__post_init__()

    @property
    def width(self) -> int:
        """Terms are numbers."""
        return 1

    @property
    def coefficients(self) -> int:
        """One for each power and one for the constant."""
        return self.degree + 1

    def features(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos feature"]:
        """T_0(x), ..., T_degree(x)."""
        chebyshev = [torch.ones_like(x), x]
        for _ in range(self.degree - 1):
            chebyshev.append(2 * x * chebyshev[-1] - chebyshev[-2])
        return torch.cat(chebyshev, dim=-1)

    def draw(
        self, n: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch feature d_in"], Float[Tensor, "batch d_in"]]:
        """Gaussian coefficients, scaled to the drawn size."""
        rule = torch.randn(n, self.coefficients, 1, generator=generator)
        rule = rule / rule.abs().sum(1, keepdim=True) * self.size.sample((n, 1, 1), generator)
        return rule, Uniform(-1.0, 1.0).sample((n, 1), generator)

    def shifts(self) -> Mapping[str, "Polynomial"]:
        """Smaller rules, rules of the full size, and one more power or one less."""
        return {
            "small rules": replace(self, size=Uniform(0.2, 0.5)),
            "rules of full size": replace(self, size=Uniform(1.0, 1.0)),
            f"degree {5 - self.degree}": replace(self, degree=5 - self.degree),
        }
