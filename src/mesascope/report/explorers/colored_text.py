"""Text with tokens coloured by a quantity, with a slider over layers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.variable import PlotVariable, make_visible
from mesascope.report.text import format_count, format_dim, format_number, round_significant

SEQUENTIAL_TINTS = ("#fdfcf8", "#fbe9c9", "#f6cf95", "#eeb069", "#e39150")
DIVERGING_TINTS = ("#eaa06a", "#f5d3b4", "#fbfaf6", "#c8dcec", "#8fbadd")
MAX_TOKENS = 1500  # tokens in one panel


def build_coloured_text(variable: PlotVariable) -> Panel:
    """Show the tokens of each example, coloured by their value at every layer, averaged over seeds.

    Args:
        variable: a variable with the axis pos, and optionally batch and layer, in a file with tokens.

    Returns:
        The panel.

    Raises:
        ValueError: if the file has no tokens or the variable no axis ``pos``.
    """
    _require_tokens(variable)
    values, rows = _select_values(variable)
    caption = variable.build_caption(*_describe_colours(variable, rows))
    data, hint = _encode_values(variable, values, rows), "Hover over a token for its value."
    return Panel(kind="tokens", title=variable.title, caption=caption, data=data, hint=hint)


def _find_slider_dim(variable: PlotVariable) -> str | None:
    return next((d for d in variable.plot_dims if d not in ("batch", "pos")), None)


def _select_values(variable: PlotVariable) -> tuple[np.ndarray, list[list[str]]]:
    """Return the values, axes (layer, batch, pos), and the tokens, as many as fit into a panel."""
    slider_dim = _find_slider_dim(variable)
    array = variable.select_step().mean("seed")
    array = array if "batch" in array.dims else array.expand_dims("batch")
    array = array.transpose(*([slider_dim] if slider_dim else []), "batch", "pos")
    values = array.values if slider_dim else array.values[None]
    rows = _read_tokens(variable, values.shape[1])[: max(1, MAX_TOKENS // values.shape[2])]
    rows = [row[:MAX_TOKENS] for row in rows]
    return values[:, : len(rows), : len(rows[0])], rows


def _encode_values(variable: PlotVariable, values: np.ndarray, rows: list[list[str]]) -> dict[str, Any]:
    slider_dim = _find_slider_dim(variable)
    low, high, colours = _choose_colour_range(variable, values)
    ends = [10**v if variable.is_log else v for v in (low, high)]
    return {
        "rows": rows,
        "values": [[round_significant(row, 3) for row in layer] for layer in values],
        "low": low,
        "high": high,
        "log": variable.is_log,
        "colours": list(colours),
        "ends": [format_number(float(f"{v:.3g}")) for v in ends],
        "slide": format_dim(slider_dim) if slider_dim else "",
        "options": variable.list_labels(slider_dim) if slider_dim else [],
        "units": "" if variable.units == "1" else variable.units,
    }


def _read_tokens(variable: PlotVariable, examples: int) -> list[list[str]]:
    """Return the tokens of each example; a single row of tokens is repeated for all."""
    labels = _require_tokens(variable)
    for dim in [d for d in labels.dims if d not in ("batch", "pos")]:
        labels = labels.isel({dim: 0})
    if "batch" not in labels.dims:
        labels = labels.expand_dims({"batch": examples})
    return [[make_visible(token) for token in row] for row in labels.transpose("batch", "pos").values]


def _require_tokens(variable: PlotVariable) -> xr.DataArray:
    if variable.labels is None or "pos" not in variable.array.dims:
        raise ValueError(f"coloured text needs a variable `token` and the axis `pos`, but {variable.name!r} lacks one")
    return variable.labels


def _choose_colour_range(variable: PlotVariable, values: np.ndarray) -> tuple[float, float, Sequence[str]]:
    """Return both ends of the colour scale and its colours, light enough for text on them to be readable."""
    finite = values[np.isfinite(values)]
    if variable.is_log:
        finite = np.log10(finite[finite > 0])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if (center := variable.center) is not None and not variable.is_log:
        reach = max(high - center, center - low) or 1.0
        return center - reach, center + reach, DIVERGING_TINTS
    return low, high if high > low else low + 1.0, SEQUENTIAL_TINTS


def _describe_colours(variable: PlotVariable, rows: Sequence[Sequence[str]]) -> list[str]:
    notes = [variable.describe_step()]
    notes += [f"Mean over {variable.seed_count}"] if variable.num_seeds > 1 else []
    notes += ["Logarithmic colour scale"] if variable.is_log else []
    total = variable.array.sizes.get("batch", 1)
    notes += [f"Showing the first {len(rows)} of {format_count(total, 'example')}"] if total > len(rows) else []
    return [*filter(None, notes)]
