"""The panel type that views return, and the building blocks of figures: colours, axes, lines, legends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mesascope.report.text import escape_plotly, format_number, format_power_of_ten, round_significant, truncate_label

TEXT_COLOUR = "#22272e"
GREY = "#737881"
MODEL_COLOUR = "#0b5394"
BASELINE_COLOURS = ("#b3541e", "#2f7d6d", "#8c5a94", "#a98a1c", "#5b8db8", "#c27a86", "#5f6b3a", "#6d6d6d")
SERIES_COLOURS = (MODEL_COLOUR, "#c8641b", "#2f7d6d", "#8c5a94", "#a98a1c", "#4f9bd0", "#bd5a73", "#5f6b3a")
DASH_STYLES = ("solid", "dot", "dash", "longdash", "dashdot")
SEQUENTIAL_COLOURS = ("#f5f4ee", "#d3dfe8", "#9dbcd4", "#5b8fb9", "#245f94", "#0b2f57")
DIVERGING_COLOURS = ("#8c3b0c", "#cf7f43", "#edc9a6", "#f6f5f1", "#b4cfe2", "#5b8fb9", "#0b3d6e")
FONT_FAMILY = (
    "Inter,'Segoe UI',-apple-system,BlinkMacSystemFont,Roboto,'Helvetica Neue',Arial,'Liberation Sans',sans-serif"
)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure or table of the page.

    Attributes:
        kind: template and script: ``figure``, ``attention``, ``tokens``, ``reader``, ``explorer``, ``table``.
        title: a short heading.
        caption: sentences below the figure.
        data: JSON data for the script; for a table and for tokens also for the template.
        headline: whether the panel is visible at once. Other panels of a section that has headlines are collapsed.
        tautology: the reason why the result holds by construction; empty if it does not.
    """

    kind: str
    title: str
    caption: str
    data: Mapping[str, Any] = field(default_factory=dict)
    headline: bool = False
    tautology: str = ""


def build_axis(title: str, **settings: Any) -> dict[str, Any]:
    """Return a plotly axis in the style of the report.

    Args:
        title: the title of the axis.
        **settings: further plotly settings, which override the defaults.

    Returns:
        The axis settings.
    """
    look = {"gridcolor": "#e9e6df", "linecolor": "#b9b5ab", "ticks": "outside", "ticklen": 4, "zeroline": False}
    text = {"text": escape_plotly(truncate_label(title, 48)), "font": {"size": 13}, "standoff": 8}
    return {"title": text, "automargin": True, "tickcolor": "#b9b5ab", "showline": True, **look, **settings}


def append_units(title: str, units: str) -> str:
    """Append units in brackets to an axis title; pure numbers have none.

    Args:
        title: the title.
        units: the units; ``1`` for a pure number.

    Returns:
        The title with units.

    >>> append_units("loss", "nat"), append_units("fraction", "1")
    ('loss (nat)', 'fraction')
    """
    return title if units in ("", "1") else f"{title} ({units})"


