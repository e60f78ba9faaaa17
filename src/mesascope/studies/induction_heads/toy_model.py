"""Toy model of an emerging induction head: two layers of attention with six parameters.

Wang et al. 2024, How Transformers Implement Induction Heads (arXiv 2410.11474). Sequences are independent standard
normal numbers x_1 .. x_L. The last position has two targets: x_{L-2}, a 4-gram, and an in-context 2-gram, the mean of
all x_s, weighted by the similarity of their predecessors and x_L. Their weights are alpha / (1 + alpha) and
1 / (1 + alpha). The first layer averages earlier terms with weights that depend on the distance. The second layer has
one such head as well, and one that compares x_L with the output of the first layer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.axes import to_data_array
from mesascope.statistics import evenly_spaced_steps
from mesascope.store import do_nothing
from mesascope.studies.induction_heads.first_layer import (
    LagWeights,
    compute_first_layer_outputs,
    compute_lag_weights,
)
from mesascope.studies.toy_model import Progress, ToyModel, count_steps, simulation_generator

GRAM, BIGRAM = TARGET_PARTS = ["4-gram", "in-context 2-gram"]
SQUARED_UNITS = "squared value"


@final
@dataclass(frozen=True, kw_only=True)
class InductionHead(ToyModel):
    """The four parameters of the second layer, trained by gradient descent on half the squared error.

    The first layer's two parameters are trained before. All parameters start from one small value. The head of the
    4-gram has a scale and a decay rate, the induction head a scale and a score, which enters squared. The error of the
    4-gram is exact; that of the 2-gram is the mean over a sample of sequences.

    Attributes:
        length: L of the sequences.
        score: w of the in-context 2-gram, whose score is w squared.
        alpha: weight of the 4-gram divided by that of the 2-gram.
        initial_size: of all parameters.
        learning_rate: of gradient descent.
        steps: number of updates.
        sequences: number of sequences in the sample.
        squared: whether the decay rate of the 4-gram's head enters squared, as the induction head's score does.
        checkpoints: number of steps that are recorded.
    """

    length: int = 20
    score: float = 0.7
    alpha: float = 1.0
    initial_size: float = 0.01
    learning_rate: float = 1.0
    steps: int = 1_500
    sequences: int = 2_000
    squared: bool = False
    checkpoints: int = 151

    def __post_init__(self) -> None:
        """Validate the length and the numbers that must be positive."""
        if self.length < 5:
            raise ValueError(f"length must be 5 or more, but got {self.length}")
        for name in ("score", "alpha", "initial_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, but got {getattr(self, name)}")

    def simulate(self, seed: int, progress: Progress = do_nothing) -> xr.Dataset:
        """Train the second layer and record errors and parameters.

        Args:
            seed: of the sequences.
            progress: receives (steps done, total steps, NaN).

        Returns:
            ``error`` of both parts of the target, ``average_error``, the lowest error of an unweighted average, and
            ``parameter``, by step.
        """
        recorded_steps = set(evenly_spaced_steps(self.steps, self.checkpoints))
        states = {
            step: state for step, state in enumerate(self.iterate_states(seed, progress)) if step in recorded_steps
        }
        return xr.Dataset(_describe_errors(states) | _describe_parameters(states))

    def iterate_states(self, seed: int, progress: Progress = do_nothing) -> Iterator["TrainingState"]:
        """Iterate over the states before each update and after the last.

        Args:
            seed: of the sequences.
            progress: receives (steps done, total steps, NaN).

        Yields:
            the states, one per update and one more.
        """
        outputs = compute_first_layer_outputs(self.initial_size, self.learning_rate, self.length)
        sample = SequenceSample.sample(self, outputs, simulation_generator(seed))
        outputs_by_lag = outputs[:-1].flip(0, 1)  # row 1, 2, ...: the first layer's output 1, 2, ... terms back
        parameters = torch.full((4,), self.initial_size, dtype=torch.float64)
        for _ in count_steps(self.steps, progress):
            gram_error, gram_slopes = self._compute_gram_error(parameters, outputs_by_lag, self._gram_target())
            bigram_error, bigram_slopes = sample.compute_error(parameters[2], parameters[3])
            yield TrainingState(
                gram_error=gram_error,
                bigram_error=bigram_error,
                average_error=sample.average_error,
                parameters=tuple(parameters.tolist()),
            )
            parameters = parameters - self.learning_rate * torch.stack([*gram_slopes, *bigram_slopes])

    def _gram_target(self) -> LagWeights:
        target = torch.zeros(self.length - 1, dtype=torch.float64)
        target[1] = self.alpha / (1 + self.alpha)
        return target

    def _compute_gram_error(
        self, parameters: Float[Tensor, "4"], outputs: Float[Tensor, "lag term"], target: Float[Tensor, " term"]
    ) -> tuple[float, tuple[Tensor, Tensor]]:
        """Return the expected error of the 4-gram over all sequences, and its derivatives by scale and decay rate."""
        scale, rate = parameters[0], parameters[1]
        lags = torch.arange(len(outputs), dtype=torch.float64)
        weight = compute_lag_weights(rate.square() if self.squared else rate, len(outputs))
        slope = -weight * (lags - weight @ lags) * (2 * rate if self.squared else 1)
        averaged = weight @ outputs
        residual = scale * averaged - target
        return 0.5 * float(residual.square().sum()), (residual @ averaged, scale * (residual @ (slope @ outputs)))


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Errors and parameters of the second layer at one step.

    Attributes:
        gram_error: half the mean squared error of the 4-gram.
        bigram_error: half the mean squared error of the in-context 2-gram.
        average_error: lowest error of the 2-gram for a multiple of the unweighted average.
        parameters: a, p, b and c.
    """

    gram_error: float
    bigram_error: float
    average_error: float
    parameters: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceSample:
    """A sample of sequences, as the induction head reads them.

    Attributes:
        product: x_L times the first layer's output at each of x_2 .. x_{L-1}.
        value: x_2 .. x_{L-1}.
        target: the weighted 2-gram.
    """

    product: Float[Tensor, "sequence key"]
    value: Float[Tensor, "sequence key"]
    target: Float[Tensor, " sequence"]

    @classmethod
    def sample(
        cls, model: InductionHead, outputs: Float[Tensor, "pos term"], generator: torch.Generator
    ) -> "SequenceSample":
        """Draw a sample of sequences.

        Args:
            model: gives length, weights and number of sequences.
            outputs: weight of every earlier term in the first layer's output at each of x_2 .. x_L.
            generator: source of randomness.

        Returns:
            the sample.
        """
        x = torch.randn(model.sequences, model.length, generator=generator, dtype=torch.float64)
        last, value = x[:, -1:], x[:, 1:-1]
        product = last * (x[:, :-1] @ outputs[:-1].mT)
        weight = (model.score**2 * last * x[:, :-2]).softmax(1)
        return cls(product=product, value=value, target=(weight * value).sum(1) / (1 + model.alpha))

    @cached_property
    def average_error(self) -> float:
        """The lowest error of a multiple of the unweighted average of the terms."""
        mean = self.value.mean(1)
        scale = (mean @ self.target) / (mean @ mean)
        return 0.5 * float((scale * mean - self.target).square().mean())

    def compute_error(self, scale: Tensor, score: Tensor) -> tuple[float, tuple[Tensor, Tensor]]:
        """Compute the error of the induction head.

        Args:
            scale: b.
            score: c.

        Returns:
            Half the mean squared error, and its derivatives by scale and score.
        """
        weight = (score.square() * self.product).softmax(1)
        averaged = (weight * self.value).sum(1)
        weighted = weight * self.product
        slope = (weighted * self.value).sum(1) - weighted.sum(1) * averaged  # of the average, by the squared score
        residual = scale * averaged - self.target
        return 0.5 * float(residual.square().mean()), (
            (residual * averaged).mean(),
            (residual * scale * slope).mean() * 2 * score,
        )


def _describe_errors(states: dict[int, TrainingState]) -> dict[str, xr.DataArray]:
    coords = {"step": sorted(states)}
    error = to_data_array(
        np.array([[state.gram_error, state.bigram_error] for state in states.values()]),
        "step",
        "stat",
        units=SQUARED_UNITS,
        description="half the mean squared error of each part of the target",
        coords=coords | {"stat": TARGET_PARTS},
    )
    average_error = to_data_array(
        np.array([state.average_error for state in states.values()]),
        "step",
        units=SQUARED_UNITS,
        description="lowest error of the 2-gram for a multiple of the unweighted average of all terms",
        coords=coords,
    )
    return {"error": error.assign_attrs(scale="log"), "average_error": average_error}


def _describe_parameters(states: dict[int, TrainingState]) -> dict[str, xr.DataArray]:
    parameter = to_data_array(
        np.array([state.parameters for state in states.values()]),
        "step",
        "component",
        units="1",
        description="scale a and decay rate p of the 4-gram's head, scale b and score c of the induction head",
        coords={"step": sorted(states), "component": list("apbc")},
    )
    return {"parameter": parameter}
