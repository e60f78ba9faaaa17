"""Composition of the plots of a panel to one plotly figure: sizes and fonts of a paper, legend and colour bar."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from mesascope.report.plotting.figure import TEXT_COLOUR
from mesascope.report.text import escape_plotly

COLUMN_WIDTH, PAGE_WIDTH = 336, 672  # pixels at 96 per inch: 3.5 and 7 inches, a column and a page of a paper
FONT_SIZE, SMALL_FONT_SIZE = 11, 9  # pixels: 8 and 7 points
FONT_FAMILY = "Helvetica,Arial,'Liberation Sans',sans-serif"
PAGE_FONT_SIZE = 13  # of the plots of a page, whose heights are scaled by the ratio
PAGE_MARGIN = 54  # above and below a plot of a page
CHARACTER_WIDTH = 5.6  # pixels, of a mean character
LEGEND_SYMBOL_WIDTH, LEGEND_LINE_HEIGHT = 44, 18
COLOUR_BAR_WIDTH = 74
MIN_CELL_SIZE = 7  # pixels; smaller cells of a heat map have no gaps between them
MAX_ASPECT_RATIO = 0.72  # height by width of plots without rows
MAX_LEGEND_LABELS = 12  # of colours of points
GAP = 10  # between plots, beside the room for labels


@dataclass(frozen=True)
class _LabelSpace:
    """Pixels beside a plot for the labels of its axes and its title."""

    left: int
    bottom: int
    top: int


@dataclass(frozen=True)
class _Cell:
    """The place of a plot in the figure, in pixels from the upper left corner."""

    plot: int
    x: float
    y: float
    width: float
    height: float


def compose_figure(data: Mapping[str, Any], selection: Sequence[int]) -> dict[str, Any]:
    """Compose the plots of a panel to one figure.

    Args:
        data: the data of a panel of kind ``figure``.
        selection: the index of the option of each of its choices.

    Returns:
        ``data`` and ``layout`` of plotly, on white, without a title, as wide as a column or a page of a paper.
    """
    plots = [_select_cells(data, selection, k) for k in range(len(data["plots"]))]
    legend = [*data.get("legend", ()), *_build_colour_legend(data, selection)]
    width = COLUMN_WIDTH if len(plots) == 1 and not _needs_page(data) else PAGE_WIDTH
    right = COLOUR_BAR_WIDTH if data.get("scale") else GAP
    cells, bottom = _arrange(plots, data.get("min_width", 270), width - right)
    legend_height = _estimate_legend_height(legend, width)
    height = round(bottom + legend_height)
    layout: dict[str, Any] = {
        "width": width,
        "height": height,
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "font": {"family": FONT_FAMILY, "size": FONT_SIZE, "color": TEXT_COLOUR},
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0, "autoexpand": False},
        "showlegend": bool(legend),
        "legend": _place_legend(),
        "hovermode": "closest",
        "annotations": [],
        "shapes": [],
    }
    traces: list[dict[str, Any]] = []
    for cell in cells:
        traces += _add_plot(layout, plots[cell.plot], cell, width, height, _group_traces(legend, data, cell.plot))
    if data.get("scale"):
        traces[0] = _add_colour_bar(traces[0], data["scale"], cells[0], width, height)
    return {"data": [*traces, *map(_build_legend_trace, legend)], "layout": layout}


def _needs_page(data: Mapping[str, Any]) -> bool:
    return bool(data["plots"][0].get("wide")) or data.get("min_width", 0) > COLUMN_WIDTH


def _select_cells(data: Mapping[str, Any], selection: Sequence[int], k: int) -> dict[str, Any]:
    """Return the plot at an index, with the values of the selected choices."""
    plot, variants = data["plots"][k], data.get("variants")
    if not variants:
        return plot
    index = reduce(lambda total, pair: total * len(pair[0]["options"]) + pair[1], _pair_choices(data, selection), 0)
    if marks := data.get("marks"):
        kinds = len(marks["names"])
        codes = marks["codes"][marks["used"][index]]
        palette = marks["palette"]
        marker = {**plot["data"][0]["marker"], "color": [palette[code % len(palette)] for code in codes]}
        names = [marks["names"][index % kinds][code] for code in codes]
        cells = {**variants[index // kinds][k], "marker": marker, "customdata": names}
    else:
        cells = variants[index][k]
    return {**plot, "data": [{**trace, **cells} for trace in plot["data"]]}


def _pair_choices(data: Mapping[str, Any], selection: Sequence[int]) -> list[tuple[Mapping[str, Any], int]]:
    return list(zip(data.get("choices") or (), selection, strict=True))


def _build_colour_legend(data: Mapping[str, Any], selection: Sequence[int]) -> list[dict[str, Any]]:
    """Return legend entries for the colours of points, unless there are too many labels."""
    marks = data.get("marks")
    if not marks:
        return []
    names = marks["names"][selection[-1]]
    if len(names) > MAX_LEGEND_LABELS:
        return []
    colours = zip(names, marks["palette"], strict=False)
    return [
        {"label": name, "colour": colour, "kind": "point", "dash": "solid", "traces": []} for name, colour in colours
    ]


def _arrange(plots: Sequence[Mapping[str, Any]], min_width: int, width: float) -> tuple[list[_Cell], float]:
    """Place plots in rows; a wide plot has a row of its own.

    Returns:
        The cells, and the lower end of the last row.
    """
    per_row = max(1, min(4, int(width // (min_width * FONT_SIZE / PAGE_FONT_SIZE))))
    cells: list[_Cell] = []
    top = 0.0
    for row in _split_rows(plots, per_row):
        columns = 1 if plots[row[0]].get("wide") else min(per_row, len(plots))
        rooms = [_measure_labels(plots[k], width / columns) for k in row]
        left, above, below = (max(getattr(room, side) for room in rooms) for side in ("left", "top", "bottom"))
        inner = width / columns - left - GAP
        heights = [_choose_height(plots[k], inner) for k in row]
        cells += [
            _Cell(k, column * width / columns + left, top + above, inner, height)
            for column, (k, height) in enumerate(zip(row, heights, strict=True))
        ]
        top += above + max(heights) + below
    return cells, top


def _split_rows(plots: Sequence[Mapping[str, Any]], per_row: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for k, plot in enumerate(plots):
        if plot.get("wide") or not rows or len(rows[-1]) == per_row or plots[rows[-1][-1]].get("wide"):
            rows.append([])
        rows[-1].append(k)
    return rows


def _measure_labels(plot: Mapping[str, Any], width: float) -> _LabelSpace:
    """Estimate the room that labels need."""
    x, y = plot["layout"]["xaxis"], plot["layout"]["yaxis"]
    limit = _max_label_length(width)
    y_label = max((len(_clip_label(text, limit)[1]) for text in y.get("ticktext", ["10000"])), default=0)
    left = (CHARACTER_WIDTH * y_label + 10 if y.get("showticklabels", True) else 4) + 18 * bool(y["title"]["text"])
    labels = [len(_clip_label(text, limit)[1]) for text in x.get("ticktext", ["0"])]
    longest, fits = max(labels, default=0), sum(labels) * CHARACTER_WIDTH < 0.75 * (width - left)
    tick_height = 0 if not x.get("showticklabels", True) else 16 if fits else 12 + 0.9 * CHARACTER_WIDTH * longest
    bottom = 6 + tick_height + 20 * bool(x["title"]["text"])
    return _LabelSpace(round(left), round(bottom), 22 if plot["title"] else 8)


def _max_label_length(width: float) -> int:
    return 12 if width < 230 else 26 if width < 400 else 44


def _clip_label(text: str, limit: int) -> tuple[str, list[str]]:
    """Shorten an escaped label; return it with its characters, of which an escaped one is one."""
    characters = re.findall(r"<[^>]*>|&[^;]+;|.", text, re.DOTALL)
    if len(characters) > limit:
        characters = [*characters[: limit - 1], "…"]
    return "".join(characters), characters


def _choose_height(plot: Mapping[str, Any], inner_width: float) -> float:
    """Return the height of the plot area: that of the rows if there are any, else in proportion to the width."""
    if "scaleanchor" in plot["layout"]["yaxis"]:
        return inner_width
    height = (plot["height"] - PAGE_MARGIN) * FONT_SIZE / PAGE_FONT_SIZE
    has_rows = "ticktext" in plot["layout"]["yaxis"] and plot["layout"]["yaxis"].get("type") != "log"
    has_rows = has_rows or plot["data"][0]["type"] == "heatmap"
    return max(40.0, height if has_rows else min(height, MAX_ASPECT_RATIO * inner_width))


def _add_plot(
    layout: dict[str, Any], plot: Mapping[str, Any], cell: _Cell, width: int, height: int, groups: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Add the axes and the title of a plot to the layout, and return its traces."""
    number = "" if cell.plot == 0 else str(cell.plot + 1)
    limit = _max_label_length(cell.width + 60)
    across, down = plot["layout"]["xaxis"], plot["layout"]["yaxis"]
    if "thin" in plot:
        across = _thin_ticks(across, plot["thin"], cell.width)
    layout[f"xaxis{number}"] = _style_axis(across, limit) | {
        "domain": _limit([cell.x / width, (cell.x + cell.width) / width]),
        "anchor": f"y{number}",
    }
    layout[f"yaxis{number}"] = _style_axis(down, limit) | {
        "domain": _limit([1 - (cell.y + cell.height) / height, 1 - cell.y / height]),
        "anchor": f"x{number}",
    }
    if "scaleanchor" in down:
        layout[f"yaxis{number}"]["scaleanchor"] = f"x{number}"
    if "bargap" in plot["layout"]:
        layout["bargap"] = plot["layout"]["bargap"]
    axes = {"xref": f"x{number}", "yref": f"y{number}"}
    layout["shapes"] += [{**shape, **axes} for shape in plot["layout"].get("shapes", ())]
    if plot["title"]:
        layout["annotations"].append(_build_plot_title(plot["title"], cell, width, height))
    return [
        _style_trace(trace, cell)
        | {"xaxis": f"x{number}", "yaxis": f"y{number}", "showlegend": False}
        | _group(groups, k)
        for k, trace in enumerate(plot["data"])
    ]


