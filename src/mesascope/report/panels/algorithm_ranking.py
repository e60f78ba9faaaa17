"""Ranking of algorithms by the similarity of their predictions to the model's, with further similarities as a map."""

from collections import Counter
from typing import Any

import numpy as np
import xarray as xr

from mesascope.report.plotting.figure import (
    GREY,
    MODEL_COLOUR,
    SEQUENTIAL_COLOURS,
    TEXT_COLOUR,
    Panel,
    PlotBuilder,
    build_axis,
    build_layout,
    finite_mean,
    merge_legends,
)
from mesascope.report.plotting.variable import REQUIRED_AUX_VARIABLES, PlotVariable, read_labels
from mesascope.report.text import (
    escape_plotly,
    format_count,
    format_number,
    join_words,
    round_significant,
    truncate_label,
)

MIN_SIMILARITY = -0.1  # lower values are clipped to this
DIVERGED_SIMILARITY = -1e9  # replaces -inf, so that a mean over seeds stays finite and last in the ranking
NULL_COLOUR = "#c8641b"
PREDICTION_STAT = "predictions"
BAR_COLOUR, IDENTIFIED_COLOUR = "#7fa8cc", "#245f94"


def plot_algorithm_ranking(variable: PlotVariable) -> Panel:
    """Plot algorithms ranked by similarity to the model, the most similar first.

    Bars show the similarity of predictions on the training distribution (mean over seeds), rings show the seeds and
    ticks the null. A heat map below shows the similarity on other distributions and the similarity of other statistics.

    Args:
        variable: a similarity with axes (distribution, predictor, stat) and its auxiliary variables as coordinates.

    Returns:
        The panel.

    Raises:
        ValueError: if axes, auxiliary variables or the statistic ``predictions`` are missing.
    """
    array = variable.select_step()
    if {*variable.plot_dims} != {"distribution", "predictor", "stat"} or not {*REQUIRED_AUX_VARIABLES["ranking"]} <= {
        *array.coords
    }:
        raise ValueError(
            "a ranking needs the axes distribution, predictor and stat, and coordinates such as named and null"
        )
    if PREDICTION_STAT not in read_labels(array, "stat"):
        raise ValueError(f"a ranking needs the statistic {PREDICTION_STAT!r}")
    array = array.copy(data=np.where(np.isneginf(array), DIVERGED_SIMILARITY, array)).assign_attrs(array.attrs)
    order = np.argsort(
        -np.nan_to_num(finite_mean(_prediction_similarity(array)), nan=2 * DIVERGED_SIMILARITY), kind="stable"
    )
    array = array.isel(predictor=order)
    rows = [_format_row_label(array.isel(predictor=rank)) for rank in range(len(order))]
    similarity_plot, legend = _plot_prediction_similarity(array, rows, 27 * len(rows) + 70)
    return Panel(
        kind="figure",
        title=_format_title(array, rows),
        caption=variable.build_caption(*_describe_marks(variable, array, rows)),
        data={
            "plots": [similarity_plot, *_plot_other_similarities(array, rows, 25 * len(rows) + 110)],
            "legend": merge_legends([legend, []]),
        },
    )


def _prediction_similarity(array: xr.DataArray) -> np.ndarray:
    """Return the similarity of predictions on the training distribution, axes (seed, predictor)."""
    return (
        array.sel(stat=PREDICTION_STAT, distribution=_find_training_distribution(array))
        .transpose("seed", "predictor")
        .values
    )


def _find_training_distribution(array: xr.DataArray) -> Any:
    """Return the training distribution: the attribute ``first`` if it is one of the labels, else the first label."""
    first = array.attrs.get("first")
    return first if first in read_labels(array, "distribution") else array["distribution"].values[0]


def _is_identified(array: xr.DataArray) -> np.ndarray:
    """Return whether the model is identified as each algorithm, axes (seed, predictor)."""
    labels = array.coords["display_name"].transpose("seed", "predictor").values.astype(str)
    return labels == array.coords["named"].values.astype(str)[:, None]


