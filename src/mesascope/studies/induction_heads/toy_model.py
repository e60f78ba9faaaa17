"""How an induction head comes about: two layers of attention, reduced to six numbers.

Wang, Yu, E and Wu, How Transformers Implement Induction Heads (arXiv 2410.11474). Sequences are independent standard
normal numbers x_1 .. x_L. Two things are to be told at the end: x_{L-2}, a 4-gram, and an in-context 2-gram: the mean
of all x_s, those counting more whose predecessor goes along with x_L. Their weights are alpha / (1 + alpha) and
1 / (1 + alpha). The first layer mixes earlier terms by how far back they stand; the second has a head that does the
same, and one that compares x_L with what the first layer wrote.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.axes import label
from mesascope.store import ignore
from mesascope.studies.toy_model import Progress, Reduced, generator, line, looked_at, power, told

PARTS = ["4-gram", "in-context 2-gram"]
STRAIGHT, BY_LENGTH, BY_ALPHA = "R² of a line in the logarithm of the size", "power of the length", "power of 1 + alpha"
SQUARED = "squared value"
Vector = Float[Tensor, " lag"]
LAYER_ONE = 2_000  # steps of the first layer's training, after which it writes the term before to 3 digits
LEAST = 0.01  # of the error at first: then the 4-gram is told; as the pilot's
EMERGED = 0.5  # of the least error of a plain average: then the induction head has emerged


def by_lag(rate: float | Tensor, lags: int) -> Vector:
    """Weights of the terms 1, 2, ... back, which fall by a factor e^rate from each to the next.

    >>> by_lag(0.0, 4).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    return (-rate * torch.arange(lags, dtype=torch.float64)).softmax(0)


def first_layer(size: float, rate: float, lags: int) -> tuple[float, float]:
    """Scale and rate of the first layer, trained from ``size`` to give the term before: exactly, over all sequences."""
    scale, fall, back = size, size, np.arange(lags)
    for _ in range(LAYER_ONE):
        weight = np.exp(-fall * back)
        weight /= weight.sum()
        missed = scale * weight - (back == 0)
        slope = -weight * (back - weight @ back)  # of the weights by the rate
        scale, fall = scale - rate * (missed @ weight), fall - rate * scale * (missed @ slope)
    return float(scale), float(fall)


def _written(rate: float, earlier: int, length: int) -> Vector:
    """How much of each of x_1 .. x_{L-1} a first layer of this rate reads where so many terms came before."""
    found = torch.zeros(length - 1, dtype=torch.float64)
    found[:earlier] = by_lag(rate, earlier).flip(0)
    return found