def _limit(ends: Sequence[float]) -> list[float]:
    return [min(1.0, max(0.0, round(end, 5))) for end in ends]


def _style_axis(axis: Mapping[str, Any], limit: int) -> dict[str, Any]:
    style = {**axis, "automargin": False, "linecolor": TEXT_COLOUR, "tickcolor": TEXT_COLOUR, "ticklen": 3}
    style["title"] = {**axis["title"], "font": {"size": FONT_SIZE}, "standoff": 4}
    style["tickfont"] = {"size": FONT_SIZE - 1}
    if "ticktext" in axis:
        style["ticktext"] = [_clip_label(text, limit)[0] for text in axis["ticktext"]]
    return style


def _thin_ticks(axis: Mapping[str, Any], count: int, room: float) -> dict[str, Any]:
    """Leave out tick labels that would overlap, so that none is rotated."""
    remaining, free = [], float("-inf")
    for k, (value, text) in enumerate(zip(axis["tickvals"], axis["ticktext"], strict=True)):
        half = CHARACTER_WIDTH / 2 * len(_clip_label(text, 26)[1]) + 3
        center = value / max(1, count - 1) * room
        if center - half >= free:
            remaining.append(k)
            free = center + half
    lists = {name: [axis[name][k] for k in remaining] for name in ("tickvals", "ticktext")}
    return {**axis, **lists, "tickangle": 0, "ticklabeloverflow": "allow"}


