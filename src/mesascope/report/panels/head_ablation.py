"""Maps of ablation effects and of roles for every head, side by side for each seed."""

import itertools
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.axes import build_axis
from mesascope.report.plotting.controls import control_name
from mesascope.report.plotting.figure import (
    DIVERGING_COLOURS,
    GREY,
    SEQUENTIAL_COLOURS,
    TEXT_COLOUR,
    Panel,
    build_layout,
)
from mesascope.report.plotting.variable import PlotVariable, read_labels
from mesascope.report.text import (
    escape_plotly,
    format_dim,
    format_interval,
    format_number,
    join_words,
    round_significant,
)

MAX_STACKED_SEEDS = 4  # with more seeds, one is selected
MAX_LABELLED_HEADS = 6  # heads per layer; with more, roles do not fit into cells and appear on hover only
ROLE, NO_EFFECT, NO_ROLE, NEITHER = range(4)
KIND_COLOURS = {ROLE: "#cfe0ee", NO_EFFECT: "#e4e2dc", NO_ROLE: "#f6dcc0", NEITHER: "#fbfaf6"}
MAX_LINE_LENGTH = 14  # characters per line of a cell


def plot_head_ablation(variable: PlotVariable) -> Panel:
    """Plot two maps for each seed: heads coloured by ablation effect, and the same heads by role.

    Controls above the maps select the training step and the kind of ablation.

    Args:
        variable: effects with axes (layer, head) or (layer, head, stat), and coordinates ``role`` and ``has_effect``.

    Returns:
        The panel.

    Raises:
        ValueError: if axes or auxiliary variables are missing.
    """
    dims, array = set(variable.plot_dims), variable.array
    if not {"layer", "head"} <= dims <= {"layer", "head", "stat"} or not {"role", "has_effect"} <= set(array.coords):
        raise ValueError("a map of ablation effects needs axes layer and head, and coordinates role and has_effect")
    has_effect = array.coords["has_effect"]  # a role has an effect if any kind of ablation has one
    array = array.assign_coords(some=has_effect.any("stat") if "stat" in has_effect.dims else has_effect.astype(bool))
    array = array.isel({dim: 0 for dim in ("step", "stat") if array.sizes.get(dim) == 1})
    choices = [dim for dim in ("step", "stat") if dim in array.dims]
    choices = (["seed"] if variable.num_seeds > MAX_STACKED_SEEDS else []) + choices
    seed_indices = [] if "seed" in choices else list(range(variable.num_seeds))
    data = {
        "plots": _build_plots(variable, array, seed_indices),
        "variants": _build_variants(variable, array, choices, seed_indices),
        "choices": [_build_choice(array, dim) for dim in choices],
        "min_width": 330,
    }
    caption = variable.build_caption(*_describe_maps(variable, choices))
    hint = "Hover over a cell for its confidence interval."
    return Panel(kind="figure", title="Ablation effect and role of each head", caption=caption, data=data, hint=hint)


def _build_plots(variable: PlotVariable, array: xr.DataArray, seed_indices: list[int]) -> list[dict[str, Any]]:
    """Return title, trace and layout of both maps of each seed."""
    headings = [f"seed {name}, " if variable.has_seeds else "" for name in read_labels(array, "seed")]
    specs = _build_map_specs(array)
    headings = headings if seed_indices else [""]
    return [{"title": f"{head}{title}", **look} for head in headings for title, look in specs.items()]


def _build_variants(
    variable: PlotVariable, array: xr.DataArray, choices: list[str], seed_indices: list[int]
) -> list[list[dict[str, Any]]]:
    """Return the cells of all maps for every combination of choices."""
    variants = []
    for indices in itertools.product(*(range(array.sizes[d]) for d in choices)):
        chosen = array.isel(dict(zip(choices, indices, strict=True)))
        seeds = [chosen.isel(seed=k) for k in seed_indices] or [chosen]
        variants.append(
            [cells for one in seeds for cells in (_build_effect_cells(variable, one), _build_role_cells(one))]
        )
    return variants


def _build_effect_cells(variable: PlotVariable, array: xr.DataArray) -> dict[str, Any]:
    """Return colours, cell texts and hover texts of an effect map, coloured relative to its largest effect."""
    values = array.transpose("layer", "head").values
    cells = [
        [_format_effect_cell(variable, array, k, h, float(value)) for h, value in enumerate(row)]
        for k, row in enumerate(values)
    ]
    top = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    return {
        "z": round_significant(values / top, 4),
        "text": [[text for text, _ in row] for row in cells],
        "hovertext": [[hover_text for _, hover_text in row] for row in cells],
    }


def _format_effect_cell(
    variable: PlotVariable, array: xr.DataArray, layer: int, head: int, value: float
) -> tuple[str, str]:
    """Return the text of a cell and its hover text."""
    indices = {"layer": layer, "head": head}
    controls = {
        control_name(c): _select_control(c, array, indices) for c in variable.controls if set(indices) <= set(c.dims)
    }
    ends = [float(array.coords[name].isel(indices)) for name in ("low", "high") if name in array.coords]
    lines = [f"{_format_head(array, layer, head)}: <b>{format_number(value)}</b>"]
    lines += [f"95% CI {format_interval(ends)}"] if len(ends) == 2 else []
    lines += [f"{escape_plotly(name)}: {format_number(control)}" for name, control in controls.items()]
    text = _format_effect(value, bool(array.coords["has_effect"].isel(indices)))
    return "<br>".join([text, *map(_format_control, controls.values())]), "<br>".join(lines)


def _format_head(array: xr.DataArray, layer: int, head: int) -> str:
    labels = read_labels(array, "layer")[layer], read_labels(array, "head")[head]
    return f"layer {escape_plotly(labels[0])}, head {escape_plotly(labels[1])}"


