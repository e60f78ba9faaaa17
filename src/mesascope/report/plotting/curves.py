"""Curves: over positions beside oracles, over training, over layers, or over any other ordered axis."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.controls import control_colour, control_name, named
from mesascope.report.plotting.figure import (
    DASHES,
    GREY,
    MODEL,
    OTHERS,
    SERIES,
    Drawing,
    Panel,
    axis,
    faint,
    layout,
    line,
    log_look,
    mean,
    shared,
    spread,
    step_axis,
    ticks,
    with_units,
)
from mesascope.report.plotting.variable import NAMES, Shown, position_names
from mesascope.report.text import listed, number, several, word

THIN = 5  # up to so many seeds are drawn one by one; more become a band
APART = 30.0  # quantities whose sizes differ by more than this get plots of their own


def over_steps(shown: Shown) -> Panel:
    """Curves over training, one for each label of the other dim if there is one."""
    return _panel(shown, "step", "Over training")


def over_axis(shown: Shown) -> Panel:
    """Curves over layers, positions or coordinates: after training, and before it dashed."""
    along = next(d for d in shown.rest if d not in NAMES)
    return _panel(shown, along, "")


def _panel(shown: Shown, along: str, lead: str) -> Panel:
    """One plot with all series, or one for each: where sizes lie too far apart, or controls stand behind them."""
    series = next((d for d in shown.rest if d != along), None)
    labels = shown.names(series) if series else [shown.title]
    apart, single = bool(series) and _far_apart(shown, series), bool(series) and _own_controls(shown, series)
    some = [k for k in range(len(labels)) if not single or _any(shown, series, k)] or [0]
    groups = [[k] for k in some] if apart or single else [some]
    plots, legends, below = [], [], []
    for group in groups:
        drawing = _draw(shown, along, series, [labels[k] for k in group], group, single)
        floor = _floor(shown, drawing.traces, along)
        name = labels[group[0]] if apart and len(groups) > 1 else shown.title
        y = axis(with_units(name, shown.units), **_y_look(shown, drawing.traces, floor))
        x = _x_axis(shown, along)[1]
        height = 380 if len(groups) == 1 else 260
        title = labels[group[0]] if len(groups) > 1 or single else ""
        legends.append(drawing.legend)
        below += [floor] if floor else []
        plot = {"title": title, "data": drawing.traces, "layout": layout(x, y), "height": height}
        plots.append(plot | ({"thin": shown.array.sizes[along]} if "ticktext" in x and along != "step" else {}))
    absent = [label for k, label in enumerate(labels) if k not in some]
    notes = [lead, *_notes(shown, along, series, below), _apart_note(shown, along, apart and not single)]
    notes += [f"Not measured: {listed(absent)}"] if absent else []
    legend = legends[0] if len(groups) == 1 else shared(legends) if single else []
    data = {"plots": plots, "legend": legend if len(legend) > 1 else []}
    return Panel(kind="figure", title=shown.title, caption=shown.caption(*filter(None, notes)), data=data)


def _own_controls(shown: Shown, series: str) -> bool:
    """Whether each series has named controls of its own, which would hide one another in one plot."""
    return any(named(control) and series in control.dims for control in shown.controls)


def _any(shown: Shown, series: str | None, k: int) -> bool:
    """Whether a series has any number at all."""
    return bool(np.isfinite(shown.array.isel({series: k}).values).any())


def _draw(
    shown: Shown, along: str, series: str | None, labels: Sequence[str], group: Sequence[int], single: bool = False
) -> Drawing:
    """All lines of one plot: the controls behind, the oracles next, the model in front."""
    drawing, x = Drawing(), _x_axis(shown, along)[0]
    for control in shown.controls:
        _add_control(drawing, shown, control, along, series, group)
    order = sorted(zip(group, labels, strict=True), key=lambda one: one[1] == "model")
    known = "model" in (shown.names(series) if series else [])
    for k, label in order:
        now = _rows(shown.at() if along != "step" else shown.array, along, series, k)
        if known and label != "model":
            drawing.add(label, *_oracle(x, now, label, k), dash=DASHES[k % len(DASHES)])
            continue
        colour = MODEL if known or series is None or len(group) < len(shown.names(series)) else SERIES[k % len(SERIES)]
        alone = single or series is None
        _add_model(drawing, shown, x, now, _after(shown, along) if alone else label, colour)
        before = _before(shown)
        first = (GREY, before) if alone else (colour, f"{label}, {before}")
        _add_untrained(drawing, shown, along, series, k, *first)
    drawing.legend.sort(key=lambda one: (one["kind"] == "band", known and not one["name"].startswith("model")))
    return drawing


def _oracle(x: np.ndarray, rows: np.ndarray, label: str, k: int) -> tuple[str, list[dict[str, Any]]]:
    """A muted curve for a predictor whose algorithm is known."""
    colour = OTHERS[k % len(OTHERS)]
    return colour, [line(x, mean(rows), label, colour, width=1.5, dash=DASHES[k % len(DASHES)])]


def _add_model(drawing: Drawing, shown: Shown, x: np.ndarray, rows: np.ndarray, label: str, colour: str) -> None:
    """The mean in bold, with each seed thin or all seeds as a band."""
    traces = []
    if len(rows) > THIN:
        traces.append(spread(x, rows, colour))
    elif len(rows) > 1:
        traces += [faint(x, row, colour) for row in rows]
    marks = {"mode": "lines+markers", "marker": {"size": 5}} if len(x) <= 40 else {}
    drawing.add(label, colour, [*traces, line(x, mean(rows), label, colour, width=2.8, **marks)])


def _add_untrained(
    drawing: Drawing, shown: Shown, along: str, series: str | None, k: int, colour: str, label: str
) -> None:
    """The first step, dashed, where it differs from the last."""
    if along == "step" or shown.array.sizes.get("step", 1) < 2:
        return
    first, last = (_rows(shown.at(step), along, series, k) for step in (0, -1))
    if np.allclose(first, last, equal_nan=True):
        return
    x = _x_axis(shown, along)[0]
    drawing.add(label, colour, [line(x, mean(first), label, colour, width=1.6, dash="dash")], dash="dash")


def _add_control(
    drawing: Drawing, shown: Shown, control: xr.DataArray, along: str, series: str | None, group: Sequence[int]
) -> None:
    """What the curve is where there is nothing to find: a band over seeds and draws and its dotted mean."""
    at = control.isel(step=-1) if along != "step" and "step" in control.dims else control
    if along not in at.dims:
        at = at.expand_dims({along: shown.array.sizes[along]}, axis=-1)
    x = _x_axis(shown, along)[0]
    for k in group if series in at.dims else [None]:
        rows = _rows(at, along, series, k)
        if rows.shape[-1] != len(x) or not np.isfinite(rows).any():
            continue
        name, colour = control_name(control), control_colour(control)
        range_ = [spread(x, rows, colour, 0.22)]
        drawing.add(name, colour, [*range_, line(x, mean(rows), name, colour, width=1.6, dash="dot")], "dot", "band")


def _rows(array: xr.DataArray, along: str, series: str | None, k: int | None) -> np.ndarray:
    """Seeds as rows and the drawn axis as columns; further dims of a control are averaged."""
    numbers = array.variable  # its labels would be carried along through every step, for nothing
    if series in numbers.dims and k is not None:
        numbers = numbers.isel({series: k})
    extra = [d for d in numbers.dims if d not in ("seed", along)]
    return (numbers.mean(extra) if extra else numbers).transpose("seed", along).values


def _x_axis(shown: Shown, along: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Where points lie, and the axis: logarithmic for steps unless asked otherwise, labelled where labels are words."""
    size = shown.array.sizes[along]
    if along == "step":
        steps = np.asarray(shown.array["step"].values, dtype=float)
        even = shown.array.attrs.get("steps") == "even"
        return (steps, axis("training step")) if even else step_axis(steps.tolist())
    labels = position_names(shown, along)
    whole = labels == [str(k) for k in range(size)]
    few = {"dtick": 1} if size <= 12 else {"nticks": 10}
    look = {**few, "tickformat": "d"} if whole else ticks(labels, 14)
    return np.arange(size, dtype=float), axis(word(along), **look)


