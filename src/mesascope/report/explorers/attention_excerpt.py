"""Attention patterns of all heads on an excerpt, packed so that some three hundred of them fit into a page."""

from base64 import b64encode
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.figure import SEQUENTIAL
from mesascope.report.plotting.quantize import CODES
from mesascope.report.plotting.variable import Shown, position_names
from mesascope.report.text import several

MOST = 2_000_000  # weights in the page, one byte each


def excerpt(array: xr.DataArray, shown: Shown) -> dict[str, Any]:
    """The weights at the last step, averaged over seeds, for every example that fits.

    Code 0 is a missing weight, code c the weight top * ((c - 1) / 254)²: small weights are kept finer than large ones.
    Where no query looks at a later key, the lower triangle alone is stored.

    Args:
        array: ``pattern`` with layer and head in front, complete; other dims in any order.
        shown: the same with its labels.
    """
    array = array.isel(step=-1) if "step" in array.dims else array
    array = array.mean("seed") if "seed" in array.dims else array
    array = array if "batch" in array.dims else array.expand_dims("batch")
    kept, left_out = _cut(array.transpose("batch", "layer", "head", "query", "key"))
    values = kept.values
    queries, keys = values.shape[-2:]
    later = np.triu(np.ones((queries, keys), bool), 1)
    causal = queries == keys and not np.nan_to_num(values[..., later]).any()
    cells = values[..., ~later] if causal else values
    top = max(float(np.nan_to_num(cells).max()), 0.0) or 1.0
    top = 1.0 if 0.5 < top <= 1.0 else top
    return {
        "bytes": b64encode(_codes(cells, top).tobytes()).decode("ascii"),
        "shape": list(values.shape),
        "causal": causal,
        "top": top,
        "labels": [_labels(shown, kept, k) for k in range(len(values))],
        "colours": list(SEQUENTIAL),
        "left_out": left_out,
    }


def _codes(cells: np.ndarray, top: float) -> np.ndarray:
    """One byte for each weight."""
    share = np.sqrt(np.clip(np.nan_to_num(cells) / top, 0.0, 1.0))
    return np.where(np.isfinite(cells), np.round(share * (CODES - 1)) + 1, 0).astype(np.uint8)


def _cut(array: xr.DataArray) -> tuple[xr.DataArray, str]:
    """As much as fits: fewer examples first, then fewer positions; and what was left out, in words."""
    told = []
    examples, positions = array.sizes["batch"], array.sizes["query"]
    room = max(1, MOST // (array.size // examples))
    if examples > room:
        told.append(f"the first {room} of {several(examples, 'example')}")
        array = array.isel(batch=slice(room))
    if array.size > MOST:
        side = max(8, int(np.sqrt(MOST / (array.sizes["layer"] * array.sizes["head"]))))
        told.append(f"the first {side} of {positions} positions")
        array = array.isel(query=slice(side), key=slice(side))
    return array, f"Shown: {', and of it '.join(told)}; the file holds all." if told else ""


def _labels(shown: Shown, kept: xr.DataArray, example: int) -> dict[str, list[str]]:
    """The token at each position of an example, for both sides."""
    return {dim: position_names(shown, dim, example)[: kept.sizes[dim]] for dim in ("query", "key")}
