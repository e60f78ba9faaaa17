"""Half-times of the attention to wrong features, and how they grow with the number of features."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float

from mesascope.axes import to_data_array
from mesascope.store import do_nothing
from mesascope.studies.in_context_convergence.toy_model import (
    attend_to_features,
    compute_score_gradient,
    sample_feature_counts,
)
from mesascope.studies.toy_model import Progress, ToyModel, fit_exponent, simulation_generator
from mesascope.tasks.regression import OneHotInputs

UNIFORM, DOMINANT = "uniform frequencies", "one dominant feature"  # distributions of features


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
        return xr.Dataset(_describe_half_times(self.features, times, np.array(exponents)))

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


def _describe_half_times(
    features: tuple[int, ...],
    times: Float[np.ndarray, "distribution size"],
    exponents: Float[np.ndarray, " distribution"],
) -> dict[str, xr.DataArray]:
    distributions = {"stat": [UNIFORM, DOMINANT]}
    half_time = to_data_array(
        times,
        "stat",
        "_features",
        units="steps times learning rate",
        description="time until the attention to wrong features is halved",
        coords={**distributions, "_features": list(features)},
    )
    exponent = to_data_array(
        exponents,
        "stat",
        units="1",
        description="exponent of the half-time in the number of features",
        coords=distributions,
    )
    return {"half_time": half_time.assign_attrs(scale="log", view="curves"), "exponent": exponent}
