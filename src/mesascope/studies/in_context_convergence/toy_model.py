"""In-context convergence: softmax attention over examples whose inputs are features, reduced to a matrix of scores.

Huang, Cheng and Liang, In-Context Convergence of Transformers (arXiv 2310.05249). A prompt has N examples (x, w x) and
a query; every input is one of K orthonormal features, w has a standard normal component along each. One head attends
from the query to the examples with scores Q and mixes their answers. With w integrated out, nothing but how often each
feature occurs in the prompt is left, and the loss of query k is half the mean of sum_m (a_m - [m = k])^2 over the
attention a that the examples of feature m get together.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.axes import label
from mesascope.store import ignore
from mesascope.studies.toy_model import Progress, Reduced, generator, looked_at, power, told
from mesascope.tasks.regression import Features

Counts = Float[Tensor, "prompt feature"]
Scores = Float[Tensor, "feature query"]
Attention = Float[Tensor, "prompt feature query"]


def attention(scores: Scores, counts: Counts) -> Attention:
    """What the examples of each feature get together, for each feature as the query.

    >>> attention(torch.zeros(2, 2), torch.tensor([[3.0, 1.0]]))[0, :, 0].tolist()
    [0.75, 0.25]
    """
    weight = counts[..., None] * (scores - scores.amax(0)).exp()
    return weight / weight.sum(1, keepdim=True)


def errors(given: Attention) -> Float[Tensor, "prompt query"]:
    """Half the squared error of every prompt's answer, its mean over w."""
    wanted = torch.eye(given.shape[1], dtype=given.dtype)
    return 0.5 * (given - wanted).square().sum(1)


def gradient(given: Attention, frequency: Float[Tensor, "query"]) -> Scores:
    """Of the mean error over prompts and queries, by the scores."""
    missed = given - torch.eye(given.shape[1], dtype=given.dtype)
    along = (missed * given).sum(1, keepdim=True)
    return (given * (missed - along)).mean(0) * frequency


def prompts(frequency: Float[Tensor, "feature"], examples: int, count: int, draws: torch.Generator) -> Counts:
    """How often each feature occurs in each of some prompts."""
    drawn = torch.multinomial(frequency, count * examples, replacement=True, generator=draws).view(count, examples)
    return torch.nn.functional.one_hot(drawn, len(frequency)).sum(1).double()


@final
@dataclass(frozen=True, kw_only=True)
class FeatureAttention(Reduced):
    """Scores Q, from 0, by gradient descent on the mean error over a fixed sample of prompts.

    Attributes:
        features: K.
        examples: N of a prompt.
        dominant: how often the first feature is drawn, as a share; all are drawn alike by default.
        rate: of the descent; time is steps times rate.
        steps: of the descent.
        prompts: in the sample.
        points: steps at which it is looked at.
    """

    features: int = 16
    examples: int = 128
    dominant: float | None = None
    rate: float = 2.0
    steps: int = 4_000
    prompts: int = 400
    points: int = 81

    def __post_init__(self) -> None:
        """Refuse what has no features to tell apart."""
        if self.features < 3 or self.examples < 1:
            raise ValueError(
                f"features must be 3 or more and examples 1 or more, but got {self.features} and {self.examples}"
            )
        Features(dominant=self.dominant)  # refuses what is no share

    def simulate(self, seed: int, progress: Progress = ignore) -> xr.Dataset:
        """Errors, attention and scores over the steps, of the first feature as the query and of the others."""
        frequency = Features(dominant=self.dominant).share(self.features)
        counts = prompts(frequency, self.examples, self.prompts, generator(seed))
        scores = torch.zeros(self.features, self.features, dtype=torch.float64)
        due, seen = set(looked_at(self.steps, self.points)), []
        for step in told(self.steps, progress):
            given = attention(scores, counts)
            if step in due:
                seen.append(_seen(scores, given, counts))
            scores = scores - self.rate * gradient(given, frequency)
        stacked = {name: np.stack([each[name] for each in seen]) for name in seen[0]}
        where = {"step": sorted(due), "stat": ["first feature", "other features"]}
        found = {}
        for name, (units, about) in _MEANINGS.items():
            dims = ("step", "stat")[: stacked[name].ndim]
            coords = {dim: where[dim] for dim in dims}
            found[name] = label(stacked[name], *dims, units=units, about=about, coords=coords)
        return xr.Dataset(found)