@final
@dataclass(frozen=True, kw_only=True)
class InductionHead(Reduced):
    """The second layer's four numbers by gradient descent on half the squared error, all from one small size, after the
    first layer's two. The 4-gram's head has a scale and a rate, the induction head a scale and a score, which enters
    squared. What depends on single terms is exact, the rest is the mean over a sample of sequences.

    Attributes:
        length: L of the sequences.
        score: w of the in-context 2-gram, whose score is w squared.
        alpha: the weight of the 4-gram over that of the 2-gram.
        size: of all numbers at first.
        rate: of the descent.
        steps: of the descent.
        sequences: in the sample.
        squared: whether the rate of the 4-gram's head enters squared, too, as the induction head's score does.
        points: steps at which it is looked at.
    """

    length: int = 20
    score: float = 0.7
    alpha: float = 1.0
    size: float = 0.01
    rate: float = 1.0
    steps: int = 1_500
    sequences: int = 2_000
    squared: bool = False
    points: int = 151

    def __post_init__(self) -> None:
        """Refuse what has no plateau to look at."""
        if self.length < 5:
            raise ValueError(f"length must be 5 or more, but got {self.length}")
        for name in ("score", "alpha", "size", "rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, but got {getattr(self, name)}")

    def simulate(self, seed: int, progress: Progress = ignore) -> xr.Dataset:
        """Errors and numbers over the steps, beside what a plain average can do."""
        due = set(looked_at(self.steps, self.points))
        seen = {step: state for step, state in enumerate(self.states(seed, progress)) if step in due}
        errors = np.array([[state.told, state.induced] for state in seen.values()])
        numbers = np.array([state.numbers for state in seen.values()])
        average = np.array([state.average for state in seen.values()])
        where, about = {"step": sorted(seen)}, "half the mean squared error of each part"
        error = label(errors, "step", "stat", units=SQUARED, about=about, coords=where | {"stat": PARTS})
        about = "least error of the 2-gram that a plain average of all terms can have"
        floor = label(average, "step", units=SQUARED, about=about, coords=where)
        about = "scale a and rate p of the 4-gram's head, scale b and score c of the induction head"
        number = label(numbers, "step", "component", units="1", about=about, coords=where | {"component": list("apbc")})
        return xr.Dataset({"error": error.assign_attrs(scale="log"), "average": floor, "number": number})

    def states(self, seed: int, progress: Progress = ignore) -> Iterator["State"]:
        """What it is before each step, and after the last."""
        scale, fall = first_layer(self.size, self.rate, self.length - 1)
        written = scale * torch.stack([_written(fall, k, self.length) for k in range(1, self.length)])
        sample = Sample.drawn(self, written, generator(seed))
        back = written[:-1].flip(0, 1)  # of x_{L-1}, x_{L-2}, ... as they are written 1, 2, ... terms back
        wanted = torch.zeros(self.length - 1, dtype=torch.float64)
        wanted[1] = self.alpha / (1 + self.alpha)
        numbers = torch.full((4,), self.size, dtype=torch.float64)
        for _ in told(self.steps, progress):
            told_error, told_slopes = self._told(numbers, back, wanted)
            induced_error, induced_slopes = sample.error(numbers[2], numbers[3])
            yield State(told=told_error, induced=induced_error, average=sample.average, numbers=tuple(numbers.tolist()))
            numbers = numbers - self.rate * torch.stack([*told_slopes, *induced_slopes])

    def _told(
        self, numbers: Float[Tensor, "4"], back: Float[Tensor, "lag term"], wanted: Float[Tensor, " term"]
    ) -> tuple[float, tuple[Tensor, Tensor]]:
        """Error of the 4-gram over all sequences, and its slopes by scale and rate."""
        scale, rate = numbers[0], numbers[1]
        lags = torch.arange(len(back), dtype=torch.float64)
        weight = by_lag(rate.square() if self.squared else rate, len(back))
        slope = -weight * (lags - weight @ lags) * (2 * rate if self.squared else 1)
        read = weight @ back
        missed = scale * read - wanted
        return 0.5 * float(missed.square().sum()), (missed @ read, scale * (missed @ (slope @ back)))


