"""Text, coloured token by token by a quantity; a slider goes through the layers."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from mesascope.report.plotting.figure import Panel
from mesascope.report.plotting.variable import Shown, visible
from mesascope.report.text import number, rounded, several, word

LIGHT = ("#fdfcf8", "#fbe9c9", "#f6cf95", "#eeb069", "#e39150")
BOTH = ("#eaa06a", "#f5d3b4", "#fbfaf6", "#c8dcec", "#8fbadd")
MOST = 1500  # tokens in one panel


def coloured_text(shown: Shown) -> Panel:
    """The tokens of each example with their numbers at every layer, averaged over seeds."""
    _known(shown)
    slide = next((d for d in shown.rest if d not in ("batch", "pos")), None)
    array = shown.at().mean("seed")
    array = array if "batch" in array.dims else array.expand_dims("batch")
    array = array.transpose(*([slide] if slide else []), "batch", "pos")
    values = array.values if slide else array.values[None]
    rows = _tokens(shown, values.shape[1])[: max(1, MOST // values.shape[2])]
    rows = [row[:MOST] for row in rows]
    values = values[:, : len(rows), : len(rows[0])]
    low, high, colours = _range(shown, values)
    ends = [10**v if shown.log else v for v in (low, high)]
    data = {
        "rows": rows,
        "values": [[rounded(row, 3) for row in layer] for layer in values],
        "low": low,
        "high": high,
        "log": shown.log,
        "colours": list(colours),
        "ends": [number(float(f"{v:.3g}")) for v in ends],
        "slide": word(slide) if slide else "",
        "options": shown.names(slide) if slide else [],
        "units": "" if shown.units == "1" else shown.units,
    }
    return Panel(kind="tokens", title=shown.title, caption=shown.caption(*_notes(shown, rows)), data=data)


def _tokens(shown: Shown, examples: int) -> list[list[str]]:
    """The tokens of each example; one row of tokens serves all."""
    labels = _known(shown)
    for dim in [d for d in labels.dims if d not in ("batch", "pos")]:
        labels = labels.isel({dim: 0})
    if "batch" not in labels.dims:
        labels = labels.expand_dims({"batch": examples})
    return [[visible(token) for token in row] for row in labels.transpose("batch", "pos").values]


def _known(shown: Shown) -> xr.DataArray:
    """The variable that holds the tokens."""
    if shown.labels is None or "pos" not in shown.array.dims:
        raise ValueError(f"coloured text needs a variable `token` and the dim `pos`, but {shown.name!r} lacks one")
    return shown.labels


def _range(shown: Shown, values: np.ndarray) -> tuple[float, float, Sequence[str]]:
    """Ends of the colours and the colours; light ones, so that text on them stays readable."""
    finite = values[np.isfinite(values)]
    if shown.log:
        finite = np.log10(finite[finite > 0])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if (center := shown.center) is not None and not shown.log:
        reach = max(high - center, center - low) or 1.0
        return center - reach, center + reach, BOTH
    return low, high if high > low else low + 1.0, LIGHT


def _notes(shown: Shown, rows: Sequence[Sequence[str]]) -> list[str]:
    """What the colours are, in words."""
    notes = [shown.moment()]
    notes += [f"Mean over {shown.over_seeds}"] if shown.seeds > 1 else []
    notes += ["Colours are logarithmic"] if shown.log else []
    total = shown.array.sizes.get("batch", 1)
    notes += [f"The first {len(rows)} of {several(total, 'example')}"] if total > len(rows) else []
    return [*filter(None, notes), "Point at a token for its number"]
