"""Comparison of algorithms with what can be read from the residual stream at every depth."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import xarray as xr

from mesascope.analyses.algorithms._ties import cap_errors, error_scale, find_candidates, name_tied
from mesascope.analyses.algorithms.agreement import PredictionsAtQueries
from mesascope.analyses.algorithms.fit import Answers, FittedAlgorithm
from mesascope.axes import to_data_array
from mesascope.statistics import bootstrap_counts
from mesascope.tasks.icl.base import InContextTask

NO_ALGORITHM = "none of these"
BOOTSTRAP_DRAWS = 1000  # of the bootstrap over sequences


def compare_by_depth(
    task: InContextTask,
    scoring: PredictionsAtQueries,
    answers: Mapping[tuple[str, str], Answers],
    by_layer: Mapping[str, Mapping[tuple[str, str], FittedAlgorithm]],
    seed: int = 0,
) -> dict[str, xr.DataArray]:
    """Compare algorithms with the readouts at every depth.

    Args:
        task: the task.
        scoring: predictions of the model.
        answers: readouts, by lens and depth.
        by_layer: algorithms by name, fitted to each readout.
        seed: of the bootstrap.

    Returns:
        ``layer_similarity``, ``layer_iterations``, ``layer_at_edge`` and ``layer_nearest``; nothing without readouts.
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
    edge = "1 if a fitted hyperparameter is at the edge of its grid"
    nearest = [
        _name_nearest(
            task,
            scoring.with_prediction(answers[lenses[0], depth]),
            [one[lenses[0], depth] for one in by_layer.values()],
            seed,
        )
        for depth in depths
    ]
    return {
        "layer_similarity": similarity,
        "layer_iterations": label_depths(lambda one, lens, depth: one.iteration, about),
        "layer_at_edge": label_depths(lambda one, lens, depth: int(bool(one.at_edge)), edge),
        "layer_nearest": to_data_array(
            np.array(nearest),
            "layer",
            units="text",
            description=f"algorithm that is most similar to the {lenses[0]}",
            coords={"layer": depths},
        ),
    }


def _name_nearest(
    task: InContextTask, readout: PredictionsAtQueries, fitted: Sequence[FittedAlgorithm], seed: int
) -> str:
    errors, variance = cap_errors(readout, [one(readout.context) for one in fitted]), readout.total_variance
    if not float(errors.sum(1).min()) < float(variance.sum()):
        return NO_ALGORITHM
    counts = bootstrap_counts(len(variance), BOOTSTRAP_DRAWS, torch.Generator().manual_seed(seed))
    return name_tied(find_candidates(errors, error_scale(task, readout), counts.to(variance.device)), fitted)
