"""Controls of a quantity (its values under a null): names, colours and summaries. Each kind has a fixed colour."""

from zlib import crc32

import numpy as np
import xarray as xr

from mesascope.report.plotting.figure import GREY

CONTROL_COLOURS = {
    "random weights": "#8f6b4e",
    "keys shuffled": "#b08d2e",
    "positions shuffled": "#5f8a6b",
    "no repetition": "#8d6f96",
    "labels permuted": "#a8717a",
    "least attended": "#83874f",
    "untrained": "#64868f",
}
FALLBACK_COLOURS = ("#a8717a", "#64868f", "#83874f", "#7a73a0")


def control_name(control: xr.DataArray) -> str:
    """Return the display name of a control: its attribute ``control`` if given, else a name made from the variable's.

    Args:
        control: a control variable.

    Returns:
        The name.

    >>> control_name(xr.DataArray(0.0, name="null", attrs={"control": "keys shuffled"}))
    'keys shuffled'
    >>> control_name(xr.DataArray(0.0, name="score_null"))
    'null (score)'
    """
    given = control.attrs.get("control")
    return str(given) if given else f"null ({str(control.name).removesuffix('_null').replace('_', ' ')})"


def control_colour(control: xr.DataArray) -> str:
    """Return the colour of a kind of control, the same on every page.

    Args:
        control: a control variable.

    Returns:
        The colour; grey if the control has no attribute ``control``.
    """
    given = str(control.attrs.get("control") or "")
    if not given:
        return GREY
    return CONTROL_COLOURS.get(given) or FALLBACK_COLOURS[crc32(given.encode()) % len(FALLBACK_COLOURS)]


def has_kind(control: xr.DataArray) -> bool:
    """Return whether the kind of a control is given.

    Args:
        control: a control variable.

    Returns:
        True if it has the attribute ``control``.
    """
    return bool(control.attrs.get("control"))


def describe_control(control: xr.DataArray) -> str:
    """Return the display name of a control with its number of replicates.

    Args:
        control: a control variable, replicates along ``seed``.

    Returns:
        Name and number of draws.
    """
    draws = control.sizes["seed"]
    return control_name(control) + (f" ({draws} draws)" if draws > 1 else "")


def stack_replicates(control: xr.DataArray) -> xr.DataArray:
    """Stack all draws of all seeds along ``seed``, since all are replicates of the same control.

    Args:
        control: numbers with an axis ``seed`` and optionally ``draw``.

    Returns:
        The same numbers with ``seed`` first and without ``draw``.
    """
    if "draw" not in control.dims:
        return control
    array = control.transpose("seed", "draw", ...)
    dims = array.dims[2:]
    values = array.values.reshape(-1, *array.shape[2:])
    coords = {d: array.coords[d] for d in dims if d in array.coords}
    attrs = {**control.attrs, "stacked_draws": control.sizes["draw"]}
    return xr.DataArray(values, dims=("seed", *dims), coords=coords, attrs=attrs, name=control.name)


def has_random_sign(control: xr.DataArray) -> bool:
    """Return whether draws of a control differ in sign, so that their mean says nothing about their size.

    Args:
        control: a control variable after :func:`stack_replicates`.

    Returns:
        True if it had the axis ``draw`` and has both signs around 0.
    """
    signed = float(control.attrs.get("center", 0.0)) == 0.0 and float(control.min()) < 0 < float(control.max())
    return signed and int(control.attrs.get("stacked_draws", 1)) > 1


def summarize_replicates(control: xr.DataArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, minimum and maximum of the finite values over replicates.

    Args:
        control: numbers with the axis ``seed`` first.

    Returns:
        Three arrays without ``seed``; NaN where no value is finite.
    """
    rows = control.values
    finite = np.isfinite(rows)
    any_finite, count = finite.any(0), np.maximum(finite.sum(0), 1)
    mean = np.where(finite, rows, 0.0).sum(0) / count
    low, high = np.where(finite, rows, np.inf).min(0), np.where(finite, rows, -np.inf).max(0)
    return np.where(any_finite, mean, np.nan), np.where(any_finite, low, np.nan), np.where(any_finite, high, np.nan)
