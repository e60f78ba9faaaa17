"""Heat maps: two axes in colour, a plot for each seed, and controls for the axes that are left."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.controls import control_name, named, told
from mesascope.report.plotting.figure import DIVERGING, SEQUENTIAL, Panel, axis, layout, ticks
from mesascope.report.plotting.variable import Shown, escaped, names, position_names
from mesascope.report.text import listed, number, plain, rounded, word

SEEDS = 4  # so many seeds stand side by side; of more, one is chosen
PRINTED = 60  # up to so many cells carry their number
MOST = 200_000  # cells in one figure
STEPS = 60_000  # beyond so many cells only the last step is kept
ROWS = ("layer", "query", "batch", "component", "predictor", "stat", "head", "kv_head", "pos")
FIRST = ("layer", "head", "query", "key", "pos", "batch", "component", "predictor", "eigen", "map", "sublayer")


def drawable(shown: Shown) -> bool:
    """Whether the cells of the last step are few enough to stand in a page."""
    return len(shown.rest) >= 2 and shown.at().size <= MOST


def thinned(shown: Shown) -> Shown:
    """A spectrum that is too long for the page, at places ever wider apart; anything else as it is."""
    size = shown.at().size
    if size <= MOST or "eigen" not in shown.rest:
        return shown
    long = shown.array.sizes["eigen"]
    places = np.unique(np.geomspace(1, long, max(8, MOST // (size // long))).round().astype(int)) - 1
    told = f"{shown.array.attrs.get('about', '')} (here at {len(places)} of {long:,} places, ever wider apart)"
    numbered = shown.array.assign_coords(eigen=shown.array["eigen"])
    return replace(
        shown,
        array=numbered.isel(eigen=places).assign_attrs(about=told),
        controls=tuple(c.isel(eigen=places) if c.sizes.get("eigen") == long else c for c in shown.controls),
    )


def heat_maps(shown: Shown) -> Panel:
    """Two of the dims as rows and columns; every other becomes a control above the plots."""
    rows, columns = _pair(shown.rest)
    array = shown.array if shown.array.size <= STEPS else shown.at()
    return _panel(shown, array, rows, columns)


def layers_over_steps(shown: Shown) -> Panel:
    """Layers as rows and training steps as columns: when in training each layer came to do what it does.

    Of several seeds the mean is drawn.
    """
    array = shown.array.mean("seed", keep_attrs=True).expand_dims("seed")
    mean = replace(shown, array=array.assign_coords(seed=["mean"]), seeded=shown.seeded and shown.seeds > 1)
    panel = _panel(mean, mean.array, "layer", "step")
    over = f"Mean over {shown.over_seeds}" if mean.seeded else ""
    caption = " ".join(filter(None, [panel.caption, f"{over}." if over else ""]))
    return replace(panel, title=f"{shown.title}, over training", caption=caption)


def _panel(shown: Shown, array: xr.DataArray, rows: str, columns: str) -> Panel:
    """The plots with their choices and one scale of colours."""
    choices = [str(d) for d in array.dims if d not in ("seed", rows, columns)]
    if shown.seeds > SEEDS:
        choices = ["seed", *choices]
    plots, combos = _plots(shown, array, rows, columns, choices)
    low, high, colours = _range(shown, array)
    look = _look(shown, array, rows, columns, low, high, colours)
    notes = _notes(shown, array, choices, rows, columns)
    data = {
        "plots": [{"title": title, "log": shown.log, **look} for title in plots],
        "variants": combos,
        "choices": [_choice(array, d) for d in choices],
        "scale": _scale(shown, low, high, colours),
        "least": _least(shown, array, rows, columns, len(plots)),
    }
    return Panel(kind="figure", title=shown.title, caption=shown.caption(*notes), data=data)


def _least(shown: Shown, array: xr.DataArray, rows: str, columns: str, plots: int) -> int:
    """How narrow a plot may get, in pixels: where cells carry their numbers, each needs room for them."""
    count = array.sizes[columns]
    if count > 6 and count * array.sizes[rows] <= PRINTED:
        return min(90 + 34 * count, 460)
    return 200 if count <= 5 or (plots == 4 and not shown.seeded) else 270


def _pair(dims: Sequence[str]) -> tuple[str, str]:
    """Which two dims are drawn: rows first.

    >>> _pair(("stat", "head", "layer"))
    ('layer', 'head')
    """
    drawn = sorted(dims, key=lambda d: FIRST.index(d) if d in FIRST else len(FIRST))[:2]
    rows, columns = sorted(drawn, key=lambda d: ROWS.index(d) if d in ROWS else len(ROWS))
    return rows, columns


def _plots(
    shown: Shown, array: xr.DataArray, rows: str, columns: str, choices: Sequence[str]
) -> tuple[list[str], list[list[dict[str, Any]]]]:
    """The titles of the plots, and for every combination of choices the cells of each plot."""
    spread = [] if "seed" in choices else list(range(array.sizes["seed"]))
    titles = [_seed(name) for name in names(array, "seed")] if spread and shown.seeded else [""]
    fitting = [control for control in shown.controls if {rows, columns} <= set(control.dims)]
    titles = ["this model"] if titles == [""] and any(map(named, fitting)) else titles
    titles += [control_name(control) for control in fitting]
    combos = []
    for at in itertools.product(*(range(array.sizes[d]) for d in choices)):
        where = dict(zip(choices, at, strict=True))
        chosen = array.variable.isel(where)
        cells = [chosen.isel(seed=s) for s in spread] or [chosen]
        cells += [_control(control, where, rows, columns) for control in fitting]
        combos.append([_cells(shown, one.transpose(rows, columns)) for one in cells])
    return titles, combos


def _seed(name: str) -> str:
    """The heading of one seed's plot."""
    return "this study" if name == "mean" else f"seed {name}"


