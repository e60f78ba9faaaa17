"""Claims of a study, and the quantities that decide them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr

Results = Mapping[str, xr.Dataset]
Direction = Literal["above", "below"]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A named number per seed, read from the results of a run.

    Attributes:
        description: the quantity in words, as a page prints it.
        read: reads it from the results; the returned array has the axis ``seed`` and no other. NaN for a seed in which
            the quantity is not defined, such as the gain of heads that do not exist.
        unit: of the numbers.
    """

    description: str
    read: Callable[[Results], xr.DataArray]
    unit: str = "1"

    def per_seed(self, results: Results) -> np.ndarray:
        """Return the number of each seed.

        Args:
            results: Datasets of a run, by name.

        Raises:
            ValueError: the array has other axes than ``seed``.
        """
        values = self.read(results)
        if values.dims != ("seed",):
            raise ValueError(
                f"a quantity must have the axis seed and no other, but {self.description!r} has {values.dims}"
            )
        return values.values.astype(float)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement that numbers can decide.

    Attributes:
        name: a short name.
        statement: what is claimed.
        source: who claims it, and where; ``ours`` where no paper does.
        value: the quantity that decides it.
        control: the same quantity where there is nothing to find.
        direction: whether the value must lie above or below the control.
        threshold: a fixed number that the value must lie beyond as well.
        scales: scales at which the claim can be decided; at others it is not tested.
    """

    name: str
    statement: str
    source: str
    value: Quantity
    control: Quantity
    direction: Direction
    threshold: float | None = None
    scales: tuple[str, ...] = ("laptop", "paper")


def select_last_step(array: xr.DataArray) -> xr.DataArray:
    """Return the values of the trained model: those at the last checkpoint.

    Args:
        array: values with the axis ``step``.
    """
    return array.isel(step=-1, drop=True)


def select_untrained(array: xr.DataArray) -> xr.DataArray:
    """Return the values of the untrained model: those at step 0.

    Args:
        array: values with the axis ``step``.
    """
    return array.sel(step=0, drop=True)
