"""Bars of prediction similarity by algorithm, and the heat map of all other similarities."""

from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.axes import build_axis
from mesascope.report.plotting.figure import (
    BAR_COLOUR,
    GREY,
    MODEL_COLOUR,
    SEQUENTIAL_COLOURS,
    TEXT_COLOUR,
    PlotBuilder,
    build_layout,
)
from mesascope.report.plotting.traces import finite_mean
from mesascope.report.plotting.variable import read_labels
from mesascope.report.text import (
    escape_plotly,
    format_number,
    round_significant,
    truncate_label,
)

MIN_SIMILARITY = -0.1  # lower values are clipped to this
DIVERGED_SIMILARITY = -1e9  # replaces -inf, so that a mean over seeds stays finite and last in the ranking
NULL_COLOUR = "#c8641b"
PREDICTION_STAT = "predictions"
IDENTIFIED_COLOUR = "#245f94"


def prediction_similarity(array: xr.DataArray) -> np.ndarray:
    """Return the similarity of predictions on the training distribution.

    Args:
        array: the similarity with its auxiliary variables as coordinates.

    Returns:
        Numbers, axes (seed, predictor).
    """
    return (
        array.sel(stat=PREDICTION_STAT, distribution=_find_training_distribution(array))
        .transpose("seed", "predictor")
        .values
    )


def _find_training_distribution(array: xr.DataArray) -> Any:
    """Return the training distribution: the attribute ``first`` if it is one of the labels, else the first label."""
    first = array.attrs.get("first")
    return first if first in read_labels(array, "distribution") else array["distribution"].values[0]


def find_identified(array: xr.DataArray) -> np.ndarray:
    """Find the algorithm as which the model is identified in each seed.

    Args:
        array: the similarity with its auxiliary variables as coordinates.

    Returns:
        A boolean mask, axes (seed, predictor).
    """
    labels = array.coords["display_name"].transpose("seed", "predictor").values.astype(str)
    return labels == array.coords["named"].values.astype(str)[:, None]


