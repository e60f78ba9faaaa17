"""Algorithms by how near a model comes to them, the nearest on top, and what each is worth elsewhere."""

from collections import Counter
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.drawing import Drawing, shared
from mesascope.report.panel import GREY, INK, MODEL, SEQUENTIAL, Panel, axis, layout, mean
from mesascope.report.shown import Shown, names
from mesascope.report.text import clipped, listed, number, plain, rounded, several

LOWEST = -0.1  # what lies below is drawn there
NULL = "#c8641b"
STAT = "predictions"
NEEDED = ("named", "null", "called", "iterations", "numbers")
ALIKE, NAMED = "#7fa8cc", "#245f94"


def ranking(shown: Shown) -> Panel:
    """Above, the similarity of predictions, for each seed and for the null; below, all other similarities.

    Raises:
        ValueError: it is no similarity of predictors in settings, or what belongs to it is not there.
    """
    array = shown.at()
    if {*shown.rest} != {"setting", "predictor", "stat"} or not {*NEEDED} <= {*array.coords}:
        raise ValueError("a ranking needs predictors, settings and statistics, and beside them what was named")
    if STAT not in names(array, "stat"):
        raise ValueError(f"a ranking needs a statistic called {STAT}")
    near = array.sel(stat=STAT).isel(setting=0).transpose("seed", "predictor")
    order = np.argsort(-np.nan_to_num(mean(near.values), nan=-np.inf), kind="stable")
    array = array.isel(predictor=order)
    rows = [_called(array.isel(predictor=place)) for place in range(len(order))]
    nearest, legend = _nearest(array, rows, 27 * len(rows) + 70)
    return Panel(
        kind="figure",
        title=_title(array),
        caption=shown.caption(*_notes(shown, array)),
        data={
            "plots": [nearest, _elsewhere(array, rows, 25 * len(rows) + 110)],
            "legend": shared([legend, []]),
        },
    )


def _title(array: xr.DataArray) -> str:
    """What the model is named after, and in how many of the seeds."""
    named = Counter(str(one) for one in np.ravel(array.coords["named"].values))
    if len(named) == 1:
        (name,) = named
        return f"Which algorithm: {name}"
    return "Which algorithm: " + listed(f"{name} ({several(count, 'seed')})" for name, count in named.most_common())


def _called(one: xr.DataArray) -> str:
    """An algorithm with its iterations, where it has any: from the fewest to the most over seeds."""
    name, called = str(one["predictor"].values), {str(each) for each in np.ravel(one.coords["called"].values)}
    if called == {name}:
        return name
    counts = [int(each) for each in np.ravel(one.coords["iterations"].values)]
    return f"{name}, {min(counts)}{f'–{max(counts)}' if max(counts) > min(counts) else ''}"


