"""Static figures of the curves of a run's report, drawn by matplotlib from the report's plotly specifications."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from PIL import Image

from mesascope.report.load_run import ResultFile, load_run
from mesascope.report.panels.choose_view import build_panels
from mesascope.report.plotting.figure import Panel
from mesascope.store import write_atomically

WIDTH, HEIGHT, DPI = 4.6, 2.9, 88  # of one plot, in inches; two stand side by side
COLOURS = 64  # of a figure: a third of the file size
MAX_LABEL_LENGTH = 70  # characters of tick labels under an axis that fit without rotation
MAX_INNER_LEGEND = 6  # names in a legend that fit inside the axes
MAX_PLOTS = 8  # plots in a figure; the report has all
DASHES = {"solid": "-", "dot": ":", "dash": "--", "longdash": (0, (8, 3)), "dashdot": "-."}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw_figures(run: Path, folder: Path, name: str, unfolded: Collection[str]) -> Iterator[tuple[str, str, Path]]:
    """Draw the curves of a run.

    Args:
        run: a finished run.
        folder: folder of the image files.
        name: prefix of their names.
        unfolded: results of which all curves are drawn; of others, those that the report does not fold.

    Yields:
        The heading of a result, a description of its curves, and the image file.
    """
    for result in load_run(run).results:
        key = Path(result.file).stem
        drawn = list(_select_curves(result, key in unfolded))
        if drawn:
            file = folder / f"{name}-{key}.png"
            _draw_grid(drawn[:MAX_PLOTS], file)
            yield result.title, " ".join(dict.fromkeys(_describe_panel(panel) for panel, _ in drawn[:MAX_PLOTS])), file


def _select_curves(result: ResultFile, unfolded: bool) -> Iterator[tuple[Panel, Mapping[str, Any]]]:
    """Yield the plots of a result that consist of lines."""
    panels = build_panels(result.data) if result.data is not None else []
    has_headline = any(panel.headline for panel in panels)  # without headlines the report folds nothing
    for panel in panels:
        plots = panel.data.get("plots", []) if panel.kind == "figure" else []
        if unfolded or panel.headline or not has_headline:
            yield from ((panel, plot) for plot in plots if _has_curves(plot["data"]))


def _has_curves(traces: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether all traces are curves or areas between curves, and one has more than one point."""
    lines = all(trace["type"] == "scatter" and "lines" in trace.get("mode", "") for trace in traces)
    return lines and any(len(trace["x"]) > 1 for trace in traces)


def _describe_panel(panel: Panel) -> str:
    """Return the title of a plot and the first sentence of its caption."""
    first = panel.caption.split(". ")[0].rstrip(".")
    return f"*{panel.title}*: {first[:1].lower()}{first[1:]}." if first else ""


def _draw_grid(plots: Sequence[tuple[Panel, Mapping[str, Any]]], file: Path) -> None:
    """Draw all plots into one image, two per row."""
    columns = min(2, len(plots))
    rows = -(-len(plots) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (panel, plot) in zip(grid, plots, strict=False):
            _draw_plot(axes, panel, plot)
        for axes in grid[len(plots) :]:
            axes.set_visible(False)
        buffer = BytesIO()
        figure.savefig(buffer, dpi=DPI)
    Image.open(buffer).convert("RGB").quantize(COLOURS).save(image := BytesIO(), format="PNG", optimize=True)
    write_atomically(file, image.getvalue())


def _draw_plot(axes: Axes, panel: Panel, plot: Mapping[str, Any]) -> None:
    """Draw one plot from its plotly specification."""
    for trace in plot["data"]:
        _draw_trace(axes, trace)
    axes.set_title(": ".join(dict.fromkeys(filter(None, (panel.title, plot["title"])))), fontsize=9, loc="left")
    for axis, layout in ((axes.xaxis, plot["layout"]["xaxis"]), (axes.yaxis, plot["layout"]["yaxis"])):
        axis.set_label_text(layout["title"]["text"])
        if layout.get("type") == "log":
            axis.set_major_locator(NullLocator())
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_minor_locator(NullLocator())
        if layout.get("tickformat") == "d":
            axis.set_major_locator(MaxNLocator(integer=True))
        if "tickvals" in layout:
            axis.set_ticks(layout["tickvals"], layout["ticktext"])
            if sum(map(len, layout["ticktext"])) > MAX_LABEL_LENGTH and axis is axes.xaxis:
                axes.tick_params("x", rotation=18, labelsize=7)
                for text in axes.get_xticklabels():
                    text.set_horizontalalignment("right")
        if "range" in layout and layout.get("type") == "log":
            axes.set_ylim(*(10.0**edge for edge in layout["range"]))
    named = {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(named) > 1:
        outside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(named) > MAX_INNER_LEGEND else {}
        axes.legend(named.values(), named.keys(), fontsize=7, framealpha=0.85, edgecolor="none", borderpad=0, **outside)
    axes.grid(color="#e9e6df", linewidth=0.6)


def _draw_trace(axes: Axes, trace: Mapping[str, Any]) -> None:
    """Draw a curve, or the area between two curves."""
    x, y = ([float("nan") if v is None else v for v in trace[axis]] for axis in ("x", "y"))
    if trace.get("fill"):
        axes.fill(x, y, color=trace["fillcolor"], alpha=trace["opacity"], linewidth=0)
        return
    line = trace["line"]
    axes.plot(
        x,
        y,
        color=line["color"],
        linewidth=0.7 * line["width"],
        linestyle=DASHES[line["dash"]],
        alpha=trace.get("opacity", 1.0),
        label=trace["name"] or None,
        marker="." if "markers" in trace["mode"] else None,
    )