def _cells(shown: Shown, cells: xr.Variable) -> dict[str, Any]:
    """Colours and texts of one plot; colours are logarithms on a logarithmic scale."""
    values = cells.values
    with np.errstate(all="ignore"):
        z = np.where(values > 0, np.log10(values), np.nan) if shown.log else values
    if values.size > PRINTED:
        return {"z": rounded(z, 3)}
    return {"z": rounded(z, 3), "text": _briefs(values)}


def _briefs(values: np.ndarray) -> list[list[str]]:
    """Numbers short enough for cells: two digits.

    >>> _briefs(np.array([[-0.0486, 1234.0, 0.00012, np.nan]]))
    [['−0.05', '1,200', '0', '']]
    """
    texts = []
    for value in values.ravel().tolist():
        if not math.isfinite(value):
            texts.append("")
        elif abs(value) < 1:
            texts.append(f"{round(value, 2) + 0.0:g}".replace("-", "−"))
        else:
            texts.append(number(float(f"{value:.2g}")))
    return np.array(texts, dtype=object).reshape(values.shape).tolist()


def _control(control: xr.DataArray, where: dict[str, int], rows: str, columns: str) -> xr.Variable:
    """The control at the same place, averaged over seeds and over what the figure does not have."""
    here = {d: min(k, control.sizes[d] - 1) for d, k in where.items() if d in control.dims and d != "seed"}
    if "step" in control.dims and "step" not in (*here, rows, columns):
        here["step"] = -1
    at = control.variable.isel(here)
    return at.mean([d for d in at.dims if d not in (rows, columns)])


def _range(shown: Shown, array: xr.DataArray) -> tuple[float, float, tuple[str, ...]]:
    """Ends of the colour scale over all that is drawn, controls included, and its colours."""
    values = np.concatenate([one.values.ravel() for one in (array, *shown.controls)])
    values = values[np.isfinite(values)]
    if shown.log:
        values = np.log10(values[values > 0])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if (center := shown.center) is not None and not shown.log:
        reach = max(high - center, center - low) or 1.0
        return center - reach, center + reach, DIVERGING
    return low, high if high > low else low + 1.0, SEQUENTIAL


