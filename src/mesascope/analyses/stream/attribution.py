"""Who wrote the answer: the output as a sum of what each part contributes."""

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import measure
from mesascope.axes import label

ROUNDING = 1e-5  # what is left of a layer's step beside attention's write, where the layer has no MLP


@measure(
    title="Direct contributions to the output",
    sites=["resid_pre", "resid_post", "attn_write", "head_out", "prediction"],
    steps="ends",
    order=30,
)
def attribution(recorded: Capture, first: int = 0) -> xr.Dataset:
    """The prediction as the sum of what the embedding, each head, each MLP and the biases contribute through the frozen
    final norm. Share: covariance of a contribution with the prediction over the prediction's variance; the shares sum
    to 1, and one may be negative. The largest difference between the sum and the prediction is stored beside it.

    Args:
        recorded: a capture of a model that predicts vectors.
        first: positions before this one are left out.
    """
    parts = contributions(recorded)
    prediction = recorded["prediction"].double()
    gap = (sum(parts.values()) - prediction).abs().max()
    centred = prediction[:, first:] - prediction[:, first:].mean((0, 1))
    variance = centred.square().sum()
    share = torch.stack([(part[:, first:] * centred).sum() / variance for part in parts.values()])
    size = torch.stack([part[:, first:].square().mean().sqrt() for part in parts.values()])
    names = {"component": list(parts)}
    return xr.Dataset(
        {
            "share": label(
                share, "component", units="1", about="share of the prediction's variance", coords=names
            ).assign_attrs(center=0, headline=1, view="bars"),
            "size": label(
                size, "component", units="units of the terms", about="root mean square contribution", coords=names
            ).assign_attrs(view="bars"),
            "gap": label(
                gap, units="units of the terms", about="largest difference between the sum and the prediction"
            ),
        }
    )


def contributions(recorded: Capture) -> dict[str, Float[Tensor, "batch pos d_out"]]:
    """Every part's contribution to the prediction, by name, in float64; they sum to the prediction."""
    frame, final = recorded.frame, recorded["resid_post"][-1]

    def through(write: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_out"]:
        return frame.attribute(write, final).double()

    parts = {"embedding": through(recorded["resid_pre"][0])}
    biases = torch.zeros_like(parts["embedding"])
    mlp_writes = recorded["resid_post"] - recorded["resid_pre"] - recorded["attn_write"]
    for layer, heads in enumerate(recorded["head_out"]):
        for head in range(heads.shape[2]):
            parts[f"head {layer}.{head}"] = through(heads[:, :, head] @ frame.output_projection[layer, head])
        biases = biases + through(frame.output_bias[layer].expand_as(final))
        if float(mlp_writes[layer].abs().max()) > ROUNDING * float(final.abs().max()):
            parts[f"mlp {layer}"] = through(mlp_writes[layer])
    return parts | {"biases": biases + frame.readout_bias.double()}
