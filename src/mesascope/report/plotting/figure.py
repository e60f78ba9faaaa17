"""The panel type that views return, and the building blocks of figures: colours, axes, lines, legends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

TEXT_COLOUR = "#22272e"
GREY = "#737881"
MODEL_COLOUR = "#0b5394"
BAR_COLOUR = "#6594c1"
BASELINE_COLOURS = ("#b3541e", "#2f7d6d", "#8c5a94", "#a98a1c", "#5b8db8", "#c27a86", "#5f6b3a", "#6d6d6d")
SERIES_COLOURS = (MODEL_COLOUR, "#c8641b", "#2f7d6d", "#8c5a94", "#a98a1c", "#4191c9", "#bd5a73", "#5f6b3a")
DASH_STYLES = ("solid", "dot", "dash", "longdash", "dashdot")
SEQUENTIAL_COLOURS = ("#f5f4ee", "#d3dfe8", "#9dbcd4", "#5b8fb9", "#245f94", "#0b2f57")
DIVERGING_COLOURS = ("#8c3b0c", "#cf7f43", "#edc9a6", "#f6f5f1", "#b4cfe2", "#5b8fb9", "#0b3d6e")
FONT_FAMILY = (
    "Inter,'Segoe UI',-apple-system,BlinkMacSystemFont,Roboto,'Helvetica Neue',Arial,'Liberation Sans',sans-serif"
)
LAYOUT_STYLE: Mapping[str, Any] = MappingProxyType(
    {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "modebar": {"bgcolor": "rgba(255,255,255,0.85)", "color": "#8a8f98", "activecolor": "#0b5394"},
        "hovermode": "x unified",
        "hoverlabel": {"font": {"size": 12}, "bgcolor": "#ffffff", "bordercolor": "#cfcbc0", "namelength": 40},
    }
)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure or table of the page.

    Attributes:
        kind: template and script: ``figure``, ``attention``, ``tokens``, ``reader``, ``explorer``, ``graph``,
            ``table``.
        title: a short heading, without formulas.
        caption: sentences below the figure; text with formulas.
        data: JSON data for the script; for a table and for tokens also for the template.
        headline: whether the panel is visible at once. Other panels of a section that has headlines are collapsed.
        tautology: the reason why the result holds by construction, a text with formulas; empty if it does not.
        hint: how to use the inputs of the page; sentences after the caption.
        name: the variable that is shown, and ``-over-training`` for its second panel; empty for other panels.
        anchor: the ``id`` of the HTML element.
    """

    kind: str
    title: str
    caption: str
    data: Mapping[str, Any] = field(default_factory=dict)
    headline: bool = False
    tautology: str = ""
    hint: str = ""
    name: str = ""
    anchor: str = ""


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
        **LAYOUT_STYLE,
        **settings,
    }


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
