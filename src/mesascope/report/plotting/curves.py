"""Curves over positions (with baselines), training steps, layers, or any other ordered axis."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting._curve_axes import (
    build_x_axis,
    differ_in_size,
    find_floor,
    style_y_axis,
)
from mesascope.report.plotting.axes import append_units, build_axis
from mesascope.report.plotting.controls import control_colour, control_name, has_kind
from mesascope.report.plotting.figure import (
    BASELINE_COLOURS,
    DASH_STYLES,
    GREY,
    MODEL_COLOUR,
    SERIES_COLOURS,
    Panel,
    PlotBuilder,
    build_layout,
    merge_legends,
)
from mesascope.report.plotting.traces import build_line, build_range_band, build_seed_line, finite_mean
from mesascope.report.plotting.variable import CATEGORICAL_DIMS, PlotVariable
from mesascope.report.text import format_count, format_number, join_words

MAX_SEED_LINES = 5  # up to this many seeds are drawn as lines, more as a band


def plot_over_steps(variable: PlotVariable) -> Panel:
    """Plot curves over training steps, one for each label of the other axis if there is one.

    Args:
        variable: a variable with the axis ``step`` and at most one named axis.

    Returns:
        The panel.
    """
    return _build_curve_panel(variable, "step", "Over training")


def plot_over_axis(variable: PlotVariable) -> Panel:
    """Plot curves over layers, positions or coordinates: after training, and dashed before training.

    Args:
        variable: a variable with one ordered axis and at most one named axis.

    Returns:
        The panel.
    """
    along = next(d for d in variable.plot_dims if d not in CATEGORICAL_DIMS)
    return _build_curve_panel(variable, along, "")


def _build_curve_panel(variable: PlotVariable, along: str, note: str) -> Panel:
    """Build the panel: one plot for all series, or one per series if their sizes differ or each has controls."""
    series = next((d for d in variable.plot_dims if d != along), None)
    labels = variable.list_labels(series) if series else [variable.title]
    separate, single = (
        bool(series) and differ_in_size(variable, series),
        bool(series) and _has_own_controls(variable, series),
    )
    drawn = [k for k in range(len(labels)) if not single or _has_values(variable, series, k)] or [0]
    groups = [[k] for k in drawn] if separate or single else [drawn]
    plots, legends, floors = [], [], []
    for group in groups:
        builder = _build_plot(variable, along, series, [labels[k] for k in group], group, single)
        floor = find_floor(variable, builder.traces)
        name = labels[group[0]] if separate and len(groups) > 1 else variable.title
        y = build_axis(append_units(name, variable.units), **style_y_axis(variable, builder.traces, floor))
        x = build_x_axis(variable, along)[1]
        height = 380 if len(groups) == 1 else 260
        title = labels[group[0]] if len(groups) > 1 or single else ""
        legends.append(builder.legend)
        floors += [floor] if floor else []
        plot = {"title": title, "data": builder.traces, "layout": build_layout(x, y), "height": height}
        plots.append(plot | ({"thin": variable.array.sizes[along]} if "ticktext" in x and along != "step" else {}))
    absent = [label for k, label in enumerate(labels) if k not in drawn]
    notes = [note, *_describe_lines(variable, along, series, floors)]
    notes += [_describe_dashes(variable, along, separate and not single)]
    notes += [f"Not measured: {join_words(absent)}"] if absent else []
    legend = legends[0] if len(groups) == 1 else merge_legends(legends) if single else []
    data = {"plots": plots, "legend": legend if len(legend) > 1 else []}
    return Panel(kind="figure", title=variable.title, caption=variable.build_caption(*filter(None, notes)), data=data)


def _has_own_controls(variable: PlotVariable, series: str) -> bool:
    """Return whether each series has named controls of its own, which would overlap in a single plot."""
    return any(has_kind(control) and series in control.dims for control in variable.controls)


def _has_values(variable: PlotVariable, series: str | None, k: int) -> bool:
    return bool(np.isfinite(variable.array.isel({series: k}).values).any())


def _build_plot(
    variable: PlotVariable,
    along: str,
    series: str | None,
    labels: Sequence[str],
    group: Sequence[int],
    single: bool = False,
) -> PlotBuilder:
    """Collect the lines of one plot: controls behind, then baselines, the model in front."""
    builder, x = PlotBuilder(), build_x_axis(variable, along)[0]
    for control in variable.controls:
        _add_control(builder, variable, control, along, series, group)
    order = sorted(zip(group, labels, strict=True), key=lambda one: one[1] == "model")
    has_baselines = "model" in (variable.list_labels(series) if series else [])
    for k, label in order:
        rows = _select_rows(variable.select_step() if along != "step" else variable.array, along, series, k)
        if has_baselines and label != "model":
            builder.add_series(label, *_plot_baseline(x, rows, label, k), dash=DASH_STYLES[k % len(DASH_STYLES)])
            continue
        one_colour = has_baselines or series is None or len(group) < len(variable.list_labels(series))
        colour = MODEL_COLOUR if one_colour else SERIES_COLOURS[k % len(SERIES_COLOURS)]
        unlabelled = single or series is None
        _add_model(builder, variable, x, rows, _format_trained_label(variable, along) if unlabelled else label, colour)
        before = _format_untrained_label(variable)
        first = (GREY, before) if unlabelled else (colour, f"{label}, {before}")
        _add_untrained(builder, variable, along, series, k, *first)
    builder.legend.sort(key=lambda one: (one["kind"] == "band", has_baselines and not one["name"].startswith("model")))
    return builder


def _plot_baseline(x: np.ndarray, rows: np.ndarray, label: str, k: int) -> tuple[str, list[dict[str, Any]]]:
    colour = BASELINE_COLOURS[k % len(BASELINE_COLOURS)]
    return colour, [build_line(x, finite_mean(rows), label, colour, width=1.5, dash=DASH_STYLES[k % len(DASH_STYLES)])]


def _add_model(
    builder: PlotBuilder, variable: PlotVariable, x: np.ndarray, rows: np.ndarray, label: str, colour: str
) -> None:
    """Add the mean in bold, with each seed as a thin line or all seeds as a band."""
    traces = []
    if len(rows) > MAX_SEED_LINES:
        traces.append(build_range_band(x, rows, colour))
    elif len(rows) > 1:
        traces += [build_seed_line(x, row, colour) for row in rows]
    marks = {"mode": "lines+markers", "marker": {"size": 5}} if len(x) <= 40 else {}
    builder.add_series(label, colour, [*traces, build_line(x, finite_mean(rows), label, colour, width=2.8, **marks)])


def _add_untrained(
    builder: PlotBuilder, variable: PlotVariable, along: str, series: str | None, k: int, colour: str, label: str
) -> None:
    """Add the first step as a dashed line if it differs from the last."""
    if along == "step" or variable.array.sizes.get("step", 1) < 2:
        return
    first, last = (_select_rows(variable.select_step(step), along, series, k) for step in (0, -1))
    if np.allclose(first, last, equal_nan=True):
        return
    x = build_x_axis(variable, along)[0]
    builder.add_series(
        label, colour, [build_line(x, finite_mean(first), label, colour, width=1.6, dash="dash")], dash="dash"
    )


def _add_control(
    builder: PlotBuilder,
    variable: PlotVariable,
    control: xr.DataArray,
    along: str,
    series: str | None,
    group: Sequence[int],
) -> None:
    """Add a control: a band over seeds and draws, and its mean as a dotted line."""
    values = control.isel(step=-1) if along != "step" and "step" in control.dims else control
    if along not in values.dims:
        values = values.expand_dims({along: variable.array.sizes[along]}, axis=-1)
    x = build_x_axis(variable, along)[0]
    for k in group if series in values.dims else [None]:
        rows = _select_rows(values, along, series, k)
        if rows.shape[-1] != len(x) or not np.isfinite(rows).any():
            continue
        name, colour = control_name(control), control_colour(control)
        mean = build_line(x, finite_mean(rows), name, colour, width=1.6, dash="dot")
        builder.add_series(name, colour, [build_range_band(x, rows, colour, 0.22), mean], "dot", "band")


def _select_rows(array: xr.DataArray, along: str, series: str | None, k: int | None) -> np.ndarray:
    """Return numbers with axes (seed, along), averaged over any further axes of a control."""
    numbers = array.variable  # indexing without coordinates is much faster
    if series in numbers.dims and k is not None:
        numbers = numbers.isel({series: k})
    extra = [d for d in numbers.dims if d not in ("seed", along)]
    return (numbers.mean(extra) if extra else numbers).transpose("seed", along).values


def _format_trained_label(variable: PlotVariable, along: str) -> str:
    return (
        f"trained, {variable.describe_step().removeprefix('at ')}"
        if along != "step" and variable.describe_step()
        else variable.title
    )


def _format_untrained_label(variable: PlotVariable) -> str:
    first = int(variable.array["step"][0]) if "step" in variable.array.coords else 0
    return f"step {first:,}" if first else "untrained"


def _describe_lines(variable: PlotVariable, along: str, series: str | None, floors: Sequence[float]) -> list[str]:
    notes = [variable.describe_step()] if along != "step" and series else []
    if variable.num_seeds > 1:
        seed_note = "thin lines: seeds" if variable.num_seeds <= MAX_SEED_LINES else "band: range over seeds"
        notes.append(f"Bold: mean over {variable.seed_count}; {seed_note}")
    elif variable.has_seeds:
        notes.append(format_count(variable.num_seeds, "seed"))
    if any(map(has_kind, variable.controls)):
        notes.append("Bands: range of the controls over draws; dotted: mean of each control")
    if not all(map(has_kind, variable.controls)):
        notes.append("Grey: control (null), range and mean over seeds")
    if floors:
        notes.append(f"Values below {format_number(min(floors))} are outside the plot")
    return notes


def _describe_dashes(variable: PlotVariable, along: str, separate: bool) -> str:
    return "Dashed: before training" if separate and along != "step" and "step" in variable.array.dims else ""
