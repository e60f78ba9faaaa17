"""Controls: what a quantity looks like where there is nothing to find; each kind has one name and one colour."""

from zlib import crc32

import numpy as np
import xarray as xr

from mesascope.report.plotting.figure import GREY

COLOURS = {
    "random weights": "#8f6b4e",
    "keys shuffled": "#b08d2e",
    "positions shuffled": "#5f8a6b",
    "no repetition": "#8d6f96",
    "labels permuted": "#a8717a",
    "least attended": "#83874f",
    "untrained": "#64868f",
}
OTHERS = ("#a8717a", "#64868f", "#83874f", "#7a73a0")


def control_name(control: xr.DataArray) -> str:
    """The name that its author gave the control, else words that hold for any.

    >>> control_name(xr.DataArray(0.0, name="null", attrs={"control": "keys shuffled"}))
    'keys shuffled'
    >>> control_name(xr.DataArray(0.0, name="score_null"))
    'nothing to find (score null)'
    """
    given = control.attrs.get("control")
    return str(given) if given else f"nothing to find ({str(control.name).replace('_', ' ')})"


def control_colour(control: xr.DataArray) -> str:
    """The colour of this kind of control, the same all over the page and on every page; grey without a name."""
    given = str(control.attrs.get("control") or "")
    if not given:
        return GREY
    return COLOURS.get(given) or OTHERS[crc32(given.encode()) % len(OTHERS)]


def named(control: xr.DataArray) -> bool:
    """Whether its author said what kind of control it is."""
    return bool(control.attrs.get("control"))


def told(control: xr.DataArray) -> str:
    """The name of a control with the number of its replicates (``seed``, the first dim)."""
    many = control.sizes["seed"]
    return control_name(control) + (f" ({many} draws)" if many > 1 else "")


def replicates(control: xr.DataArray) -> xr.DataArray:
    """The same numbers with every draw of every seed along ``seed``: all are replicates of one control.

    Args:
        control: numbers with ``seed`` first, and ``draw`` anywhere or nowhere.
    """
    if "draw" not in control.dims:
        return control
    array = control.transpose("seed", "draw", ...)
    dims = array.dims[2:]
    values = array.values.reshape(-1, *array.shape[2:])
    coords = {d: array.coords[d] for d in dims if d in array.coords}
    return xr.DataArray(values, dims=("seed", *dims), coords=coords, attrs=control.attrs, name=control.name)


def extent(control: xr.DataArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, least and greatest finite value over replicates (``seed``, the first dim); NaN where there is none."""
    rows = control.values
    known = np.isfinite(rows)
    some, count = known.any(0), np.maximum(known.sum(0), 1)
    mean = np.where(known, rows, 0.0).sum(0) / count
    low, high = np.where(known, rows, np.inf).min(0), np.where(known, rows, -np.inf).max(0)
    return np.where(some, mean, np.nan), np.where(some, low, np.nan), np.where(some, high, np.nan)
