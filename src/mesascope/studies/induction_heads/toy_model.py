"""Toy model of an emerging induction head: two layers of attention with six parameters.

Wang et al. 2024, How Transformers Implement Induction Heads (arXiv 2410.11474). Sequences are independent standard
normal numbers x_1 .. x_L. The last position has two targets: x_{L-2}, a 4-gram, and an in-context 2-gram, the mean of
all x_s, weighted by the similarity of their predecessors and x_L. Their weights are alpha / (1 + alpha) and
1 / (1 + alpha). The first layer averages earlier terms with weights that depend on the distance. The second layer has
one such head as well, and one that compares x_L with the output of the first layer.
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

from mesascope.axes import to_data_array
from mesascope.statistics import evenly_spaced_steps
from mesascope.store import do_nothing
from mesascope.studies.toy_model import Progress, ToyModel, count_steps, fit_exponent, fit_line, simulation_generator

GRAM, BIGRAM = TARGET_PARTS = ["4-gram", "in-context 2-gram"]
LOG_SIZE_R2 = "R² of a line in the logarithm of the initial size"
LENGTH_EXPONENT, ALPHA_EXPONENT = "exponent of the length", "exponent of 1 + alpha"
SQUARED_UNITS = "squared value"
LagWeights = Float[Tensor, " lag"]
FIRST_LAYER_STEPS = 2_000  # steps after which the first layer outputs the preceding term to 3 digits
LEARNED_FRACTION = 0.01  # of the initial error: the 4-gram is learned; ours, as in the pilot
EMERGED_FRACTION = 0.5  # of the lowest error of an unweighted average: the induction head has emerged; ours


def compute_lag_weights(rate: float | Tensor, lags: int) -> LagWeights:
    """Return attention weights of the terms 1, 2, ... positions back, which decay by a factor e^rate per position.

    Args:
        rate: decay rate.
        lags: number of earlier terms.

    Returns:
        Weights that sum to 1.

    >>> compute_lag_weights(0.0, 4).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    return (-rate * torch.arange(lags, dtype=torch.float64)).softmax(0)


def train_first_layer(initial_size: float, learning_rate: float, lags: int) -> tuple[float, float]:
    """Train the first layer to output the preceding term, on the expected error over all sequences.

    Args:
        initial_size: of scale and decay rate.
        learning_rate: of gradient descent.
        lags: number of earlier terms.

    Returns:
        Scale and decay rate after training.
    """
    scale, decay, distance = initial_size, initial_size, np.arange(lags)
    for _ in range(FIRST_LAYER_STEPS):
        weight = np.exp(-decay * distance)
        weight /= weight.sum()
        residual = scale * weight - (distance == 0)
        slope = -weight * (distance - weight @ distance)  # derivative of the weights by the decay rate
        scale, decay = (
            scale - learning_rate * (residual @ weight),
            decay - learning_rate * scale * (residual @ slope),
        )
    return float(scale), float(decay)


def _expand_lag_weights(rate: float, earlier: int, length: int) -> LagWeights:
    """Return the weight of each of x_1 .. x_{L-1} at a position with so many earlier terms."""
    weights = torch.zeros(length - 1, dtype=torch.float64)
    weights[:earlier] = compute_lag_weights(rate, earlier).flip(0)
    return weights


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
        parameter = to_data_array(
            np.array([state.parameters for state in states.values()]),
            "step",
            "component",
            units="1",
            description="scale a and decay rate p of the 4-gram's head, scale b and score c of the induction head",
            coords=coords | {"component": list("apbc")},
        )
        return xr.Dataset(
            {"error": error.assign_attrs(scale="log"), "average_error": average_error, "parameter": parameter}
        )

    def iterate_states(self, seed: int, progress: Progress = do_nothing) -> Iterator["TrainingState"]:
        """Iterate over the states before each update and after the last.

        Args:
            seed: of the sequences.
            progress: receives (steps done, total steps, NaN).
        """
        scale, decay = train_first_layer(self.initial_size, self.learning_rate, self.length - 1)
        outputs = scale * torch.stack([_expand_lag_weights(decay, k, self.length) for k in range(1, self.length)])
        sample = SequenceSample.sample(self, outputs, simulation_generator(seed))
        outputs_by_lag = outputs[:-1].flip(0, 1)  # row 1, 2, ...: the first layer's output 1, 2, ... terms back
        target = torch.zeros(self.length - 1, dtype=torch.float64)
        target[1] = self.alpha / (1 + self.alpha)
        parameters = torch.full((4,), self.initial_size, dtype=torch.float64)
        for _ in count_steps(self.steps, progress):
            gram_error, gram_slopes = self._compute_gram_error(parameters, outputs_by_lag, target)
            bigram_error, bigram_slopes = sample.compute_error(parameters[2], parameters[3])
            yield TrainingState(
                gram_error=gram_error,
                bigram_error=bigram_error,
                average_error=sample.average_error,
                parameters=tuple(parameters.tolist()),
            )
            parameters = parameters - self.learning_rate * torch.stack([*gram_slopes, *bigram_slopes])

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


