"""The attention browser: a small picture of every head, and one of them large, chosen by clicking."""

from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.figure import DIVERGING, SEQUENTIAL, Panel
from mesascope.report.plotting.variable import Shown, position_names
from mesascope.report.text import several

DIMS = ("seed", "layer", "head", "batch", "query", "key")
MOST = 600_000  # weights in one page: about 2 MB


def patterns(shown: Shown) -> Panel:
    """Weights of all heads as whole numbers from -999 to 999 with one scale: three digits, few bytes."""
    array = shown.at()
    lacking = [d for d in DIMS if d not in array.dims]
    full = array.expand_dims(lacking).transpose(*DIMS)
    kept, left_out = _cut(full)
    values = kept.values
    finite = values[np.isfinite(values)]
    top = float(np.abs(finite).max()) if finite.size else 1.0
    signed = bool(finite.size and finite.min() < 0)
    top = 1.0 if not signed and 0.5 < top <= 1.0 else top or 1.0
    data = {
        "shape": list(values.shape),
        "values": _whole(values, top),
        "top": top,
        "signed": signed,
        "colours": list(DIVERGING if signed else SEQUENTIAL),
        "names": {d: _names(kept, shown, d, d in lacking) for d in DIMS[:4]},
        "labels": [_labels(shown, kept, k) for k in range(kept.sizes["batch"])],
        "units": "" if shown.units == "1" else shown.units,
    }
    return Panel(kind="attention", title=shown.title, caption=shown.caption(*_notes(shown, left_out)), data=data)


def _cut(full: xr.DataArray) -> tuple[xr.DataArray, list[str]]:
    """As much as fits: fewer examples first, then fewer seeds, then fewer positions; and what was left out."""
    left_out = []
    for dim, noun in (("batch", "example"), ("seed", "seed")):
        room = max(1, MOST // max(1, full.size // full.sizes[dim]))
        if full.sizes[dim] > room:
            left_out.append(f"the first {room} of {several(full.sizes[dim], noun)}")
            full = full.isel({dim: slice(room)})
    if full.size > MOST:
        side = max(8, int(np.sqrt(MOST / (full.size / full.sizes["query"] / full.sizes["key"]))))
        left_out.append(f"the first {side} of {full.sizes['query']} positions")
        full = full.isel(query=slice(side), key=slice(side))
    return full, left_out


def _whole(values: np.ndarray, top: float) -> list[int | None]:
    """Shares of the largest, in thousandths."""
    flat = np.round(values.ravel() / top * 1000)
    if np.isfinite(flat).all():
        return flat.astype(int).tolist()
    return [int(v) if np.isfinite(v) else None for v in flat]


def _names(kept: xr.DataArray, shown: Shown, dim: str, lacking: bool) -> list[str]:
    """Labels along a dim; one empty label where the variable does not have the dim."""
    if lacking or (dim == "seed" and not shown.seeded):
        return [""]
    return (
        [str(v) for v in kept[dim].values.tolist()] if dim in kept.coords else [str(k) for k in range(kept.sizes[dim])]
    )


def _labels(shown: Shown, kept: xr.DataArray, example: int) -> dict[str, Any]:
    """The token or value at each position of an example, for both sides."""
    sides = {}
    for dim in ("query", "key"):
        sides[dim] = position_names(shown, dim, example)[: kept.sizes[dim]]
    return sides


def _notes(shown: Shown, left_out: list[str]) -> list[str]:
    """How to use it, and what does not stand in the page."""
    notes = ["Rows look (query), columns are looked at (key)", shown.moment()]
    notes.append("Click a small picture to open a head; the arrow keys go from head to head and from layer to layer")
    notes += [f"Shown: {', '.join(left_out)}; the file holds all"] if left_out else []
    return [*filter(None, notes)]
