"""A table for whatever no figure knows how to draw, so that nothing is dropped in silence."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from mesascope.report.plotting.controls import control_name
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.variable import Shown, numeric, visible
from mesascope.report.text import listed, number, sentence, word

MOST = 40  # rows
HEAD = ("mean", "least", "greatest", "not a number")


def table(shown: Shown) -> Panel:
    """Mean, least and greatest, for each label of a short dim with names if there is one."""
    array = shown.at()
    if not numeric(array):
        return _words(shown, array)
    dim = next((d for d in ("stat", "predictor", "component", "sublayer", "map", "layer") if d in array.dims), None)
    dim = dim if dim and array.sizes[dim] <= MOST else None
    parts = [array.isel({dim: k}) for k in range(array.sizes[dim])] if dim else [array]
    labels = shown.names(dim) if dim else ["all"]
    rows = [[label, *_numbers(part.values)] for label, part in zip(labels, parts, strict=True)]
    head = [word(dim) if dim else "", *HEAD]
    return Panel(
        kind="table",
        title=shown.title,
        caption=shown.caption(_shape(shown), shown.moment(), _controls(shown)),
        data={"head": head, "rows": rows, "units": "" if shown.units == "1" else shown.units},
    )


def _numbers(values: np.ndarray) -> list[str]:
    """The cells of one row."""
    finite = values[np.isfinite(values)]
    missing = str(values.size - finite.size) if values.size > finite.size else "none"
    if not finite.size:
        return ["–", "–", "–", missing]
    return [number(float(finite.mean())), number(float(finite.min())), number(float(finite.max())), missing]


def _words(shown: Shown, array: xr.DataArray) -> Panel:
    """Values that are no numbers: the first of them as they are."""
    values = [visible(v) for v in array.values.ravel()[:MOST].tolist()]
    rows = [[str(k), value] for k, value in enumerate(values)]
    more = f"The first {MOST} of {array.size} values" if array.size > MOST else ""
    caption = shown.caption(_shape(shown), more)
    return Panel(
        kind="table", title=shown.title, caption=caption, data={"head": ["", "value"], "rows": rows, "units": ""}
    )


def _shape(shown: Shown) -> str:
    """The dims and their lengths, in words."""
    dims: Sequence[str] = [str(d) for d in shown.array.dims if d != "seed" or shown.seeded]
    if not dims:
        return "A single number"
    return f"Over all of: {listed(f'{word(d)} ({shown.array.sizes[d]})' for d in dims)}"


def _controls(shown: Shown) -> str:
    """Means of the controls, which a table has no other place for."""
    means = [f"{control_name(c)}: {number(float(c.mean()))}" for c in shown.controls if numeric(c)]
    return sentence(f"Controls, the mean of each: {'; '.join(means)}") if means else ""
