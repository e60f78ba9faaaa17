"""Curves of the training log: thinned for the page, raw and smoothed."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mesascope.report.plotting.figure import SERIES, Panel, axis, faint, layout, line, log_look, step_axis
from mesascope.report.text import several

POINTS = 400
DRAWN = ("loss", "gradient_norm", "learning_rate")
MEMORY = 0.02  # the smoothing averages over this share of the run

Log = Mapping[str, np.ndarray]


def training(logs: Mapping[str, Log]) -> Panel | None:
    """Loss, gradient norm and learning rate of every seed; None where nothing was logged."""
    columns = [name for name in DRAWN if any(_some(log, name) for log in logs.values())]
    columns += sorted({n for log in logs.values() for n in log} - {*DRAWN, "step", "seconds"})
    if not columns:
        return None
    plots = [_plot(logs, name, 360 if k == 0 else 230) for k, name in enumerate(columns)]
    plots[0]["wide"] = True
    caption = (
        f"Training of {several(len(logs), 'seed')}. Pale: at single steps, at most {POINTS} of them; "
        f"bold: a running mean over {MEMORY:.0%} of the steps."
    )
    legend = [_entry(k, seed, len(logs)) for k, seed in enumerate(logs)] if len(logs) > 1 else []
    data = {"plots": plots, "legend": legend, "least": 340, "toggle": True, "shared": True}
    return Panel(kind="figure", title="", caption=caption, data=data)


def thin(count: int, points: int = POINTS) -> np.ndarray:
    """Which rows to keep: half of them evenly spaced, half evenly on a logarithmic axis.

    >>> thin(3).tolist()
    [0, 1, 2]
    >>> len(thin(100_000)) <= 400
    True
    """
    if count <= points:
        return np.arange(count)
    even = np.linspace(0, count - 1, points // 2)
    early = np.geomspace(1, count, points // 2) - 1
    return np.unique(np.concatenate([even, early]).astype(int))


def smooth(values: np.ndarray, share: float = MEMORY) -> np.ndarray:
    """A running mean over the last so many rows, at the start over the last half; NaN counts for nothing.

    >>> smooth(np.array([1.0, 3.0, 5.0]), share=0.7).tolist()
    [1.0, 3.0, 4.0]
    """
    window = max(1, round(share * len(values)))
    known = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, end // 2)
    number = count[end] - count[start]
    return np.where(number > 0, (total[end] - total[start]) / np.maximum(number, 1), np.nan)


def _plot(logs: Mapping[str, Log], name: str, height: int) -> dict[str, Any]:
    """One column of the log: two lines for each seed, in the same order in every plot."""
    traces = []
    low, high = np.inf, 0.0
    for k, (seed, log) in enumerate(logs.items()):
        values = np.asarray(log.get(name, np.full(len(log["step"]), np.nan)), dtype=float)
        kept = thin(len(values))
        x, colour = step_axis(log["step"].tolist())[0][kept], SERIES[k % len(SERIES)]
        mean = values if name == "learning_rate" else smooth(values)
        label = f"seed {seed}" if len(logs) > 1 else name.replace("_", " ")
        traces += [faint(x, values[kept], colour), line(x, mean[kept], label, colour, width=2.2)]
        positive = values[np.isfinite(values) & (values > 0)]
        low, high = min([low, *positive]), max([high, *positive])
    x_axis = step_axis(np.concatenate([log["step"] for log in logs.values()]).tolist())[1]
    scale = log_look(low, high) if name == "loss" and high > 5 * low else {"tickformat": "~g"}
    y_axis = axis(name.replace("_", " "), **scale)
    return {"title": "", "data": traces, "layout": layout(x_axis, y_axis), "height": height}


def _entry(k: int, seed: str, seeds: int) -> dict[str, Any]:
    """A button of the legend for one seed: its two lines in every plot."""
    colour = SERIES[k % len(SERIES)]
    return {"name": f"seed {seed}", "colour": colour, "dash": "solid", "kind": "line", "traces": [2 * k, 2 * k + 1]}


def _some(log: Log, name: str) -> bool:
    """Whether a log has a number in this column."""
    return name in log and bool(np.isfinite(log[name]).any())
