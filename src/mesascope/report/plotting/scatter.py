"""Scatter plots: one point per example, one plot per layer, coloured by labels of the examples."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.axes import build_axis
from mesascope.report.plotting.figure import GREY, TEXT_COLOUR, Panel, build_layout
from mesascope.report.plotting.variable import PlotVariable, make_visible, read_labels
from mesascope.report.text import escape_plotly, format_count, format_dim, join_words, round_significant

LABEL_PREFIX = "label_"  # of variables with a label for each example
SCATTER_DIMS = {"seed", "step", "layer", "batch", "component"}
MAX_COORDINATES = 60_000  # coordinates in one figure: about 400 kB
PALETTE = (
    *("#0b5394", "#d07810", "#2f8f5b", "#b8324a", "#7a5aa6", "#8a6a3b"),
    *("#d16ba5", "#6f7680", "#90921a", "#2399aa", "#22272e", "#7593ab"),
)


def list_colour_labels(data: xr.Dataset) -> list[str]:
    """List the variables that colour points, if a variable of the file uses this view.

    Args:
        data: the variables of one file.

    Returns:
        Names that begin with ``label_`` and have one value per example.
    """
    if not any(data[name].attrs.get("view") == "scatter" and _is_scatter(data[name]) for name in data.data_vars):
        return []
    return [name for name in map(str, data.data_vars) if name.startswith(LABEL_PREFIX) and _labels_examples(data[name])]


def attach_colour_labels(data: xr.Dataset, variable: PlotVariable) -> PlotVariable:
    """Attach the labels of the examples to a variable as coordinates.

    Args:
        data: the variables of the same file.
        variable: the variable to plot.

    Returns:
        The variable with labels.
    """
    labels = {
        name: data[name].variable
        for name in list_colour_labels(data)
        if set(data[name].dims) <= set(variable.array.dims)
    }
    return replace(variable, array=variable.array.assign_coords(labels))


def plot_scatter(variable: PlotVariable) -> Panel:
    """Plot examples as points, one plot per layer; inputs select seed, step (first or last) and colours.

    Args:
        variable: coordinates with axes (layer, batch, component) and optionally seed and step.

    Returns:
        The panel.

    Raises:
        ValueError: if there are no layers, no examples, fewer than two components, or other axes.
    """
    if not _is_scatter(variable.array):
        raise ValueError("a scatter plot needs layers, examples and two components, and no axes besides seed and step")
    array = _keep_end_steps(variable.array).transpose("seed", ..., "layer", "batch", "component")
    array, left_out = _limit_examples(array)
    choices = [d for d in ("seed", "step") if array.sizes.get(d, 1) > 1]
    kinds = [str(name) for name in array.coords if str(name).startswith(LABEL_PREFIX)]
    titles = [one if array["layer"].dtype.kind in "OUT" else f"layer {one}" for one in read_labels(array, "layer")]
    variants, codes, used = [], [], []
    values = {kind: _encode_labels(variable, array[kind]) for kind in kinds}
    for indices in itertools.product(*(range(array.sizes[d]) for d in choices)):
        selection = dict(zip(choices, indices, strict=True))
        variants.append([_select_points(array.isel(selection).isel(layer=k)) for k in range(len(titles))])
        for kind in kinds:
            label_codes = values[kind][1].isel({d: k for d, k in selection.items() if d in values[kind][1].dims})
            used.append(_find_or_append(codes, label_codes.values.ravel().tolist()))
    data = {
        "plots": [{"title": title, **_build_plot_spec(bool(kinds))} for title in titles],
        "variants": variants,
        "choices": [_build_choice(array, d) for d in choices],
        "min_width": 145,
    }
    if kinds:
        words = [_format_label_title(variable, kind) for kind in kinds]
        data["choices"].append({"name": "colours", "options": words, "slider": False, "selected": 0})
        label_names = [
            [escape_plotly(f"{name}: {one}") for one in values[kind][0]]
            for name, kind in zip(words, kinds, strict=True)
        ]
        data["marks"] = {"palette": list(PALETTE), "names": label_names, "codes": codes, "used": used}
    notes = _describe_points(
        variable, array, choices, max((len(one) for one, _ in values.values()), default=0), left_out
    )
    hints = ["Hover over a point for its label."] if kinds else []
    hints += [f"Select the {join_words(format_dim(d) for d in choices)} above the plots."] if choices else []
    caption = variable.build_caption(*notes)
    return Panel(kind="figure", title=variable.title, caption=caption, data=data, hint=" ".join(hints))


def _is_scatter(array: xr.DataArray) -> bool:
    dims = set(array.dims)
    return {"layer", "batch", "component"} <= dims <= SCATTER_DIMS and array.sizes["component"] >= 2


def _labels_examples(array: xr.DataArray) -> bool:
    return "batch" in array.dims and set(array.dims) <= {"seed", "step", "batch"}


def _keep_end_steps(array: xr.DataArray) -> xr.DataArray:
    count = array.sizes.get("step", 1)
    return array if count <= 2 else array.isel(step=[0, count - 1])


def _limit_examples(array: xr.DataArray) -> tuple[xr.DataArray, str]:
    """Return as many examples as fit on the page, and a note on what was left out."""
    count = array.sizes["batch"]
    max_examples = max(1, MAX_COORDINATES // (2 * max(1, array.size // (count * array.sizes["component"]))))
    if count <= max_examples:
        return array, ""
    note = f"Showing the first {max_examples} of {format_count(count, 'example')}; the file contains all"
    return array.isel(batch=slice(max_examples)), note


def _encode_labels(variable: PlotVariable, kinds: xr.DataArray) -> tuple[list[str], xr.DataArray]:
    """Return the distinct values of a label as text, and the index of each example's value."""
    distinct, codes = np.unique(
        kinds.values if kinds.dtype.kind in "biuf" else kinds.values.astype(str), return_inverse=True
    )
    words = [f"{v:g}" if isinstance(v, float) else make_visible(v) for v in distinct.tolist()]
    return words, kinds.copy(data=codes.reshape(kinds.shape))


