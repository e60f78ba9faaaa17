"""What a view returns, and the parts that all figures share: colours, axes, lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mesascope.report.text import clipped, number, plain, rounded, superscript

INK = "#22272e"
GREY = "#737881"
MODEL = "#0b5394"
OTHERS = ("#b3541e", "#2f7d6d", "#8c5a94", "#a98a1c", "#5b8db8", "#c27a86", "#5f6b3a", "#6d6d6d")
SERIES = (MODEL, "#c8641b", "#2f7d6d", "#8c5a94", "#a98a1c", "#4f9bd0", "#bd5a73", "#5f6b3a")
DASHES = ("solid", "dot", "dash", "longdash", "dashdot")
SEQUENTIAL = ("#f5f4ee", "#d3dfe8", "#9dbcd4", "#5b8fb9", "#245f94", "#0b2f57")
DIVERGING = ("#8c3b0c", "#cf7f43", "#edc9a6", "#f6f5f1", "#b4cfe2", "#5b8fb9", "#0b3d6e")
FONT = "Inter,'Segoe UI',-apple-system,BlinkMacSystemFont,Roboto,'Helvetica Neue',Arial,'Liberation Sans',sans-serif"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One figure or table of the page.

    Attributes:
        kind: ``figure``, ``attention``, ``tokens`` or ``table``: which part of the template and script draws it.
        title: a short heading.
        caption: sentences that stand under it.
        data: what the script draws, as JSON; for a table and for tokens, what the template writes out.
        headline: shown at once; other panels of a section are folded away where any is a headline.
        tautology: why what is shown cannot fail; written beside the title where there is such a reason.
    """

    kind: str
    title: str
    caption: str
    data: Mapping[str, Any] = field(default_factory=dict)
    headline: bool = False
    tautology: str = ""


def axis(title: str, **more: Any) -> dict[str, Any]:
    """A quiet axis with a title."""
    look = {"gridcolor": "#e9e6df", "linecolor": "#b9b5ab", "ticks": "outside", "ticklen": 4, "zeroline": False}
    text = {"text": plain(clipped(title, 48)), "font": {"size": 13}, "standoff": 8}
    return {"title": text, "automargin": True, "tickcolor": "#b9b5ab", "showline": True, **look, **more}


def with_units(words: str, units: str) -> str:
    """An axis title with its units in brackets; a pure number has none.

    >>> with_units("loss", "nat"), with_units("share", "1")
    ('loss (nat)', 'share')
    """
    return words if units in ("", "1") else f"{words} ({units})"


