"""Attention patterns of all heads on an excerpt, one byte per weight, so that some 300 heads fit on a page."""

from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.figure import SEQUENTIAL_COLOURS
from mesascope.report.plotting.quantize import MAX_LEVELS
from mesascope.report.plotting.variable import PlotVariable, label_positions
from mesascope.report.text import format_count


@dataclass(frozen=True, kw_only=True)
class ExcerptLimit:
    """The number of attention weights in a page, one byte each.

    Attributes:
        weights: the maximum.
        source: what contains all weights, for the note on what was left out.
    """

    weights: int
    source: str


REPORT_LIMIT = ExcerptLimit(weights=2_000_000, source="the file")


def encode_attention_excerpt(
    array: xr.DataArray, variable: PlotVariable, limit: ExcerptLimit = REPORT_LIMIT
) -> dict[str, Any]:
    """Encode attention weights at the last step, averaged over seeds, for as many examples as fit on the page.

    Code 0 is a missing weight; code c is the weight top * ((c - 1) / 254)², which resolves small weights more finely.
    For causal attention only the lower triangle is stored.

    Args:
        array: ``pattern`` with axes (layer, head, ...), heads aligned to the grid; other axes in any order.
        variable: the same variable with its position labels.
        limit: how many weights fit.

    Returns:
        Codes in base64, shape, scale, labels and a note on what was left out.
    """
    array = array.isel(step=-1) if "step" in array.dims else array
    array = array.mean("seed") if "seed" in array.dims else array
    array = array if "batch" in array.dims else array.expand_dims("batch")
    limited, left_out = _limit_size(array.transpose("batch", "layer", "head", "query", "key"), limit)
    labels = [_label_sides(variable, limited, k) for k in range(limited.sizes["batch"])]
    notes = {"labels": labels, "colours": list(SEQUENTIAL_COLOURS), "left_out": left_out}
    return _encode_cells(limited.values) | notes


def _encode_cells(values: np.ndarray) -> dict[str, Any]:
    queries, keys = values.shape[-2:]
    later = np.triu(np.ones((queries, keys), bool), 1)
    causal = queries == keys and not np.nan_to_num(values[..., later]).any()
    cells = values[..., ~later] if causal else values
    top = max(float(np.nan_to_num(cells).max()), 0.0) or 1.0
    top = 1.0 if 0.5 < top <= 1.0 else top
    codes = b64encode(_encode_weights(cells, top).tobytes()).decode("ascii")
    return {"bytes": codes, "shape": list(values.shape), "causal": causal, "top": top}


def _encode_weights(cells: np.ndarray, top: float) -> np.ndarray:
    fraction = np.sqrt(np.clip(np.nan_to_num(cells) / top, 0.0, 1.0))
    return np.where(np.isfinite(cells), np.round(fraction * (MAX_LEVELS - 1)) + 1, 0).astype(np.uint8)


def _limit_size(array: xr.DataArray, limit: ExcerptLimit) -> tuple[xr.DataArray, str]:
    """Return as much as fits on the page (fewer examples, then positions), and a note on what was left out."""
    notes = []
    examples, positions = array.sizes["batch"], array.sizes["query"]
    max_examples = max(1, limit.weights // (array.size // examples))
    if examples > max_examples:
        notes.append(f"the first {max_examples} of {format_count(examples, 'example')}")
        array = array.isel(batch=slice(max_examples))
    if array.size > limit.weights:
        side = max(8, int(np.sqrt(limit.weights / (array.sizes["layer"] * array.sizes["head"]))))
        notes.append(f"the first {side} of {positions} positions")
        array = array.isel(query=slice(side), key=slice(side))
    return array, f"Showing {', '.join(notes)}; {limit.source} contains all." if notes else ""


def _label_sides(variable: PlotVariable, array: xr.DataArray, example: int) -> dict[str, list[str]]:
    """Return the token at each query and key position of an example."""
    return {dim: label_positions(variable, dim, example)[: array.sizes[dim]] for dim in ("query", "key")}