def _format_effect(value: float, has_effect: bool) -> str:
    """Format an effect with two digits, in grey if the head has no effect."""
    text = format_number(float(f"{value:.2g}"))
    return text if has_effect else f'<span style="color:{GREY}">{text}</span>'


def _format_control(value: float) -> str:
    return f'<span style="font-size:10px">({format_number(float(f"{value:.2g}"))})</span>'


def _select_control(control: xr.DataArray, array: xr.DataArray, indices: Mapping[str, int]) -> float:
    """Return the control of one head at the seed, step and ablation of ``array``."""
    labels = {d: array.coords[d].values for d in ("seed", "step", "stat") if d in control.dims and d in control.coords}
    return float(control.sel(labels).isel(indices).mean())


def _build_role_cells(array: xr.DataArray) -> dict[str, Any]:
    """Return colours, cell texts and hover texts of a role map."""
    role, has_effect = (array.coords[name].transpose("layer", "head") for name in ("role", "some"))
    grid = [
        [(str(r), bool(c)) for r, c in zip(*row, strict=True)]
        for row in zip(role.values, has_effect.values, strict=True)
    ]
    few = role.sizes["head"] <= MAX_LABELLED_HEADS
    return {
        "z": [[_classify_head(*one) for one in row] for row in grid],
        "text": [[_format_roles(*one) if few else "" for one in row] for row in grid],
        "hovertext": [
            [f"{_format_head(array, k, h)}<br>{_format_roles(*one)}" for h, one in enumerate(row)]
            for k, row in enumerate(grid)
        ],
    }


def _classify_head(role: str, has_effect: bool) -> int:
    return {(True, True): ROLE, (True, False): NO_EFFECT, (False, True): NO_ROLE}.get((bool(role), has_effect), NEITHER)


def _format_roles(role: str, has_effect: bool) -> str:
    """Return one role per line; roles without an effect are grey and struck out."""
    lines = [escape_plotly(line) for one in role.split(", ") if one for line in textwrap.wrap(one, MAX_LINE_LENGTH)]
    if not lines:
        return "no role" if has_effect else f'<span style="color:{GREY}">neither</span>'
    if has_effect:
        return "<br>".join(lines)
    struck = "<br>".join(f'<span style="color:{GREY}"><s>{line}</s></span>' for line in lines)
    return f"{struck}<br><b>no effect</b>"


def _build_map_specs(array: xr.DataArray) -> dict[str, dict[str, Any]]:
    """Return trace and layout of the effect map and of the role map."""
    signed = bool((array < 0).any())
    colours = DIVERGING_COLOURS if signed else SEQUENTIAL_COLOURS
    kinds = [
        [edge, colour]
        for k, colour in KIND_COLOURS.items()
        for edge in (k / len(KIND_COLOURS), (k + 1) / len(KIND_COLOURS))
    ]
    lines = max(
        (_format_roles(str(r), False).count("<br>") + 1 for r in array.coords["role"].values.ravel()), default=1
    )
    row_height = 24 + 14 * lines if array.sizes["head"] <= MAX_LABELLED_HEADS else 22
    common = {
        "type": "heatmap",
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    x = build_axis("head", tickmode="array", **_label_ticks(array, "head"), showgrid=False)
    y = build_axis("layer", tickmode="array", **_label_ticks(array, "layer"), showgrid=False, autorange="reversed")
    few = array.sizes["head"] <= MAX_LABELLED_HEADS
    cell_text = {"texttemplate": "%{text}", "textfont": {"size": 12}} if few else {}
    role_text = {"texttemplate": "%{text}", "textfont": {"size": 11, "color": TEXT_COLOUR}} if few else {}
    frame = {"layout": build_layout(x, y, hovermode="closest"), "height": array.sizes["layer"] * row_height + 70}
    steps = [[k / (len(colours) - 1), colour] for k, colour in enumerate(colours)]
    effect = {**common, "zmin": -1.0 if signed else 0.0, "zmax": 1.0, "colorscale": steps, **cell_text}
    role = {**common, "zmin": -0.5, "zmax": len(KIND_COLOURS) - 0.5, "colorscale": kinds, **role_text}
    return {"by effect": {"data": [effect], **frame}, "by role": {"data": [role], **frame}}


def _label_ticks(array: xr.DataArray, dim: str) -> dict[str, Any]:
    labels = read_labels(array, dim)
    return {"tickvals": list(range(len(labels))), "ticktext": [escape_plotly(one) for one in labels]}


def _build_choice(array: xr.DataArray, dim: str) -> dict[str, Any]:
    options = read_labels(array, dim)
    dim_names: Mapping[str, str] = {"stat": "ablation", "step": format_dim("step")}
    ablation_names = {"mean": "mean", "resample": "resample"}
    return {
        "name": dim_names.get(dim, format_dim(dim)),
        "options": [ablation_names.get(one, one) for one in options] if dim == "stat" else options,
        "slider": False,
        "selected": len(options) - 1 if dim == "step" else 0,
    }


def _describe_maps(variable: PlotVariable, choices: list[str]) -> list[str]:
    controls = [control_name(c) for c in variable.controls if {"layer", "head"} <= set(c.dims)]
    refused = variable.array.coords["role"].attrs.get("not_applicable")
    return [
        f"In {variable.units}" if variable.units != "1" else "",
        "" if "step" in choices else variable.describe_step(),
        "Left: ablation effect of each head, in grey where there is none; each map has its own colour scale",
        f"In brackets: control ({join_words(controls)})" if controls else "",
        "Right: role of each head; blue: role with an effect, grey and struck out: role without an effect, orange: "
        "effect without a role, no colour: neither; an effect of either ablation counts",
        f"Analyses of roles that do not apply to this model: {refused}" if refused else "",
    ]
