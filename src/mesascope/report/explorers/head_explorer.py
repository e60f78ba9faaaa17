"""The head explorer: a map of all heads, and all that is known of the one that is chosen."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.explorers.attention_excerpt import excerpt
from mesascope.report.explorers.combined import Gathered, Quantity, by_file, quantities
from mesascope.report.load_run import Result
from mesascope.report.plotting.controls import control_colour, control_name, extent
from mesascope.report.plotting.figure import DIVERGING, SEQUENTIAL, Panel
from mesascope.report.plotting.variable import Shown, numeric, prepare
from mesascope.report.text import rounded

Grid = tuple[list[str], list[str]]  # labels of layers and of heads
TOPS = ("top_token", "top_logit", "top_at")
RANKS = 12  # top tokens shown for a head


def explorer(results: Sequence[Result]) -> Gathered | None:
    """The panel; None where nothing is known of single heads. Layers and heads are matched by their labels."""
    patterns, tops, roles = _find(results, _is_pattern), _find_tops(results), _find(results, _is_role)
    found = list(quantities(results, _per_head, controls=False))
    grid = _grid([*(one.array for one in found), *(shown.array for _, shown in patterns)])
    found = [one for one in found if grid and _inside(one.array, grid)]
    patterns = [one for one in patterns if grid and _inside(one[1].array, grid)]
    if grid is None or not (found or patterns):
        return None
    layers, heads = grid
    taken = [(file, shown.name) for file, shown in (*patterns[:1], *tops, *roles[:1])]
    data = {
        "layers": layers,
        "heads": heads,
        "quantities": [_quantity(one, grid) for one in found],
        "selected": next((k for k, one in enumerate(found) if one.shown.array.attrs.get("headline")), 0),
        "patterns": excerpt(aligned(patterns[0][1].array, grid), patterns[0][1]) if patterns else None,
        "tops": _tops({shown.name: shown for _, shown in tops}, grid),
        "roles": _words(aligned(_one(roles[0][1]), grid)) if roles else [],
    }
    if patterns:  # its tokens name positions and are not drawn apart
        taken.append((patterns[0][0], "token"))
    files = dict.fromkeys([*(one.file for one in found), *(file for file, _ in taken)])
    panel = Panel(kind="explorer", title="", caption=_caption(data), data=data)
    return Gathered(panel=panel, taken=by_file(taken), files=list(files))


def aligned(array: xr.DataArray, grid: Grid) -> xr.DataArray:
    """The array with every layer and head of the grid, in front; what it lacks is missing."""
    named = array.assign_coords({d: _labels(array, d) for d in ("layer", "head")})
    return named.reindex(layer=grid[0], head=grid[1]).transpose("layer", "head", ...)


def _find(results: Sequence[Result], fits: Any) -> list[tuple[str, Shown]]:
    """Variables that fit, with their file."""
    found = []
    for result in results:
        data = result.data if result.data is not None else xr.Dataset()
        found += [(result.file, prepare(data, str(name))) for name in data.data_vars if fits(data[name])]
    return found


def _find_tops(results: Sequence[Result]) -> list[tuple[str, Shown]]:
    """What stands at the top for each head, by its names; the first file that has them."""
    found = _find(results, lambda one: one.name in TOPS and set(one.dims) == {"layer", "head", "rank"})
    return [one for one in found if one[0] == found[0][0]]


def _is_pattern(array: xr.DataArray) -> bool:
    """Whether this is the attention of single heads over an excerpt."""
    dims = set(map(str, array.dims)) - {"seed", "step"}
    return array.name == "pattern" and {"layer", "head", "query", "key"} <= dims <= {
        *"layer head batch query key".split()
    }


def _is_role(array: xr.DataArray) -> bool:
    """Whether this names what heads do."""
    return array.name == "role" and set(array.dims) == {"layer", "head"} and not numeric(array)


def _per_head(array: xr.DataArray) -> bool:
    """Whether there is one number for each head."""
    return set(array.dims) == {"layer", "head"}


def _grid(arrays: Sequence[xr.DataArray]) -> Grid | None:
    """The labels that most variables have; of those equally frequent, the most heads."""
    if not arrays:
        return None
    seen = Counter((tuple(_labels(one, "layer")), tuple(_labels(one, "head"))) for one in arrays)
    layers, heads = max(seen, key=lambda one: (seen[one], len(one[0]) * len(one[1])))
    return list(layers), list(heads)


def _labels(array: xr.DataArray, dim: str) -> list[str]:
    """Labels as text."""
    return [str(v) for v in array[dim].values.tolist()]


def _inside(array: xr.DataArray, grid: Grid) -> bool:
    """Whether all heads of a variable are heads of the grid."""
    return set(_labels(array, "layer")) <= set(grid[0]) and set(_labels(array, "head")) <= set(grid[1])


def _one(shown: Shown) -> xr.DataArray:
    """Words without seeds."""
    return shown.array.isel(seed=0)


def _words(array: xr.DataArray) -> list[str]:
    """Values as text; nothing where one is missing."""
    return ["" if isinstance(v, float) else str(v) for v in array.values.ravel().tolist()]


def _quantity(one: Quantity, grid: Grid) -> dict[str, Any]:
    """Numbers of all heads, their colours, and the controls at the same heads."""
    values = aligned(one.array, grid).values
    log = one.shown.log and not (values < 0).any()
    drawn = values[np.isfinite(values) & ((values > 0) | (not log))]
    low, high = (float(drawn.min()), float(drawn.max())) if drawn.size else (0.0, 1.0)
    center = None if log else one.shown.center
    if center is not None:
        reach = max(high - center, center - low) or 1.0
        low, high = center - reach, center + reach
    high = high if high > low else low + (abs(low) or 1.0)
    return {
        "group": one.group,
        "name": one.name,
        "about": one.shown.caption(one.shown.moment()),
        "tautology": one.shown.tautology,
        "units": "" if one.shown.units == "1" else one.shown.units,
        "log": log,
        "low": low,
        "high": high,
        "colours": list(SEQUENTIAL if center is None else DIVERGING),
        "values": rounded(values.ravel()),
        "controls": [_control(c, one, grid) for c in one.shown.controls if set(c.dims) >= {"layer", "head"}],
    }


def _control(control: xr.DataArray, one: Quantity, grid: Grid) -> dict[str, Any]:
    """A control at every head: its mean, and from where to where its replicates go."""
    control = control.isel(step=-1) if "step" in control.dims else control
    at = aligned(one.same(control), grid)
    over = [d for d in at.dims if d not in ("layer", "head", "seed")]
    mean, low, high = extent(at.mean(over).transpose("seed", "layer", "head"))
    numbers = {"mean": mean, "low": low, "high": high}
    told = {k: rounded(v.ravel(), 3) for k, v in numbers.items()}
    return {"name": control_name(control), "colour": control_colour(control), "draws": at.sizes["seed"], **told}


def _tops(found: dict[str, Shown], grid: Grid) -> dict[str, Any] | None:
    """What each head raises most, best first."""
    if "top_token" not in found:
        return None
    text = aligned(_one(found["top_token"]), grid).transpose("layer", "head", "rank").isel(rank=slice(RANKS))
    words = [_words(head) for row in text for head in row]
    told: dict[str, Any] = {"token": words}
    for name in ("top_logit", "top_at"):
        if name in found:
            numbers = aligned(_one(found[name]), grid).transpose("layer", "head", "rank").isel(rank=slice(RANKS))
            told[name.removeprefix("top_")] = rounded(numbers.values.reshape(-1, numbers.sizes["rank"]), 5)
    units = found["top_logit"].units if "top_logit" in found else ""
    return told | {"units": "" if units == "1" else units}


def _caption(data: dict[str, Any]) -> str:
    """How to use it."""
    return (
        "Rows are layers, columns are heads. Click or tap a head, or go there with the arrow keys and press Enter, to "
        "open it. Controls are given with the least and the greatest of their draws at that head."
        if data["quantities"]
        else "Rows are layers, columns are heads. Click or tap a head, or press Enter on it, to see where it looks."
    )
