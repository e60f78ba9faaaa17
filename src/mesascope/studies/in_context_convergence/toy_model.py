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
from mesascope.studies.toy_model import Progress, ToyModel, count_steps, simulation_generator
from mesascope.tasks.regression import OneHotInputs

FeatureCounts = Float[Tensor, "prompt feature"]
FeatureScores = Float[Tensor, "feature query"]
AttentionByFeature = Float[Tensor, "prompt feature query"]

FIRST_FEATURE, OTHER_FEATURES = "first feature", "other features"


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
        return xr.Dataset(_describe_curves(records, sorted(recorded_steps)))


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


def _describe_curves(records: list[dict[str, np.ndarray]], steps: list[int]) -> dict[str, xr.DataArray]:
    labels = {"step": steps, "stat": [FIRST_FEATURE, OTHER_FEATURES]}
    variables = {}
    for name, (units, description) in _DESCRIPTIONS.items():
        values = np.stack([record[name] for record in records])
        dims = ("step", "stat")[: values.ndim]
        coords = {dim: labels[dim] for dim in dims}
        variables[name] = to_data_array(values, *dims, units=units, description=description, coords=coords)
    return variables