def plot_prediction_similarity(
    array: xr.DataArray, rows: list[str], height: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Plot prediction similarity as bars.

    Args:
        array: the similarity with its auxiliary variables as coordinates.
        rows: the label of each algorithm.
        height: height in pixels.

    Returns:
        The plot and its legend.
    """
    builder, similarity = PlotBuilder(), prediction_similarity(array)
    null = array.coords["similarity_null"].transpose("seed", "predictor").values
    builder.add_series("similarity", MODEL_COLOUR, [_plot_bars(array, similarity, rows)], kind="bar")
    if len(similarity) > 1:
        rings = _plot_markers(similarity, rows, TEXT_COLOUR, "circle-open", 7)
        builder.add_series("seeds", TEXT_COLOUR, [rings], kind="ring")
    null_marks = _plot_markers(null, rows, NULL_COLOUR, "line-ns-open", 11)
    builder.add_series("null: another prompt's context", NULL_COLOUR, [null_marks], kind="tick")
    across = build_axis(
        "similarity of predictions", range=[MIN_SIMILARITY - 0.03, 1.03], zeroline=True, zerolinecolor="#8a8f98"
    )
    down = build_axis("", **_label_ticks(rows), showgrid=False, range=[len(rows) - 0.4, -0.6])
    look = build_layout(across, down, hovermode="closest", bargap=0.35)
    plot = {"title": "training distribution", "data": builder.traces, "layout": look, "height": height, "wide": True}
    return plot, builder.legend


def _plot_bars(array: xr.DataArray, similarity: np.ndarray, rows: list[str]) -> dict[str, Any]:
    identified = np.any(find_identified(array), axis=0).tolist()
    return {
        "type": "bar",
        "orientation": "h",
        "x": round_significant(np.clip(finite_mean(similarity), MIN_SIMILARITY, None)),
        "y": list(range(len(rows))),
        "width": 0.62,
        "marker": {"color": [IDENTIFIED_COLOUR if any_seed else BAR_COLOUR for any_seed in identified]},
        "text": [_format_hover_text(array.isel(predictor=rank), row) for rank, row in enumerate(rows)],
        "hovertemplate": "%{text}<extra></extra>",
        "textposition": "none",
    }


def _label_ticks(labels: list[str]) -> dict[str, Any]:
    positions = list(range(len(labels)))
    return {"tickmode": "array", "tickvals": positions, "ticktext": [escape_plotly(one) for one in labels]}


def _plot_markers(values: np.ndarray, rows: list[str], colour: str, symbol: str, size: int) -> dict[str, Any]:
    marker = {"size": size, "color": colour, "symbol": symbol, "line": {"width": 1.6, "color": colour}}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": round_significant(np.clip(values, MIN_SIMILARITY, None).ravel()),
        "y": list(range(len(rows))) * len(values),
        "marker": marker,
        "text": [
            f"{escape_plotly(row)}: {format_number(float(value))}"
            for line in values
            for row, value in zip(rows, line, strict=True)
        ],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _format_hover_text(algorithm: xr.DataArray, row: str) -> str:
    """Return the hover text of an algorithm: similarity, interval and hyperparameters in every seed."""
    lines = [f"<b>{escape_plotly(row)}</b>"]
    for seed in range(algorithm.sizes["seed"]):
        seed_values = algorithm.isel(seed=seed)
        value = float(seed_values.sel(stat=PREDICTION_STAT, distribution=_find_training_distribution(seed_values)))
        ends = [float(seed_values.coords[name]) for name in ("low", "high") if name in seed_values.coords]
        about = f" [{format_number(ends[0])}, {format_number(ends[1])}]" if len(ends) == 2 else ""
        hyperparameters = str(seed_values.coords["hyperparameters"].values)
        remark = "" if bool(seed_values.coords["distinguishable"]) else ", not distinguishable from the most similar"
        if "edges" in seed_values.coords and (edges := str(seed_values.coords["edges"].values)):
            remark = f", {escape_plotly(edges)} at the edge of the grid{remark}"
        value = "diverged" if value <= DIVERGED_SIMILARITY else format_number(value)
        lines.append(f"{value}{about}{', ' + escape_plotly(hyperparameters) if hyperparameters else ''}{remark}")
    return "<br>".join(lines)


def plot_other_similarities(array: xr.DataArray, rows: list[str], height: int) -> list[dict[str, Any]]:
    """Plot a heat map of means over seeds.

    Columns are predictions on every other distribution, then the other statistics on the training distribution.

    Args:
        array: the similarity with its auxiliary variables as coordinates.
        rows: the label of each algorithm.
        height: height in pixels.

    Returns:
        The plot, or none if there is nothing to show.
    """
    training = _find_training_distribution(array)
    others = [name for name in read_labels(array, "distribution") if name != training]
    stats = [stat for stat in read_labels(array, "stat") if stat != PREDICTION_STAT]
    if not others and not stats:
        return []
    columns = [array.sel(distribution=name, stat=PREDICTION_STAT) for name in others]
    columns += [array.sel(distribution=training, stat=stat) for stat in stats]
    means = [finite_mean(one.transpose("seed", "predictor").values) for one in columns]
    labels, grid = [*others, *stats], np.array(means).reshape(-1, len(rows)).T
    across = build_axis("", **_label_ticks([_shorten_label(one) for one in labels]))
    across |= {"showgrid": False, "tickangle": -20, "tickfont": {"size": 11}}
    down = build_axis("", **_label_ticks(rows)) | {"showgrid": False, "range": [len(rows) - 0.4, -0.6]}
    look, cells = build_layout(across, down, hovermode="closest"), _build_cells(grid, rows, labels)
    return [
        {"title": "other distributions and statistics", "data": [cells], "layout": look, "height": height, "wide": True}
    ]


def _build_cells(grid: np.ndarray, rows: list[str], labels: list[str]) -> dict[str, Any]:
    return {
        "type": "heatmap",
        "z": round_significant(grid, 3),
        "zmin": 0.0,
        "zmax": 1.0,
        "colorscale": [[k / (len(SEQUENTIAL_COLOURS) - 1), colour] for k, colour in enumerate(SEQUENTIAL_COLOURS)],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "text": [[_format_cell(value) for value in line] for line in grid],
        "texttemplate": "%{text}",
        "textfont": {"size": 11},
        "hovertext": [_format_hover_row(row, labels, line) for row, line in zip(rows, grid, strict=True)],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _format_hover_row(row: str, labels: list[str], values: np.ndarray) -> list[str]:
    return [
        f"{escape_plotly(row)}<br>{escape_plotly(label)}: <b>{format_number(float(value))}</b>"
        for label, value in zip(labels, values, strict=True)
    ]


def _format_cell(value: float) -> str:
    """Format a cell with two digits; negative values are not resolved."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.2f}" if value >= 0 else f'<span style="color:{GREY}">&lt;0</span>'


def _shorten_label(label: str) -> str:
    return truncate_label(label.replace("weights: ", "weight on "), 24)
