"""Linear probe for preprocessed inputs: every coordinate times its mean product with the answers."""

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.analyses.stream.probes import depth_names, stream_by_depth
from mesascope.axes import to_data_array
from mesascope.ridge import fit_ridge
from mesascope.statistics import r_squared, split_halves

Inputs = Float[Tensor, "batch pos feature"]


@analysis(
    title="Preprocessed inputs",
    description="""
        R² of a linear probe for $r_j x_j$ in the residual stream at every depth: every coordinate of an input times its
        mean product with the in-context answers, where $r_j$ is the mean of $x_{ij} y_i$. The probe is fitted by ridge
        regression on half of the sequences and scored on the other half, separately for the query input and for the
        inputs of the in-context examples. At the embedding it shows how much the raw input explains. Null: the same
        inputs times the products of another sequence, about which the prompt has no information. For comparison, the
        attention output under a step of plain gradient descent, the sum of $r_j x_j$ over coordinates, has an R² of
        about one over the number of coordinates. The algorithm is that of Chen et al. 2024 (arXiv 2408.04532); the
        probe is ours.
    """,
    sites=["resid_pre", "resid_post"],
)
def preprocessing(acts: Capture, seed: int = 0) -> xr.Dataset:
    """Probe the residual stream at every depth for inputs times their mean product with the answers.

    Args:
        acts: a capture of four or more sequences whose positions are pairs of an input and its answer; the last one is
            the query.
        seed: seed of the permutation of sequences.

    Returns:
        ``explained`` (R² for the query input) and ``explained_context`` (R² for the inputs of the examples) by depth,
        each with its null.

    Raises:
        ValueError: positions are not pairs, or there are fewer than four sequences.
    """
    x, y = _split_pairs(acts)
    product = (x[:, :-1] * y[:, :-1]).mean(1, keepdim=True)
    shift = int(torch.randint(1, len(x), (1,), generator=torch.Generator().manual_seed(seed)))
    preprocessed, null = product * x, product.roll(shift, 0) * x
    stream = stream_by_depth(acts)
    last, before = slice(-1, None), slice(0, -1)
    named = {"layer": depth_names(acts.layers)}
    about = "R² of a linear probe for $r_j x_j$ on held-out sequences"

    def probe_depths(target: Inputs, where: slice, what: str) -> xr.DataArray:
        scores = [_probe_r_squared(each[:, where], target[:, where]) for each in stream]
        return to_data_array(torch.tensor(scores), "layer", units="1", description=what, coords=named)

    def build_null(where: slice) -> Null:
        return Null(
            name="products shuffled", value=probe_depths(null, where, "the same with the products of another sequence")
        )

    query = probe_depths(preprocessed, last, f"{about}, at the query").assign_attrs(headline=1)
    context = probe_depths(preprocessed, before, f"{about}, at the in-context examples")
    return xr.Dataset(
        with_null("explained", query, build_null(last)) | with_null("explained_context", context, build_null(before))
    )


def _split_pairs(acts: Capture) -> tuple[Inputs, Float[Tensor, "batch pos 1"]]:
    batch = acts.batch
    if batch is None or not batch.inputs.is_floating_point() or batch.targets.shape[-1:] != (1,):
        raise ValueError(
            "preprocessing needs vectors with targets of dimension 1, but got others; capture such a Batch"
        )
    scored = (batch.weight > 0).any(0)
    if bool(scored[:-1].any()) or not bool(scored[-1]) or bool((batch.inputs[:, -1, -1] != 0).any()):
        raise ValueError(
            "preprocessing needs inputs joined with their targets, and target 0 at the last position (the query), but "
            "got others; use a task with layout='joined'"
        )
    if len(batch) < 4:
        raise ValueError(f"preprocessing needs four sequences or more, but got {len(batch)}")
    inputs = batch.inputs.double()
    return inputs[..., :-1], inputs[..., -1:]


def _probe_r_squared(
    stream: Float[Tensor, "batch place d_model"], target: Float[Tensor, "batch place feature"]
) -> float:
    fitted, scored = split_halves(len(stream))
    probe = fit_ridge(stream[fitted].flatten(0, 1), target[fitted].flatten(0, 1))
    return r_squared(probe.predict(stream[scored].flatten(0, 1)), target[scored].flatten(0, 1))
