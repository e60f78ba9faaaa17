"""Causes beside roles: for each seed the heads coloured by their effect, and next to them the same heads by name."""

import itertools
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.controls import control_name
from mesascope.report.plotting.figure import DIVERGING, GREY, INK, SEQUENTIAL, Panel, axis, layout
from mesascope.report.plotting.variable import Shown, names
from mesascope.report.text import interval, listed, number, plain, rounded, word

SEEDS = 4  # so many stand below one another; of more, one is chosen
READABLE = 6  # heads in a layer whose names fit into cells; with more, the pointer tells them
ROLE, NO_EFFECT, NO_ROLE, NEITHER = range(4)
KINDS = {ROLE: "#cfe0ee", NO_EFFECT: "#e4e2dc", NO_ROLE: "#f6dcc0", NEITHER: "#fbfaf6"}
WIDE = 14  # signs in a line of a cell


def causes(shown: Shown) -> Panel:
    """Two maps for each seed, by effect and by role; steps and kinds of ablation are chosen above them.

    Raises:
        ValueError: there are no layers and heads, or names are not known.
    """
    dims, array = set(shown.rest), shown.array
    if not {"layer", "head"} <= dims <= {"layer", "head", "stat"} or not {"role", "caused"} <= set(array.coords):
        raise ValueError("a map of causes needs layers and heads, and beside the effect what heads are called")
    caused = array.coords["caused"]  # by any kind of ablation: that is what decides whether a role has an effect
    array = array.assign_coords(some=caused.any("stat") if "stat" in caused.dims else caused.astype(bool))
    choices = [d for d in ("step", "stat") if array.sizes.get(d, 1) > 1]
    choices = (["seed"] if shown.seeds > SEEDS else []) + choices
    places = [] if "seed" in choices else list(range(shown.seeds))
    variants = []
    for at in itertools.product(*(range(array.sizes[d]) for d in choices)):
        chosen = array.isel(dict(zip(choices, at, strict=True)))
        seeds = [chosen.isel(seed=k) for k in places] or [chosen]
        variants.append([cells for one in seeds for cells in (_effects(shown, one), _roles(one))])
    looks = _looks(array)
    headings = [f"seed {name}, " if shown.seeded else "" for name in names(array, "seed")] if places else [""]
    return Panel(
        kind="figure",
        title="Heads by effect, and by role",
        caption=shown.caption(*_notes(shown, choices)),
        data={
            "plots": [{"title": f"{head}{title}", **look} for head in headings for title, look in looks.items()],
            "variants": variants,
            "choices": [_choice(array, dim) for dim in choices],
            "least": 330,
        },
    )


def _effects(shown: Shown, array: xr.DataArray) -> dict[str, Any]:
    """Colours, numbers and what the pointer tells, by effect; colours go up to the largest effect of the map."""
    values = array.transpose("layer", "head").values
    cells = [[_effect(shown, array, k, h, float(value)) for h, value in enumerate(row)] for k, row in enumerate(values)]
    top = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    return {
        "z": rounded(values / top, 4),
        "text": [[text for text, _ in row] for row in cells],
        "hovertext": [[told for _, told in row] for row in cells],
    }


def _effect(shown: Shown, array: xr.DataArray, layer: int, head: int, value: float) -> tuple[str, str]:
    """What stands in a cell, and what the pointer tells of it."""
    here = {"layer": layer, "head": head}
    known = {control_name(c): _control(c, array, here) for c in shown.controls if set(here) <= set(c.dims)}
    ends = [float(array.coords[name].isel(here)) for name in ("low", "high") if name in array.coords]
    lines = [f"{_place(array, layer, head)}: <b>{number(value)}</b>"]
    lines += [f"95 % {interval(ends)}"] if len(ends) == 2 else []
    lines += [f"{plain(name)}: {number(control)}" for name, control in known.items()]
    text = _number(value, bool(array.coords["caused"].isel(here)))
    return "<br>".join([text, *map(_small, known.values())]), "<br>".join(lines)


def _place(array: xr.DataArray, layer: int, head: int) -> str:
    """Which head it is."""
    return f"layer {plain(names(array, 'layer')[layer])}, head {plain(names(array, 'head')[head])}"


def _number(value: float, caused: bool) -> str:
    """An effect in a cell, two digits; grey where it is none."""
    text = number(float(f"{value:.2g}"))
    return text if caused else f'<span style="color:{GREY}">{text}</span>'


def _small(value: float) -> str:
    """A control in a cell, two digits."""
    return f'<span style="font-size:10px">({number(float(f"{value:.2g}"))})</span>'