def _nearest(array: xr.DataArray, rows: list[str], height: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Bars for the mean, rings for seeds, a tick for the null; and the legend."""
    drawing, here = Drawing(), array.sel(stat=STAT).isel(setting=0).transpose("seed", "predictor")
    null = array.coords["null"].transpose("seed", "predictor").values
    after = {str(one) for one in np.ravel(array.coords["named"].values)}
    y = list(range(len(rows)))
    bar = {
        "type": "bar",
        "orientation": "h",
        "x": rounded(np.clip(mean(here.values), LOWEST, None)),
        "y": y,
        "width": 0.62,
        "marker": {"color": [NAMED if name in after else ALIKE for name in names(array, "predictor")]},
        "text": [_told(array.isel(predictor=place), row) for place, row in enumerate(rows)],
        "hovertemplate": "%{text}<extra></extra>",
        "textposition": "none",
    }
    drawing.add("similarity", MODEL, [bar], kind="bar")
    if len(here) > 1:
        drawing.add("seeds", INK, [_marks(here.values, rows, INK, "circle-open", 7)], kind="ring")
    drawing.add("another prompt's examples", NULL, [_marks(null, rows, NULL, "line-ns-open", 11)], kind="tick")
    marks = {"tickmode": "array", "tickvals": y, "ticktext": [plain(row) for row in rows]}
    across = axis("similarity of predictions", range=[LOWEST - 0.03, 1.03], zeroline=True, zerolinecolor="#8a8f98")
    down = axis("", **marks, showgrid=False, range=[len(rows) - 0.4, -0.6])
    look = layout(across, down, hovermode="closest", bargap=0.35)
    return {
        "title": "as in training",
        "data": drawing.traces,
        "layout": look,
        "height": height,
        "wide": True,
    }, drawing.legend


def _marks(values: np.ndarray, rows: list[str], colour: str, symbol: str, size: int) -> dict[str, Any]:
    """A mark for every seed in every row."""
    marker = {"size": size, "color": colour, "symbol": symbol, "line": {"width": 1.6, "color": colour}}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": rounded(np.clip(values, LOWEST, None).ravel()),
        "y": list(range(len(rows))) * len(values),
        "marker": marker,
        "text": [
            f"{plain(row)}: {number(float(value))}" for line in values for row, value in zip(rows, line, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _told(one: xr.DataArray, row: str) -> str:
    """What the pointer tells of an algorithm: its numbers in every seed."""
    lines = [f"<b>{plain(row)}</b>"]
    for seed in range(one.sizes["seed"]):
        here = one.isel(seed=seed)
        value = float(here.sel(stat=STAT).isel(setting=0))
        ends = [float(here.coords[name]) for name in ("low", "high") if name in here.coords]
        about = f" [{number(ends[0])}, {number(ends[1])}]" if len(ends) == 2 else ""
        numbers = str(here.coords["numbers"].values)
        lines.append(f"{number(value)}{about}{', ' + plain(numbers) if numbers else ''}")
    return "<br>".join(lines)


def _elsewhere(array: xr.DataArray, rows: list[str], height: int) -> dict[str, Any]:
    """A map of the mean over seeds: predictions in every other setting, then the other statistics as in training."""
    first, *others = names(array, "setting")
    stats = [stat for stat in names(array, "stat") if stat != STAT]
    columns = [array.sel(setting=name, stat=STAT) for name in others]
    columns += [array.sel(setting=first, stat=stat) for stat in stats]
    grid = np.array([mean(one.transpose("seed", "predictor").values) for one in columns]).reshape(-1, len(rows)).T
    labels = [*others, *stats]
    cells = {
        "type": "heatmap",
        "z": rounded(grid, 3),
        "zmin": 0.0,
        "zmax": 1.0,
        "colorscale": [[k / (len(SEQUENTIAL) - 1), colour] for k, colour in enumerate(SEQUENTIAL)],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "text": [[_brief(value) for value in line] for line in grid],
        "texttemplate": "%{text}",
        "textfont": {"size": 11},
        "hovertext": [
            [
                f"{plain(row)}<br>{plain(label)}: <b>{number(float(value))}</b>"
                for label, value in zip(labels, line, strict=True)
            ]
            for row, line in zip(rows, grid, strict=True)
        ],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    across = axis(
        "", tickmode="array", tickvals=list(range(len(labels))), ticktext=[plain(_folded(one)) for one in labels]
    )
    across |= {"showgrid": False, "tickangle": -20, "tickfont": {"size": 11}}
    down = axis("", tickmode="array", tickvals=list(range(len(rows))), ticktext=[plain(row) for row in rows])
    down |= {"showgrid": False, "range": [len(rows) - 0.4, -0.6]}
    return {
        "title": "elsewhere, and by other measures",
        "data": [cells],
        "layout": layout(across, down, hovermode="closest"),
        "height": height,
        "wide": True,
    }


def _brief(value: float) -> str:
    """Two digits, as a cell has room for; of what is below nothing that it is."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.2f}" if value >= 0 else f'<span style="color:{GREY}">&lt;0</span>'


def _folded(label: str) -> str:
    """A label that does not take the room of the map."""
    return clipped(label.replace("weights: ", "weight on "), 24)


def _notes(shown: Shown, array: xr.DataArray) -> list[str]:
    """What the marks are, in words."""
    over = f"mean over {shown.over_seeds}, rings for the seeds" if shown.seeds > 1 else ""
    below = bool((array.sel(stat=STAT).isel(setting=0) < LOWEST).any())
    return [
        "One row for each algorithm with its iterations, the nearest on top"
        f"{', ' + shown.moment() if shown.moment() else ''}{': ' + over if over else ''}",
        f"Dark, what the model is named after: {_rule(array)}",
        f"What lies below {number(LOWEST)} is drawn there" if below else "",
        "Below, similarity of predictions in other distributions, then of errors and of weights on what is shown, as "
        "in training",
    ]


def _rule(array: xr.DataArray) -> str:
    """How the name was chosen; in the words of the measure."""
    if "none of these" in {str(one) for one in np.ravel(array.coords["named"].values)}:
        return "nothing, where the nearest is no better than with another prompt's examples"
    return "of those that cannot be told from the nearest, the one with the fewest fitted numbers"
