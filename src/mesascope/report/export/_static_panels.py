"""Figures in place of the panels that a page draws with its own scripts: attention patterns, text and circuits."""

import re
from dataclasses import replace
from typing import Any

import numpy as np

from mesascope.report.plotting.axes import build_axis, build_ticks
from mesascope.report.plotting.figure import GREY, MODEL_COLOUR, TEXT_COLOUR, Panel, build_layout, build_legend_entry
from mesascope.report.text import escape_plotly, format_sentence, round_significant

LOWERS_COLOUR, RAISES_COLOUR = MODEL_COLOUR, "#c8641b"
MAX_DRAWN_EDGES = 100
CURVE_BEND = 0.9  # in rows
MAX_TOKEN_TICKS = 32


def to_static_panel(panel: Panel) -> Panel | None:
    """Return a panel as one that consists of plotly figures.

    Args:
        panel: a panel of a report.

    Returns:
        The panel itself if it is a figure; a figure of the same values for attention patterns (of the first seed and
        the first example), for coloured text (of the first example) and for circuits; None for tables.
    """
    draw = {"attention": _draw_patterns, "tokens": _draw_tokens, "graph": _draw_circuit}.get(panel.kind)
    if draw is not None:
        return draw(panel)
    return panel if panel.kind == "figure" else None