def _look(
    shown: Shown, array: xr.DataArray, rows: str, columns: str, low: float, high: float, colours: Sequence[str]
) -> dict[str, Any]:
    """Trace and layout that all plots of the figure share; the cells come with the choice."""
    height, width = array.sizes[rows], array.sizes[columns]
    few = height * width <= PRINTED
    steps = [[k / (len(colours) - 1), colour] for k, colour in enumerate(colours)]
    value = "%{text}" if few or shown.log else "%{z:.3~g}"
    down_word, across_word = plain(word(rows)), plain(word(columns))
    place = f"{down_word} %{{customdata[0]}}, {across_word} %{{customdata[1]}}: <b>{value}</b><extra></extra>"
    down, across = (escaped(_cell_names(shown, array, d)) for d in (rows, columns))
    trace = {
        "type": "heatmap",
        "zmin": low,
        "zmax": high,
        "colorscale": steps,
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
    }
    trace |= {"hovertemplate": place, "hoverongaps": False}
    trace |= {"texttemplate": "%{text}", "textfont": {"size": 12}} if few else {}
    x = axis(word(columns), **_ticks(shown, array, columns), showgrid=False)
    y = axis(word(rows), **_ticks(shown, array, rows), showgrid=False, autorange="reversed")
    each = 34 if few else 20 if height <= 16 else 12
    longest = max(map(len, x.get("ticktext", [""])))  # long labels are turned and need room below
    tall = min(max(height * each, 90), 460) + 70 + (6 * min(longest, 26) if longest > 4 else 0)
    return {"data": [trace], "layout": layout(x, y, hovermode="closest"), "height": tall, "labels": [down, across]}


def _cell_names(shown: Shown, array: xr.DataArray, dim: str) -> list[str]:
    """Labels for the pointer: a position also says its token."""
    own, tokens = names(array, dim), position_names(shown, dim)
    return own if own == tokens else [f"{p} “{t}”" for p, t in zip(own, tokens, strict=True)]


def _ticks(shown: Shown, array: xr.DataArray, dim: str) -> dict[str, Any]:
    """Tick labels; tokens where they are few enough to be read."""
    labels = position_names(shown, dim) if array.sizes[dim] <= 32 else names(array, dim)
    tokens = labels != names(array, dim)
    whole = labels == [str(k) for k in range(len(labels))]
    return {"nticks": 8, "tickformat": "d"} if whole and len(labels) > 12 else ticks(labels, 32 if tokens else 16)


def _choice(array: xr.DataArray, dim: str) -> dict[str, Any]:
    """A control: a slider over steps, layers and examples, else a list of names."""
    slider = dim in ("step", "layer", "batch", "pos")
    options = names(array, dim)
    return {
        "name": word(dim),
        "options": options,
        "slider": slider,
        "selected": len(options) - 1 if dim == "step" else 0,
    }


def _scale(shown: Shown, low: float, high: float, colours: Sequence[str]) -> dict[str, Any]:
    """The colour scale, drawn beside the title."""
    ends = [10**v if shown.log else v for v in (low, (low + high) / 2, high)]
    words = ["0" if abs(v) < 1e-3 * max(map(abs, ends)) and not shown.log else number(float(f"{v:.3g}")) for v in ends]
    return {"colours": list(colours), "ends": words, "units": "" if shown.units == "1" else shown.units}


def _notes(shown: Shown, array: xr.DataArray, choices: Sequence[str], rows: str, columns: str) -> list[str]:
    """What the plots are, in words."""
    notes = [] if "step" in (*choices, rows, columns) else [shown.moment()]
    if shown.seeded and "seed" not in choices and shown.seeds > 1:
        notes.append(f"One plot for each of {shown.over_seeds}, with the same colours")
    if shown.log:
        notes.append("Colours are logarithmic")
    fitting = [control for control in shown.controls if {rows, columns} <= set(control.dims)]
    if any(map(named, fitting)):
        notes.append(f"Beside it, the mean of each control: {listed(map(told, fitting))}")
    elif fitting:
        over = ", mean over seeds" if shown.seeds > 1 else ""
        notes.append(f"Beside it the same quantity where there is nothing to find{over}")
    if choices:
        notes.append(f"Choose the {listed(word(d) for d in choices)} above the plots")
    return [*filter(None, notes)]