def _control(control: xr.DataArray, array: xr.DataArray, here: Mapping[str, int]) -> float:
    """The control of one head, at the seed and the step of the array."""
    where = {d: array.coords[d].values for d in ("seed", "step", "stat") if d in control.dims and d in control.coords}
    return float(control.sel(where).isel(here).mean())


def _roles(array: xr.DataArray) -> dict[str, Any]:
    """Colours, words and what the pointer tells, by role."""
    role, some = (array.coords[name].transpose("layer", "head") for name in ("role", "some"))
    grid = [
        [(str(r), bool(c)) for r, c in zip(*row, strict=True)] for row in zip(role.values, some.values, strict=True)
    ]
    few = role.sizes["head"] <= READABLE
    return {
        "z": [[_kind(*one) for one in row] for row in grid],
        "text": [[_words(*one) if few else "" for one in row] for row in grid],
        "hovertext": [
            [f"{_place(array, k, h)}<br>{_words(*one)}" for h, one in enumerate(row)] for k, row in enumerate(grid)
        ],
    }


def _kind(role: str, caused: bool) -> int:
    """What a head is, by whether it has a role and an effect."""
    return {(True, True): ROLE, (True, False): NO_EFFECT, (False, True): NO_ROLE}.get((bool(role), caused), NEITHER)


def _words(role: str, caused: bool) -> str:
    """A head's roles, one below the other; struck out and grey where they have no effect."""
    lines = [plain(line) for one in role.split(", ") if one for line in textwrap.wrap(one, WIDE)]
    if not lines:
        return "no role" if caused else f'<span style="color:{GREY}">neither</span>'
    if caused:
        return "<br>".join(lines)
    struck = "<br>".join(f'<span style="color:{GREY}"><s>{line}</s></span>' for line in lines)
    return f"{struck}<br><b>no effect</b>"


def _looks(array: xr.DataArray) -> dict[str, dict[str, Any]]:
    """Trace and layout of both maps."""
    signed = bool((array < 0).any())
    colours = DIVERGING if signed else SEQUENTIAL
    kinds = [[edge, colour] for k, colour in KINDS.items() for edge in (k / len(KINDS), (k + 1) / len(KINDS))]
    lines = max((_words(str(r), False).count("<br>") + 1 for r in array.coords["role"].values.ravel()), default=1)
    each = 24 + 14 * lines if array.sizes["head"] <= READABLE else 22
    common = {
        "type": "heatmap",
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    x = axis("head", tickmode="array", **_ticks(array, "head"), showgrid=False)
    y = axis("layer", tickmode="array", **_ticks(array, "layer"), showgrid=False, autorange="reversed")
    few = array.sizes["head"] <= READABLE
    written = {"texttemplate": "%{text}", "textfont": {"size": 12}} if few else {}
    small = {"texttemplate": "%{text}", "textfont": {"size": 11, "color": INK}} if few else {}
    frame = {"layout": layout(x, y, hovermode="closest"), "height": array.sizes["layer"] * each + 70}
    steps = [[k / (len(colours) - 1), colour] for k, colour in enumerate(colours)]
    effect = {**common, "zmin": -1.0 if signed else 0.0, "zmax": 1.0, "colorscale": steps, **written}
    role = {**common, "zmin": -0.5, "zmax": len(KINDS) - 0.5, "colorscale": kinds, **small}
    return {"by effect": {"data": [effect], **frame}, "by role": {"data": [role], **frame}}


def _ticks(array: xr.DataArray, dim: str) -> dict[str, Any]:
    """Every layer and head by its number."""
    labels = names(array, dim)
    return {"tickvals": list(range(len(labels))), "ticktext": [plain(one) for one in labels]}


def _choice(array: xr.DataArray, dim: str) -> dict[str, Any]:
    """A list of seeds, of steps or of kinds of ablation."""
    options = names(array, dim)
    named: Mapping[str, str] = {"stat": "replaced by", "step": word("step")}
    told = {"mean": "its mean", "resample": "another sequence's"}
    return {
        "name": named.get(dim, word(dim)),
        "options": [told.get(one, one) for one in options] if dim == "stat" else options,
        "slider": False,
        "selected": len(options) - 1 if dim == "step" else 0,
    }


def _notes(shown: Shown, choices: list[str]) -> list[str]:
    """What the maps are, in words."""
    controls = [control_name(c) for c in shown.controls if {"layer", "head"} <= set(c.dims)]
    return [
        f"In {shown.units}" if shown.units != "1" else "",
        "" if "step" in choices else shown.moment(),
        "Left, the heads by effect, in grey figures where there is none; colours go up to the largest of each map",
        f"In brackets: {listed(controls)}" if controls else "",
        "Right, the same heads by role: blue where a role has an effect, grey and struck out where it has none, orange "
        "where there is an effect and no role, white where there is neither; an effect of either ablation counts",
        "The pointer tells intervals",
    ]