def build_layout(xaxis: Mapping[str, Any], yaxis: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    """Return a plotly layout in the style of the report.

    Args:
        xaxis: settings of the x axis.
        yaxis: settings of the y axis.
        **settings: further plotly settings, which override the defaults.

    Returns:
        The layout settings.
    """
    return {
        "xaxis": dict(xaxis),
        "yaxis": dict(yaxis),
        "margin": {"l": 56, "r": 14, "t": 10, "b": 44},
        "font": {"family": FONT_FAMILY, "size": 13, "color": TEXT_COLOUR},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "modebar": {"bgcolor": "rgba(255,255,255,0.85)", "color": "#8a8f98", "activecolor": "#0b5394"},
        "hovermode": "x unified",
        "hoverlabel": {"font": {"size": 12}, "bgcolor": "#ffffff", "bordercolor": "#cfcbc0", "namelength": 40},
        **settings,
    }


def build_ticks(labels: Sequence[Any], max_ticks: int = 12) -> dict[str, Any]:
    """Return ticks for the positions 0, 1, 2, ...: all if there are few, else evenly spaced ones.

    Args:
        labels: one label per position.
        max_ticks: the maximum number of ticks.

    Returns:
        The tick settings of a plotly axis.

    >>> build_ticks(["a", "b"])["ticktext"]
    ['a', 'b']
    """
    every = max(1, -(-len(labels) // max_ticks))
    positions = list(range(0, len(labels), every))
    return {
        "tickmode": "array",
        "tickvals": positions,
        "ticktext": [escape_plotly(truncate_label(str(labels[k]))) for k in positions],
    }


def build_line(x: Any, y: Any, name: str, colour: str, **settings: Any) -> dict[str, Any]:
    """Return a line trace with hover text.

    Args:
        x: x coordinates.
        y: y coordinates.
        name: the name in the hover text.
        colour: the colour.
        **settings: ``width``, ``dash`` and further plotly settings.

    Returns:
        The trace.
    """
    look = {"color": colour, "width": settings.pop("width", 2.4), "dash": settings.pop("dash", "solid")}
    trace = {
        "type": "scatter",
        "mode": "lines",
        "name": escape_plotly(name),
        "x": round_significant(x, 7),
        "y": round_significant(y),
        "line": look,
    }
    return {**trace, "hovertemplate": "%{y:.3~g}", "connectgaps": False, **settings}


def build_seed_line(x: Any, y: Any, colour: str, **settings: Any) -> dict[str, Any]:
    """Return a thin line trace without hover text, such as a single seed.

    Args:
        x: x coordinates.
        y: y coordinates.
        colour: the colour.
        **settings: further plotly settings.

    Returns:
        The trace.
    """
    return build_line(x, y, "", colour, width=1, opacity=0.45, hoverinfo="skip", **settings) | {"hovertemplate": None}


def build_band(x: Any, low: Any, high: Any, colour: str, opacity: float = 0.16) -> dict[str, Any]:
    """Return a trace of the filled area between two curves.

    Args:
        x: x coordinates.
        low: the lower curve.
        high: the upper curve.
        colour: the fill colour.
        opacity: the opacity, from 0 to 1.

    Returns:
        The trace; points where either curve is not finite are left out.
    """
    x, low, high = (np.asarray(one, dtype=float) for one in (x, low, high))
    finite = np.isfinite(low) & np.isfinite(high)
    outline = np.concatenate([x[finite], x[finite][::-1]])
    edge = np.concatenate([high[finite], low[finite][::-1]])
    shape = {"type": "scatter", "mode": "lines", "fill": "toself", "line": {"width": 0}, "hoverinfo": "skip"}
    return {
        **shape,
        "x": round_significant(outline, 7),
        "y": round_significant(edge),
        "fillcolor": colour,
        "opacity": opacity,
        "name": "",
    }


def finite_mean(rows: np.ndarray) -> np.ndarray:
    """Return the mean of the finite values over the first axis.

    Args:
        rows: numbers, axis 0 is averaged.

    Returns:
        Means; NaN where no value is finite.

    >>> finite_mean(np.array([[1.0, np.nan], [3.0, np.nan]])).tolist()
    [2.0, nan]
    """
    finite = np.isfinite(rows)
    total = np.where(finite, rows, 0.0).sum(0)
    return np.where(finite.any(0), total / np.maximum(finite.sum(0), 1), np.nan)


def build_range_band(x: Any, rows: np.ndarray, colour: str, opacity: float = 0.16) -> dict[str, Any]:
    """Return a band from the minimum to the maximum of the finite values over the first axis.

    Args:
        x: x coordinates.
        rows: curves as rows.
        colour: the fill colour.
        opacity: the opacity, from 0 to 1.

    Returns:
        The trace.
    """
    finite = np.isfinite(rows)
    low = np.where(finite.any(0), np.where(finite, rows, np.inf).min(0), np.nan)
    high = np.where(finite.any(0), np.where(finite, rows, -np.inf).max(0), np.nan)
    return build_band(x, low, high, colour, opacity)


def build_legend_entry(
    name: str, colour: str, traces: Sequence[int], dash: str = "solid", kind: str = "line"
) -> dict[str, Any]:
    """Return a legend button. Its name is not escaped, since the script inserts it as text.

    Args:
        name: the label.
        colour: the colour of the symbol.
        traces: indices of the traces that the button toggles.
        dash: the plotly dash style of the symbol.
        kind: the symbol: ``line``, ``band``, ``bar``, ``ring``, ``diamond`` or ``tick``.

    Returns:
        The legend entry.
    """
    return {"name": name, "colour": colour, "dash": dash, "kind": kind, "traces": list(traces)}


def build_step_axis(steps: Sequence[float | int]) -> tuple[np.ndarray, dict[str, Any]]:
    """Return a logarithmic axis of training steps. Step 0 is drawn slightly left of the first positive step.

    Args:
        steps: training steps.

    Returns:
        The x coordinate of each step, and the axis settings.

    >>> build_step_axis([0, 1, 10])[0].tolist()
    [0.4, 1.0, 10.0]
    """
    x = np.asarray(steps, dtype=float).copy()
    positive = x[x > 0]
    if not len(positive):
        return x, build_axis("training step")
    least, most = positive.min(), positive.max()
    zero = least * 0.4
    powers = [10.0**k for k in range(int(np.floor(np.log10(least))), int(np.ceil(np.log10(most))) + 1)]
    powers = [p for p in powers if least * 0.99 <= p <= most * 1.01] or [least, most]
    labelled = ([(zero, "0")] if (x <= 0).any() else []) + [(p, _format_step(p)) for p in powers]
    x[x <= 0] = zero
    marks = {"tickmode": "array", "tickvals": [v for v, _ in labelled], "ticktext": [t for _, t in labelled]}
    return x, build_axis("training step", type="log", **marks)


def build_log_axis(low: float | int, high: float | int, max_labels: int = 6) -> dict[str, Any]:
    """Return settings of a logarithmic axis with few labels: powers of ten, with their multiples by 2 and 5 if needed.

    Args:
        low: the smallest value; must be positive.
        high: the largest value.
        max_labels: the approximate maximum number of labels.

    Returns:
        The axis settings.

    >>> build_log_axis(0.02, 3)["ticktext"]
    ['0.02', '0.05', '0.1', '0.2', '0.5', '1', '2']
    """
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    inside = [k for k in range(first, last + 1) if low * 0.999 <= 10.0**k <= high * 1.001]
    if len(inside) >= 3:
        marks = [10.0**k for k in inside[:: max(1, round(len(inside) / max_labels))]]
    else:
        every = [m * 10.0**k for k in range(first, last + 1) for m in (1, 2, 5)]
        marks = [v for v in every if low * 0.999 <= v <= high * 1.001] or [low, high]
    return {"type": "log", "tickmode": "array", "tickvals": marks, "ticktext": [_format_log_tick(v) for v in marks]}


def _format_log_tick(value: float) -> str:
    exponent = np.log10(value)
    if abs(exponent) > 3.01 and abs(exponent - round(exponent)) < 1e-9:
        return format_power_of_ten(round(exponent))
    return format_number(float(f"{value:.3g}"))


def _format_step(value: float) -> str:
    """Format a step as 1, 10, 100, 1k, 10k or 1M."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


@dataclass
class PlotBuilder:
    """Traces and legend of a plot under construction.

    Attributes:
        traces: plotly traces, back to front.
        legend: legend entries.
    """

    traces: list[dict[str, Any]] = field(default_factory=list)
    legend: list[dict[str, Any]] = field(default_factory=list)

    def add_series(
        self, name: str, colour: str, traces: Sequence[dict[str, Any]], dash: str = "solid", kind: str = "line"
    ):
        """Add the traces of one legend entry.

        Args:
            name: the label of the entry.
            colour: the colour of its symbol.
            traces: the traces.
            dash: the plotly dash style of its symbol.
            kind: its symbol, as in :func:`build_legend_entry`.
        """
        first = len(self.traces)
        self.traces.extend(traces)
        self.legend.append(build_legend_entry(name, colour, range(first, len(self.traces)), dash, kind))


def merge_legends(legends: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Merge the legends of plots side by side: each name once, with its traces in every plot.

    Args:
        legends: the legend of each plot.

    Returns:
        Legend entries with the list ``each`` of trace indices by plot.
    """
    entries = {one["name"]: one for legend in legends for one in legend}
    traces = [{one["name"]: one["traces"] for one in legend} for legend in legends]
    return [{**one, "each": [index_by_name.get(name, []) for index_by_name in traces]} for name, one in entries.items()]
