"""Comparison of algorithms with a model on the training distribution and on others."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from transformers import PreTrainedModel

from mesascope.analyses.algorithms.agreement import (
    PredictionsAtQueries,
    Predictor,
    compare_context_weights,
    compute_input_gradients,
    run_predictor,
)
from mesascope.analyses.algorithms.fit import FittedAlgorithm
from mesascope.axes import to_data_array
from mesascope.tasks.icl.base import InContextTask


def compare_by_distribution(
    model: PreTrainedModel | Predictor,
    task: InContextTask,
    distributions: Mapping[str, PredictionsAtQueries],
    fitted: Mapping[str, FittedAlgorithm],
) -> tuple[xr.DataArray, dict[str, xr.DataArray]]:
    """Compare algorithms with a model on several distributions.

    Args:
        model: the model.
        task: the task that the model was trained on.
        distributions: predictions of the model, by distribution.
        fitted: fitted algorithms, by name.

    Returns:
        The similarity by distribution, algorithm and statistic; and ``error`` and ``model_error``.
    """
    names, coords = {"predictor": list(fitted)}, {"distribution": list(distributions)}
    inputs, found = next(iter(distributions.values())).batch.inputs, list(distributions.values())
    stats = {"stat": ["predictions", "errors", *(f"weights: {group}" for group in task.gradient_masks(inputs))]}
    similarity = to_data_array(
        np.array([_compute_similarities(model, task, each, list(fitted.values())) for each in found]),
        "distribution",
        "predictor",
        "stat",
        units="1",
        description="similarity of the algorithm to the model",
        coords=coords | names | stats,
    )
    errors = [[each.mean_squared_error(one(each.context)) for one in fitted.values()] for each in found]
    losses = [each.mean_squared_error(each.prediction) for each in found]
    return similarity, {
        "error": _label_errors(errors, "error of the algorithm", coords | names),
        "model_error": _label_errors(losses, "error of the model", coords),
    }


def _label_errors(values: Sequence, about: str, coords: Mapping[str, list[str]]) -> xr.DataArray:
    units = "squared units of the targets"
    return to_data_array(np.array(values), *coords, units=units, description=about, coords=coords).assign_attrs(
        scale="log"
    )


def _compute_similarities(
    model: PreTrainedModel | Predictor,
    task: InContextTask,
    queries: PredictionsAtQueries,
    fitted: Sequence[FittedAlgorithm],
) -> list[list[float]]:
    inputs, position, weights = queries.batch.inputs, queries.context.positions[-1], [[] for _ in fitted]
    if task.gradient_masks(inputs):
        model_gradients = compute_input_gradients(
            lambda x: task.convert_predictions(run_predictor(model, x)[:, [position]])[:, 0], inputs
        )
        weights = [compare_context_weights(model_gradients, task, inputs, one) for one in fitted]
    predictions = [one(queries.context) for one in fitted]
    return [
        [queries.similarity(answers), queries.error_cosine(answers), *cosines]
        for answers, cosines in zip(predictions, weights, strict=True)
    ]
