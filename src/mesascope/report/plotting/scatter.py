"""Scatter plots: every example a point in a plane, one plot for each layer, coloured by what is known of examples."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.figure import GREY, INK, Panel, axis, layout
from mesascope.report.plotting.variable import Shown, names, visible
from mesascope.report.text import listed, plain, rounded, several, word

PREFIX = "label_"  # of variables that say what examples are
DIMS = {"seed", "step", "layer", "batch", "component"}
MOST = 60_000  # coordinates in one figure: about 400 kB
PALETTE = (
    *("#0b5394", "#e08214", "#2f8f5b", "#b8324a", "#7a5aa6", "#8a6a3b"),
    *("#d16ba5", "#6f7680", "#a3a51c", "#2aa3b5", "#22272e", "#9cc4e4"),
)


def marks(data: xr.Dataset) -> list[str]:
    """The variables that colour points, where a variable of the file asks for this view."""
    if not any(data[name].attrs.get("view") == "scatter" and _drawable(data[name]) for name in data.data_vars):
        return []
    return [name for name in map(str, data.data_vars) if name.startswith(PREFIX) and _fits(data[name])]


def marked(data: xr.Dataset, shown: Shown) -> Shown:
    """A variable with what is known of its examples beside it, as coordinates."""
    known = {name: data[name].variable for name in marks(data) if set(data[name].dims) <= set(shown.array.dims)}
    return replace(shown, array=shown.array.assign_coords(known))


def scatter(shown: Shown) -> Panel:
    """A plot for each layer, before and after training; seed, step and colours are chosen above the plots.

    Raises:
        ValueError: there are no layers, no examples or fewer than two components.
    """
    if not _drawable(shown.array):
        raise ValueError("a scatter plot needs layers, examples and two components, and nothing else but seed and step")
    array = _ends(shown.array).transpose("seed", ..., "layer", "batch", "component")
    array, left_out = _cut(array)
    choices = [d for d in ("seed", "step") if array.sizes.get(d, 1) > 1]
    kinds = [str(name) for name in array.coords if str(name).startswith(PREFIX)]
    titles = [one if array["layer"].dtype.kind in "OUT" else f"layer {one}" for one in names(array, "layer")]
    variants, codes, marking = [], [], []
    values = {kind: _values(shown, array[kind]) for kind in kinds}
    for at in itertools.product(*(range(array.sizes[d]) for d in choices)):
        where = dict(zip(choices, at, strict=True))
        variants.append([_points(array.isel(where).isel(layer=k)) for k in range(len(titles))])
        for kind in kinds:
            found = values[kind][1].isel({d: k for d, k in where.items() if d in values[kind][1].dims})
            marking.append(_place(codes, found.values.ravel().tolist()))
    data = {
        "plots": [{"title": title, **_look(bool(kinds))} for title in titles],
        "variants": variants,
        "choices": [_choice(array, d) for d in choices],
        "least": 145,
    }
    if kinds:
        words = [_title(shown, kind) for kind in kinds]
        data["choices"].append({"name": "colours", "options": words, "slider": False, "selected": 0})
        named = [[plain(f"{name}: {one}") for one in values[kind][0]] for name, kind in zip(words, kinds, strict=True)]
        data["marks"] = {"palette": list(PALETTE), "names": named, "codes": codes, "used": marking}
    notes = _notes(shown, array, choices, max((len(one) for one, _ in values.values()), default=0), left_out)
    return Panel(kind="figure", title=shown.title, caption=shown.caption(*notes), data=data)


def _drawable(array: xr.DataArray) -> bool:
    """Whether it has the dims of this view."""
    dims = set(array.dims)
    return {"layer", "batch", "component"} <= dims <= DIMS and array.sizes["component"] >= 2


def _fits(array: xr.DataArray) -> bool:
    """Whether it says one thing of every example."""
    return "batch" in array.dims and set(array.dims) <= {"seed", "step", "batch"}


def _ends(array: xr.DataArray) -> xr.DataArray:
    """The first and the last step alone."""
    count = array.sizes.get("step", 1)
    return array if count <= 2 else array.isel(step=[0, count - 1])


def _cut(array: xr.DataArray) -> tuple[xr.DataArray, str]:
    """As many examples as the page has room for, and what was left out."""
    count = array.sizes["batch"]
    room = max(1, MOST // (2 * max(1, array.size // (count * array.sizes["component"]))))
    if count <= room:
        return array, ""
    return array.isel(batch=slice(room)), f"Shown: the first {room} of {several(count, 'example')}; the file holds all"


def _values(shown: Shown, kinds: xr.DataArray) -> tuple[list[str], xr.DataArray]:
    """The different values of a label as text, and for each example which of them it has."""
    found, codes = np.unique(
        kinds.values if kinds.dtype.kind in "biuf" else kinds.values.astype(str), return_inverse=True
    )
    words = [f"{v:g}" if isinstance(v, float) else visible(v) for v in found.tolist()]
    return words, kinds.copy(data=codes.reshape(kinds.shape))


def _place(codes: list[list[int]], wanted: list[int]) -> int:
    """The place of a list among those kept, where it is put if it is new."""
    if wanted not in codes:
        codes.append(wanted)
    return codes.index(wanted)


def _points(array: xr.DataArray) -> dict[str, Any]:
    """Both coordinates of every example in one plot."""
    across, down = array.values.reshape(-1, *array.shape[-2:])[-1].T[:2]
    return {"x": rounded(across, 3), "y": rounded(down, 3)}


def _look(coloured: bool) -> dict[str, Any]:
    """Trace and layout that all plots share: a square without numbers, as axes have no meaning of their own."""
    hover = "example %{pointNumber}" + ("<br>%{customdata}" if coloured else "") + "<extra></extra>"
    marker = {"size": 5, "opacity": 0.75, "color": GREY, "line": {"width": 0}}
    trace = {"type": "scatter", "mode": "markers", "marker": marker, "hovertemplate": hover}
    quiet = {"showticklabels": False, "ticks": "", "mirror": True, "showgrid": False, "automargin": False}
    across, down = axis("", **quiet), axis("", **quiet, scaleanchor="x", scaleratio=1)
    frame = layout(across, down, hovermode="closest", margin={"l": 4, "r": 4, "t": 4, "b": 4})
    frame["hoverlabel"] = {**frame["hoverlabel"], "font": {"size": 12, "color": INK}}
    return {"data": [trace], "layout": frame, "height": 180}


def _choice(array: xr.DataArray, dim: str) -> dict[str, Any]:
    """A list of seeds or of steps."""
    options = names(array, dim)
    selected = len(options) - 1 if dim == "step" else 0
    return {"name": word(dim), "options": options, "slider": False, "selected": selected}


def _title(shown: Shown, kind: str) -> str:
    """What a label is called: the attribute ``title``, else its name."""
    given = shown.array.coords[kind].attrs.get("title")
    return str(given or kind.removeprefix(PREFIX).replace("_", " "))


def _notes(shown: Shown, array: xr.DataArray, choices: Sequence[str], kinds: int, left_out: str) -> list[str]:
    """What the plots are, in words."""
    notes = ["Each point is an example, each plot has axes of its own", "" if "step" in choices else shown.moment()]
    if kinds > len(PALETTE):
        notes.append(f"Colours come again after {len(PALETTE)} labels: the pointer tells which it is")
    elif kinds:
        notes.append("The pointer tells the label")
    if choices:
        notes.append(f"Choose the {listed(word(d) for d in choices)} above the plots")
    return [*filter(None, [*notes, left_out])]
