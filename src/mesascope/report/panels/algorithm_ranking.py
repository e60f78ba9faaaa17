"""Algorithms by how near a model comes to them, the nearest on top, and what each is worth elsewhere."""

from collections import Counter
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.figure import GREY, INK, MODEL, SEQUENTIAL, Drawing, Panel, axis, layout, mean, shared
from mesascope.report.plotting.variable import NEEDED, Shown, names
from mesascope.report.text import clipped, listed, number, plain, rounded, several

LOWEST = -0.1  # what lies below is drawn there
FARTHEST = -1e9  # stands for what is farther off than any number, so that a mean over seeds keeps it
NULL = "#c8641b"
STAT = "predictions"
ALIKE, NAMED = "#7fa8cc", "#245f94"


def ranking(shown: Shown) -> Panel:
    """Above, the similarity of predictions, for each seed and for the null; below, all other similarities.

    Raises:
        ValueError: it is no similarity of predictors in settings, or what belongs to it is not there.
    """
    array = shown.at()
    if {*shown.rest} != {"setting", "predictor", "stat"} or not {*NEEDED["ranking"]} <= {*array.coords}:
        raise ValueError("a ranking needs predictors, settings and statistics, and beside them what was named")
    if STAT not in names(array, "stat"):
        raise ValueError(f"a ranking needs a statistic called {STAT}")
    array = array.copy(data=np.where(np.isneginf(array), FARTHEST, array)).assign_attrs(array.attrs)
    order = np.argsort(-np.nan_to_num(mean(_near(array)), nan=2 * FARTHEST), kind="stable")
    array = array.isel(predictor=order)
    rows = [_row(array.isel(predictor=place)) for place in range(len(order))]
    nearest, legend = _nearest(array, rows, 27 * len(rows) + 70)
    return Panel(
        kind="figure",
        title=_title(array, rows),
        caption=shown.caption(*_notes(shown, array, rows)),
        data={
            "plots": [nearest, *_elsewhere(array, rows, 25 * len(rows) + 110)],
            "legend": shared([legend, []]),
        },
    )


def _near(array: xr.DataArray) -> np.ndarray:
    """The similarity of predictions as in training, seeds as rows."""
    return array.sel(stat=STAT, setting=_training(array)).transpose("seed", "predictor").values


def _training(array: xr.DataArray) -> Any:
    """The name of the setting that is as in training: the one that is told to be first, else the first one."""
    first = array.attrs.get("first")
    return first if first in names(array, "setting") else array["setting"].values[0]


def _is_named(array: xr.DataArray) -> np.ndarray:
    """By seed and row, whether the model is named after this algorithm."""
    called = array.coords["called"].transpose("seed", "predictor").values.astype(str)
    return called == array.coords["named"].values.astype(str)[:, None]


def _title(array: xr.DataArray, rows: list[str]) -> str:
    """What the models are named after and how near they are, and in how many seeds, where it is not the same in all."""
    own, which = [str(one) for one in array.coords["named"].values], _is_named(array)
    if not which.any(1).all():
        counted = Counter(rows[int(row.argmax())] if row.any() else name for row, name in zip(which, own, strict=True))
        return "Which algorithm: " + _counted(counted)
    near = f", similarity {number(float(mean(_near(array)[which])))}"
    if len(set(own)) == 1:
        return f"Nearest algorithm: {own[0]}{near}"
    return "Nearest algorithm: " + _counted(Counter(rows[int(row.argmax())] for row in which)) + near


def _counted(found: Counter[str]) -> str:
    """Names with the number of seeds, the most frequent first; one alone without it."""
    if len(found) == 1:
        return next(iter(found))
    return listed(f"{name} ({several(count, 'seed')})" for name, count in found.most_common())


def _row(one: xr.DataArray) -> str:
    """What an algorithm is called, with a star where it cannot be told from the nearest in any seed."""
    return _called(one) + ("" if one.coords["apart"].values.astype(bool).any() else " *")


