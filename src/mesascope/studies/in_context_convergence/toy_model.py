"""Toy model of in-context convergence: softmax attention over one-hot features, given by a matrix of scores.

Huang, Cheng and Liang 2023, In-Context Convergence of Transformers (arXiv 2310.05249). A prompt has N examples (x, w x)
and a query. Every input is one of K orthonormal features, and w has a standard normal component along each. One head
attends from the query to the examples with the scores Q and averages their answers. After integration over w, the loss
depends on the prompt only through its feature counts: for query k it is half the mean of sum_m (a_m - [m = k])^2, where
a_m is the total attention to the examples of feature m.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.axes import to_data_array
from mesascope.statistics import evenly_spaced_steps
from mesascope.store import do_nothing
from mesascope.studies.toy_model import Progress, ToyModel, count_steps, fit_exponent, simulation_generator
from mesascope.tasks.regression import OneHotInputs

FeatureCounts = Float[Tensor, "prompt feature"]
FeatureScores = Float[Tensor, "feature query"]
AttentionByFeature = Float[Tensor, "prompt feature query"]

FIRST_FEATURE, OTHER_FEATURES = "first feature", "other features"
UNIFORM, DOMINANT = "uniform frequencies", "one dominant feature"  # distributions of features


def attend_to_features(scores: FeatureScores, counts: FeatureCounts) -> AttentionByFeature:
    """Return the total attention to the examples of each feature, for each feature as the query.

    Args:
        scores: score of each feature for each query.
        counts: number of examples of each feature in each prompt.

    Returns:
        Attention, (prompt, feature, query); it sums to 1 over features.

    >>> attend_to_features(torch.zeros(2, 2), torch.tensor([[3.0, 1.0]]))[0, :, 0].tolist()
    [0.75, 0.25]
    """
    weight = counts[..., None] * (scores - scores.amax(0)).exp()
    return weight / weight.sum(1, keepdim=True)


def compute_query_errors(attention: AttentionByFeature) -> Float[Tensor, "prompt query"]:
    """Return half the squared error of the answer to each query, averaged over w.

    Args:
        attention: total attention to the examples of each feature.
    """
    target = torch.eye(attention.shape[1], dtype=attention.dtype)
    return 0.5 * (attention - target).square().sum(1)


def compute_score_gradient(attention: AttentionByFeature, frequency: Float[Tensor, "query"]) -> FeatureScores:
    """Return the gradient of the mean error over prompts and queries with respect to the scores.

    Args:
        attention: total attention to the examples of each feature.
        frequency: probability of each query.
    """
    residual = attention - torch.eye(attention.shape[1], dtype=attention.dtype)
    mean_residual = (residual * attention).sum(1, keepdim=True)
    return (attention * (residual - mean_residual)).mean(0) * frequency


def sample_feature_counts(
    frequency: Float[Tensor, "feature"], examples: int, count: int, generator: torch.Generator
) -> FeatureCounts:
    """Draw prompts and count the examples of each feature.

    Args:
        frequency: probability of each feature.
        examples: examples of a prompt.
        count: number of prompts.
        generator: source of randomness.

    Returns:
        Counts in float64, (prompt, feature).
    """
    drawn = torch.multinomial(frequency, count * examples, replacement=True, generator=generator).view(count, examples)
    return torch.nn.functional.one_hot(drawn, len(frequency)).sum(1).double()


@final
@dataclass(frozen=True, kw_only=True)
class FeatureAttention(ToyModel):
    """Scores Q, trained from zero by gradient descent on the mean error over a fixed sample of prompts.

    Attributes:
        features: number of features, K.
        examples: examples of a prompt, N.
        dominant: probability of the first feature; uniform frequencies by default.
        learning_rate: of gradient descent.
        steps: number of updates.
        prompts: number of prompts in the sample.
        checkpoints: number of steps that are recorded.
    """

    features: int = 16
    examples: int = 128
    dominant: float | None = None
    learning_rate: float = 2.0
    steps: int = 4_000
    prompts: int = 400
    checkpoints: int = 81

    def __post_init__(self) -> None:
        """Validate the sizes and the frequency of the first feature."""
        if self.features < 3 or self.examples < 1:
            raise ValueError(
                f"features must be 3 or more and examples 1 or more, but got {self.features} and {self.examples}"
            )
        OneHotInputs(dominant=self.dominant)  # raises unless it is a probability

    def simulate(self, seed: int, progress: Progress = do_nothing) -> xr.Dataset:
        """Train the scores and record errors, attention and scores.

        Args:
            seed: of the prompts.
            progress: receives (steps done, total steps, NaN).

        Returns:
            Errors, attention and scores by step, for the first feature as the query and for the mean of the others.
        """
        frequency = OneHotInputs(dominant=self.dominant).index_probabilities(self.features)
        counts = sample_feature_counts(frequency, self.examples, self.prompts, simulation_generator(seed))
        scores = torch.zeros(self.features, self.features, dtype=torch.float64)
        recorded_steps, records = set(evenly_spaced_steps(self.steps, self.checkpoints)), []
        for step in count_steps(self.steps, progress):
            attention = attend_to_features(scores, counts)
            if step in recorded_steps:
                records.append(_record_state(scores, attention, counts))
            scores = scores - self.learning_rate * compute_score_gradient(attention, frequency)
        curves = {name: np.stack([record[name] for record in records]) for name in records[0]}
        labels = {"step": sorted(recorded_steps), "stat": [FIRST_FEATURE, OTHER_FEATURES]}
        variables = {}
        for name, (units, description) in _DESCRIPTIONS.items():
            dims = ("step", "stat")[: curves[name].ndim]
            coords = {dim: labels[dim] for dim in dims}
            variables[name] = to_data_array(curves[name], *dims, units=units, description=description, coords=coords)
        return xr.Dataset(variables)


_DESCRIPTIONS = {
    "error": ("squared answer", "half the mean squared error, by query feature"),
    "error_present": ("squared answer", "half the mean squared error in prompts that contain the query feature"),
    "attention": ("1", "total attention to the examples of the query feature"),
    "own_score": ("1", "score of the query feature with itself"),
    "cross_score": (
        "1",
        "mean score of the other features for the first as the query, and of the first for the others as the query",
    ),
    "other_score": ("1", "mean score between different features, without the first"),
}


def _record_state(scores: FeatureScores, attention: AttentionByFeature, counts: FeatureCounts) -> dict[str, np.ndarray]:
    error, present, count = compute_query_errors(attention), counts > 0, len(scores)
    own_score, own_attention = scores.diagonal(), torch.diagonal(attention, dim1=1, dim2=2)
    error_present = (error * present).sum(0) / present.sum(0)
    off_diagonal = ~torch.eye(count - 1, dtype=torch.bool)

    def split_first(by_query: Tensor) -> np.ndarray:
        return torch.stack([by_query[0], by_query[1:].mean()]).numpy()

    return {
        "error": split_first(error.mean(0)),
        "error_present": split_first(error_present),
        "attention": split_first(own_attention.mean(0)),
        "own_score": split_first(own_score),
        "cross_score": torch.stack([scores[1:, 0].mean(), scores[0, 1:].mean()]).numpy(),
        "other_score": scores[1:, 1:][off_diagonal].mean().numpy(),
    }


@final
@dataclass(frozen=True, kw_only=True)
class HalfTimes(ToyModel):
    """Time until the attention to wrong features is halved, as a function of the number of features.

    It is measured for a feature under uniform frequencies, and for a dominant feature whose frequency does not depend
    on the number of the others. Gradients of a rare feature are small, so its learning rate is larger by the squared
    inverse frequency; the time is the number of steps times the learning rate.

    Attributes:
        features: numbers of features K, in ascending order.
        dominant: frequency of the dominant feature.
        examples_per_feature: examples of a prompt, divided by K.
        learning_rate: for a feature of frequency 1; it is divided by the squared frequency.
        prompts: number of prompts in the sample.
        max_steps: steps after which the half-time is NaN.
    """

    features: tuple[int, ...] = (6, 8, 12, 16, 24, 32)
    dominant: float = 0.5
    examples_per_feature: int = 8
    learning_rate: float = 1 / 128
    prompts: int = 100
    max_steps: int = 6_000

    def __post_init__(self) -> None:
        """Validate the numbers of features."""
        if len(self.features) < 4 or min(self.features) < 3:
            raise ValueError(f"features must be four numbers or more, each at least 3, but got {self.features}")

    def simulate(self, seed: int, progress: Progress = do_nothing) -> xr.Dataset:
        """Measure the half-times and fit their exponents.

        Args:
            seed: of the prompts.
            progress: receives (half-times done, half-times in total, NaN).

        Returns:
            ``half_time`` by distribution and number of features, and ``exponent``, the slope of log(half-time) over
            log(number of features).
        """
        times = np.full((2, len(self.features)), np.nan)
        for row, dominant in enumerate((None, self.dominant)):
            for column, features in enumerate(self.features):
                progress(row * len(self.features) + column, times.size, float("nan"))
                times[row, column] = self._measure_half_time(features, dominant, simulation_generator(seed, column))
        exponents = [fit_exponent(np.array(self.features), half_times) for half_times in times]
        distributions = {"stat": [UNIFORM, DOMINANT]}
        half_time = to_data_array(
            times,
            "stat",
            "_features",
            units="steps times learning rate",
            description="time until the attention to wrong features is halved",
            coords={**distributions, "_features": list(self.features)},
        )
        exponent = to_data_array(
            np.array(exponents),
            "stat",
            units="1",
            description="exponent of the half-time in the number of features",
            coords=distributions,
        )
        return xr.Dataset({"half_time": half_time.assign_attrs(scale="log", view="curves"), "exponent": exponent})

    def _measure_half_time(self, features: int, dominant: float | None, generator: torch.Generator) -> float:
        """Return the half-time of the first feature, interpolated between two steps; NaN after the maximum of steps."""
        frequency = OneHotInputs(dominant=dominant).index_probabilities(features)
        counts = sample_feature_counts(frequency, self.examples_per_feature * features, self.prompts, generator)
        scores = torch.zeros(features, features, dtype=torch.float64)
        learning_rate = self.learning_rate / float(frequency[0]) ** 2
        wrong: list[float] = []
        for step in range(self.max_steps):
            attention = attend_to_features(scores, counts)
            wrong.append(1 - float(attention[:, 0, 0].mean()))
            half = wrong[0] / 2
            if wrong[-1] <= half:
                return learning_rate * (step - (half - wrong[-1]) / (wrong[-2] - wrong[-1]))
            scores = scores - learning_rate * compute_score_gradient(attention, frequency)
        return float("nan")