def _format_title(array: xr.DataArray, rows: list[str]) -> str:
    """Return the identified algorithm and its similarity, with seed counts where the seeds disagree."""
    identified, is_identified = [str(one) for one in array.coords["named"].values], _is_identified(array)
    if not is_identified.any(1).all():
        counts = Counter(
            rows[int(row.argmax())] if row.any() else name for row, name in zip(is_identified, identified, strict=True)
        )
        return "Identified algorithm: " + _join_counts(counts)
    similarity = f", similarity {format_number(float(finite_mean(_prediction_similarity(array)[is_identified])))}"
    if len(set(identified)) == 1:
        return f"Most similar algorithm: {identified[0]}{similarity}"
    return (
        "Most similar algorithm: "
        + _join_counts(Counter(rows[int(row.argmax())] for row in is_identified))
        + similarity
    )


def _join_counts(counts: Counter[str]) -> str:
    """Join names with their number of seeds, the most frequent first; a single name without the number."""
    if len(counts) == 1:
        return next(iter(counts))
    return join_words(f"{name} ({format_count(count, 'seed')})" for name, count in counts.most_common())


def _format_row_label(algorithm: xr.DataArray) -> str:
    """Return the algorithm's name, starred if any seed cannot distinguish it from the most similar one."""
    return _format_algorithm_name(algorithm) + (
        "" if algorithm.coords["distinguishable"].values.astype(bool).any() else " *"
    )


def _format_algorithm_name(algorithm: xr.DataArray) -> str:
    """Return the algorithm's name with its number of iterations, as a range if seeds differ."""
    name, labels = (
        str(algorithm["predictor"].values),
        {str(each) for each in np.ravel(algorithm.coords["display_name"].values)},
    )
    if labels == {name}:
        return name
    counts = [int(each) for each in np.ravel(algorithm.coords["iterations"].values) if np.isfinite(each)]
    if not counts:
        return name
    return f"{name}, {min(counts)}{f'–{max(counts)}' if max(counts) > min(counts) else ''}"


