"""Table for variables without a suitable figure, so that none is dropped silently."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from mesascope.report.plotting.controls import control_name
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.variable import PlotVariable, is_numeric, make_visible
from mesascope.report.text import format_dim, format_number, format_sentence, join_words

MAX_ROWS = 40  # rows
COLUMN_HEADERS = ("mean", "minimum", "maximum", "not finite")


def build_table(variable: PlotVariable) -> Panel:
    """Tabulate mean, minimum and maximum, by label of a short named axis if there is one.

    Args:
        variable: the variable.

    Returns:
        The panel. A variable that is not numeric is listed value by value.
    """
    array = variable.select_step()
    if not is_numeric(array):
        return _build_text_table(variable, array)
    dim = next((d for d in ("stat", "predictor", "component", "sublayer", "map", "layer") if d in array.dims), None)
    dim = dim if dim and array.sizes[dim] <= MAX_ROWS else None
    parts = [array.isel({dim: k}) for k in range(array.sizes[dim])] if dim else [array]
    labels = variable.list_labels(dim) if dim else ["all"]
    rows = [[label, *_format_statistics(part.values)] for label, part in zip(labels, parts, strict=True)]
    head = [format_dim(dim) if dim else "", *COLUMN_HEADERS]
    data = {"head": head, "rows": rows, "units": "" if variable.units == "1" else variable.units}
    notes = _describe_shape(variable), variable.describe_step(), _describe_controls(variable)
    return Panel(kind="table", title=variable.title, caption=variable.build_caption(*notes), data=data)


def _format_statistics(values: np.ndarray) -> list[str]:
    finite = values[np.isfinite(values)]
    missing = str(values.size - finite.size) if values.size > finite.size else "none"
    if not finite.size:
        return ["–", "–", "–", missing]
    return [
        format_number(float(finite.mean())),
        format_number(float(finite.min())),
        format_number(float(finite.max())),
        missing,
    ]


def _build_text_table(variable: PlotVariable, array: xr.DataArray) -> Panel:
    values = [make_visible(v) for v in array.values.ravel()[:MAX_ROWS].tolist()]
    rows = [[str(k), value] for k, value in enumerate(values)]
    more = f"The first {MAX_ROWS} of {array.size} values" if array.size > MAX_ROWS else ""
    caption = variable.build_caption(_describe_shape(variable), more)
    return Panel(
        kind="table", title=variable.title, caption=caption, data={"head": ["", "value"], "rows": rows, "units": ""}
    )


def _describe_shape(variable: PlotVariable) -> str:
    dims: Sequence[str] = [str(d) for d in variable.select_step().dims if d != "seed" or variable.has_seeds]
    if not dims:
        return "Single value"
    return f"Statistics over {join_words(f'{format_dim(d)} ({variable.array.sizes[d]})' for d in dims)}"


def _describe_controls(variable: PlotVariable) -> str:
    means = [f"{control_name(c)}: {format_number(float(c.mean()))}" for c in variable.controls if is_numeric(c)]
    return format_sentence(f"Mean of each control: {'; '.join(means)}") if means else ""
