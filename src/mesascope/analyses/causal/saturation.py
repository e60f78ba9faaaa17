"""What is left of a model when all its parameters are made so large that its parts can only choose."""

import copy

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Capture, Reduction, capture
from mesascope.analyses.instrument import instrument
from mesascope.axes import label
from mesascope.tasks.base import Batch, Task

SEEN = 1e-5  # attention above which a position is attended to, as Merrill et al. count it

Pattern = Float[Tensor, "batch head query key"]


@instrument(title="Saturation", steps="ends", order=30)
def saturation(
    model: PreTrainedModel, task: Task, batch: Batch, factor: float = 1000.0, sequences: int = 64
) -> xr.Dataset:
    """The model beside itself with all parameters multiplied by a large factor, both in float64: the cosine of what
    stands in the stream after every layer, mean over positions; and of every head of the large one, how many positions
    it attends to (weights above 1e-5) and which share of its attention lies on later positions, both the mean over
    queries. A model is saturated where the cosine is 1. Merrill et al. 2021; the share on later positions is ours.

    Args:
        model: a model that capture supports; it is copied.
        task: whose sequences they are.
        batch: sequences.
        factor: on all parameters.
        sequences: at most so many of the batch are used.

    Raises:
        ValueError: the factor is not above 0.
    """
    if not factor > 0:
        raise ValueError(f"factor must be above 0, but got {factor}")
    batch = batch[:sequences].to(batch.inputs.device, torch.float64)
    plain, large = (_looked_at(_scaled(model, each), batch) for each in (1.0, factor))
    cosine = torch.nn.functional.cosine_similarity(plain["resid_post"], large["resid_post"], dim=-1)
    layers = {"layer": list(plain.layers)}
    attended, later = large["attended"].mean(1), large["later"].mean(1)
    now = plain["later"].mean(1)
    share = "share of attention on later positions"
    found = {
        "cosine": label(
            cosine.mean((1, 2)), "layer", units="1", about="cosine of the stream with that of the large model"
        ).assign_attrs(headline=1),
        "attended": label(
            attended,
            "layer",
            "head",
            units="positions",
            about=f"positions with more than {SEEN:g} of a head's attention, large model",
        ),
        "attended_in_order": label(
            attended.flatten().sort(descending=True).values,
            "rank",
            units="positions",
            about="the same of all heads, in order",
        ).assign_attrs(view="curves", headline=1),
        "later": label(later, "layer", "head", units="1", about=f"{share}, large model").assign_attrs(headline=1),
        "later_now": label(now, "layer", "head", units="1", about=f"{share}, the model as it is"),
    }
    return xr.Dataset(
        {name: each.assign_coords(layers) if "layer" in each.dims else each for name, each in found.items()}
    )


def attended(pattern: Pattern) -> Float[Tensor, "batch head"]:
    """Positions with more than :data:`SEEN` of a query's attention, mean over queries.

    >>> attended(torch.eye(4).expand(1, 1, 4, 4)).tolist(), attended(torch.full((1, 1, 4, 4), 0.25)).tolist()
    ([[1.0]], [[4.0]])
    """
    return (pattern > SEEN).sum(-1).to(pattern.dtype).mean(-1)


def on_later(pattern: Pattern) -> Float[Tensor, "batch head"]:
    """The share of attention on positions after the query, mean over queries.

    >>> on_later(torch.full((1, 1, 4, 4), 0.25)).tolist()
    [[0.375]]
    """
    return pattern.triu(1).sum(-1).mean(-1)


def _scaled(model: PreTrainedModel, factor: float) -> PreTrainedModel:
    """A copy in float64 whose parameters are so many times as large, with the eager kernel, which gives its weights."""
    large = copy.deepcopy(model)
    if large.config._attn_implementation != "eager":
        large.set_attn_implementation("eager")
    torch.nn.Module.to(large, dtype=torch.float64)  # in place
    with torch.no_grad():
        for parameter in large.parameters():
            parameter.mul_(factor)
    return large


def _looked_at(model: PreTrainedModel, batch: Batch) -> Capture:
    """The stream, and what becomes of attention; patterns are not kept."""
    reduce = {
        "attended": Reduction(site="pattern", fn=attended, axes=("batch", "head")),
        "later": Reduction(site="pattern", fn=on_later, axes=("batch", "head")),
    }
    return capture(model, batch, ["resid_post"], reduce=reduce)
