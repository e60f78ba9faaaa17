"""Direct attribution: the output as a sum of contributions of embedding, heads, MLPs and biases."""

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.axes import to_data_array

MLP_TOLERANCE = 1e-5  # relative size of the residual update without attn_out, below which a layer has no MLP


@analysis(
    title="Direct attribution of the output",
    description="""The output as the sum of the contributions of the embedding, each head, each MLP and the biases
    through the frozen final norm. The fraction of a component is the covariance of its contribution with the output
    over the variance of the output; the fractions sum to 1 and can be negative. The largest difference between the sum
    and the output is stored as gap.""",
    sites=["resid_pre", "resid_post", "attn_out", "z", "output"],
    steps="ends",
)
def direct_attribution(acts: Capture, first: int = 0) -> xr.Dataset:
    """Decompose the output into contributions of the embedding, each head, each MLP and the biases.

    Args:
        acts: a capture of a model whose outputs are vectors.
        first: positions before this one are left out.

    Returns:
        ``fraction`` and ``size`` (component), and ``gap``, the largest difference between the sum and the output.
    """
    contributions = decompose_output(acts)
    output = acts["output"].double()
    gap = (sum(contributions.values()) - output).abs().max()
    centred = output[:, first:] - output[:, first:].mean((0, 1))
    variance = centred.square().sum()
    fraction = torch.stack([(part[:, first:] * centred).sum() / variance for part in contributions.values()])
    size = torch.stack([part[:, first:].square().mean().sqrt() for part in contributions.values()])
    names = {"component": list(contributions)}
    return xr.Dataset(
        {
            "fraction": to_data_array(
                fraction, "component", units="1", description="fraction of the variance of the output", coords=names
            ).assign_attrs(center=0, headline=1, view="bars"),
            "size": to_data_array(
                size, "component", units="units of the terms", description="root mean square contribution", coords=names
            ).assign_attrs(view="bars"),
            "gap": to_data_array(
                gap, units="units of the terms", description="largest difference between the sum and the output"
            ),
        }
    )


def decompose_output(acts: Capture) -> dict[str, Float[Tensor, "batch pos d_out"]]:
    """Compute the contribution of every component to the output through the frozen final norm, in float64.

    Args:
        acts: a capture of all layers.

    Returns:
        contributions (batch, pos, d_out) by component; they sum to the output.
    """
    acts = acts.unrolled()
    readout, final = acts.readout, acts["resid_post"][-1]

    def contribution_of(update: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_out"]:
        return readout.attribute_logits(update, final).double()

    results = {"embedding": contribution_of(acts["resid_pre"][0])}
    biases = torch.zeros_like(results["embedding"])
    mlp_out = acts["resid_post"] - acts["resid_pre"] - acts["attn_out"]
    for layer, heads in enumerate(acts["z"]):
        for head in range(heads.shape[2]):
            results[f"head {layer}.{head}"] = contribution_of(
                heads[:, :, head] @ readout.output_projection[layer, head]
            )
        biases = biases + contribution_of(readout.output_bias[layer].expand_as(final))
        if float(mlp_out[layer].abs().max()) > MLP_TOLERANCE * float(final.abs().max()):
            results[f"mlp {layer}"] = contribution_of(mlp_out[layer])
    return results | {"biases": biases + readout.readout_bias.double()}
