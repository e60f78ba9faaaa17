"""Length of the plateau before the induction head emerges, and its scaling laws."""

from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
import xarray as xr
from jaxtyping import Float

from mesascope.axes import to_data_array
from mesascope.store import do_nothing
from mesascope.studies.induction_heads.toy_model import TARGET_PARTS, InductionHead
from mesascope.studies.toy_model import Progress, ToyModel, fit_exponent, fit_line

LOG_SIZE_R2 = "R² of a line in the logarithm of the initial size"
POWER_LAW_R2 = "R² of a power law of the initial size"  # a rival with as many fitted numbers
LENGTH_EXPONENT, ALPHA_EXPONENT = "exponent of the length", "exponent of 1 + alpha"
GRAM_LENGTH_EXPONENT, GRAM_ALPHA_EXPONENT = f"{LENGTH_EXPONENT}, 4-gram", f"{ALPHA_EXPONENT}, 4-gram"
LEARNED_FRACTION = 0.01  # of the initial error: the 4-gram is learned; ours, as in the pilot
EMERGED_FRACTION = 0.5  # of the lowest error of an unweighted average: the induction head has emerged; ours


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

    base: InductionHead = field(default_factory=InductionHead)
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
            The times by each varied field, and ``law``, the fits to the time at which the induction head emerges, with
            two exponents of the time at which the 4-gram is learned.
        """
        grids = {name: np.array(getattr(self, f"{name}s")) for name in ("initial_size", "length", "alpha", "score")}
        steps = self._measure_steps(grids, seed, progress)
        laws = _fit_laws(grids, steps)
        law = to_data_array(
            np.array(list(laws.values())),
            "_law",
            units="1",
            description="fits to the steps until the induction head emerges, or until the 4-gram is learned",
            coords={"_law": list(laws)},
        )
        variables = {f"steps_by_{name}": _describe_steps(name, grids[name], values) for name, values in steps.items()}
        return xr.Dataset({**variables, "law": law})

    def _measure_steps(self, grids: dict[str, np.ndarray], seed: int, progress: Progress) -> dict[str, np.ndarray]:
        count, times = sum(map(len, grids.values())), {name: [] for name in grids}
        for name, values in grids.items():
            for value in values.tolist():
                progress(sum(map(len, times.values())), count, float("nan"))
                model = replace(self.base, steps=self.max_steps, **{name: value})
                times[name].append(measure_learning_steps(model, seed))
        return {name: np.array(pairs).T for name, pairs in times.items()}


def _describe_steps(name: str, grid: np.ndarray, steps: Float[np.ndarray, "part value"]) -> xr.DataArray:
    return to_data_array(
        steps,
        "stat",
        f"_{name}",
        units="step",
        description=f"steps until each part of the target is learned, by {name.replace('_', ' ')}",
        coords={"stat": TARGET_PARTS, f"_{name}": grid},
    ).assign_attrs(scale="log", view="curves")


def _fit_laws(grids: dict[str, np.ndarray], steps: dict[str, Float[np.ndarray, "part value"]]) -> dict[str, float]:
    gram, bigram = ({name: values[part] for name, values in steps.items()} for part in (0, 1))
    log_size = -np.log(grids["initial_size"])
    slope, r2 = fit_line(log_size, bigram["initial_size"])
    return {
        LOG_SIZE_R2: r2,
        POWER_LAW_R2: fit_line(log_size, np.log(bigram["initial_size"]))[1],
        "steps per factor e of the initial size": slope,
        LENGTH_EXPONENT: fit_exponent(grids["length"], bigram["length"]),
        GRAM_LENGTH_EXPONENT: _fit_exponent_or_zero(grids["length"], gram["length"]),
        ALPHA_EXPONENT: fit_exponent(1 + grids["alpha"], bigram["alpha"]),
        GRAM_ALPHA_EXPONENT: _fit_exponent_or_zero(1 + grids["alpha"], gram["alpha"]),
        "exponent of w": fit_exponent(grids["score"], bigram["score"]),
    }


def _fit_exponent_or_zero(x: np.ndarray, steps: np.ndarray) -> float:
    # the time of the 4-gram may be exactly constant, and a line through it has no R²
    return 0.0 if np.ptp(steps) == 0 else fit_exponent(x, steps)


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