def _plot_prediction_similarity(
    array: xr.DataArray, rows: list[str], height: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the bar plot of prediction similarity, and its legend."""
    builder, similarity = PlotBuilder(), _prediction_similarity(array)
    null = array.coords["similarity_null"].transpose("seed", "predictor").values
    y = list(range(len(rows)))
    bar = {
        "type": "bar",
        "orientation": "h",
        "x": round_significant(np.clip(finite_mean(similarity), MIN_SIMILARITY, None)),
        "y": y,
        "width": 0.62,
        "marker": {
            "color": [
                IDENTIFIED_COLOUR if any_seed else BAR_COLOUR
                for any_seed in np.any(_is_identified(array), axis=0).tolist()
            ]
        },
        "text": [_format_hover_text(array.isel(predictor=rank), row) for rank, row in enumerate(rows)],
        "hovertemplate": "%{text}<extra></extra>",
        "textposition": "none",
    }
    builder.add_series("similarity", MODEL_COLOUR, [bar], kind="bar")
    if len(similarity) > 1:
        builder.add_series(
            "seeds", TEXT_COLOUR, [_plot_markers(similarity, rows, TEXT_COLOUR, "circle-open", 7)], kind="ring"
        )
    builder.add_series(
        "null: another prompt's context",
        NULL_COLOUR,
        [_plot_markers(null, rows, NULL_COLOUR, "line-ns-open", 11)],
        kind="tick",
    )
    marks = {"tickmode": "array", "tickvals": y, "ticktext": [escape_plotly(row) for row in rows]}
    across = build_axis(
        "similarity of predictions", range=[MIN_SIMILARITY - 0.03, 1.03], zeroline=True, zerolinecolor="#8a8f98"
    )
    down = build_axis("", **marks, showgrid=False, range=[len(rows) - 0.4, -0.6])
    look = build_layout(across, down, hovermode="closest", bargap=0.35)
    return {
        "title": "training distribution",
        "data": builder.traces,
        "layout": look,
        "height": height,
        "wide": True,
    }, builder.legend


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
        value = "diverged" if value <= DIVERGED_SIMILARITY else format_number(value)
        lines.append(f"{value}{about}{', ' + escape_plotly(hyperparameters) if hyperparameters else ''}{remark}")
    return "<br>".join(lines)


def _plot_other_similarities(array: xr.DataArray, rows: list[str], height: int) -> list[dict[str, Any]]:
    """Return a heat map of means over seeds, or no plot if there is nothing to show.

    Columns are predictions on every other distribution, then the other statistics on the training distribution.
    """
    training = _find_training_distribution(array)
    others = [name for name in read_labels(array, "distribution") if name != training]
    stats = [stat for stat in read_labels(array, "stat") if stat != PREDICTION_STAT]
    if not others and not stats:
        return []
    columns = [array.sel(distribution=name, stat=PREDICTION_STAT) for name in others]
    columns += [array.sel(distribution=training, stat=stat) for stat in stats]
    grid = (
        np.array([finite_mean(one.transpose("seed", "predictor").values) for one in columns]).reshape(-1, len(rows)).T
    )
    labels = [*others, *stats]
    cells = {
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
        "hovertext": [
            [
                f"{escape_plotly(row)}<br>{escape_plotly(label)}: <b>{format_number(float(value))}</b>"
                for label, value in zip(labels, line, strict=True)
            ]
            for row, line in zip(rows, grid, strict=True)
        ],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }
    across = build_axis(
        "",
        tickmode="array",
        tickvals=list(range(len(labels))),
        ticktext=[escape_plotly(_shorten_label(one)) for one in labels],
    )
    across |= {"showgrid": False, "tickangle": -20, "tickfont": {"size": 11}}
    down = build_axis(
        "", tickmode="array", tickvals=list(range(len(rows))), ticktext=[escape_plotly(row) for row in rows]
    )
    down |= {"showgrid": False, "range": [len(rows) - 0.4, -0.6]}
    look = build_layout(across, down, hovermode="closest")
    return [
        {"title": "other distributions and statistics", "data": [cells], "layout": look, "height": height, "wide": True}
    ]


def _format_cell(value: float) -> str:
    """Format a cell with two digits; negative values are not resolved."""
    if not np.isfinite(value):
        return "–"
    return f"{value:.2f}" if value >= 0 else f'<span style="color:{GREY}">&lt;0</span>'


def _shorten_label(label: str) -> str:
    return truncate_label(label.replace("weights: ", "weight on "), 24)


def _describe_marks(variable: PlotVariable, array: xr.DataArray, rows: list[str]) -> list[str]:
    over = f"bars are the mean over {variable.seed_count}, rings the seeds" if variable.num_seeds > 1 else ""
    star_note = "; a star marks those not distinguishable from it" if any(row.endswith(" *") for row in rows) else ""
    return [
        f"One row per algorithm with its number of iterations, the most similar first{star_note}"
        f"{', ' + variable.describe_step() if variable.describe_step() else ''}{': ' + over if over else ''}",
        f"Dark bar: the identified algorithm, {_describe_identification_rule(array)}",
        f"Values below {format_number(MIN_SIMILARITY)} are drawn at {format_number(MIN_SIMILARITY)}"
        if (_prediction_similarity(array) < MIN_SIMILARITY).any()
        else "",
        "The heat map shows the similarity of predictions on other distributions, then of errors and of weights on the "
        "context on the training distribution"
        if array["distribution"].size > 1
        else "",
    ]


def _describe_identification_rule(array: xr.DataArray) -> str:
    """Describe the rule by which the algorithm was identified, as implemented by the analysis."""
    if "none of these" in {str(one) for one in np.ravel(array.coords["named"].values)}:
        return "none if the most similar is no better than with another prompt's context"
    return "the one with the fewest fitted hyperparameters among those not distinguishable from the most similar"
