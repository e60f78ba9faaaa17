"""Traces of curves: lines, thin lines of seeds, and bands."""

from typing import Any

import numpy as np

from mesascope.report.text import escape_plotly, round_significant


def build_line(x: Any, y: Any, name: str, colour: str, **settings: Any) -> dict[str, Any]:
    """Return a line trace with hover text.

    Args:
        x: x coordinates.
        y: y coordinates.
        name: the name in the hover text.
        colour: the colour.
        **settings: ``width``, ``dash`` and further plotly settings.

    Returns:
        The trace.
    """
    look = {"color": colour, "width": settings.pop("width", 2.4), "dash": settings.pop("dash", "solid")}
    points = {"x": round_significant(x, 7), "y": round_significant(y)}
    trace = {"type": "scatter", "mode": "lines", "name": escape_plotly(name), **points, "line": look}
    return {**trace, "hovertemplate": "%{y:.3~g}", "connectgaps": False, **settings}


def build_seed_line(x: Any, y: Any, colour: str, **settings: Any) -> dict[str, Any]:
    """Return a thin line trace without hover text, such as a single seed.

    Args:
        x: x coordinates.
        y: y coordinates.
        colour: the colour.
        **settings: further plotly settings.

    Returns:
        The trace.
    """
    return build_line(x, y, "", colour, width=1, opacity=0.45, hoverinfo="skip", **settings) | {"hovertemplate": None}


def build_band(x: Any, low: Any, high: Any, colour: str, opacity: float = 0.16) -> dict[str, Any]:
    """Return a trace of the filled area between two curves.

    Args:
        x: x coordinates.
        low: the lower curve.
        high: the upper curve.
        colour: the fill colour.
        opacity: the opacity, from 0 to 1.

    Returns:
        The trace; points where either curve is not finite are left out.
    """
    x, low, high = (np.asarray(one, dtype=float) for one in (x, low, high))
    finite = np.isfinite(low) & np.isfinite(high)
    outline = np.concatenate([x[finite], x[finite][::-1]])
    edge = np.concatenate([high[finite], low[finite][::-1]])
    shape = {"type": "scatter", "mode": "lines", "fill": "toself", "line": {"width": 0}, "hoverinfo": "skip"}
    points = {"x": round_significant(outline, 7), "y": round_significant(edge)}
    return {**shape, **points, "fillcolor": colour, "opacity": opacity, "name": ""}


def finite_mean(rows: np.ndarray) -> np.ndarray:
    """Return the mean of the finite values over the first axis.

    Args:
        rows: numbers, axis 0 is averaged.

    Returns:
        Means; NaN where no value is finite.

    >>> finite_mean(np.array([[1.0, np.nan], [3.0, np.nan]])).tolist()
    [2.0, nan]
    """
    finite = np.isfinite(rows)
    total = np.where(finite, rows, 0.0).sum(0)
    return np.where(finite.any(0), total / np.maximum(finite.sum(0), 1), np.nan)


def build_range_band(x: Any, rows: np.ndarray, colour: str, opacity: float = 0.16) -> dict[str, Any]:
    """Return a band from the minimum to the maximum of the finite values over the first axis.

    Args:
        x: x coordinates.
        rows: curves as rows.
        colour: the fill colour.
        opacity: the opacity, from 0 to 1.

    Returns:
        The trace.
    """
    finite = np.isfinite(rows)
    low = np.where(finite.any(0), np.where(finite, rows, np.inf).min(0), np.nan)
    high = np.where(finite.any(0), np.where(finite, rows, -np.inf).max(0), np.nan)
    return build_band(x, low, high, colour, opacity)
