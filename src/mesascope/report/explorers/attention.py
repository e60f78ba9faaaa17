"""Attention browser: a thumbnail of every head's pattern, and the selected one enlarged."""

from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.figure import DIVERGING_COLOURS, SEQUENTIAL_COLOURS, Panel
from mesascope.report.plotting.variable import PlotVariable, label_positions
from mesascope.report.text import format_count

PATTERN_DIMS = ("seed", "layer", "head", "batch", "query", "key")
MAX_WEIGHTS = 600_000  # weights in one page: about 2 MB


def build_attention_browser(variable: PlotVariable) -> Panel:
    """Show the attention patterns of all heads at the last step.

    Weights are stored as integers, in thousandths of the largest absolute weight.

    Args:
        variable: attention with the axes query and key, and any of seed, layer, head and batch.

    Returns:
        The panel.
    """
    array = variable.select_step()
    missing = [d for d in PATTERN_DIMS if d not in array.dims]
    limited, left_out = _limit_size(array.expand_dims(missing).transpose(*PATTERN_DIMS))
    caption = variable.build_caption(*_describe_browser(variable, left_out))
    data = _encode_patterns(variable, limited, missing)
    hint = "Click a thumbnail to select a head, or use the arrow keys to move between heads and layers."
    return Panel(kind="attention", title=variable.title, caption=caption, data=data, hint=hint)


def _encode_patterns(variable: PlotVariable, limited: xr.DataArray, missing: list[str]) -> dict[str, Any]:
    values = limited.values
    finite = values[np.isfinite(values)]
    top = float(np.abs(finite).max()) if finite.size else 1.0
    signed = bool(finite.size and finite.min() < 0)
    top = 1.0 if not signed and 0.5 < top <= 1.0 else top or 1.0
    return {
        "shape": list(values.shape),
        "values": _encode_thousandths(values, top),
        "top": top,
        "signed": signed,
        "colours": list(DIVERGING_COLOURS if signed else SEQUENTIAL_COLOURS),
        "names": {d: _list_names(limited, variable, d, d in missing) for d in PATTERN_DIMS[:4]},
        "labels": [_label_sides(variable, limited, k) for k in range(limited.sizes["batch"])],
        "units": "" if variable.units == "1" else variable.units,
    }


def _limit_size(full: xr.DataArray) -> tuple[xr.DataArray, list[str]]:
    """Return as much as fits on the page (fewer examples, then seeds, then positions), and what was left out."""
    left_out = []
    for dim, noun in (("batch", "example"), ("seed", "seed")):
        max_size = max(1, MAX_WEIGHTS // max(1, full.size // full.sizes[dim]))
        if full.sizes[dim] > max_size:
            left_out.append(f"the first {max_size} of {format_count(full.sizes[dim], noun)}")
            full = full.isel({dim: slice(max_size)})
    if full.size > MAX_WEIGHTS:
        side = max(8, int(np.sqrt(MAX_WEIGHTS / (full.size / full.sizes["query"] / full.sizes["key"]))))
        left_out.append(f"the first {side} of {full.sizes['query']} positions")
        full = full.isel(query=slice(side), key=slice(side))
    return full, left_out


def _encode_thousandths(values: np.ndarray, top: float) -> list[int | None]:
    """Return values as thousandths of ``top``; None where a value is missing."""
    flat = np.round(values.ravel() / top * 1000)
    if np.isfinite(flat).all():
        return flat.astype(int).tolist()
    return [int(v) if np.isfinite(v) else None for v in flat]


def _list_names(array: xr.DataArray, variable: PlotVariable, dim: str, missing: bool) -> list[str]:
    """Return the labels along an axis; one empty label if the variable does not have the axis."""
    if missing or (dim == "seed" and not variable.has_seeds):
        return [""]
    return (
        [str(v) for v in array[dim].values.tolist()]
        if dim in array.coords
        else [str(k) for k in range(array.sizes[dim])]
    )


def _label_sides(variable: PlotVariable, array: xr.DataArray, example: int) -> dict[str, Any]:
    """Return the token or value at each query and key position of an example."""
    sides = {}
    for dim in ("query", "key"):
        sides[dim] = label_positions(variable, dim, example)[: array.sizes[dim]]
    return sides


def _describe_browser(variable: PlotVariable, left_out: list[str]) -> list[str]:
    notes = ["Rows are queries, columns are keys", variable.describe_step()]
    notes += [f"Showing {', '.join(left_out)}; the file contains all"] if left_out else []
    return [*filter(None, notes)]
