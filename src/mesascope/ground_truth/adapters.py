"""Functions of a model and a batch that combine several analyses or interventions."""

import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import capture
from mesascope.analyses import positional_attention, run_analyses, similarity, value_copying
from mesascope.interventions import Metric, attribution_patch, mean, sweep
from mesascope.tasks.base import Batch

ATTRIBUTION_STEPS = 20  # gradients along the path from the original to the replacement activations


def signed_similarity(model: PreTrainedModel, batch: Batch) -> xr.Dataset:
    """Return the similarity and copying roles of every head, which separate the two kinds of negative similarity.

    Args:
        model: model to analyse.
        batch: sequences.

    Returns:
        ``similarity_role`` and ``copying_role`` (layer, head), each -1, 0 or 1.
    """
    results = run_analyses(model, batch, [similarity, value_copying])
    return xr.Dataset(
        {"similarity_role": results["similarity"]["role"], "copying_role": results["value_copying"]["role"]}
    )


def uniform_averaging(model: PreTrainedModel, batch: Batch) -> xr.Dataset:
    """Return the heads with uniform attention and the copying role of every head.

    Args:
        model: model to analyse.
        batch: sequences.

    Returns:
        ``uniform`` (boolean) and ``copying_role`` (-1, 0 or 1), both (layer, head).
    """
    results = run_analyses(model, batch, [positional_attention, value_copying])
    return xr.Dataset(
        {
            "uniform": find_uniform_heads(results["positional_attention"]),
            "copying_role": results["value_copying"]["role"],
        }
    )


def head_sweep(model: PreTrainedModel, batch: Batch) -> xr.Dataset:
    """Mean-ablate every head in a sweep and measure the loss.

    Args:
        model: model to analyse.
        batch: sequences with their targets.

    Returns:
        The dataset of :func:`mesascope.interventions.sweep`.
    """
    return sweep(model, batch, mean("z", capture(model, batch, ["z"])))


def attribution_patching(model: PreTrainedModel, batch: Batch, steps: int = ATTRIBUTION_STEPS) -> xr.Dataset:
    """Estimate the mean ablation of every head by attribution patching, with :func:`target_agreement` as metric.

    The loss is no suitable metric: an optimal model is at its minimum, where the first-order effect is zero.

    Args:
        model: model to analyse.
        batch: sequences with their targets.
        steps: gradients per layer along the path to the ablated activations; 0 for the first order only.

    Returns:
        The dataset of :func:`mesascope.interventions.attribution_patch`, with the metric of the original model as
        ``intact``.
    """
    activations = capture(model, batch, ["z", "output"])
    metric = target_agreement(batch)
    results = attribution_patch(model, batch, mean("z", activations), metric=metric, steps=steps)
    return results.assign(intact=float(metric(activations["output"]).mean()))


def target_agreement(batch: Batch) -> Metric:
    """Build a metric that is linear in the predictions and large where they agree with the targets.

    It averages the product of prediction and target, or the target's logit minus the mean logit, over scored positions.

    Args:
        batch: sequences with their targets.

    Returns:
        The metric, one value per sequence.
    """

    def compute_agreement(prediction: Tensor) -> Tensor:
        if batch.targets.is_floating_point():
            products = (prediction * batch.targets).sum(-1)
        else:
            products = prediction.gather(-1, batch.targets[..., None])[..., 0] - prediction.mean(-1)
        return (products * batch.weight).sum(1) / batch.weight.sum(1)

    return Metric(
        name="target_agreement",
        units="product",
        description="inner product of predictions and targets",
        fn=compute_agreement,
    )


def find_uniform_heads(dataset: xr.Dataset) -> xr.DataArray:
    """Return the heads whose attention is nearer to uniform than attention that leaves out one of n keys.

    Leaving out one key has a distance of 1/n to uniform attention, the weight of a single key.

    Args:
        dataset: results of the analysis of attention by position.

    Returns:
        A boolean mask (layer, head).
    """
    return dataset["score"].sel(stat="non-uniform", drop=True) < dataset["score_null"].sel(stat="self", drop=True)
