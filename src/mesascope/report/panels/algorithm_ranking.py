"""Ranking of algorithms by the similarity of their predictions to the model's, with further similarities as a map."""

from collections import Counter

import numpy as np
import xarray as xr

from mesascope.report.panels._similarity_plots import (
    DIVERGED_SIMILARITY,
    MIN_SIMILARITY,
    PREDICTION_STAT,
    find_identified,
    plot_other_similarities,
    plot_prediction_similarity,
    prediction_similarity,
)
from mesascope.report.plotting.aux_variables import REQUIRED_AUX_VARIABLES
from mesascope.report.plotting.figure import (
    Panel,
    merge_legends,
)
from mesascope.report.plotting.traces import finite_mean
from mesascope.report.plotting.variable import PlotVariable, read_labels
from mesascope.report.text import (
    format_count,
    format_number,
    join_words,
)


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
    _check_variable(variable)
    array = _sort_algorithms(variable.select_step())
    rows = [_format_row_label(array.isel(predictor=rank)) for rank in range(array.sizes["predictor"])]
    similarity_plot, legend = plot_prediction_similarity(array, rows, 27 * len(rows) + 70)
    plots = [similarity_plot, *plot_other_similarities(array, rows, 25 * len(rows) + 110)]
    caption = variable.build_caption(*_describe_marks(variable, array, rows))
    data = {"plots": plots, "legend": merge_legends([legend, []])}
    return Panel(kind="figure", title=_format_title(array, rows), caption=caption, data=data)


def _check_variable(variable: PlotVariable) -> None:
    array, required = variable.select_step(), {*REQUIRED_AUX_VARIABLES["ranking"]}
    if {*variable.plot_dims} != {"distribution", "predictor", "stat"} or not required <= {*array.coords}:
        raise ValueError(
            "a ranking needs the axes distribution, predictor and stat, and coordinates such as named and null"
        )
    if PREDICTION_STAT not in read_labels(array, "stat"):
        raise ValueError(f"a ranking needs the statistic {PREDICTION_STAT!r}")


def _sort_algorithms(array: xr.DataArray) -> xr.DataArray:
    """Sort algorithms by the similarity of their predictions, the most similar first and those that diverged last."""
    array = array.copy(data=np.where(np.isneginf(array), DIVERGED_SIMILARITY, array)).assign_attrs(array.attrs)
    similarity = np.nan_to_num(finite_mean(prediction_similarity(array)), nan=2 * DIVERGED_SIMILARITY)
    return array.isel(predictor=np.argsort(-similarity, kind="stable"))


def _format_title(array: xr.DataArray, rows: list[str]) -> str:
    """Return the identified algorithm and its similarity, with seed counts where the seeds disagree."""
    identified, is_identified = [str(one) for one in array.coords["named"].values], find_identified(array)
    if not is_identified.any(1).all():
        counts = Counter(
            rows[int(row.argmax())] if row.any() else name for row, name in zip(is_identified, identified, strict=True)
        )
        return "Identified algorithm: " + _join_counts(counts)
    similarity = f", similarity {format_number(float(finite_mean(prediction_similarity(array)[is_identified])))}"
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


def _describe_marks(variable: PlotVariable, array: xr.DataArray, rows: list[str]) -> list[str]:
    over = f"bars are the mean over {variable.seed_count}, rings the seeds" if variable.num_seeds > 1 else ""
    star_note = "; a star marks those not distinguishable from it" if any(row.endswith(" *") for row in rows) else ""
    return [
        f"One row per algorithm with its number of iterations, the most similar first{star_note}"
        f"{', ' + variable.describe_step() if variable.describe_step() else ''}{': ' + over if over else ''}",
        f"Strong colour: the identified algorithm, {_describe_identification_rule(array)}",
        f"Values below {format_number(MIN_SIMILARITY)} are drawn at {format_number(MIN_SIMILARITY)}"
        if (prediction_similarity(array) < MIN_SIMILARITY).any()
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
    return (
        "the one with the fewest fitted hyperparameters among those that predictions, weights and other inputs do not "
        "distinguish from the most similar; none if several have equally few"
    )
