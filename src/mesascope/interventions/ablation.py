"""What a head is worth: the loss without it."""

import warnings
from itertools import combinations

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.axes import label
from mesascope.capturing import Edit, NothingChanged, capture
from mesascope.instruments import instrument
from mesascope.tasks.base import Batch, Task

MOST_HEADS = 6  # 63 groups in a layer; with more there would be hundreds

HeadOut = Float[Tensor, "layer batch pos head d_head"]


@instrument(title="What each head is worth", steps="last", order=50)
def ablation(
    model: PreTrainedModel,
    task: Task,
    batch: Batch,
    first: int = 0,
    seed: int = 0,
    groups: bool = True,
    sequences: int = 256,
) -> xr.Dataset:
    """How much the loss rises when the output of a head is replaced: by its mean over sequences at the same position
    (mean), or by what it is on another sequence (resample). The mean takes the head's content away; resampling also
    puts a wrong content in its place. Done for every head and for every group of heads within a layer. A head without
    an effect on the loss is no cause, whatever its role.

    Args:
        model: a model that capture supports.
        task: whose loss is meant.
        batch: sequences; the loss is the mean over their positions from ``first`` on.
        first: positions before this one are left out.
        seed: of the order in which sequences are exchanged.
        groups: whether groups of heads are ablated too.
        sequences: at most so many of the batch are used.
    """
    batch = batch[:sequences]
    recorded = capture(model, batch, ["head_out", "prediction"])
    outputs = recorded["head_out"]
    layers, heads = outputs.shape[0], outputs.shape[3]
    named = {"+".join(map(str, group)): group for group in _groups(heads, groups)}
    base = _loss(task, recorded["prediction"], batch, first)
    kinds = {"mean": _mean(outputs), "resample": _resampled(outputs, seed)}
    cost = torch.zeros(layers, len(named), len(kinds))
    for layer in range(layers):
        for column, group in enumerate(named.values()):
            for kind, other in enumerate(kinds.values()):
                cost[layer, column, kind] = (
                    _loss(task, _replaced(model, batch, layer, group, other), batch, first) - base
                )
    unit, stats = "units of the loss", {"stat": list(kinds)}
    by_head = label(
        cost[:, :heads], "layer", "head", "stat", units=unit, about="rise of the loss without this head", coords=stats
    )
    by_group = label(
        cost,
        "layer",
        "component",
        "stat",
        units=unit,
        about="rise of the loss without these heads of one layer",
        coords={**stats, "component": list(named)},
    )
    return xr.Dataset(
        {
            "cost": by_head.assign_attrs(headline=1),
            "group_cost": by_group.assign_attrs(view="table"),
            "loss": label(base, units=unit, about="loss of the intact model"),
        }
    )


def _groups(heads: int, groups: bool) -> list[tuple[int, ...]]:
    """Every head alone, then every larger group."""
    if groups and heads > MOST_HEADS:
        raise ValueError(f"groups need at most {MOST_HEADS} heads in a layer, but got {heads}; use groups=False")
    largest = heads if groups else 1
    return [group for size in range(1, largest + 1) for group in combinations(range(heads), size)]


def _mean(outputs: HeadOut) -> HeadOut:
    """The mean over sequences, at every position."""
    return outputs.mean(1, keepdim=True).expand_as(outputs)


def _resampled(outputs: HeadOut, seed: int) -> HeadOut:
    """Each sequence's output taken from the next one in a random cycle."""
    cycle = torch.randperm(outputs.shape[1], generator=torch.Generator().manual_seed(seed))
    source = torch.empty_like(cycle)
    source[cycle] = cycle.roll(1)
    return outputs[:, source.to(outputs.device)]


def _replaced(
    model: PreTrainedModel, batch: Batch, layer: int, group: tuple[int, ...], other: HeadOut
) -> Float[Tensor, "batch pos d_out"]:
    """The prediction when these heads put out something else."""
    heads = list(group)
    edit = Edit(site="head_out", where={"layer": layer, "head": heads}, fn=lambda _: other[layer][:, :, heads])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingChanged)  # a head whose output never changes is worth exactly 0
        return capture(model, batch, ["prediction"], edits=[edit], check=False)["prediction"]


def _loss(task: Task, prediction: Float[Tensor, "batch pos d_out"], batch: Batch, first: int) -> float:
    """The mean loss over positions from ``first`` on."""
    return float(task.loss(prediction, batch)[:, first:].double().mean())