@final
@dataclass(frozen=True, kw_only=True)
class Plateaus(ToyModel):
    """Steps until each part of the target is learned, by initial size, length, alpha and w, varied one at a time.

    The 4-gram is learned when its error is 1% of its initial value. The induction head has emerged when its error is
    half of the lowest error of an unweighted average: before that, its error falls because it learns the average.

    Attributes:
        base: the model that is varied.
        initial_sizes, lengths, alphas, scores: the values of each variation.
        max_steps: steps after which a time is NaN.
    """

    base: InductionHead = InductionHead()
    initial_sizes: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    lengths: tuple[int, ...] = (20, 30, 40, 60, 80)
    alphas: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    scores: tuple[float, ...] = (0.5, 0.6, 0.7)
    max_steps: int = 10_000

    def simulate(self, seed: int, progress: Progress = do_nothing) -> xr.Dataset:
        """Measure both times for every variation and fit their scaling laws.

        Args:
            seed: of the sequences.
            progress: receives (models done, models in total, NaN).

        Returns:
            The times by each varied field, and ``law``, the fits to the time at which the induction head emerges.
        """
        grids = {name: np.array(getattr(self, f"{name}s")) for name in ("initial_size", "length", "alpha", "score")}
        count, times = sum(map(len, grids.values())), {name: [] for name in grids}
        for name, values in grids.items():
            for value in values.tolist():
                progress(sum(map(len, times.values())), count, float("nan"))
                times[name].append(
                    measure_learning_steps(replace(self.base, steps=self.max_steps, **{name: value}), seed)
                )
        steps = {name: np.array(pairs).T for name, pairs in times.items()}
        variables = {
            f"steps_by_{name}": to_data_array(
                values,
                "stat",
                f"_{name}",
                units="step",
                description=f"steps until each part of the target is learned, by {name.replace('_', ' ')}",
                coords={"stat": TARGET_PARTS, f"_{name}": grids[name]},
            ).assign_attrs(scale="log", view="curves")
            for name, values in steps.items()
        }
        laws = _fit_laws(grids, {name: values[1] for name, values in steps.items()})
        law = to_data_array(
            np.array(list(laws.values())),
            "_law",
            units="1",
            description="fits to the steps until the induction head emerges",
            coords={"_law": list(laws)},
        )
        return xr.Dataset({**variables, "law": law})


def _fit_laws(grids: dict[str, np.ndarray], steps: dict[str, np.ndarray]) -> dict[str, float]:
    slope, r2 = fit_line(-np.log(grids["initial_size"]), steps["initial_size"])
    return {
        LOG_SIZE_R2: r2,
        "steps per factor e of the initial size": slope,
        LENGTH_EXPONENT: fit_exponent(grids["length"], steps["length"]),
        ALPHA_EXPONENT: fit_exponent(1 + grids["alpha"], steps["alpha"]),
        "exponent of w": fit_exponent(grids["score"], steps["score"]),
    }


def measure_learning_steps(model: InductionHead, seed: int) -> tuple[float, float]:
    """Measure the steps until the 4-gram is learned and until the induction head has emerged.

    Args:
        model: the toy model.
        seed: of the sequences.

    Returns:
        Both numbers of steps; NaN if the model's steps are too few.
    """
    initial_error, times = float("nan"), [float("nan"), float("nan")]
    for step, state in enumerate(model.iterate_states(seed)):
        initial_error = state.gram_error if step == 0 else initial_error
        learned = state.gram_error <= LEARNED_FRACTION * initial_error
        emerged = state.bigram_error <= EMERGED_FRACTION * state.average_error
        for part, reached in enumerate((learned, emerged)):
            if reached and np.isnan(times[part]):
                times[part] = float(step)
        if not np.isnan(times).any():
            break
    return times[0], times[1]
