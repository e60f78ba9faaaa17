"""Comparison of algorithms with what can be read from the residual stream at every depth."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from mesascope.analyses.algorithms.agreement import (
    PredictionsAtQueries,
)
from mesascope.analyses.algorithms.fit import Answers, FittedAlgorithm
from mesascope.axes import to_data_array

NO_ALGORITHM = "none of these"


def compare_by_depth(
    scoring: PredictionsAtQueries,
    answers: Mapping[tuple[str, str], Answers],
    by_layer: Mapping[str, Mapping[tuple[str, str], FittedAlgorithm]],
) -> dict[str, xr.DataArray]:
    """Compare algorithms with the readouts at every depth.

    Args:
        scoring: predictions of the model.
        answers: readouts, by lens and depth.
        by_layer: algorithms by name, fitted to each readout.

    Returns:
        ``layer_similarity``, ``layer_iterations`` and ``layer_nearest``; nothing without readouts.
    """
    if not answers:
        return {}
    lenses, depths = (list(dict.fromkeys(names)) for names in zip(*answers, strict=True))
    coords = {"layer": depths, "lens": lenses, "predictor": list(by_layer)}

    def label_depths(compute: Callable[[FittedAlgorithm, str, str], float], about: str) -> xr.DataArray:
        rows = [
            [[compute(one[lens, depth], lens, depth) for one in by_layer.values()] for lens in lenses]
            for depth in depths
        ]
        return to_data_array(np.array(rows), *coords, units="1", description=about, coords=coords)

    similarity = label_depths(
        lambda one, lens, depth: scoring.with_prediction(answers[lens, depth]).similarity(one(scoring.context)),
        "similarity of predictions to the readout at this depth",
    )
    about = "most similar number of iterations, with all other hyperparameters as fitted to the model"
    return {
        "layer_similarity": similarity,
        "layer_iterations": label_depths(lambda one, lens, depth: one.iteration, about),
        "layer_nearest": _find_nearest(similarity.values[:, 0], lenses[0], depths, list(by_layer.values())),
    }


def _find_nearest(
    similarities: Float[np.ndarray, "layer predictor"],
    lens: str,
    depths: list[str],
    by_layer: Sequence[Mapping[tuple[str, str], FittedAlgorithm]],
) -> xr.DataArray:
    ordered = np.nan_to_num(similarities, nan=-np.inf)
    nearest = [
        by_layer[column][lens, depths[n]].name if ordered[n, column] > 0 else NO_ALGORITHM
        for n, column in enumerate(ordered.argmax(1))
    ]
    about = "algorithm that is most similar to the affine lens"
    return to_data_array(np.array(nearest), "layer", units="text", description=about, coords={"layer": depths})
