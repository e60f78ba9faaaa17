"""Heat maps of two axes, one plot per seed and control, with inputs that select the remaining axes."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting._map_layout import (
    MAX_PRINTED_CELLS,
    build_colour_scale,
    build_map_spec,
    choose_colour_range,
)
from mesascope.report.plotting.controls import control_name, describe_control, has_kind, has_random_sign
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.variable import PlotVariable, read_labels
from mesascope.report.text import format_dim, format_number, join_words, round_significant

MAX_SEED_PLOTS = 4  # with more seeds, one is selected
MAX_CELLS = 200_000  # cells in one figure
MAX_CELLS_WITH_STEPS = 60_000  # with more cells, only the last step is drawn
ROW_PRIORITY = ("layer", "query", "batch", "component", "predictor", "stat", "head", "kv_head", "pos")
AXIS_PRIORITY = ("layer", "head", "query", "key", "pos", "batch", "component", "predictor", "eigen", "map", "sublayer")


def fits_heat_map(variable: PlotVariable) -> bool:
    """Return whether a variable has two axes and few enough cells at the last step.

    Args:
        variable: the variable.

    Returns:
        True if it can be drawn as a heat map.
    """
    return len(variable.plot_dims) >= 2 and variable.select_step().size <= MAX_CELLS


def thin_spectrum(variable: PlotVariable) -> PlotVariable:
    """Subsample a spectrum that is too long for the page, at logarithmically spaced ranks.

    Args:
        variable: the variable.

    Returns:
        The subsampled variable; unchanged if it is small enough or not a spectrum.
    """
    size = variable.select_step().size
    if size <= MAX_CELLS or "eigen" not in variable.plot_dims:
        return variable
    long = variable.array.sizes["eigen"]
    ranks = np.unique(np.geomspace(1, long, max(8, MAX_CELLS // (size // long))).round().astype(int)) - 1
    note = f" (subsampled: {len(ranks)} of {long:,} ranks, logarithmically spaced)"
    description = f"{variable.array.attrs.get('description', '')}{note}"
    numbered = variable.array.assign_coords(eigen=variable.array["eigen"])
    return replace(
        variable,
        array=numbered.isel(eigen=ranks).assign_attrs(description=description),
        controls=tuple(c.isel(eigen=ranks) if c.sizes.get("eigen") == long else c for c in variable.controls),
    )


def plot_heat_maps(variable: PlotVariable) -> Panel:
    """Plot two axes as rows and columns, with inputs above the plots for the others.

    Args:
        variable: a variable with at least two axes besides seed and step.

    Returns:
        The panel.
    """
    rows, columns = _choose_axes(variable.plot_dims)
    array = variable.array if variable.array.size <= MAX_CELLS_WITH_STEPS else variable.select_step()
    return _build_map_panel(variable, array, rows, columns)


def plot_layers_over_steps(variable: PlotVariable) -> Panel:
    """Plot layers as rows and training steps as columns, averaged over seeds.

    Args:
        variable: a variable with the axes layer and step.

    Returns:
        The panel.
    """
    array = variable.array.mean("seed", keep_attrs=True).expand_dims("seed")
    mean = replace(
        variable, array=array.assign_coords(seed=["mean"]), has_seeds=variable.has_seeds and variable.num_seeds > 1
    )
    panel = _build_map_panel(mean, mean.array, "layer", "step")
    over = f"Mean over {variable.seed_count}" if mean.has_seeds else ""
    caption = " ".join(filter(None, [panel.caption, f"{over}." if over else ""]))
    return replace(panel, title=f"{variable.title}, over training", caption=caption)


def _build_map_panel(variable: PlotVariable, array: xr.DataArray, rows: str, columns: str) -> Panel:
    choices = [str(d) for d in array.dims if d not in ("seed", rows, columns)]
    if variable.num_seeds > MAX_SEED_PLOTS:
        choices = ["seed", *choices]
    plots, combos = _build_plots(variable, array, rows, columns, choices)
    low, high, colours = choose_colour_range(variable, array)
    look = build_map_spec(variable, array, rows, columns, low, high, colours)
    notes = _describe_plots(variable, array, choices, rows, columns)
    data = {
        "plots": [{"title": title, "log": variable.is_log, **look} for title in plots],
        "variants": combos,
        "choices": [_build_choice(array, d) for d in choices],
        "scale": build_colour_scale(variable, low, high, colours),
        "min_width": _choose_min_width(variable, array, rows, columns, len(plots)),
    }
    hint = f"Select the {join_words(format_dim(d) for d in choices)} above the plots." if choices else ""
    return Panel(kind="figure", title=variable.title, caption=variable.build_caption(*notes), data=data, hint=hint)


def _choose_min_width(variable: PlotVariable, array: xr.DataArray, rows: str, columns: str, plots: int) -> int:
    """Return the minimum width of a plot in pixels; cells that carry numbers need more."""
    count = array.sizes[columns]
    if count > 6 and count * array.sizes[rows] <= MAX_PRINTED_CELLS:
        return min(90 + 34 * count, 460)
    return 200 if count <= 5 or (plots == 4 and not variable.has_seeds) else 270


def _choose_axes(dims: Sequence[str]) -> tuple[str, str]:
    """Return the two axes to draw, rows first.

    >>> _choose_axes(("stat", "head", "layer"))
    ('layer', 'head')
    """
    drawn = sorted(dims, key=lambda d: AXIS_PRIORITY.index(d) if d in AXIS_PRIORITY else len(AXIS_PRIORITY))[:2]
    rows, columns = sorted(drawn, key=lambda d: ROW_PRIORITY.index(d) if d in ROW_PRIORITY else len(ROW_PRIORITY))
    return rows, columns


def _build_plots(
    variable: PlotVariable, array: xr.DataArray, rows: str, columns: str, choices: Sequence[str]
) -> tuple[list[str], list[list[dict[str, Any]]]]:
    """Return the titles of the plots and, for every combination of choices, the cells of each plot."""
    seed_indices = [] if "seed" in choices else list(range(array.sizes["seed"]))
    titles = (
        [_format_seed_title(name) for name in read_labels(array, "seed")]
        if seed_indices and variable.has_seeds
        else [""]
    )
    fitting = [control for control in variable.controls if {rows, columns} <= set(control.dims)]
    titles = ["this model"] if titles == [""] and any(map(has_kind, fitting)) else titles
    titles += [
        control_name(control) + (", root mean square" if has_random_sign(control) else "") for control in fitting
    ]
    combos = []
    for indices in itertools.product(*(range(array.sizes[d]) for d in choices)):
        selection = dict(zip(choices, indices, strict=True))
        chosen = array.variable.isel(selection)
        cells = [chosen.isel(seed=s) for s in seed_indices] or [chosen]
        cells += [_select_control(control, selection, rows, columns) for control in fitting]
        combos.append([_build_cells(variable, one.transpose(rows, columns)) for one in cells])
    return titles, combos


def _format_seed_title(name: str) -> str:
    return "mean over seeds" if name == "mean" else f"seed {name}"


def _build_cells(variable: PlotVariable, cells: xr.Variable) -> dict[str, Any]:
    """Return colours and texts of one plot; colours are base-10 logarithms on a logarithmic scale."""
    values = cells.values
    with np.errstate(all="ignore"):
        z = np.where(values > 0, np.log10(values), np.nan) if variable.is_log else values
    if values.size > MAX_PRINTED_CELLS:
        return {"z": round_significant(z, 3)}
    return {"z": round_significant(z, 3), "text": _format_cells(values)}


def _format_cells(values: np.ndarray) -> list[list[str]]:
    """Format numbers for cells, with two digits.

    >>> _format_cells(np.array([[-0.0486, 1234.0, 0.00012, np.nan]]))
    [['−0.05', '1,200', '0', '']]
    """
    texts = []
    for value in values.ravel().tolist():
        if not math.isfinite(value):
            texts.append("")
        elif abs(value) < 1:
            texts.append(f"{round(value, 2) + 0.0:g}".replace("-", "−"))
        else:
            texts.append(format_number(float(f"{value:.2g}")))
    return np.array(texts, dtype=object).reshape(values.shape).tolist()


def _select_control(control: xr.DataArray, selection: dict[str, int], rows: str, columns: str) -> xr.Variable:
    """Return the control at the selected indices: mean, or root mean square, over seeds and axes that are not drawn."""
    indices = {d: min(k, control.sizes[d] - 1) for d, k in selection.items() if d in control.dims and d != "seed"}
    if "step" in control.dims and "step" not in (*indices, rows, columns):
        indices["step"] = -1
    selected = control.variable.isel(indices)
    others = [d for d in selected.dims if d not in (rows, columns)]
    if has_random_sign(control):
        return (selected**2).mean(others) ** 0.5  # a mean near 0 would hide the size of the draws
    return selected.mean(others)


def _build_choice(array: xr.DataArray, dim: str) -> dict[str, Any]:
    """Return an input: a slider over steps, layers, examples and positions, else a list."""
    slider = dim in ("step", "layer", "batch", "pos")
    options = read_labels(array, dim)
    return {
        "name": format_dim(dim),
        "options": options,
        "slider": slider,
        "selected": len(options) - 1 if dim == "step" else 0,
    }


def _describe_plots(
    variable: PlotVariable, array: xr.DataArray, choices: Sequence[str], rows: str, columns: str
) -> list[str]:
    notes = [] if "step" in (*choices, rows, columns) else [variable.describe_step()]
    if variable.has_seeds and "seed" not in choices and variable.num_seeds > 1:
        notes.append(f"One plot for each of {variable.seed_count}, with a shared colour scale")
    if variable.is_log:
        notes.append("Logarithmic colour scale")
    fitting = [control for control in variable.controls if {rows, columns} <= set(control.dims)]
    if any(map(has_kind, fitting)):
        notes.append(f"Last: mean of each control: {join_words(map(describe_control, fitting))}")
    elif fitting:
        over = ", mean over seeds" if variable.num_seeds > 1 else ""
        notes.append(f"Last: control (null){over}")
    return [*filter(None, notes)]
