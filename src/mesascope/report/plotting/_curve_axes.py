"""Axes of curves: coordinates along x, and logarithmic or linear values along y."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mesascope.report.plotting.axes import build_axis, build_log_axis, build_step_axis, build_ticks
from mesascope.report.plotting.variable import PlotVariable, label_positions
from mesascope.report.text import format_dim

MAX_SIZE_RATIO = 30.0  # quantities whose sizes differ by a larger factor get separate plots


def build_x_axis(variable: PlotVariable, along: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Build the x axis: logarithmic for steps unless set otherwise, else with the labels of the axis.

    Args:
        variable: the variable.
        along: the axis that is drawn along x.

    Returns:
        Coordinates, and the axis settings.
    """
    size = variable.array.sizes[along]
    if along == "step":
        steps = np.asarray(variable.array["step"].values, dtype=float)
        even = variable.array.attrs.get("steps") == "even"
        return (steps, build_axis("training step")) if even else build_step_axis(steps.tolist())
    labels = label_positions(variable, along)
    whole = labels == [str(k) for k in range(size)]
    few = {"dtick": 1} if size <= 12 else {"nticks": 10}
    look = {**few, "tickformat": "d"} if whole else build_ticks(labels, 14)
    return np.arange(size, dtype=float), build_axis(format_dim(along), **look)


def find_floor(variable: PlotVariable, traces: Sequence[dict[str, Any]]) -> float | None:
    """Find where to cut a logarithmic axis if rounding errors of an exact baseline would flatten other curves.

    Args:
        variable: the variable.
        traces: the curves.

    Returns:
        The lowest value to draw, or None.
    """
    if not _is_logarithmic(variable):
        return None
    values = np.array([v for t in traces for v in t["y"] if v is not None and v > 0])
    bold = [v for t in traces if t["line"]["width"] > 2 for v in t["y"] if v is not None and v > 0]
    if not len(values) or not bold or values.min() >= min(bold):
        return None
    cut = max(min(bold) / 30, max(values) * 1e-12)
    return float(cut) if values.min() < cut else None


def style_y_axis(variable: PlotVariable, traces: Sequence[dict[str, Any]], floor: float | None) -> dict[str, Any]:
    """Choose the scale and the range of the y axis.

    Args:
        variable: the variable.
        traces: the curves.
        floor: the lowest value to draw on a logarithmic axis.

    Returns:
        Settings of the axis.
    """
    if not _is_logarithmic(variable):
        return {"zeroline": True, "zerolinecolor": "#cfcbc0", "tickformat": "~g"}
    values = [v for t in traces for v in t["y"] if v is not None and v > 0] or [1.0]
    look = build_log_axis(floor or min(values), max(values))
    if floor:
        look["range"] = [float(np.log10(floor)), float(np.log10(max(values))) + 0.1]
    return look


def _is_logarithmic(variable: PlotVariable) -> bool:
    """Return whether the y axis is logarithmic: as requested, or if errors with baselines span a factor of 30."""
    if variable.is_log or "scale" in variable.array.attrs or set(variable.plot_dims) != {"pos", "predictor"}:
        return variable.is_log
    positive = variable.array.where(variable.array > 0)
    return bool((variable.array >= 0).all() and positive.max() > 30 * positive.min())


def differ_in_size(variable: PlotVariable, series: str) -> bool:
    """Return whether the quantities along ``stat`` differ too much in size to share a linear axis.

    Args:
        variable: the variable.
        series: the axis of the quantities.

    Returns:
        True if they need separate plots.
    """
    if series != "stat" or variable.is_log:
        return False
    values = np.abs(variable.array.transpose("stat", ...).values).reshape(variable.array.sizes["stat"], -1)
    sizes = np.where(np.isfinite(values), values, 0.0).max(1)
    sizes = sizes[sizes > 0]
    return len(sizes) > 1 and bool(sizes.max() > MAX_SIZE_RATIO * sizes.min())