def layout(xaxis: Mapping[str, Any], yaxis: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The house look of a plot."""
    return {
        "xaxis": dict(xaxis),
        "yaxis": dict(yaxis),
        "margin": {"l": 56, "r": 14, "t": 10, "b": 44},
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "modebar": {"bgcolor": "rgba(255,255,255,0.85)", "color": "#8a8f98", "activecolor": "#0b5394"},
        "hovermode": "x unified",
        "hoverlabel": {"font": {"size": 12}, "bgcolor": "#ffffff", "bordercolor": "#cfcbc0", "namelength": 40},
        **more,
    }


def ticks(labels: Sequence[Any], most: int = 12) -> dict[str, Any]:
    """Labels for positions 0, 1, 2, ...: every one where they are few, else evenly many.

    >>> ticks(["a", "b"])["ticktext"]
    ['a', 'b']
    """
    every = max(1, -(-len(labels) // most))
    kept = list(range(0, len(labels), every))
    return {"tickmode": "array", "tickvals": kept, "ticktext": [plain(clipped(str(labels[k]))) for k in kept]}


def line(x: Any, y: Any, name: str, colour: str, **more: Any) -> dict[str, Any]:
    """A line that answers the pointer; ``width``, ``dash`` and anything plotly knows may be given."""
    look = {"color": colour, "width": more.pop("width", 2.4), "dash": more.pop("dash", "solid")}
    trace = {"type": "scatter", "mode": "lines", "name": plain(name), "x": rounded(x, 7), "y": rounded(y), "line": look}
    return {**trace, "hovertemplate": "%{y:.3~g}", "connectgaps": False, **more}


def faint(x: Any, y: Any, colour: str, **more: Any) -> dict[str, Any]:
    """A thin line that the pointer passes over, such as one seed of several."""
    return line(x, y, "", colour, width=1, opacity=0.45, hoverinfo="skip", **more) | {"hovertemplate": None}


def band(x: Any, low: Any, high: Any, colour: str, opacity: float = 0.16) -> dict[str, Any]:
    """The area between two curves."""
    x, low, high = (np.asarray(one, dtype=float) for one in (x, low, high))
    kept = np.isfinite(low) & np.isfinite(high)
    around = np.concatenate([x[kept], x[kept][::-1]])
    edge = np.concatenate([high[kept], low[kept][::-1]])
    shape = {"type": "scatter", "mode": "lines", "fill": "toself", "line": {"width": 0}, "hoverinfo": "skip"}
    return {**shape, "x": rounded(around, 7), "y": rounded(edge), "fillcolor": colour, "opacity": opacity, "name": ""}


def mean(rows: np.ndarray) -> np.ndarray:
    """Mean over rows of the finite values; NaN where there is none.

    >>> mean(np.array([[1.0, np.nan], [3.0, np.nan]])).tolist()
    [2.0, nan]
    """
    known = np.isfinite(rows)
    total = np.where(known, rows, 0.0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def spread(x: Any, rows: np.ndarray, colour: str, opacity: float = 0.16) -> dict[str, Any]:
    """The band from the least to the greatest finite value of the rows."""
    known = np.isfinite(rows)
    low = np.where(known.any(0), np.where(known, rows, np.inf).min(0), np.nan)
    high = np.where(known.any(0), np.where(known, rows, -np.inf).max(0), np.nan)
    return band(x, low, high, colour, opacity)


def entry(name: str, colour: str, traces: Sequence[int], dash: str = "solid", kind: str = "line") -> dict[str, Any]:
    """One button of the legend, with the traces that it hides (its name is set as text, so it is not escaped)."""
    return {"name": name, "colour": colour, "dash": dash, "kind": kind, "traces": list(traces)}


def step_axis(steps: Sequence[float | int]) -> tuple[np.ndarray, dict[str, Any]]:
    """Steps on a logarithmic axis, with step 0 a little to the left of the first positive one.

    >>> step_axis([0, 1, 10])[0].tolist()
    [0.4, 1.0, 10.0]
    """
    x = np.asarray(steps, dtype=float).copy()
    positive = x[x > 0]
    if not len(positive):
        return x, axis("training step")
    least, most = positive.min(), positive.max()
    zero = least * 0.4
    powers = [10.0**k for k in range(int(np.floor(np.log10(least))), int(np.ceil(np.log10(most))) + 1)]
    powers = [p for p in powers if least * 0.99 <= p <= most * 1.01] or [least, most]
    named = ([(zero, "0")] if (x <= 0).any() else []) + [(p, _short(p)) for p in powers]
    x[x <= 0] = zero
    marks = {"tickmode": "array", "tickvals": [v for v, _ in named], "ticktext": [t for _, t in named]}
    return x, axis("training step", type="log", **marks)


def log_look(low: float | int, high: float | int, most: int = 6) -> dict[str, Any]:
    """A logarithmic axis with a few labels: powers of ten, and 2 and 5 times those where powers are few.

    >>> log_look(0.02, 3)["ticktext"]
    ['0.02', '0.05', '0.1', '0.2', '0.5', '1', '2']
    """
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    inside = [k for k in range(first, last + 1) if low * 0.999 <= 10.0**k <= high * 1.001]
    if len(inside) >= 3:
        marks = [10.0**k for k in inside[:: max(1, round(len(inside) / most))]]
    else:
        every = [m * 10.0**k for k in range(first, last + 1) for m in (1, 2, 5)]
        marks = [v for v in every if low * 0.999 <= v <= high * 1.001] or [low, high]
    return {"type": "log", "tickmode": "array", "tickvals": marks, "ticktext": [_power(v) for v in marks]}


def _power(value: float) -> str:
    """A label of a logarithmic axis."""
    exponent = np.log10(value)
    if abs(exponent) > 3.01 and abs(exponent - round(exponent)) < 1e-9:
        return superscript(round(exponent))
    return number(float(f"{value:.3g}"))


def _short(value: float) -> str:
    """1, 10, 100, 1k, 10k, 1M."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


@dataclass
class Drawing:
    """Traces and legend of one plot, as they come to be."""

    traces: list[dict[str, Any]] = field(default_factory=list)
    legend: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, colour: str, traces: Sequence[dict[str, Any]], dash: str = "solid", kind: str = "line"):
        """Add the traces of one entry of the legend."""
        first = len(self.traces)
        self.traces.extend(traces)
        self.legend.append(entry(name, colour, range(first, len(self.traces)), dash, kind))


def shared(legends: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One legend for plots side by side: every name once, with its traces in each plot."""
    entries = {one["name"]: one for legend in legends for one in legend}
    places = [{one["name"]: one["traces"] for one in legend} for legend in legends]
    return [{**one, "each": [place.get(name, []) for place in places]} for name, one in entries.items()]