def _style_trace(trace: Mapping[str, Any], cell: _Cell) -> dict[str, Any]:
    """Return a trace with lines, symbols and texts of a size for a paper."""
    style = dict(trace)
    if "line" in trace:
        style["line"] = {**trace["line"], "width": 0.7 * trace["line"].get("width", 2)}
    if "textfont" in trace:
        style["textfont"] = {**trace["textfont"], "size": SMALL_FONT_SIZE}
    if trace["type"] == "heatmap":
        rows, columns = len(trace["z"]), len(trace["z"][0])
        if min(cell.width / columns, cell.height / rows) < MIN_CELL_SIZE:
            style |= {"xgap": 0, "ygap": 0}
    return style


def _build_plot_title(title: str, cell: _Cell, width: int, height: int) -> dict[str, Any]:
    text = _clip_label(escape_plotly(title), max(12, int(cell.width / CHARACTER_WIDTH)))[0]
    anchor = {"x": cell.x / width, "y": 1 - (cell.y - 3) / height, "xref": "paper", "yref": "paper"}
    style = {"xanchor": "left", "yanchor": "bottom", "showarrow": False, "font": {"size": FONT_SIZE}}
    return {"text": text, **anchor, **style}


def _add_colour_bar(
    trace: Mapping[str, Any], scale: Mapping[str, Any], cell: _Cell, width: int, height: int
) -> dict[str, Any]:
    """Return the first heat map with the colour bar of all."""
    low, high = trace["zmin"], trace["zmax"]
    bar = {
        "x": 1 - (COLOUR_BAR_WIDTH - 8) / width,
        "xanchor": "left",
        "y": 1 - cell.y / height,
        "yanchor": "top",
        "lenmode": "pixels",
        "len": min(cell.height, 140),
        "thickness": 9,
        "xpad": 0,
        "ypad": 0,
        "outlinewidth": 0,
        "tickmode": "array",
        "tickvals": [low, (low + high) / 2, high],
        "ticktext": [escape_plotly(end) for end in scale["ends"]],
        "tickfont": {"size": SMALL_FONT_SIZE},
        "title": {"text": escape_plotly(scale["units"]), "side": "right", "font": {"size": SMALL_FONT_SIZE}},
    }
    return {**trace, "showscale": True, "colorbar": bar}