def _find_or_append(codes: list[list[int]], code: list[int]) -> int:
    """Return the index of a list in ``codes``, where it is appended if it is new."""
    if code not in codes:
        codes.append(code)
    return codes.index(code)


def _select_points(array: xr.DataArray) -> dict[str, Any]:
    across, down = array.values.reshape(-1, *array.shape[-2:])[-1].T[:2]
    return {"x": round_significant(across, 3), "y": round_significant(down, 3)}


def _build_plot_spec(coloured: bool) -> dict[str, Any]:
    """Return trace and layout that all plots share: square, without tick labels since the axes have no units."""
    hover = "example %{pointNumber}" + ("<br>%{customdata}" if coloured else "") + "<extra></extra>"
    marker = {"size": 5, "opacity": 0.75, "color": GREY, "line": {"width": 0}}
    trace = {"type": "scatter", "mode": "markers", "marker": marker, "hovertemplate": hover}
    hidden_ticks = {"showticklabels": False, "ticks": "", "mirror": True, "showgrid": False, "automargin": False}
    across, down = build_axis("", **hidden_ticks), build_axis("", **hidden_ticks, scaleanchor="x", scaleratio=1)
    frame = build_layout(across, down, hovermode="closest", margin={"l": 4, "r": 4, "t": 4, "b": 4})
    frame["hoverlabel"] = {**frame["hoverlabel"], "font": {"size": 12, "color": TEXT_COLOUR}}
    return {"data": [trace], "layout": frame, "height": 180}


def _build_choice(array: xr.DataArray, dim: str) -> dict[str, Any]:
    options = read_labels(array, dim)
    selected = len(options) - 1 if dim == "step" else 0
    return {"name": format_dim(dim), "options": options, "slider": False, "selected": selected}


def _format_label_title(variable: PlotVariable, kind: str) -> str:
    """Return the display name of a label: its attribute ``title``, else its name."""
    given = variable.array.coords[kind].attrs.get("title")
    return str(given or kind.removeprefix(LABEL_PREFIX).replace("_", " "))


def _describe_points(
    variable: PlotVariable, array: xr.DataArray, choices: Sequence[str], kinds: int, left_out: str
) -> list[str]:
    notes = [
        "Each point is an example; each plot has its own axes",
        "" if "step" in choices else variable.describe_step(),
    ]
    if kinds > len(PALETTE):
        notes.append(f"Colours repeat after {len(PALETTE)} labels")
    return [*filter(None, [*notes, left_out])]
