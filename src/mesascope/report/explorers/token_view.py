"""The text with every quantity that is known at its tokens: one panel for all files."""

from collections.abc import Sequence
from typing import Any

import xarray as xr

from mesascope.report.explorers.colored_text import BOTH, LIGHT
from mesascope.report.explorers.combined import Gathered, Quantity, by_file, quantities
from mesascope.report.load_run import Result
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.quantize import pack
from mesascope.report.plotting.variable import names, numeric
from mesascope.report.text import several

FILE = "text.nc"
MOST = 3_000_000  # numbers in the page, one byte each


def reader(results: Sequence[Result]) -> Gathered | None:
    """The panel; None where there is no ``text.nc`` with ``token`` (batch, pos), or no quantity that fits it."""
    tokens = _tokens(results)
    if tokens is None:
        return None
    sizes = {d: tokens.sizes[d] for d in ("batch", "pos")}
    found = list(quantities(results, lambda array: _fits(array, sizes), controls=True))
    if not found:
        return None
    rows, places = _room(found, sizes)
    data = {
        "tokens": [[str(t) for t in row] for row in tokens.values[:rows, :places].tolist()],
        "sequences": names(tokens, "batch")[:rows],
        "quantities": [_quantity(one, rows, places) for one in found],
        "selected": next((k for k, one in enumerate(found) if one.shown.array.attrs.get("headline")), 0),
    }
    taken = by_file([(FILE, "token"), *((one.file, one.shown.name) for one in found)])
    # the variables named `token` beside them repeat the text
    taken = {file: names_ | {"token"} for file, names_ in taken.items()}
    panel = Panel(kind="reader", title="", caption=_caption(rows, places, sizes), data=data)
    return Gathered(panel=panel, taken=taken, files=list(taken))


def _tokens(results: Sequence[Result]) -> xr.DataArray | None:
    """The text, sequences first."""
    data = next((one.data for one in results if one.file == FILE), None)
    if data is None or "token" not in data.variables or set(data["token"].dims) != {"batch", "pos"}:
        return None
    tokens = data["token"].transpose("batch", "pos")
    return None if numeric(tokens) or not tokens.size else tokens


def _fits(array: xr.DataArray, sizes: dict[str, int]) -> bool:
    """Whether a variable has a number at every token of this text, at one depth or at several."""
    dims = set(map(str, array.dims))
    return dims in ({"batch", "pos"}, {"layer", "batch", "pos"}) and all(array.sizes[d] == n for d, n in sizes.items())


def _room(found: Sequence[Quantity], sizes: dict[str, int]) -> tuple[int, int]:
    """How many sequences fit; of a single one that does not, how many positions."""
    depth = sum(one.array.sizes.get("layer", 1) for one in found)
    rows = min(sizes["batch"], MOST // (depth * sizes["pos"]))
    return (rows, sizes["pos"]) if rows else (1, min(sizes["pos"], max(1, MOST // depth)))


def _quantity(one: Quantity, rows: int, places: int) -> dict[str, Any]:
    """Codes, colours and words of one quantity."""
    array = one.array if "layer" in one.array.dims else one.array.expand_dims("layer")
    values = array.transpose("layer", "batch", "pos").values[:, :rows, :places]
    log = one.shown.log and not (values < 0).any()
    packed = pack(values, log)
    low, high, center = *packed.ends, one.shown.center
    if center is not None and not log:
        reach = max(high - center, center - low) or 1.0
        low, high = center - reach, center + reach
    high = high if high > low else low + (abs(low) or 1.0)
    return packed.json() | {
        "group": one.group,
        "name": one.name,
        "about": one.shown.caption(one.shown.moment()),
        "tautology": one.shown.tautology,
        "units": "" if one.shown.units == "1" else one.shown.units,
        "layers": names(one.array, "layer") if "layer" in one.array.dims else [],
        "log": log,
        "center": None if log else center,
        "low": low,
        "high": high,
        "beyond": bool((packed.levels[packed.levels > 0] if log else packed.levels).min(initial=low) < low)
        or bool(packed.levels.max() > high),
        "colours": list(BOTH if center is not None and not log else LIGHT),
        "missing": int((packed.codes == 0).sum()),
    }


def _caption(rows: int, places: int, sizes: dict[str, int]) -> str:
    """How to use it, and what does not stand in the page."""
    kept = []
    if rows < sizes["batch"]:
        kept.append(f"the first {rows} of {several(sizes['batch'], 'sequence')}")
    if places < sizes["pos"]:
        kept.append(f"the first {places:,} of {sizes['pos']:,} positions")
    left_out = f" To keep the page small it holds {', and of it '.join(kept)}; the files hold all." if kept else ""
    return (
        "Choose a quantity and a layer, and point at a token or tap it for its number; with the text in focus, the "
        "arrow keys go from token to token. The strip shows the whole sequence, the first layer on top; where it has "
        f"more tokens than room, the one farthest out. Numbers here are rounded.{left_out}"
    )
