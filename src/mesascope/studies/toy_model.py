"""What a reduced model is: a few numbers, their training, and what is seen of both."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
import torch
import xarray as xr

from mesascope.store import ignore

Progress = Callable[[int, int, float], None]


class Reduced(ABC):
    """A model that a theory can follow, and its training. Subclasses are frozen dataclasses: their fields are both.

    Their docstrings say what is trained how; a page shows them above what was found.
    """

    @abstractmethod
    def simulate(self, seed: int, progress: Progress = ignore) -> xr.Dataset:
        """Train it, in float64, and give what was seen; the same seed gives the same numbers.

        Args:
            seed: of all that is drawn.
            progress: hears (done, total, last loss).
        """


def generator(seed: int, stream: int = 0) -> torch.Generator:
    """Where a simulation draws from; other streams of a seed give other numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)[0]))


def looked_at(steps: int, points: int) -> tuple[int, ...]:
    """Steps at which something is written down: evenly spaced, 0 and the last among them.

    >>> looked_at(10, 3)
    (0, 5, 10)
    """
    return tuple(sorted({round(float(step)) for step in np.linspace(0, steps, points)}))


def line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of the straight line through points, and its R²; not numbers where a point is none, or all are one.

    >>> [round(number, 9) for number in line(np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 9.0]))]
    [2.0, 1.0]
    """
    if not np.isfinite([x, y]).all() or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    return float(np.polyfit(x, y, 1)[0]), float(np.corrcoef(x, y)[0, 1]) ** 2


def power(x: np.ndarray, y: np.ndarray) -> float:
    """By which power of x the numbers y grow.

    >>> round(power(np.array([1.0, 2.0, 4.0]), np.array([3.0, 12.0, 48.0])), 9)
    2.0
    """
    return line(np.log(x), np.log(y))[0]


def told(steps: int, progress: Progress, every: int = 50) -> Iterator[int]:
    """Count the steps, and tell how far they are."""
    for step in range(steps + 1):
        if step % every == 0:
            progress(step, steps, float("nan"))
        yield step