def _draw_patterns(panel: Panel) -> Panel:
    """Draw the pattern of every head in one map, layers as rows and heads as columns."""
    shape, top = panel.data["shape"], float(panel.data["top"])
    weights = np.array([np.nan if v is None else v for v in panel.data["values"]], dtype=float).reshape(shape)[0]
    layers, heads, _, queries, keys = weights.shape
    gap = max(1, keys // 12)
    tiles = np.full((layers, queries + gap, heads, keys + gap), np.nan)
    tiles[:, :queries, :, :keys] = (weights[:, :, 0] / 1000 * top).transpose(0, 2, 1, 3)
    cells = tiles.reshape(layers * (queries + gap), heads * (keys + gap))[:-gap, :-gap]
    names = panel.data["names"]
    across = build_axis("head", **_place_ticks(names["head"], keys, gap), showgrid=False)
    down = build_axis("layer", **_place_ticks(names["layer"], queries, gap), showgrid=False, autorange="reversed")
    scale = _build_scale(-top if panel.data["signed"] else 0.0, top, panel.data)
    plot = {
        "title": "",
        "data": [_build_map(cells, scale)],
        "layout": build_layout(across, down),
        "height": int(max(160, min(26 * layers, 620)) * 1.2) + 54,
    }
    seed, example = (names[d][0] for d in ("seed", "batch"))
    chosen = [f"seed {seed}"] if len(names["seed"]) > 1 else []
    chosen += [f"example {example}"] if len(names["batch"]) > 1 else []
    note = "One map for each head, with queries as rows and keys as columns" + "".join(f"; {one}" for one in chosen)
    data = {"plots": [plot], "scale": scale, "min_width": 400}
    return replace(panel, kind="figure", caption=f"{panel.caption} {format_sentence(note)}", data=data)


def _place_ticks(labels: list[str], size: int, gap: int) -> dict[str, Any]:
    """Return ticks in the middle of tiles; a single tile without a label has none."""
    marks = build_ticks([label for label in labels if label], 30)
    return marks | {"tickvals": [k * (size + gap) + (size - 1) / 2 for k in marks["tickvals"]]}


def _draw_tokens(panel: Panel) -> Panel:
    """Draw the first example as a map, layers as rows and tokens as columns."""
    tokens = panel.data["rows"][0]
    values = np.array([[np.nan if v is None else v for v in layer[0]] for layer in panel.data["values"]], dtype=float)
    if panel.data["log"]:
        with np.errstate(all="ignore"):
            values = np.where(values > 0, np.log10(values), np.nan)
    options = panel.data["options"] or [""]
    few = len(tokens) <= MAX_TOKEN_TICKS
    marks = build_ticks(tokens, MAX_TOKEN_TICKS) | {"tickangle": -60} if few else {"nticks": 10, "tickformat": "d"}
    across = build_axis("token" if few else "position", **marks, showgrid=False)
    down = build_axis(panel.data["slide"], **build_ticks(options, 16), showgrid=False, autorange="reversed")
    scale = _build_scale(panel.data["low"], panel.data["high"], panel.data)
    scale["ends"] = [panel.data["ends"][0], "", panel.data["ends"][1]]
    plot = {
        "title": "",
        "data": [_build_map(values, scale)],
        "layout": build_layout(across, down),
        "height": max(60, min(14 * len(options), 460)) + 54,
    }
    note = "The first example." if len(panel.data["rows"]) > 1 else ""
    data = {"plots": [plot], "scale": scale, "min_width": 400}
    return replace(panel, kind="figure", caption=" ".join(filter(None, [panel.caption, note])), data=data)


def _build_scale(low: float, high: float, data: Any) -> dict[str, Any]:
    ends = [f"{value:.3g}".replace("-", "−") for value in (low, (low + high) / 2, high)]
    return {"colours": list(data["colours"]), "ends": ends, "units": data["units"], "low": low, "high": high}


def _build_map(cells: np.ndarray, scale: dict[str, Any]) -> dict[str, Any]:
    colours = scale["colours"]
    return {
        "type": "heatmap",
        "z": round_significant(cells, 3),
        "zmin": scale["low"],
        "zmax": scale["high"],
        "colorscale": [[k / (len(colours) - 1), colour] for k, colour in enumerate(colours)],
        "hovertemplate": "%{z:.3~g}<extra></extra>",
        "hoverongaps": False,
        "showscale": False,
    }


def _draw_circuit(panel: Panel) -> Panel:
    """Draw the edges of the circuit as curves between components, layers from bottom to top."""
    nodes, edges = panel.data["nodes"], panel.data["edges"]
    count = min(panel.data["size"], MAX_DRAWN_EDGES)
    largest = max(map(abs, edges["score"][:count])) or 1.0
    shapes = [_draw_edge(nodes, edges, k, largest) for k in reversed(range(count))]
    used = {*edges["sender"][:count], *(reader for readers in edges["readers"][:count] for reader in readers)}
    layers = (panel.data["rows"] - 2) // 2
    across = build_axis("", showgrid=False, showticklabels=False, range=[-0.06, 1.06], ticks="", showline=False)
    marks = build_ticks([str(layer) for layer in range(layers)], 30)
    middles = {"tickvals": [2 * layer + 1.5 for layer in marks["tickvals"]]}
    down = build_axis("layer", **marks | middles, showgrid=False, range=[-0.6, panel.data["rows"] - 0.4])
    layout = build_layout(across, down, hovermode="closest", shapes=shapes)
    legend = [
        build_legend_entry(f"{panel.data['ablated_by']} lowers the metric", LOWERS_COLOUR, []),
        build_legend_entry("raises it", RAISES_COLOUR, []),
    ]
    plot = {"title": "", "data": [_draw_nodes(nodes, used)], "layout": layout, "height": 40 * panel.data["rows"] + 60}
    note = f"Drawn: the first {count} edges, and the components that they join."
    data = {"plots": [plot], "legend": legend, "min_width": 400}
    return replace(panel, kind="figure", caption=f"{panel.caption} {note}", data=data)


def _draw_edge(nodes: list[dict[str, Any]], edges: dict[str, Any], k: int, largest: float) -> dict[str, Any]:
    """Return a curve; an edge to heads that share a key-value head ends in a bracket below them."""
    sender, (x, row), score = nodes[edges["sender"][k]], edges["receiver"][k], edges["score"][k]
    start, end = sender["row"] + 0.25, row - 0.25
    group = [nodes[reader]["x"] for reader in edges["readers"][k]]
    low = end - 0.15 if len(group) > 1 else end
    skips = abs(sender["x"] - x) < 1e-9 and row - sender["row"] > 1  # components between them would cover the edge
    side = (0.03 + 0.015 * (row - sender["row"])) * (-1) ** k if skips else 0.0
    bend = max(CURVE_BEND / 2, (low - start) / 2)
    points = [sender["x"] + side, start + bend, x + side, low - bend, x, low]
    path = f"M {sender['x']:.4f} {start:.4f} C " + " ".join(f"{value:.4f}" for value in points)
    if len(group) > 1:
        left, right = min(group), max(group)
        path += f" M {left:.4f} {end:.4f} L {left:.4f} {low:.4f} L {right:.4f} {low:.4f} L {right:.4f} {end:.4f}"
    line = {"color": LOWERS_COLOUR if score < 0 else RAISES_COLOUR, "width": 0.4 + 2.6 * abs(score) / largest}
    return {"type": "path", "path": path, "line": line, "opacity": 0.65, "layer": "below"}


def _draw_nodes(nodes: list[dict[str, Any]], used: set[int]) -> dict[str, Any]:
    heads = [re.search(r"H(\d+)", node["name"]) for node in nodes]
    drawn = [k for k, head in enumerate(heads) if head is None or k in used]
    labels = [f"H{head[1]}" if (head := heads[k]) else nodes[k]["name"].split(".")[-1] for k in drawn]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [nodes[k]["x"] for k in drawn],
        "y": [nodes[k]["row"] for k in drawn],
        "text": [escape_plotly(label) for label in labels],
        "textposition": ["middle center" if heads[k] else "middle right" for k in drawn],
        "hovertext": [escape_plotly(nodes[k]["label"]) for k in drawn],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "textfont": {"size": 9, "color": [TEXT_COLOUR if k in used else GREY for k in drawn]},
        "marker": {
            "symbol": "square",
            "size": 15,
            "color": "#ffffff",
            "line": {"width": 1, "color": [TEXT_COLOUR if k in used else "#d5d1c7" for k in drawn]},
        },
    }