def _floor(shown: Shown, traces: Sequence[dict[str, Any]], along: str) -> float | None:
    """On a logarithmic axis: where to cut, if an exact oracle's rounding errors would flatten all else."""
    if not _logarithmic(shown):
        return None
    values = np.array([v for t in traces for v in t["y"] if v is not None and v > 0])
    bold = [v for t in traces if t["line"]["width"] > 2 for v in t["y"] if v is not None and v > 0]
    if not len(values) or not bold or values.min() >= min(bold):
        return None
    cut = max(min(bold) / 30, max(values) * 1e-12)
    return float(cut) if values.min() < cut else None


def _y_look(shown: Shown, traces: Sequence[dict[str, Any]], floor: float | None) -> dict[str, Any]:
    """Linear or logarithmic, with the frame cut at the floor."""
    if not _logarithmic(shown):
        return {"zeroline": True, "zerolinecolor": "#cfcbc0", "tickformat": "~g"}
    values = [v for t in traces for v in t["y"] if v is not None and v > 0] or [1.0]
    look = log_look(floor or min(values), max(values))
    if floor:
        look["range"] = [float(np.log10(floor)), float(np.log10(max(values))) + 0.1]
    return look


def _logarithmic(shown: Shown) -> bool:
    """As asked for; errors beside oracles also where they span over a decade and a half."""
    if shown.log or "scale" in shown.array.attrs or set(shown.rest) != {"pos", "predictor"}:
        return shown.log
    positive = shown.array.where(shown.array > 0)
    return bool((shown.array >= 0).all() and positive.max() > 30 * positive.min())


