"""Axes, cell labels and colour scale that all plots of a heat map panel share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.axes import build_axis, build_ticks
from mesascope.report.plotting.figure import DIVERGING_COLOURS, SEQUENTIAL_COLOURS, build_layout
from mesascope.report.plotting.variable import PlotVariable, escape_labels, label_positions, read_labels
from mesascope.report.text import escape_plotly, format_dim, format_number

MAX_PRINTED_CELLS = 60  # up to this many cells carry their number


def choose_colour_range(variable: PlotVariable, array: xr.DataArray) -> tuple[float, float, tuple[str, ...]]:
    """Choose the colour scale over all cells, controls included.

    Args:
        variable: the variable.
        array: the cells.

    Returns:
        Both ends, and the colours.
    """
    values = np.concatenate([one.values.ravel() for one in (array, *variable.controls)])
    values = values[np.isfinite(values)]
    if variable.is_log:
        values = np.log10(values[values > 0])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if (center := variable.center) is not None and not variable.is_log:
        reach = max(high - center, center - low) or 1.0
        return center - reach, center + reach, DIVERGING_COLOURS
    return low, high if high > low else low + 1.0, SEQUENTIAL_COLOURS


def build_map_spec(
    variable: PlotVariable,
    array: xr.DataArray,
    rows: str,
    columns: str,
    low: float,
    high: float,
    colours: Sequence[str],
) -> dict[str, Any]:
    """Build what all plots share; the cells themselves depend on the choice.

    Args:
        variable: the variable.
        array: the cells.
        rows: the axis of rows.
        columns: the axis of columns.
        low: lower end of the colour scale.
        high: upper end of the colour scale.
        colours: colours from low to high.

    Returns:
        Trace, layout, height and cell labels.
    """
    printed = array.sizes[rows] * array.sizes[columns] <= MAX_PRINTED_CELLS
    x = build_axis(format_dim(columns), **_choose_ticks(variable, array, columns), showgrid=False)
    y = build_axis(format_dim(rows), **_choose_ticks(variable, array, rows), showgrid=False, autorange="reversed")
    longest = max(map(len, x.get("ticktext", [""])))  # plotly rotates long labels, which need room below
    return {
        "data": [_build_map_trace(rows, columns, low, high, colours, printed, variable.is_log)],
        "layout": build_layout(x, y, hovermode="closest"),
        "height": _choose_height(array.sizes[rows], printed) + (6 * min(longest, 26) if longest > 4 else 0),
        "labels": [escape_labels(_label_cells(variable, array, d)) for d in (rows, columns)],
    }


def _build_map_trace(
    rows: str, columns: str, low: float, high: float, colours: Sequence[str], printed: bool, is_log: bool
) -> dict[str, Any]:
    steps = [[k / (len(colours) - 1), colour] for k, colour in enumerate(colours)]
    value = "%{text}" if printed or is_log else "%{z:.3~g}"
    down_word, across_word = escape_plotly(format_dim(rows)), escape_plotly(format_dim(columns))
    hover = f"{down_word} %{{customdata[0]}}, {across_word} %{{customdata[1]}}: <b>{value}</b><extra></extra>"
    trace = {
        "type": "heatmap",
        "zmin": low,
        "zmax": high,
        "colorscale": steps,
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
    }
    trace |= {"hovertemplate": hover, "hoverongaps": False}
    return trace | ({"texttemplate": "%{text}", "textfont": {"size": 12}} if printed else {})


def _choose_height(rows: int, printed: bool) -> int:
    """Return the height of a plot in pixels."""
    row_height = 34 if printed else 20 if rows <= 16 else 12
    return min(max(rows * row_height, 90), 460) + 70


def _label_cells(variable: PlotVariable, array: xr.DataArray, dim: str) -> list[str]:
    """Return labels for the hover text; positions include their token."""
    labels, tokens = read_labels(array, dim), label_positions(variable, dim)
    return labels if labels == tokens else [f"{p} “{t}”" for p, t in zip(labels, tokens, strict=True)]


def _choose_ticks(variable: PlotVariable, array: xr.DataArray, dim: str) -> dict[str, Any]:
    """Return tick labels; tokens if there are few enough to read."""
    labels = label_positions(variable, dim) if array.sizes[dim] <= 32 else read_labels(array, dim)
    tokens = labels != read_labels(array, dim)
    whole = labels == [str(k) for k in range(len(labels))]
    return {"nticks": 8, "tickformat": "d"} if whole and len(labels) > 12 else build_ticks(labels, 32 if tokens else 16)


def build_colour_scale(variable: PlotVariable, low: float, high: float, colours: Sequence[str]) -> dict[str, Any]:
    """Build the colour scale that is drawn beside the plots.

    Args:
        variable: the variable.
        low: lower end of the colour scale.
        high: upper end of the colour scale.
        colours: colours from low to high.

    Returns:
        Colours, end labels and units.
    """
    ends = [10**v if variable.is_log else v for v in (low, (low + high) / 2, high)]
    words = [
        "0" if abs(v) < 1e-3 * max(map(abs, ends)) and not variable.is_log else format_number(float(f"{v:.3g}"))
        for v in ends
    ]
    return {"colours": list(colours), "ends": words, "units": "" if variable.units == "1" else variable.units}
