"""Saturation: the model compared with itself with all parameters multiplied by a large factor."""

import copy

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Capture, Reduction, capture
from mesascope.activations.hooks.attention_interface import attn_implementation
from mesascope.analyses.base import analysis
from mesascope.axes import to_data_array
from mesascope.tasks.base import Batch, Task

ATTENDED_THRESHOLD = 1e-5  # attention above which a position counts as attended to, as in Merrill et al. 2021

Pattern = Float[Tensor, "batch head query key"]


@analysis(
    title="Saturation",
    description=f"""
        Comparison of the model with the same model with all parameters multiplied by a large factor, both in float64.
        The cosine of both residual streams after every layer, averaged over positions; and for every head of the scaled
        model the number of positions that it attends to (weights above {ATTENDED_THRESHOLD:g}) and the fraction of its
        attention on
        later positions, averaged over queries. A model is saturated where the cosine is 1 (Merrill et al. 2021; the
        fraction on later positions is ours).
    """,
    input="model",
    steps="ends",
)
def saturation(
    model: PreTrainedModel, task: Task, batch: Batch, factor: float = 1000.0, sequences: int = 64
) -> xr.Dataset:
    """Compare the model with a copy whose parameters are multiplied by a large factor.

    Args:
        model: a model that capture supports; it is copied.
        task: task of the sequences.
        batch: sequences.
        factor: factor on all parameters.
        sequences: maximum number of sequences of the batch that are used.

    Returns:
        ``cosine`` by layer; by layer and head, ``attended`` (number of positions) and ``later_attention`` (fraction of
        attention on later positions) of the scaled model, and ``later_attention_unscaled``; and ``attended_sorted``,
        the values of ``attended`` in descending order.

    Raises:
        ValueError: the factor is not above 0.
    """
    if not factor > 0:
        raise ValueError(f"factor must be above 0, but got {factor}")
    batch = batch[:sequences].to(batch.inputs.device, torch.float64)
    unscaled, scaled = (_capture_reduced(_scale_parameters(model, each), batch) for each in (1.0, factor))
    cosine = torch.nn.functional.cosine_similarity(unscaled["resid_post"], scaled["resid_post"], dim=-1)
    layers = {"layer": list(unscaled.layers)}
    attended, later = scaled["attended"].mean(1), scaled["later_attention"].mean(1)
    later_unscaled = unscaled["later_attention"].mean(1)
    description = "fraction of attention on later positions"
    variables = {
        "cosine": to_data_array(
            cosine.mean((1, 2)),
            "layer",
            units="1",
            description="cosine of the residual stream with that of the scaled model",
        ).assign_attrs(headline=1),
        "attended": to_data_array(
            attended,
            "layer",
            "head",
            units="positions",
            description=(
                f"number of positions with more than {ATTENDED_THRESHOLD:g} of a head's attention, scaled model"
            ),
        ),
        "attended_sorted": to_data_array(
            attended.flatten().sort(descending=True).values,
            "rank",
            units="positions",
            description="the numbers of all heads, in descending order",
        ).assign_attrs(view="curves", headline=1),
        "later_attention": to_data_array(
            later, "layer", "head", units="1", description=f"{description}, scaled model"
        ).assign_attrs(headline=1),
        "later_attention_unscaled": to_data_array(
            later_unscaled, "layer", "head", units="1", description=f"{description}, unscaled model"
        ),
    }
    return xr.Dataset(
        {name: each.assign_coords(layers) if "layer" in each.dims else each for name, each in variables.items()}
    )


def count_attended_positions(pattern: Pattern) -> Float[Tensor, "batch head"]:
    """Count the positions with more than 1e-5 of a query's attention, averaged over queries.

    Args:
        pattern: attention weights of one layer.

    Returns:
        the mean number of positions.

    >>> count_attended_positions(torch.eye(4).expand(1, 1, 4, 4)).tolist()
    [[1.0]]
    >>> count_attended_positions(torch.full((1, 1, 4, 4), 0.25)).tolist()
    [[4.0]]
    """
    return (pattern > ATTENDED_THRESHOLD).sum(-1).to(pattern.dtype).mean(-1)


def fraction_on_later(pattern: Pattern) -> Float[Tensor, "batch head"]:
    """Compute the fraction of attention on positions after the query, averaged over queries.

    Args:
        pattern: attention weights of one layer.

    Returns:
        the mean fraction.

    >>> fraction_on_later(torch.full((1, 1, 4, 4), 0.25)).tolist()
    [[0.375]]
    """
    return pattern.triu(1).sum(-1).mean(-1)


def _scale_parameters(model: PreTrainedModel, factor: float) -> PreTrainedModel:
    scaled = copy.deepcopy(model)
    if attn_implementation(scaled) != "eager":  # the implementation that returns attention weights
        scaled.set_attn_implementation("eager")
    torch.nn.Module.to(scaled, dtype=torch.float64)  # in place
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(factor)
    return scaled


def _capture_reduced(model: PreTrainedModel, batch: Batch) -> Capture:
    reduce = {  # patterns are reduced at once, because they are large
        "attended": Reduction(site="pattern", fn=count_attended_positions, axes=("batch", "head")),
        "later_attention": Reduction(site="pattern", fn=fraction_on_later, axes=("batch", "head")),
    }
    return capture(model, batch, ["resid_post"], reduce=reduce).unrolled()
