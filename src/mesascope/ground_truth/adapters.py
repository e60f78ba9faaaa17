"""Instruments made of others for the bench: functions of a model and a batch."""

import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import capture
from mesascope.analyses import copying, measure_all, position, similarity
from mesascope.interventions import Metric, attribution_patch, mean, sweep
from mesascope.tasks.base import Batch

STEPS = 20  # of the way along which gradients are averaged


def signed_similarity(model: PreTrainedModel, batch: Batch) -> xr.Dataset:
    """Both readings of negative similarity: what a head looks for, and what it does with what it finds."""
    found = measure_all(model, batch, [similarity, copying])
    return xr.Dataset({"likes": found["similarity"]["role"], "copies": found["copying"]["role"]})


def averaging(model: PreTrainedModel, batch: Batch) -> xr.Dataset:
    """Uniform averaging: attention alike to all, and what is found is added."""
    found = measure_all(model, batch, [position, copying])
    return xr.Dataset({"uniform": nearly_uniform(found["position"]), "copies": found["copying"]["role"]})


def swept(model: PreTrainedModel, batch: Batch) -> xr.Dataset:
    """A sweep that replaces each head's output by its mean over sequences, judged by the loss."""
    return sweep(model, batch, mean("head_out", capture(model, batch, ["head_out"])))


def attributed(model: PreTrainedModel, batch: Batch, steps: int = STEPS) -> xr.Dataset:
    """The same by attribution patching, judged by :func:`agreement`: the loss of a model that predicts as well as can
    be is at its minimum, where it has no first order.

    Args:
        model, batch: as for any instrument.
        steps: gradients on the way, for each layer; none for the first order alone.
    """
    recorded = capture(model, batch, ["head_out", "prediction"])
    metric = agreement(batch)
    found = attribution_patch(model, batch, mean("head_out", recorded), metric=metric, steps=steps)
    return found.assign(intact=float(metric(recorded["prediction"]).mean()))


def agreement(batch: Batch) -> Metric:
    """How far predictions point to the targets: their product, or the target's logit less the mean of all, mean over
    scored positions. It is linear in the predictions.
    """

    def fn(prediction: Tensor) -> Tensor:
        if batch.targets.is_floating_point():
            points = (prediction * batch.targets).sum(-1)
        else:
            points = prediction.gather(-1, batch.targets[..., None])[..., 0] - prediction.mean(-1)
        return (points * batch.weight).sum(1) / batch.weight.sum(1)

    return Metric(name="agreement", units="product", about="product of predictions and targets", fn=fn)


def nearly_uniform(found: xr.Dataset) -> xr.DataArray:
    """Where attention is nearer to the uniform than if it left out one key of n, which is 1/n away from it: as much as
    uniform attention gives to a place.
    """
    return found["score"].sel(stat="non-uniform", drop=True) < found["score_null"].sel(stat="self", drop=True)