_MEANINGS = {
    "error": ("squared answer", "half the mean squared error, by what is asked"),
    "error_present": ("squared answer", "the same in prompts that show the feature which is asked"),
    "attention": ("1", "attention that the examples of the feature which is asked get together"),
    "own_score": ("1", "score of the feature which is asked with itself"),
    "cross_score": (
        "1",
        "mean score of the first feature, asked, with the others, and of the others with it",
    ),
    "other_score": ("1", "mean score of the others, asked, with different others"),
}


def _seen(scores: Scores, given: Attention, counts: Counts) -> dict[str, np.ndarray]:
    """What is written down of one step: for the first feature as the query, and for the others, averaged."""
    error, present, count = errors(given), counts > 0, len(scores)
    own, mass = scores.diagonal(), torch.diagonal(given, dim1=1, dim2=2)
    there = (error * present).sum(0) / present.sum(0)
    apart = ~torch.eye(count - 1, dtype=torch.bool)

    def both(by_query: Tensor) -> np.ndarray:
        return torch.stack([by_query[0], by_query[1:].mean()]).numpy()

    return {
        "error": both(error.mean(0)),
        "error_present": both(there),
        "attention": both(mass.mean(0)),
        "own_score": both(own),
        "cross_score": torch.stack([scores[1:, 0].mean(), scores[0, 1:].mean()]).numpy(),
        "other_score": scores[1:, 1:][apart].mean().numpy(),
    }


@final
@dataclass(frozen=True, kw_only=True)
class HalfTimes(Reduced):
    """How long it takes until the attention that goes astray is halved, by the number of features: asked for a feature
    where all are drawn alike, and for one that is drawn with a share of its own, whatever the number of others.

    The rarer the feature, the longer are the steps, since its gradient is as much smaller: what is measured is time,
    steps times rate.

    Attributes:
        features: the numbers K, in order.
        dominant: the share of the feature that has one.
        per_feature: examples of a prompt for each feature.
        rate: of the descent where a feature is in every input; it grows as the square of its rarity.
        prompts: in the sample.
        most: steps after which it is given up.
    """

    features: tuple[int, ...] = (6, 8, 12, 16, 24, 32)
    dominant: float = 0.5
    per_feature: int = 8
    rate: float = 1 / 128
    prompts: int = 100
    most: int = 6_000

    def __post_init__(self) -> None:
        """Refuse what no exponent can be fitted to."""
        if len(self.features) < 4 or min(self.features) < 3:
            raise ValueError(f"features must be four numbers or more, each at least 3, but got {self.features}")

    def simulate(self, seed: int, progress: Progress = ignore) -> xr.Dataset:
        """Half-times, and the exponents of straight lines through their logarithms."""
        times = np.full((len(DRAWN), len(self.features)), np.nan)
        for way, dominant in enumerate((None, self.dominant)):
            for number, features in enumerate(self.features):
                progress(way * len(self.features) + number, times.size, float("nan"))
                times[way, number] = self._half_time(features, dominant, generator(seed, number))
        exponents = [power(np.array(self.features), each) for each in times]
        named = {"stat": list(DRAWN)}
        about = "time until the attention that goes astray is halved"
        half_time = label(
            times,
            "stat",
            "_features",
            units="steps times rate",
            about=about,
            coords={**named, "_features": list(self.features)},
        )
        about = "by which power of the number of features that time grows"
        exponent = label(np.array(exponents), "stat", units="1", about=about, coords=named)
        return xr.Dataset({"half_time": half_time.assign_attrs(scale="log", view="curves"), "exponent": exponent})

    def _half_time(self, features: int, dominant: float | None, draws: torch.Generator) -> float:
        """Of the first feature, between two steps in proportion; not a number where it takes too long."""
        frequency = Features(dominant=dominant).share(features)
        counts = prompts(frequency, self.per_feature * features, self.prompts, draws)
        scores = torch.zeros(features, features, dtype=torch.float64)
        rate = self.rate / float(frequency[0]) ** 2
        astray: list[float] = []
        for step in range(self.most):
            given = attention(scores, counts)
            astray.append(1 - float(given[:, 0, 0].mean()))
            half = astray[0] / 2
            if astray[-1] <= half:
                return rate * (step - (half - astray[-1]) / (astray[-2] - astray[-1]))
            scores = scores - rate * gradient(given, frequency)
        return float("nan")


DRAWN = ("all features alike", "one with a share of its own")  # how features are drawn
