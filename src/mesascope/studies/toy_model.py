"""Toy models: a few numbers with their own training dynamics, which a theory can follow."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
import torch
import xarray as xr

from mesascope.store import do_nothing

Progress = Callable[[int, int, float], None]


class ToyModel(ABC):
    """A toy model and its training. Subclasses are frozen dataclasses; their fields describe both."""

    @abstractmethod
    def simulate(self, seed: int, progress: Progress = do_nothing) -> xr.Dataset:
        """Train the toy model in float64 and return what was measured.

        Args:
            seed: of everything that is drawn; the same seed gives the same numbers.
            progress: receives (steps done, total steps, last loss).
        """


def simulation_generator(seed: int, stream: int = 0) -> torch.Generator:
    """Return the random generator of a simulation.

    Args:
        seed: of the simulation.
        stream: independent streams of one seed give different numbers.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)[0]))


def fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Fit a straight line through points and return its slope and R².

    Args:
        x, y: coordinates of the points.

    Returns:
        slope and R²; NaN where a coordinate is not finite or all of them are equal.

    >>> [round(number, 9) for number in fit_line(np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 9.0]))]
    [2.0, 1.0]
    """
    if not np.isfinite([x, y]).all() or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    return float(np.polyfit(x, y, 1)[0]), float(np.corrcoef(x, y)[0, 1]) ** 2


def fit_exponent(x: np.ndarray, y: np.ndarray) -> float:
    """Fit y ~ x^p on logarithms and return the exponent p.

    Args:
        x, y: positive numbers.

    >>> round(fit_exponent(np.array([1.0, 2.0, 4.0]), np.array([3.0, 12.0, 48.0])), 9)
    2.0
    """
    return fit_line(np.log(x), np.log(y))[0]


def count_steps(steps: int, progress: Progress, every: int = 50) -> Iterator[int]:
    """Iterate over the steps 0 to ``steps`` and report progress.

    Args:
        steps: the last step.
        progress: receives (steps done, total steps, NaN).
        every: number of steps between two reports.

    Yields:
        the steps.
    """
    for step in range(steps + 1):
        if step % every == 0:
            progress(step, steps, float("nan"))
        yield step
