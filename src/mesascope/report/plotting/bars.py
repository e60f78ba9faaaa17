"""Bar plots: one number per component, predictor or named quantity."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.axes import append_units, build_axis, build_log_axis
from mesascope.report.plotting.controls import control_colour, control_name
from mesascope.report.plotting.figure import (
    BAR_COLOUR,
    FONT_FAMILY,
    MODEL_COLOUR,
    TEXT_COLOUR,
    Panel,
    build_layout,
    build_legend_entry,
)
from mesascope.report.plotting.traces import finite_mean
from mesascope.report.plotting.variable import PlotVariable, read_labels
from mesascope.report.text import escape_plotly, format_dim, round_significant, truncate_label


def plot_bars(variable: PlotVariable) -> Panel:
    """Plot the mean over seeds as a bar and each seed as a ring. On a logarithmic axis the mean is a tick.

    Args:
        variable: a variable with one axis besides seed and step.

    Returns:
        The panel.
    """
    dim = variable.plot_dims[0]
    labels = [truncate_label(name) for name in variable.list_labels(dim)]
    rows = variable.select_step().transpose("seed", dim).values
    legend = [build_legend_entry("mean", MODEL_COLOUR, [0], kind="tick" if variable.is_log else "bar")]
    traces = [_plot_means(variable, rows, labels)]
    for name, colour, values, symbol, kind in _list_markers(variable, rows, dim):
        _add_series(traces, legend, name, colour, _plot_markers(values, labels, colour, symbol), kind)
    height = 26 * len(labels) + 80
    plot = {"title": "", "data": traces, "layout": _build_bar_layout(variable, dim, labels), "height": height}
    data = {"plots": [plot], "legend": legend if len(legend) > 1 else []}
    caption = variable.build_caption(*_describe_marks(variable))
    return Panel(kind="figure", title=variable.title, caption=caption, data=data)


def _list_markers(
    variable: PlotVariable, rows: np.ndarray, dim: str
) -> Iterator[tuple[str, str, np.ndarray, str, str]]:
    """Yield name, colour, values, symbol and kind of legend entry of the seeds, the first step and each control."""
    if variable.num_seeds > 1:
        yield "seeds", TEXT_COLOUR, rows, "circle-open", "ring"
    if variable.array.sizes.get("step", 1) > 1:
        first = variable.select_step(0).transpose("seed", dim).values.mean(0, keepdims=True)
        if not np.allclose(first, rows.mean(0), equal_nan=True):
            yield "untrained", "#c8641b", first, "diamond", "diamond"
    for control in variable.controls:
        if (values := _align_control(control, dim, rows.shape[1])) is not None:
            yield control_name(control), control_colour(control), values, "line-ns-open", "tick"


def _plot_means(variable: PlotVariable, rows: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """Return bars, or ticks on a logarithmic axis, which has no zero to start a bar from."""
    common = {
        "x": round_significant(finite_mean(rows)),
        "y": list(range(len(labels))),
        "name": "mean",
        "text": [escape_plotly(one) for one in labels],
        "hovertemplate": "%{text}: <b>%{x:.3~g}</b><extra></extra>",
        "textposition": "none",
    }
    if variable.is_log:
        mark = {
            "type": "scatter",
            "mode": "markers",
            "marker": {"size": 12, "color": MODEL_COLOUR, "symbol": "line-ns-open"},
        }
        mark["marker"]["line"] = {"width": 3}
        return {k: v for k, v in common.items() if k != "textposition"} | mark
    return {"type": "bar", "orientation": "h", "marker": {"color": BAR_COLOUR}, "width": 0.62, **common}


def _plot_markers(rows: np.ndarray, labels: list[str], colour: str, symbol: str) -> dict[str, Any]:
    line = {"width": 2.2 if symbol == "line-ns-open" else 1.4, "color": colour}
    marker = {"size": 9 if symbol == "line-ns-open" else 7, "color": colour, "symbol": symbol, "line": line}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": round_significant(rows.ravel()),
        "y": list(range(len(labels))) * len(rows),
        "marker": marker,
        "text": [escape_plotly(one) for one in labels] * len(rows),
        "hovertemplate": "%{text}: %{x:.3~g}<extra></extra>",
    }


def _add_series(traces: list, legend: list, name: str, colour: str, trace: dict[str, Any], kind: str) -> None:
    legend.append(build_legend_entry(name, colour, [len(traces)], kind=kind))
    traces.append(trace | {"name": escape_plotly(name)})


def _align_control(control: xr.DataArray, dim: str, size: int) -> np.ndarray | None:
    """Return a control's numbers, axes (seed, dim); a scalar is repeated for all labels. None if labels differ."""
    last_step = control.isel(step=-1) if "step" in control.dims else control
    last_step = last_step if dim in last_step.dims else last_step.expand_dims({dim: size}, axis=-1)
    values = last_step.mean([d for d in last_step.dims if d not in ("seed", dim)]).transpose("seed", dim).values
    return values if values.shape[1] == size and read_labels(last_step, dim) else None


def _build_bar_layout(variable: PlotVariable, dim: str, labels: list[str]) -> dict[str, Any]:
    marks = {
        "tickmode": "array",
        "tickvals": list(range(len(labels))),
        "ticktext": [escape_plotly(one) for one in labels],
    }
    positive = variable.select_step().values[variable.select_step().values > 0]
    kind = (
        build_log_axis(positive.min(), positive.max(), max_labels=3)
        if len(positive) and variable.is_log
        else {"tickformat": "~g"}
    )
    x = build_axis(
        append_units(variable.title, variable.units),
        **kind | {"zeroline": not variable.is_log, "zerolinecolor": "#8a8f98"},
    )
    y = build_axis(
        "", **marks, showgrid=False, range=[len(labels) - 0.4, -0.6], tickfont={"family": FONT_FAMILY, "size": 12.5}
    )
    y["title"] = {"text": ""}
    return build_layout(x, y, hovermode="closest", bargap=0.35)


def _describe_marks(variable: PlotVariable) -> list[str]:
    dim = format_dim(variable.plot_dims[0])
    over = f": bars are the mean over {variable.seed_count}, rings the seeds" if variable.num_seeds > 1 else ""
    return [f"One row per {dim}{', ' + variable.describe_step() if variable.describe_step() else ''}{over}"]
