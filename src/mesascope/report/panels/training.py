"""Curves of the training log, thinned for the page, raw and smoothed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mesascope.report.plotting.axes import build_axis, build_log_axis, build_step_axis
from mesascope.report.plotting.figure import SERIES_COLOURS, Panel, build_layout
from mesascope.report.plotting.traces import build_line, build_seed_line
from mesascope.report.text import format_count

MAX_POINTS = 400
MAIN_COLUMNS = ("loss", "gradient_norm", "learning_rate")
SMOOTHING_FRACTION = 0.02  # window of the running mean, as a fraction of the run

LogColumns = Mapping[str, np.ndarray]


def plot_training_log(logs: Mapping[str, LogColumns]) -> Panel | None:
    """Plot loss, gradient norm and learning rate of every seed over training.

    Args:
        logs: the columns of each seed's log.

    Returns:
        The panel, or None if nothing was logged.
    """
    columns = [name for name in MAIN_COLUMNS if any(_has_values(log, name) for log in logs.values())]
    columns += sorted({n for log in logs.values() for n in log} - {*MAIN_COLUMNS, "step", "seconds"})
    if not columns:
        return None
    plots = [_plot_column(logs, name, 360 if k == 0 else 230) for k, name in enumerate(columns)]
    plots[0]["wide"] = True
    caption = (
        f"Training of {format_count(len(logs), 'seed')}. Pale: single steps, at most {MAX_POINTS}; "
        f"bold: running mean over {SMOOTHING_FRACTION:.0%} of the steps."
    )
    legend = [_build_seed_entry(k, seed, len(logs)) for k, seed in enumerate(logs)] if len(logs) > 1 else []
    data = {"plots": plots, "legend": legend, "min_width": 340, "toggle": True, "shared": True}
    return Panel(kind="figure", title="", caption=caption, data=data)


def thin_rows(count: int, max_rows: int = MAX_POINTS) -> np.ndarray:
    """Select rows to draw: half evenly spaced, half evenly spaced on a logarithmic axis.

    Args:
        count: the number of rows.
        max_rows: the maximum number of rows to keep.

    Returns:
        Sorted row indices, the first and the last row included.

    >>> thin_rows(3).tolist()
    [0, 1, 2]
    >>> len(thin_rows(100_000)) <= 400
    True
    """
    if count <= max_rows:
        return np.arange(count)
    even = np.linspace(0, count - 1, max_rows // 2)
    early = np.geomspace(1, count, max_rows // 2) - 1
    return np.unique(np.concatenate([even, early]).astype(int))


def smooth_values(values: np.ndarray, fraction: float = SMOOTHING_FRACTION) -> np.ndarray:
    """Return a running mean over the preceding rows; near the start, over the last half of the rows so far.

    Args:
        values: numbers in the order of training; NaN is ignored.
        fraction: the width of the window as a fraction of the number of rows.

    Returns:
        Means of the same shape.

    >>> smooth_values(np.array([1.0, 3.0, 5.0]), 0.7).tolist()
    [1.0, 3.0, 4.0]
    """
    window = max(1, round(fraction * len(values)))
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, end // 2)
    number = count[end] - count[start]
    return np.where(number > 0, (total[end] - total[start]) / np.maximum(number, 1), np.nan)


def _plot_column(logs: Mapping[str, LogColumns], name: str, height: int) -> dict[str, Any]:
    """Return the plot of one column: two lines per seed, in the same order in every plot."""
    traces = []
    low, high = np.inf, 0.0
    for k, (seed, log) in enumerate(logs.items()):
        values = np.asarray(log.get(name, np.full(len(log["step"]), np.nan)), dtype=float)
        rows = thin_rows(len(values))
        x, colour = build_step_axis(log["step"].tolist())[0][rows], SERIES_COLOURS[k % len(SERIES_COLOURS)]
        mean = values if name == "learning_rate" else smooth_values(values)
        label = f"seed {seed}" if len(logs) > 1 else name.replace("_", " ")
        traces += [build_seed_line(x, values[rows], colour), build_line(x, mean[rows], label, colour, width=2.2)]
        positive = values[np.isfinite(values) & (values > 0)]
        low, high = min([low, *positive]), max([high, *positive])
    x_axis = build_step_axis(np.concatenate([log["step"] for log in logs.values()]).tolist())[1]
    scale = build_log_axis(low, high) if name == "loss" and high > 5 * low else {"tickformat": "~g"}
    y_axis = build_axis(name.replace("_", " "), **scale)
    return {"title": "", "data": traces, "layout": build_layout(x_axis, y_axis), "height": height}


def _build_seed_entry(k: int, seed: str, seeds: int) -> dict[str, Any]:
    """Return the legend entry of a seed, which toggles its two lines in every plot."""
    colour = SERIES_COLOURS[k % len(SERIES_COLOURS)]
    return {"name": f"seed {seed}", "colour": colour, "dash": "solid", "kind": "line", "traces": [2 * k, 2 * k + 1]}


def _has_values(log: LogColumns, name: str) -> bool:
    return name in log and bool(np.isfinite(log[name]).any())
