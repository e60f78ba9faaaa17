"""What the model does, next to predictors whose algorithm is known."""

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import measure
from mesascope.axes import label
from mesascope.tasks.base import Batch


@measure(title="Error against known predictors", sites=["prediction"], order=10)
def behaviour(recorded: Capture) -> xr.Dataset:
    """Error of the model and of every oracle of its task at each position that is scored, averaged over sequences; all
    see the same prompt. The relative error divides by the error of copying the last term at the same position, that is
    by |x[n+1] - x[n]|^2: where a sequence converges, copying becomes nearly right, and only the relative error
    tells who still knows the rule.
    """
    batch = recorded.batch
    if batch is None:
        raise ValueError("behaviour needs targets: it must be given a capture of a Batch, but got one of bare inputs")
    predictions = {"model": recorded["prediction"], **recorded.oracles}
    wrong = torch.stack([per_position(p, batch.targets) for p in predictions.values()])
    asked = (batch.weight > 0).any(0)
    error = wrong[:, :, asked].mean(1)
    coords = {"predictor": list(predictions), "pos": asked.nonzero()[:, 0].tolist()}
    unit = "nat" if not batch.targets.is_floating_point() else "squared units of the terms"
    found = {
        "error": label(error, "predictor", "pos", units=unit, about="mean error at each position", coords=coords),
    }
    scored = (wrong * batch.weight).sum((1, 2))
    found["scored"] = label(
        scored / batch.weight.sum(),
        "predictor",
        units=unit,
        about="mean error over positions, each as much as it counts in training",
        coords={"predictor": list(predictions)},
    )
    if "copy" in recorded.oracles:
        found["relative"] = label(
            error / error[list(predictions).index("copy")],
            "predictor",
            "pos",
            units="1",
            about="error divided by the error of copying the last term, at the same position",
            coords=coords,
        )
    for array in found.values():
        array.attrs["scale"] = "log"
    return xr.Dataset(found)


@measure(title="Error by what is told", sites=["prediction"], order=11)
def error_by_output(recorded: Capture) -> xr.Dataset:
    """Squared error of the model and of every oracle at scored positions, for each number that is told by itself: which
    of them is learned first.
    """
    batch = recorded.batch
    if batch is None or not batch.targets.is_floating_point():
        raise ValueError("error_by_output needs targets that are vectors: give it a capture of such a Batch")
    predictions, weight = {"model": recorded["prediction"], **recorded.oracles}, batch.weight[..., None]
    wrong = [(each.double() - batch.targets.double()).square() * weight for each in predictions.values()]
    error = torch.stack([each.sum((0, 1)) / weight.sum() for each in wrong])
    about, named = "mean squared error of each number that is told", {"predictor": list(predictions)}
    found = label(error, "predictor", "d_out", units="squared units of the terms", about=about, coords=named)
    return xr.Dataset({"error": found.assign_attrs(scale="log")})


@measure(title="Error by what is asked", sites=["prediction"], order=11)
def error_by_label(recorded: Capture, of: str) -> xr.Dataset:
    """Error of the model and of every oracle at scored positions, averaged over those of one label each: it tells
    whether what is rare is learned later.

    Args:
        of: a latent of the task that is a whole number at every position.
    """
    batch, label_of = labelled(recorded, of)
    scored = batch.weight > 0
    predictions = {"model": recorded["prediction"], **recorded.oracles}
    wrong = [per_position(each, batch.targets)[scored] for each in predictions.values()]
    kinds = label_of[scored].unique().tolist()
    error = torch.stack([torch.stack([each[label_of[scored] == kind].mean() for kind in kinds]) for each in wrong])
    unit = "nat" if not batch.targets.is_floating_point() else "squared units of the terms"
    named = {"predictor": list(predictions), "stat": [f"{of} {kind}" for kind in kinds]}
    found = label(error, "predictor", "stat", units=unit, about=f"mean error by {of}", coords=named)
    return xr.Dataset({"error": found.assign_attrs(scale="log")})


def labelled(recorded: Capture, of: str) -> tuple[Batch, Int[Tensor, "batch pos"]]:
    """The batch of a capture, and one of its labels.

    Raises:
        ValueError: there is no batch, or no such label.
    """
    labels = {} if recorded.batch is None else recorded.batch.labels
    if recorded.batch is None or of not in labels:
        raise ValueError(f"a label must be one of {', '.join(labels) or 'a batch that has labels'}, but got {of!r}")
    return recorded.batch, labels[of]


def per_position(
    prediction: Float[Tensor, "batch pos d_out"],
    targets: Float[Tensor, "batch pos d_out"] | Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos"]:
    """Squared error of vectors, summed over coordinates; negative log-likelihood of tokens, in nats."""
    if targets.is_floating_point():
        return (prediction.double() - targets.double()).square().sum(-1)
    return -prediction.log_softmax(-1).gather(-1, targets[..., None])[..., 0].double()
