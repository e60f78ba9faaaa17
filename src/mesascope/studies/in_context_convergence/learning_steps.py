"""Steps at which curves of training have come half of their way, on a logarithmic scale."""

import numpy as np
import xarray as xr

from mesascope.studies.base import select_last_step, select_untrained


def log_half_time(attention: xr.DataArray) -> xr.DataArray:
    """Return the log of the step at which attention is halfway between its first and its last value.

    Args:
        attention: by seed and step.

    Returns:
        natural logarithm of the interpolated step, by seed.
    """
    return _log_crossing(attention - (select_last_step(attention) + select_untrained(attention)) / 2)


def log_halving_step(error: xr.DataArray) -> xr.DataArray:
    """Return the log of the step at which an error is half of its first value.

    Args:
        error: by seed and step.

    Returns:
        natural logarithm of the interpolated step, by seed; NaN if the error is never halved.
    """
    return _log_crossing(select_untrained(error) / 2 - error)


def _log_crossing(curve: xr.DataArray) -> xr.DataArray:
    """Return the log of the step at which each seed's curve first reaches 0 from below; NaN if it never does."""
    curve = curve.transpose("seed", "step")
    crossings = [_interpolate_crossing(curve["step"].values.astype(float), values) for values in curve.values]
    return xr.DataArray(crossings, dims=("seed",), coords={"seed": curve["seed"]})


def _interpolate_crossing(steps: np.ndarray, values: np.ndarray) -> float:
    above = np.flatnonzero(values >= 0)
    if not len(above) or above[0] == 0:
        return float("nan")
    k = above[0]
    fraction = -values[k - 1] / (values[k] - values[k - 1])
    return float(np.log(steps[k - 1] + fraction * (steps[k] - steps[k - 1])))
