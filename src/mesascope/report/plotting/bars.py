"""Bars: one number for each component, predictor or named quantity."""

from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.controls import control_colour, control_name
from mesascope.report.plotting.figure import FONT, INK, MODEL, Panel, axis, entry, layout, log_look, mean, with_units
from mesascope.report.plotting.variable import Shown, names
from mesascope.report.text import clipped, plain, rounded, word


def bars(shown: Shown) -> Panel:
    """The mean over seeds as a bar, each seed as a dot; on a logarithmic axis, which has no zero, as a mark."""
    dim = shown.rest[0]
    labels = [clipped(name) for name in shown.names(dim)]
    rows = shown.at().transpose("seed", dim).values
    traces, legend = [_mean(shown, rows, labels)], [entry("mean", MODEL, [0], kind="tick" if shown.log else "bar")]
    if shown.seeds > 1:
        _add(traces, legend, "seeds", INK, _dots(rows, labels, INK, "circle-open"), "ring")
    if shown.array.sizes.get("step", 1) > 1:
        first = shown.at(0).transpose("seed", dim).values.mean(0, keepdims=True)
        if not np.allclose(first, rows.mean(0), equal_nan=True):
            _add(traces, legend, "untrained", "#c8641b", _dots(first, labels, "#c8641b", "diamond"), "diamond")
    for control in shown.controls:
        if (values := _control(control, dim, len(labels))) is not None:
            name, colour = control_name(control), control_colour(control)
            _add(traces, legend, name, colour, _dots(values, labels, colour, "line-ns-open"), "tick")
    height = 26 * len(labels) + 80
    plot = {"title": "", "data": traces, "layout": _layout(shown, dim, labels), "height": height}
    return Panel(
        kind="figure",
        title=shown.title,
        caption=shown.caption(*_notes(shown)),
        data={"plots": [plot], "legend": legend if len(legend) > 1 else []},
    )


def _mean(shown: Shown, rows: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """Bars, or marks on a logarithmic axis."""
    common = {
        "x": rounded(mean(rows)),
        "y": list(range(len(labels))),
        "name": "mean",
        "text": [plain(one) for one in labels],
        "hovertemplate": "%{text}: <b>%{x:.3~g}</b><extra></extra>",
        "textposition": "none",
    }
    if shown.log:
        mark = {"type": "scatter", "mode": "markers", "marker": {"size": 12, "color": MODEL, "symbol": "line-ns-open"}}
        mark["marker"]["line"] = {"width": 3}
        return {k: v for k, v in common.items() if k != "textposition"} | mark
    return {"type": "bar", "orientation": "h", "marker": {"color": "#7fa8cc"}, "width": 0.62, **common}


def _dots(rows: np.ndarray, labels: list[str], colour: str, symbol: str) -> dict[str, Any]:
    """A mark for every row at every label."""
    wide = {"width": 2.2 if symbol == "line-ns-open" else 1.4, "color": colour}
    marker = {"size": 9 if symbol == "line-ns-open" else 7, "color": colour, "symbol": symbol, "line": wide}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(rows.ravel()),
        "y": list(range(len(labels))) * len(rows),
        "marker": marker,
        "text": [plain(one) for one in labels] * len(rows),
        "hovertemplate": "%{text}: %{x:.3~g}<extra></extra>",
    }


def _add(traces: list, legend: list, name: str, colour: str, trace: dict[str, Any], kind: str) -> None:
    """One more trace with its entry in the legend."""
    legend.append(entry(name, colour, [len(traces)], kind=kind))
    traces.append(trace | {"name": plain(name)})


def _control(control: xr.DataArray, dim: str, size: int) -> np.ndarray | None:
    """The control's numbers, seeds as rows; one number stands for all labels."""
    at = control.isel(step=-1) if "step" in control.dims else control
    at = at if dim in at.dims else at.expand_dims({dim: size}, axis=-1)
    values = at.mean([d for d in at.dims if d not in ("seed", dim)]).transpose("seed", dim).values
    return values if values.shape[1] == size and names(at, dim) else None


def _layout(shown: Shown, dim: str, labels: list[str]) -> dict[str, Any]:
    """Labels down the side, the first on top."""
    marks = {"tickmode": "array", "tickvals": list(range(len(labels))), "ticktext": [plain(one) for one in labels]}
    positive = shown.at().values[shown.at().values > 0]
    kind = log_look(positive.min(), positive.max(), most=3) if len(positive) and shown.log else {"tickformat": "~g"}
    x = axis(with_units(shown.title, shown.units), **kind | {"zeroline": not shown.log, "zerolinecolor": "#8a8f98"})
    y = axis("", **marks, showgrid=False, range=[len(labels) - 0.4, -0.6], tickfont={"family": FONT, "size": 12.5})
    y["title"] = {"text": ""}
    return layout(x, y, hovermode="closest", bargap=0.35)


def _notes(shown: Shown) -> list[str]:
    """What the marks are, in words."""
    dim = word(shown.rest[0])
    over = f": mean over {shown.over_seeds}, rings for the seeds" if shown.seeds > 1 else ""
    return [f"One row for each {dim}{', ' + shown.moment() if shown.moment() else ''}{over}"]
