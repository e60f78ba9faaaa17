"""Whether a layer has multiplied every coordinate of an input with its mean product with the answers."""

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import measure
from mesascope.analyses.statistics import halves, r_squared, ridge_fit
from mesascope.analyses.stream.probes import depth_names, depths
from mesascope.axes import label

Inputs = Float[Tensor, "batch pos feature"]


@measure(title="Are inputs preprocessed", sites=["resid_pre", "resid_post"], order=21)
def preprocessing(recorded: Capture, seed: int = 0) -> xr.Dataset:
    """How well r_j x_j, every coordinate of an input times its mean product with the answers shown (r_j, the mean of
    x_ij y_i), can be read from the residual stream at every depth: R² of an affine map, fitted by ridge regression on
    half of the sequences and scored on the other half. At the embedding it is what the raw input says. Where the input
    is asked, and where it is shown, apart. Null: the same inputs times the products of another sequence, of which
    nothing can be known. What attention under a plain step of gradient descent writes, the sum of r_j x_j over
    coordinates, has an R² of about one over their number. The algorithm is that of Chen et al. 2024 (arXiv 2408.04532);
    the reading is ours.

    Args:
        recorded: a capture of four sequences or more whose positions are pairs, an input and its answer, the last of
            which asks.
        seed: of the exchange of sequences.
    """
    x, y = _pairs(recorded)
    product = (x[:, :-1] * y[:, :-1]).mean(1, keepdim=True)
    shift = int(torch.randint(1, len(x), (1,), generator=torch.Generator().manual_seed(seed)))
    told, null = product * x, product.roll(shift, 0) * x
    stream = depths(recorded)
    last, before = slice(-1, None), slice(0, -1)
    named = {"layer": depth_names(recorded.layers)}
    about = "R² of r_j x_j, read by an affine map, on held-out sequences"

    def table(target: Inputs, where: slice, what: str) -> xr.DataArray:
        found = [_explained(each[:, where], target[:, where]) for each in stream]
        return label(torch.tensor(found), "layer", units="1", about=what, coords=named)

    control = "the products of another sequence"
    return xr.Dataset(
        {
            "explained": table(told, last, f"{about}, where the input is asked").assign_attrs(headline=1),
            "explained_null": table(null, last, f"the same with {control}").assign_attrs(
                control_of="explained", control=control
            ),
            "explained_shown": table(told, before, f"{about}, where inputs are shown"),
            "explained_shown_null": table(null, before, f"the same with {control}").assign_attrs(
                control_of="explained_shown", control=control
            ),
        }
    )


def _pairs(recorded: Capture) -> tuple[Inputs, Float[Tensor, "batch pos 1"]]:
    """The inputs and the answers.

    Raises:
        ValueError: positions are no pairs.
    """
    batch = recorded.batch
    if batch is None or not batch.inputs.is_floating_point() or batch.targets.shape[-1:] != (1,):
        raise ValueError("preprocessing needs a capture of a Batch of vectors with one answer each; give it one")
    scored = (batch.weight > 0).any(0)
    if bool(scored[:-1].any()) or not bool(scored[-1]) or bool((batch.inputs[:, -1, -1] != 0).any()):
        raise ValueError(
            "preprocessing needs positions that are an input and its answer, the last one asking with 0 in its place, "
            "but these are not; use a task of layout joined"
        )
    if len(batch) < 4:
        raise ValueError(f"preprocessing needs four sequences or more, but got {len(batch)}")
    inputs = batch.inputs.double()
    return inputs[..., :-1], inputs[..., -1:]


def _explained(stream: Float[Tensor, "batch place d_model"], target: Float[Tensor, "batch place feature"]) -> float:
    """R² on the second half of the sequences of a map that was fitted on the first."""
    fitted, scored = halves(len(stream))
    weight, constant, _ = ridge_fit(stream[fitted].flatten(0, 1), target[fitted].flatten(0, 1))
    return r_squared(stream[scored].flatten(0, 1).double() @ weight + constant, target[scored].flatten(0, 1))