def _place_legend() -> dict[str, Any]:
    anchor = {"x": 0, "xanchor": "left", "xref": "container", "y": 0, "yanchor": "bottom", "yref": "container"}
    return {**anchor, "orientation": "h", "font": {"size": FONT_SIZE - 1}, "itemwidth": 30, "tracegroupgap": 0}


def _estimate_legend_height(legend: Sequence[Mapping[str, Any]], width: int) -> float:
    """Return the height of a horizontal legend, whose entries are placed one after the other."""
    lines, used = 1, 0.0
    for entry in legend:
        needed = CHARACTER_WIDTH * len(_clip_label(_get_label(entry), 1000)[1]) + LEGEND_SYMBOL_WIDTH
        lines, used = (lines + 1, needed) if used + needed > width and used else (lines, used + needed)
    return 12 + LEGEND_LINE_HEIGHT * lines if legend else 0.0


def _get_label(entry: Mapping[str, Any]) -> str:
    """Return the escaped label of a legend entry."""
    return entry["label"] if "label" in entry else escape_plotly(entry["name"])


def _group_traces(legend: Sequence[Mapping[str, Any]], data: Mapping[str, Any], plot: int) -> dict[int, str]:
    """Return the legend group of every trace of a plot that the legend switches on and off."""
    groups = {}
    for entry in legend:
        shared = plot == 0 or bool(data.get("shared"))
        for trace in entry["each"][plot] if "each" in entry else entry["traces"] if shared else ():
            groups[trace] = _get_label(entry)
    return groups


def _group(groups: Mapping[int, str], trace: int) -> dict[str, str]:
    return {"legendgroup": groups[trace]} if trace in groups else {}


def _build_legend_trace(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trace without points that stands for an entry in the legend."""
    colour, label = entry["colour"], _get_label(entry)
    symbol = {"bar": "square", "ring": "circle-open", "diamond": "diamond", "tick": "line-ns-open", "point": "circle"}
    trace = {"type": "scatter", "x": [None], "y": [None], "name": label, "legendgroup": label, "showlegend": True}
    if entry["kind"] in symbol:
        line = {"width": 1.4, "color": colour}
        fill = "#7fa8cc" if entry["kind"] == "bar" else colour
        marker = {"symbol": symbol[entry["kind"]], "size": 8, "color": fill, "line": line}
        return trace | {"mode": "markers", "marker": marker}
    line = {"color": colour, "dash": entry["dash"], "width": 1.7}
    band = {"mode": "lines+markers", "marker": {"symbol": "square", "size": 9, "color": colour, "opacity": 0.3}}
    return trace | {"mode": "lines", "line": line} | (band if entry["kind"] == "band" else {})
