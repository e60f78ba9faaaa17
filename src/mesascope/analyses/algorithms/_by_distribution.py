"""Comparison of algorithms with a model on the training distribution and on others."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.analyses.algorithms._ties import Evidence, cap_errors, error_scale
from mesascope.analyses.algorithms.agreement import (
    STEP_STAT,
    PredictionsAtQueries,
    Predictor,
    compare_context_weights,
    compute_input_gradients,
    run_predictor,
)
from mesascope.analyses.algorithms.fit import FittedAlgorithm
from mesascope.axes import to_data_array
from mesascope.tasks.icl.base import InContextTask

Weights = Float[Tensor, "algorithm group batch"]


def compare_by_distribution(
    model: PreTrainedModel | Predictor,
    task: InContextTask,
    distributions: Mapping[str, PredictionsAtQueries],
    fitted: Mapping[str, FittedAlgorithm],
) -> tuple[xr.DataArray, dict[str, xr.DataArray], list[Evidence]]:
    """Compare algorithms with a model on several distributions.

    Args:
        model: the model.
        task: the task that the model was trained on.
        distributions: predictions of the model, by distribution, the training distribution first.
        fitted: fitted algorithms, by name.

    Returns:
        The similarity by distribution, algorithm and statistic; ``error`` and ``model_error``; and the evidence that
        breaks ties of predictions on the training distribution: weights on its context, and predictions on others.
    """
    names, coords = {"predictor": list(fitted)}, {"distribution": list(distributions)}
    found, algorithms = list(distributions.values()), list(fitted.values())
    steps = [STEP_STAT] if task.reference_predictions(found[0].context) is not None else []
    groups = [f"weights: {group}" for group in task.gradient_masks(found[0].batch.inputs)]
    weights = [_compare_weights(model, task, each, algorithms) for each in found]
    similarities = [_compute_similarities(task, *each, algorithms) for each in zip(found, weights, strict=True)]
    similarity = to_data_array(
        np.array(similarities),
        "distribution",
        "predictor",
        "stat",
        units="1",
        description="similarity of the algorithm to the model",
        coords=coords | names | {"stat": ["predictions", "errors", *steps, *groups]},
    )
    errors = [[each.mean_squared_error(one(each.context)) for one in algorithms] for each in found]
    losses = [each.mean_squared_error(each.prediction) for each in found]
    labelled = {
        "error": _label_errors(errors, "error of the algorithm", coords | names),
        "model_error": _label_errors(losses, "error of the model", coords),
    }
    evidence = [_weigh_group(cosines) for cosines in weights[0].unbind(1)]
    return similarity, labelled, [*evidence, *(compare_predictions(task, each, algorithms) for each in found[1:])]


def compare_predictions(
    task: InContextTask, queries: PredictionsAtQueries, fitted: Sequence[FittedAlgorithm]
) -> Evidence:
    """Return the agreement of predictions on one distribution as evidence that can break ties.

    Args:
        task: the task.
        queries: predictions of the model.
        fitted: the algorithms.
    """
    errors = cap_errors(queries, [one(queries.context) for one in fitted])
    return Evidence(score=-errors, uninformative=-queries.total_variance, scale=error_scale(task, queries))


def _weigh_group(cosines: Float[Tensor, "algorithm batch"]) -> Evidence:
    return Evidence(score=cosines, uninformative=torch.zeros_like(cosines[0]), scale=torch.ones_like(cosines[0]))


def _label_errors(values: Sequence, about: str, coords: Mapping[str, list[str]]) -> xr.DataArray:
    units = "squared units of the targets"
    return to_data_array(np.array(values), *coords, units=units, description=about, coords=coords).assign_attrs(
        scale="log"
    )


def _compare_weights(
    model: PreTrainedModel | Predictor,
    task: InContextTask,
    queries: PredictionsAtQueries,
    fitted: Sequence[FittedAlgorithm],
) -> Weights:
    inputs, position = queries.batch.inputs, queries.context.positions[-1]
    if not task.gradient_masks(inputs):
        return torch.zeros(len(fitted), 0, len(inputs), dtype=torch.float64)
    model_gradients = compute_input_gradients(
        lambda x: task.convert_predictions(run_predictor(model, x)[:, [position]])[:, 0], inputs
    )
    return torch.stack([compare_context_weights(model_gradients, task, inputs, one) for one in fitted])


def _compute_similarities(
    task: InContextTask, queries: PredictionsAtQueries, weights: Weights, fitted: Sequence[FittedAlgorithm]
) -> list[list[float]]:
    reference, rows = task.reference_predictions(queries.context), []
    for one, cosines in zip(fitted, weights, strict=True):
        answers = one(queries.context)
        steps = [] if reference is None else [queries.relative_similarity(answers, reference)]
        rows.append([queries.similarity(answers), queries.error_cosine(answers), *steps, *cosines.mean(1).tolist()])
    return rows