def _called(one: xr.DataArray) -> str:
    """An algorithm with its iterations, where it has any: from the fewest to the most over seeds."""
    name, called = str(one["predictor"].values), {str(each) for each in np.ravel(one.coords["called"].values)}
    if called == {name}:
        return name
    counts = [int(each) for each in np.ravel(one.coords["iterations"].values) if np.isfinite(each)]
    if not counts:
        return name
    return f"{name}, {min(counts)}{f'–{max(counts)}' if max(counts) > min(counts) else ''}"


def _nearest(array: xr.DataArray, rows: list[str], height: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Bars for the mean, rings for seeds, a tick for the null; and the legend."""
    drawing, here = Drawing(), _near(array)
    null = array.coords["null"].transpose("seed", "predictor").values
    y = list(range(len(rows)))
    bar = {
        "type": "bar",
        "orientation": "h",
        "x": rounded(np.clip(mean(here), LOWEST, None)),
        "y": y,
        "width": 0.62,
        "marker": {"color": [NAMED if any_seed else ALIKE for any_seed in np.any(_is_named(array), axis=0).tolist()]},
        "text": [_told(array.isel(predictor=place), row) for place, row in enumerate(rows)],
        "hovertemplate": "%{text}<extra></extra>",
        "textposition": "none",
    }
    drawing.add("similarity", MODEL, [bar], kind="bar")
    if len(here) > 1:
        drawing.add("seeds", INK, [_marks(here, rows, INK, "circle-open", 7)], kind="ring")
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
        value = float(here.sel(stat=STAT, setting=_training(here)))
        ends = [float(here.coords[name]) for name in ("low", "high") if name in here.coords]
        about = f" [{number(ends[0])}, {number(ends[1])}]" if len(ends) == 2 else ""
        numbers = str(here.coords["numbers"].values)
        near = "" if bool(here.coords["apart"]) else ", not told from the nearest"
        value = "farther than any number" if value <= FARTHEST else number(value)
        lines.append(f"{value}{about}{', ' + plain(numbers) if numbers else ''}{near}")
    return "<br>".join(lines)


def _elsewhere(array: xr.DataArray, rows: list[str], height: int) -> list[dict[str, Any]]:
    """A map of the mean over seeds: predictions in every other setting, then the other statistics as in training;
    none where there are neither.
    """
    first = _training(array)
    others = [name for name in names(array, "setting") if name != first]
    stats = [stat for stat in names(array, "stat") if stat != STAT]
    if not others and not stats:
        return []
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
    look = layout(across, down, hovermode="closest")
    return [
        {"title": "elsewhere, and by other measures", "data": [cells], "layout": look, "height": height, "wide": True}
    ]


def _brief(value: float) -> str:
    """Two digits, as a cell has room for; of what is below nothing that it is."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.2f}" if value >= 0 else f'<span style="color:{GREY}">&lt;0</span>'


def _folded(label: str) -> str:
    """A label that does not take the room of the map."""
    return clipped(label.replace("weights: ", "weight on "), 24)


def _notes(shown: Shown, array: xr.DataArray, rows: list[str]) -> list[str]:
    """What the marks are, in words."""
    over = f"mean over {shown.over_seeds}, rings for the seeds" if shown.seeds > 1 else ""
    starred = "; with a star, those that cannot be told from it" if any(row.endswith(" *") for row in rows) else ""
    return [
        f"One row for each algorithm with its iterations, the nearest on top{starred}"
        f"{', ' + shown.moment() if shown.moment() else ''}{': ' + over if over else ''}",
        f"Dark, what the model is named after: {_rule(array)}",
        f"What lies below {number(LOWEST)} is drawn there" if (_near(array) < LOWEST).any() else "",
        "Below, similarity of predictions in other distributions, then of errors and of weights on what is shown, as "
        "in training"
        if array["setting"].size > 1
        else "",
    ]


def _rule(array: xr.DataArray) -> str:
    """How the name was chosen; in the words of the measure."""
    if "none of these" in {str(one) for one in np.ravel(array.coords["named"].values)}:
        return "nothing, where the nearest is no better than with another prompt's examples"
    return "of those that cannot be told from the nearest, the one with the fewest fitted numbers"
