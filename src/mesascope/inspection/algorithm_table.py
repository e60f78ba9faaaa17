"""Algorithm reports as rows of a table, the most similar algorithm first."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr

from mesascope.analyses.algorithms.agreement import STEP_STAT
from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION

if TYPE_CHECKING:
    from mesascope.inspection.comparisons._report import AlgorithmReport


def summarise_report(report: "AlgorithmReport") -> dict[str, Any]:
    """Convert an algorithm report to JSON types.

    Args:
        report: The report.

    Returns:
        The identified algorithm, or all that cannot be distinguished; the display names of all that are tied with it;
        the rows of the ranking; the nearest algorithm per layer; and the skipped distributions.
    """
    results = report.results
    return {
        "condition": report.condition,
        "seed": report.seed,
        "task": report.task,
        "named": results["named"].item(),
        "tied": [str(one) for one in results["display_name"].values[results["tied"].values == 1]],
        "ranking": build_ranking_rows(results),
        "layers": _layer_rows(results),
        "skipped": _skipped_algorithms(results["similarity"].attrs),
    }


def build_ranking_rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """Build one row per algorithm, sorted by the similarity of its predictions on the training distribution.

    Args:
        results: The dataset returned by :func:`mesascope.analyses.which_algorithm`.

    Returns:
        Rows in JSON types, the most similar algorithm first.
    """
    rows = [_ranking_row(results.sel(predictor=name), str(name)) for name in results["predictor"].values]
    return sorted(rows, key=lambda row: -row["predictions"] if row["predictions"] == row["predictions"] else 1e300)


def _ranking_row(results: xr.Dataset, name: str) -> dict[str, Any]:
    trained = results["similarity"].sel(distribution=TRAINING_DISTRIBUTION)
    weights = [stat for stat in results["stat"].values if str(stat).startswith("weights: ")]
    shifted = results["similarity"].sel(stat="predictions").drop_sel(distribution=TRAINING_DISTRIBUTION)
    return {
        "algorithm": name,
        "label": results["display_name"].item(),
        "iterations": int(results["iterations"]),
        "hyperparameters": results["hyperparameters"].item(),
        "at_edge": [name for name in str(results["edges"].item()).split(", ") if name],
        "predictions": float(trained.sel(stat="predictions")),
        "relative_to_steps": float(trained.sel(stat=STEP_STAT)) if STEP_STAT in results["stat"] else None,
        "interval": [float(results["low"]), float(results["high"])],
        "null": float(results["similarity_null"]),
        "distinguishable": bool(results["distinguishable"]),
        "tied": bool(results["tied"]),
        "errors": float(trained.sel(stat="errors")),
        "weights": {str(stat).removeprefix("weights: "): float(trained.sel(stat=stat)) for stat in weights},
        "shifted": _similarity_by_distribution(shifted),
        "error": float(results["error"].sel(distribution=TRAINING_DISTRIBUTION)),
    }


def _layer_rows(results: xr.Dataset) -> list[dict[str, Any]]:
    if "layer_nearest" not in results:
        return []
    similarity = results["layer_similarity"].sel(lens="affine lens", drop=True).transpose("layer", "predictor")
    rows = []
    for values, name in zip(similarity, results["layer_nearest"].values, strict=True):
        nearest = int(values.fillna(float("-inf")).argmax("predictor"))
        rows.append(
            {
                "layer": str(values["layer"].item()),
                "nearest": str(name),
                "similarity": float(values[nearest]),
                # of the same algorithm to what can be read before any layer, such as a copy of the input
                "embedding": float(similarity[0, nearest]),
            }
        )
    return rows


def _skipped_algorithms(attrs: Mapping[Any, Any]) -> dict[str, str]:
    """Return the reason for each distribution on which the model was not compared, by name."""
    prefix = "skipped: "
    return {key.removeprefix(prefix): str(why) for key, why in attrs.items() if str(key).startswith(prefix)}


def _similarity_by_distribution(shifted: xr.DataArray) -> Mapping[str, float]:
    return {str(name): float(shifted.sel(distribution=name)) for name in shifted["distribution"].values}
