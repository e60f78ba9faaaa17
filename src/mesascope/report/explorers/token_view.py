"""Token view: the text, coloured by any quantity that is known at its tokens, from all result files."""

from collections.abc import Sequence
from typing import Any

import xarray as xr

from mesascope.formulas import render_plain
from mesascope.report.explorers.colored_text import DIVERGING_TINTS, SEQUENTIAL_TINTS
from mesascope.report.explorers.combined import CombinedPanel, PanelQuantity, find_quantities, group_by_file
from mesascope.report.load_run import ResultFile
from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.quantize import QuantizedArray, quantize_array
from mesascope.report.plotting.variable import is_numeric, read_labels
from mesascope.report.text import format_count

TEXT_FILE = "text.nc"
MAX_NUMBERS = 3_000_000  # numbers on the page, one byte each


def build_token_view(results: Sequence[ResultFile]) -> CombinedPanel | None:
    """Build the token view.

    Args:
        results: the result files of an inspection.

    Returns:
        The panel, or None if there is no ``text.nc`` with ``token`` (batch, pos) or no quantity at its tokens.
    """
    tokens = _find_tokens(results)
    if tokens is None:
        return None
    sizes = {d: tokens.sizes[d] for d in ("batch", "pos")}
    found_quantities = list(find_quantities(results, lambda array: _is_per_token(array, sizes), controls=True))
    if not found_quantities:
        return None
    rows, positions = _fit_to_page(found_quantities, sizes)
    used = group_by_file([(TEXT_FILE, "token"), *((one.file, one.variable.name) for one in found_quantities)])
    # variables named `token` in the same files repeat the text
    used = {file: names_ | {"token"} for file, names_ in used.items()}
    data = _encode_tokens(tokens, found_quantities, rows, positions)
    panel = Panel(kind="reader", title="", caption=_build_caption(rows, positions, sizes), data=data)
    return CombinedPanel(panel=panel, used_variables=used, files=list(used))


def _encode_tokens(
    tokens: xr.DataArray, found_quantities: Sequence[PanelQuantity], rows: int, positions: int
) -> dict[str, Any]:
    return {
        "tokens": [[str(t) for t in row] for row in tokens.values[:rows, :positions].tolist()],
        "sequences": read_labels(tokens, "batch")[:rows],
        "quantities": [_encode_quantity(one, rows, positions) for one in found_quantities],
        "selected": next((k for k, one in enumerate(found_quantities) if one.variable.array.attrs.get("headline")), 0),
    }


def _find_tokens(results: Sequence[ResultFile]) -> xr.DataArray | None:
    """Return the tokens, axes (batch, pos)."""
    data = next((one.data for one in results if one.file == TEXT_FILE), None)
    if data is None or "token" not in data.variables or set(data["token"].dims) != {"batch", "pos"}:
        return None
    tokens = data["token"].transpose("batch", "pos")
    return None if is_numeric(tokens) or not tokens.size else tokens


def _is_per_token(array: xr.DataArray, sizes: dict[str, int]) -> bool:
    """Return whether a variable has one value per token of the text, or one per layer and token."""
    dims = set(map(str, array.dims))
    return dims in ({"batch", "pos"}, {"layer", "batch", "pos"}) and all(array.sizes[d] == n for d, n in sizes.items())


def _fit_to_page(found_quantities: Sequence[PanelQuantity], sizes: dict[str, int]) -> tuple[int, int]:
    """Return how many sequences fit on the page; if not even one does, how many of its positions."""
    depth = sum(one.array.sizes.get("layer", 1) for one in found_quantities)
    rows = min(sizes["batch"], MAX_NUMBERS // (depth * sizes["pos"]))
    return (rows, sizes["pos"]) if rows else (1, min(sizes["pos"], max(1, MAX_NUMBERS // depth)))


def _encode_quantity(quantity: PanelQuantity, rows: int, positions: int) -> dict[str, Any]:
    """Return codes, colour scale and texts of one quantity."""
    array = quantity.array if "layer" in quantity.array.dims else quantity.array.expand_dims("layer")
    values = array.transpose("layer", "batch", "pos").values[:, :rows, :positions]
    log = quantity.variable.is_log and not (values < 0).any()
    quantized = quantize_array(values, log)
    return quantized.to_json() | _describe_quantity(quantity) | _choose_scale(quantized, quantity.variable.center, log)


def _describe_quantity(quantity: PanelQuantity) -> dict[str, Any]:
    return {
        "group": quantity.group,
        "name": quantity.name,
        "description": render_plain(quantity.variable.build_caption(quantity.variable.describe_step())),
        "tautology": render_plain(quantity.variable.tautology),
        "units": "" if quantity.variable.units == "1" else quantity.variable.units,
        "layers": read_labels(quantity.array, "layer") if "layer" in quantity.array.dims else [],
    }


def _choose_scale(quantized: QuantizedArray, center: float | None, log: bool) -> dict[str, Any]:
    low, high = quantized.colour_range
    if center is not None and not log:
        reach = max(high - center, center - low) or 1.0
        low, high = center - reach, center + reach
    high = high if high > low else low + (abs(low) or 1.0)
    return {
        "log": log,
        "center": None if log else center,
        "low": low,
        "high": high,
        "beyond": bool((quantized.levels[quantized.levels > 0] if log else quantized.levels).min(initial=low) < low)
        or bool(quantized.levels.max() > high),
        "colours": list(DIVERGING_TINTS if center is not None and not log else SEQUENTIAL_TINTS),
        "missing": int((quantized.codes == 0).sum()),
    }


def _build_caption(rows: int, positions: int, sizes: dict[str, int]) -> str:
    limits = []
    if rows < sizes["batch"]:
        limits.append(f"the first {rows} of {format_count(sizes['batch'], 'sequence')}")
    if positions < sizes["pos"]:
        limits.append(f"the first {positions:,} of {sizes['pos']:,} positions")
    left_out = f" To limit its size, the page contains {', '.join(limits)}; the files contain all." if limits else ""
    return (
        "Select a quantity and a layer, and hover over or tap a token for its value. When the text has focus, the "
        "arrow keys move between tokens. The strip shows the whole sequence, one row per layer, the first row on top; "
        f"if several tokens share a pixel, it shows the most extreme value. Values are rounded.{left_out}"
    )
