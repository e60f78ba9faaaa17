"""A 4-gram and an in-context 2-gram of real numbers: the target by which Wang et al., How Transformers Implement
Induction Heads (arXiv 2410.11474), follow how an induction head comes about.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.tasks.base import Batch, Task

Terms = Float[Tensor, "batch pos"]
SAMPLE = 50_000  # sequences by which the best plain average is found


@final
@dataclass(frozen=True, kw_only=True)
class Grams(Task):
    """The term two places back, and the mean of all terms, those counting more whose predecessor goes with the last.

    Terms are independent standard normal numbers. At every position two numbers are to be told: alpha / (1 + alpha)
    times the term two places back (a 4-gram), and 1 / (1 + alpha) times the mean of the earlier terms x_s by the
    softmax of w^2 x_last x_{s-1} (an in-context 2-gram).

    Attributes:
        length: terms.
        score: w.
        alpha: the weight of the 4-gram over that of the 2-gram.

    >>> Grams(length=6).sample(2, torch.Generator().manual_seed(0)).targets.shape
    torch.Size([2, 6, 2])
    """

    length: int = 20
    score: float = 0.7
    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what has no 4-gram."""
        if self.length < 5:
            raise ValueError(f"length must be 5 or more, but got {self.length}")
        for name in ("score", "alpha"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, but got {getattr(self, name)}")

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sequences; the first three positions, which have no 4-gram, are not scored."""
        x = torch.randn(n, self.length, generator=generator)
        targets = torch.stack([self._weighted(back(x), 0), self._weighted(following_alike(x, self.score), 1)], -1)
        weight = torch.ones(n, self.length)
        weight[:, :3] = 0
        return Batch(inputs=x[..., None], targets=targets, weight=weight)

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Squared error of both; in squared units of the terms."""
        return (prediction - batch.targets).square().sum(-1)

    def oracles(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Both right; the first right and the second by the best multiple of a plain average, or by nothing."""
        x = batch.inputs[..., 0]
        told = self._weighted(back(x), 0)
        share = best_average(self.length, self.score).to(x)
        parts = {
            "both": following_alike(x, self.score),
            "4-gram and a plain average": share * mean_before(x),
            "4-gram alone": torch.zeros_like(x),
        }
        return {name: torch.stack([told, self._weighted(part, 1)], -1) for name, part in parts.items()}

    def _weighted(self, values: Terms, part: int) -> Terms:
        """As much as a part counts."""
        return values * ((self.alpha, 1.0)[part] / (1 + self.alpha))


def back(x: Terms) -> Terms:
    """The term two places back; 0 where there is none."""
    found = torch.zeros_like(x)
    found[:, 2:] = x[:, :-2]
    return found


def following_alike(x: Terms, score: float) -> Terms:
    """At each position t, the mean of x_s for 1 <= s < t by the softmax of score^2 x_t x_{s-1}; 0 where none is."""
    found = torch.zeros_like(x)
    for t in range(2, x.shape[1]):
        weight = (score**2 * x[:, t, None] * x[:, : t - 1]).softmax(1)
        found[:, t] = (weight * x[:, 1:t]).sum(1)
    return found


def mean_before(x: Terms) -> Terms:
    """The plain mean of the same terms."""
    return following_alike(x, 0.0)


@cache
def best_average(length: int, score: float) -> Float[Tensor, " pos"]:
    """By which number a plain mean is nearest to the in-context 2-gram, at each position; from a fixed sample."""
    x = torch.randn(SAMPLE, length, generator=torch.Generator().manual_seed(0))
    mean, wanted = mean_before(x), following_alike(x, score)
    return torch.nan_to_num((mean * wanted).sum(0) / mean.square().sum(0))