@dataclass(frozen=True, kw_only=True)
class State:
    """Errors of the two parts, the least error of the second that a plain average can have, and the four numbers."""

    told: float
    induced: float
    average: float
    numbers: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Sequences, as the induction head sees them.

    Attributes:
        product: x_L times what the first layer wrote at each of x_2 .. x_{L-1}.
        term: those terms.
        wanted: the weighted 2-gram.
    """

    product: Float[Tensor, "sequence key"]
    term: Float[Tensor, "sequence key"]
    wanted: Float[Tensor, " sequence"]

    @classmethod
    def drawn(cls, model: InductionHead, written: Float[Tensor, "pos term"], draws: torch.Generator) -> "Sample":
        """A sample of sequences; at each of x_2 .. x_L the first layer writes so much of every earlier term."""
        x = torch.randn(model.sequences, model.length, generator=draws, dtype=torch.float64)
        last, term = x[:, -1:], x[:, 1:-1]
        product = last * (x[:, :-1] @ written[:-1].mT)
        right = (model.score**2 * last * x[:, :-2]).softmax(1)
        return cls(product=product, term=term, wanted=(right * term).sum(1) / (1 + model.alpha))

    @cached_property
    def average(self) -> float:
        """The least error of a plain average of the terms, times any number."""
        mean = self.term.mean(1)
        best = (mean @ self.wanted) / (mean @ mean)
        return 0.5 * float((best * mean - self.wanted).square().mean())

    def error(self, scale: Tensor, score: Tensor) -> tuple[float, tuple[Tensor, Tensor]]:
        """Half the mean squared error, and its slopes by scale and score."""
        weight = (score.square() * self.product).softmax(1)
        mixed = (weight * self.term).sum(1)
        weighted = weight * self.product
        bend = (weighted * self.term).sum(1) - weighted.sum(1) * mixed  # of what is mixed, by the score squared
        missed = scale * mixed - self.wanted
        return 0.5 * float(missed.square().mean()), (
            (missed * mixed).mean(),
            (missed * scale * bend).mean() * 2 * score,
        )


@final
@dataclass(frozen=True, kw_only=True)
class Plateaus(Reduced):
    """When each part is told, and how that depends on the size at first, the length, alpha and w, one at a time. The
    4-gram is told when its error is a hundredth of what it was, the induction head has emerged when its error is half
    of the least that a plain average can have: before that, its error falls because it learns the average.

    Attributes:
        base: what the others are varied from.
        sizes, lengths, alphas, scores: what is tried.
        most: steps after which it is given up.
    """

    base: InductionHead = InductionHead()
    sizes: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    lengths: tuple[int, ...] = (20, 30, 40, 60, 80)
    alphas: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    scores: tuple[float, ...] = (0.5, 0.6, 0.7)
    most: int = 10_000

    def simulate(self, seed: int, progress: Progress = ignore) -> xr.Dataset:
        """The two times of every variation, and the laws that they follow."""
        tried = {name: np.array(getattr(self, f"{name}s")) for name in ("size", "length", "alpha", "score")}
        count, times = sum(map(len, tried.values())), {name: [] for name in tried}
        for name, values in tried.items():
            for value in values.tolist():
                progress(sum(map(len, times.values())), count, float("nan"))
                times[name].append(times_of(replace(self.base, steps=self.most, **{name: value}), seed))
        found = {name: np.array(each).T for name, each in times.items()}
        variables = {
            f"steps_by_{name}": label(
                each,
                "stat",
                f"_{name}",
                units="step",
                about=f"steps until each part is told, by {name}",
                coords={"stat": PARTS, f"_{name}": tried[name]},
            ).assign_attrs(scale="log", view="curves")
            for name, each in found.items()
        }
        slope, straight = line(-np.log(tried["size"]), found["size"][1])
        laws = {
            STRAIGHT: straight,
            "steps per factor e of the size": slope,
            BY_LENGTH: power(tried["length"], found["length"][1]),
            BY_ALPHA: power(1 + tried["alpha"], found["alpha"][1]),
            "power of w": power(tried["score"], found["score"][1]),
        }
        about = "how the steps until the induction head emerges depend on each"
        law = label(np.array(list(laws.values())), "_law", units="1", about=about, coords={"_law": list(laws)})
        return xr.Dataset({**variables, "law": law})


def times_of(model: InductionHead, seed: int) -> tuple[float, float]:
    """Steps until the 4-gram is told and until the induction head has emerged; no number where it takes too long."""
    first, both = float("nan"), [float("nan"), float("nan")]
    for step, state in enumerate(model.states(seed)):
        first = state.told if step == 0 else first
        for part, there in enumerate((state.told <= LEAST * first, state.induced <= EMERGED * state.average)):
            if there and np.isnan(both[part]):
                both[part] = float(step)
        if not np.isnan(both).any():
            break
    return both[0], both[1]
