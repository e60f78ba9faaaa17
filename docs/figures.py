"""The curves of a run's report as pictures, for pages that cannot answer a pointer."""

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

WIDTH, HEIGHT, DPI = 4.6, 2.9, 88  # of one plot, in inches; two stand side by side
COLOURS = 64  # of a picture: a third of the size
LONG = 70  # letters under an axis that still stand beside each other
FEW = 6  # names that still stand among their curves
MOST = 8  # plots in a picture: the report has them all
DASHES = {"solid": "-", "dot": ":", "dash": "--", "longdash": (0, (8, 3)), "dashdot": "-."}
LOOK = {"font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def pictures(run: Path, folder: Path, name: str, whole: Collection[str]) -> Iterator[tuple[str, str, Path]]:
    """Draw the curves of a run.

    Args:
        run: a finished run.
        folder: where pictures are written.
        name: what their names begin with.
        whole: results of which all curves are drawn; of others only those that are shown at once.

    Yields:
        The heading of a result, what its curves are, in words, and the picture.
    """
    for result in load_run(run).results:
        key = Path(result.file).stem
        drawn = list(_curves(result, key in whole))
        if drawn:
            file = folder / f"{name}-{key}.png"
            _draw(drawn[:MOST], file)
            yield result.title, " ".join(dict.fromkeys(_sentence(panel) for panel, _ in drawn[:MOST])), file


def _curves(result: ResultFile, whole: bool) -> Iterator[tuple[Panel, Mapping[str, Any]]]:
    """Yield the plots of a result that consist of lines."""
    shown = build_panels(result.data) if result.data is not None else []
    marked = any(panel.headline for panel in shown)  # otherwise the report folds nothing
    for panel in shown:
        plots = panel.data.get("plots", []) if panel.kind == "figure" else []
        if whole or panel.headline or not marked:
            yield from ((panel, plot) for plot in plots if _has_curves(plot["data"]))


def _has_curves(traces: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether all traces are curves or areas between curves, and one has more than one point."""
    lines = all(trace["type"] == "scatter" and "lines" in trace.get("mode", "") for trace in traces)
    return lines and any(len(trace["x"]) > 1 for trace in traces)


def _sentence(panel: Panel) -> str:
    """Return the title of a plot and the first sentence of its caption."""
    first = panel.caption.split(". ")[0].rstrip(".")
    return f"*{panel.title}*: {first[:1].lower()}{first[1:]}." if first else ""


def _draw(plots: Sequence[tuple[Panel, Mapping[str, Any]]], file: Path) -> None:
    """Draw all plots into one image, two per row."""
    columns = min(2, len(plots))
    rows = -(-len(plots) // columns)
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
        places = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (panel, plot) in zip(places, plots, strict=False):
            _plot(axes, panel, plot)
        for axes in places[len(plots) :]:
            axes.set_visible(False)
        drawn = BytesIO()
        figure.savefig(drawn, dpi=DPI)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(file, optimize=True)


def _plot(axes: Axes, panel: Panel, plot: Mapping[str, Any]) -> None:
    """Draw one plot from its plotly specification."""
    for trace in plot["data"]:
        _trace(axes, trace)
    axes.set_title(": ".join(dict.fromkeys(filter(None, (panel.title, plot["title"])))), fontsize=9, loc="left")
    for axis, told in ((axes.xaxis, plot["layout"]["xaxis"]), (axes.yaxis, plot["layout"]["yaxis"])):
        axis.set_label_text(told["title"]["text"])
        if told.get("type") == "log":
            axis.set_major_locator(NullLocator())
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_minor_locator(NullLocator())
        if told.get("tickformat") == "d":
            axis.set_major_locator(MaxNLocator(integer=True))
        if "tickvals" in told:
            axis.set_ticks(told["tickvals"], told["ticktext"])
            if sum(map(len, told["ticktext"])) > LONG and axis is axes.xaxis:
                axes.tick_params("x", rotation=18, labelsize=7)
                for text in axes.get_xticklabels():
                    text.set_horizontalalignment("right")
        if "range" in told and told.get("type") == "log":
            axes.set_ylim(*(10.0**edge for edge in told["range"]))
    named = {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(named) > 1:
        beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(named) > FEW else {}
        axes.legend(named.values(), named.keys(), fontsize=7, framealpha=0.85, edgecolor="none", borderpad=0, **beside)
    axes.grid(color="#e9e6df", linewidth=0.6)


def _trace(axes: Axes, trace: Mapping[str, Any]) -> None:
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
