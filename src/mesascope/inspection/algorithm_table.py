"""What was found of the algorithms of a model, as rows of a table, the nearest first."""

from collections.abc import Mapping
from typing import Any

import xarray as xr

from mesascope.analyses.algorithms.identify import TRAINED
from mesascope.inspection.algorithm_id import Answer


def summary(answer: Answer) -> dict[str, Any]:
    """One answer in JSON's types: the name, the rows of the ranking, and the layers where there are any."""
    found = answer.found
    layers = []
    if "layer_nearest" in found:
        nearest = found["layer_similarity"].sel(lens="affine lens").max("predictor")
        layers = [
            {"layer": str(layer), "nearest": str(name), "similarity": float(nearest.sel(layer=layer))}
            for layer, name in zip(found["layer"].values, found["layer_nearest"].values, strict=True)
        ]
    return {
        "setting": answer.setting,
        "seed": answer.seed,
        "task": answer.task,
        "named": found["named"].item(),
        "ranking": ranking(found),
        "layers": layers,
        "not run": {
            key.removeprefix("left out: "): str(why)
            for key, why in found["similarity"].attrs.items()
            if str(key).startswith("left out: ")
        },
    }


def ranking(found: xr.Dataset) -> list[dict[str, Any]]:
    """A row for every algorithm, by the similarity of its predictions in training's distribution, the nearest first."""
    rows = [_row(found.sel(predictor=name), str(name)) for name in found["predictor"].values]
    return sorted(rows, key=lambda row: -row["predictions"] if row["predictions"] == row["predictions"] else 1e300)


def _row(here: xr.Dataset, name: str) -> dict[str, Any]:
    """One algorithm."""
    trained = here["similarity"].sel(setting=TRAINED)
    weights = [stat for stat in here["stat"].values if str(stat).startswith("weights: ")]
    shifted = here["similarity"].sel(stat="predictions").drop_sel(setting=TRAINED)
    return {
        "algorithm": name,
        "called": here["called"].item(),
        "iterations": int(here["iterations"]),
        "numbers": here["numbers"].item(),
        "predictions": float(trained.sel(stat="predictions")),
        "interval": [float(here["low"]), float(here["high"])],
        "null": float(here["null"]),
        "told apart": bool(here["apart"]),
        "errors": float(trained.sel(stat="errors")),
        "weights": {str(stat).removeprefix("weights: "): float(trained.sel(stat=stat)) for stat in weights},
        "shifted": _by_name(shifted),
        "error": float(here["error"].sel(setting=TRAINED)),
    }


def _by_name(shifted: xr.DataArray) -> Mapping[str, float]:
    """The similarity of predictions in every other setting."""
    return {str(name): float(shifted.sel(setting=name)) for name in shifted["setting"].values}
