"""What the model does, next to predictors whose algorithm is known."""

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.axes import label
from mesascope.capturing import Capture
from mesascope.measures.base import measure


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


def per_position(
    prediction: Float[Tensor, "batch pos d_out"],
    targets: Float[Tensor, "batch pos d_out"] | Int[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos"]:
    """Squared error of vectors, summed over coordinates; negative log-likelihood of tokens, in nats."""
    if targets.is_floating_point():
        return (prediction.double() - targets.double()).square().sum(-1)
    return -prediction.log_softmax(-1).gather(-1, targets[..., None])[..., 0].double()