def _far_apart(shown: Shown, series: str) -> bool:
    """Whether quantities along ``stat`` are too different in size to share a linear axis."""
    if series != "stat" or shown.log:
        return False
    values = np.abs(shown.array.transpose("stat", ...).values).reshape(shown.array.sizes["stat"], -1)
    sizes = np.where(np.isfinite(values), values, 0.0).max(1)
    sizes = sizes[sizes > 0]
    return len(sizes) > 1 and bool(sizes.max() > APART * sizes.min())


def _after(shown: Shown, along: str) -> str:
    """What the single curve of a plot is called."""
    return f"trained, {shown.moment().removeprefix('at ')}" if along != "step" and shown.moment() else shown.title


def _before(shown: Shown) -> str:
    """What the dashed curve of the first step is called."""
    first = int(shown.array["step"][0]) if "step" in shown.array.coords else 0
    return f"step {first:,}" if first else "untrained"


def _notes(shown: Shown, along: str, series: str | None, below: Sequence[float]) -> list[str]:
    """What the lines are, in words."""
    notes = [shown.moment()] if along != "step" and series else []
    if shown.seeds > 1:
        each = "thin lines: the seeds" if shown.seeds <= THIN else "band: the range over seeds"
        notes.append(f"Bold: mean over {shown.over_seeds}; {each}")
    elif shown.seeded:
        notes.append(several(shown.seeds, "seed"))
    if any(map(named, shown.controls)):
        notes.append("Bands: the controls, from least to greatest draw; dotted: their means")
    if not all(map(named, shown.controls)):
        notes.append("Grey: the same quantity where there is nothing to find, its range and mean over seeds")
    if below:
        notes.append(f"Values below {number(min(below))} lie under the frame")
    return notes


def _apart_note(shown: Shown, along: str, many: bool) -> str:
    """What a dashed line is, where there is no legend to say it."""
    return "Dashed: before training" if many and along != "step" and "step" in shown.array.dims else ""
