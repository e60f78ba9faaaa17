"""Mixed target of a 4-gram and an in-context 2-gram of real numbers.

Wang et al. 2024, How Transformers Implement Induction Heads (arXiv 2410.11474), study the emergence of an induction
head on this target.
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
FIT_SEQUENCES = 50_000  # sequences from which the best scale of the average is estimated
FIRST_GRAM_POSITION = 3  # earlier positions are not scored


@final
@dataclass(frozen=True, kw_only=True)
class Grams(Task):
    """A 4-gram and an in-context 2-gram of independent standard normal terms.

    Every position has two targets: the 4-gram, alpha / (1 + alpha) times the term two positions back, and the
    in-context 2-gram, 1 / (1 + alpha) times the mean of the earlier terms x_s, weighted by the softmax of
    w^2 x_t x_{s-1} over s.

    Attributes:
        length: number of terms.
        score: w.
        alpha: weight of the 4-gram divided by that of the 2-gram.

    >>> Grams(length=6).sample(2, torch.Generator().manual_seed(0)).targets.shape
    torch.Size([2, 6, 2])
    """

    length: int = 20
    score: float = 0.7
    alpha: float = 1.0

    def __post_init__(self) -> None:
        """Validate the length and the weights."""
        if self.length < 5:
            raise ValueError(f"length must be 5 or more, but got {self.length}")
        for name in ("score", "alpha"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, but got {getattr(self, name)}")

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` sequences.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The batch; its first three positions are not scored.
        """
        x = torch.randn(n, self.length, generator=generator)
        gram, bigram = self._weight_parts(shift_two_back(x), compute_in_context_bigram(x, self.score))
        weight = torch.ones(n, self.length)
        weight[:, :FIRST_GRAM_POSITION] = 0
        return Batch(inputs=x[..., None], targets=torch.stack([gram, bigram], -1), weight=weight)

    def loss(self, prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
        """Compute the squared error, summed over both targets.

        Args:
            prediction: model output.
            batch: the sequences that were predicted.

        Returns:
            The error, in squared units of the terms.
        """
        return (prediction - batch.targets).square().sum(-1)

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute baselines that know the 4-gram and differ in the 2-gram.

        Args:
            batch: the sequences to predict.

        Returns:
            The exact 2-gram, the best multiple of the unweighted average of the terms, and zero.
        """
        x = batch.inputs[..., 0]
        scale = fit_average_scale(self.length, self.score).to(x)
        bigrams = {
            "exact target": compute_in_context_bigram(x, self.score),
            "4-gram and scaled average": scale * average_earlier_terms(x),
            "4-gram only": torch.zeros_like(x),
        }
        gram = shift_two_back(x)
        return {name: torch.stack(self._weight_parts(gram, bigram), -1) for name, bigram in bigrams.items()}

    def _weight_parts(self, gram: Terms, bigram: Terms) -> tuple[Terms, Terms]:
        return gram * (self.alpha / (1 + self.alpha)), bigram * (1.0 / (1 + self.alpha))


def shift_two_back(x: Terms) -> Terms:
    """Return the term two positions back; 0 if there is none.

    Args:
        x: terms, (batch, pos).
    """
    shifted = torch.zeros_like(x)
    shifted[:, 2:] = x[:, :-2]
    return shifted


def compute_in_context_bigram(x: Terms, score: float) -> Terms:
    """Return the in-context 2-gram of every position t, without its weight in the target.

    It is the mean of x_s for 1 <= s < t, weighted by the softmax of score^2 x_t x_{s-1}; 0 if there is no such s.

    Args:
        x: terms, (batch, pos).
        score: w; 0 gives the unweighted mean.
    """
    bigram = torch.zeros_like(x)
    for t in range(2, x.shape[1]):
        weight = (score**2 * x[:, t, None] * x[:, : t - 1]).softmax(1)
        bigram[:, t] = (weight * x[:, 1:t]).sum(1)
    return bigram


def average_earlier_terms(x: Terms) -> Terms:
    """Return the unweighted mean of the terms that the in-context 2-gram averages.

    Args:
        x: terms, (batch, pos).
    """
    return compute_in_context_bigram(x, 0.0)


@cache
def fit_average_scale(length: int, score: float) -> Float[Tensor, " pos"]:
    """Fit the multiple of the unweighted mean that is nearest to the in-context 2-gram.

    Args:
        length: number of terms.
        score: w.

    Returns:
        The least-squares multiple at each position, from a fixed sample.
    """
    x = torch.randn(FIT_SEQUENCES, length, generator=torch.Generator().manual_seed(0))
    mean, bigram = average_earlier_terms(x), compute_in_context_bigram(x, score)
    return torch.nan_to_num((mean * bigram).sum(0) / mean.square().sum(0))
