"""Which layers need many heads: what is left of a model when heads are taken away, one by one and all but one."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Edit, NothingChanged, capture
from mesascope.analyses.instrument import instrument
from mesascope.axes import label
from mesascope.interventions.edits import mean, zero
from mesascope.interventions.head_effects import rises
from mesascope.interventions.metrics import Metric, task_loss
from mesascope.tasks.base import Batch, Task

KINDS = ("mean", "zero")
ALL = "all heads"
FIRST = "all in the first layer, one in each later one"
LATER = "one in the first layer, all in later ones"
SWAPPED = "one in the first layer, as many in all as above"
SINGLE = "one in each layer"
KEPT = (ALL, FIRST, LATER, SWAPPED, SINGLE)

Damage = Float[Tensor, "layer head"]


@instrument(title="Which layers need many heads", steps="ends", order=51)
def pruning(model: PreTrainedModel, task: Task, batch: Batch, first: int = 0, sequences: int = 1024) -> xr.Dataset:
    """How much the loss rises without each head, how evenly that is spread over the heads of a layer, and what the loss
    is when only the heads that matter most are kept. A head is taken away in two ways: its output is replaced by its
    mean over sequences at the same position (mean), or by nothing (zero). The spread is the entropy of the damage by
    heads as shares, over that of equal shares: 1 where all heads of a layer matter alike, 0 where one does; no number
    where none does. Kept heads are those whose damage is largest, by the same way of taking away; nothing is trained
    again. After Chen et al. 2024 (arXiv 2408.04532), who keep all heads of the first layer and one in each later one;
    here beside it the other way round, with all heads of later layers, and with no more heads in all than there.

    Args:
        model: a model that capture supports, of two layers or more with two heads or more in each.
        task: whose loss is meant.
        batch: sequences; the loss is the mean over their positions from ``first`` on.
        first: positions before this one are left out.
        sequences: at most so many of the batch are used.

    Raises:
        ValueError: there is one layer alone, or one head in each.
    """
    batch = batch[:sequences]
    recorded = capture(model, batch, ["head_out"])
    layers, heads = recorded["head_out"].shape[0], recorded["head_out"].shape[3]
    if layers < 2 or heads < 2:
        raise ValueError(f"pruning needs two layers and two heads in each, or more, but got {layers} and {heads}")
    kinds = {"mean": mean("head_out", recorded), "zero": zero("head_out")}
    loss = task_loss(task, batch, first)
    intact, damage = _damage(model, batch, list(kinds.values()), loss, layers, heads)
    unit, stats = "units of the loss", {"stat": list(KINDS)}
    found = {
        "damage": label(
            torch.stack(damage, -1),
            "layer",
            "head",
            "stat",
            units=unit,
            about="rise of the loss without this head",
            coords=stats,
        ),
        "spread": label(
            torch.stack([spread(each) for each in damage], -1),
            "layer",
            "stat",
            units="1",
            about="entropy of the damage by heads of a layer, over that of equal shares",
            coords=stats,
        ).assign_attrs(headline=1),
    }
    for (name, kind), each in zip(kinds.items(), damage, strict=True):
        left = [_without(model, batch, kind, dropped, loss) for dropped in arrangements(each).values()]
        found[f"kept_{name}"] = label(
            torch.tensor([intact, *left], dtype=torch.float64),
            "component",
            units=unit,
            about=f"loss when only these heads are kept, of the others their {name}",
            coords={"component": list(KEPT)},
        ).assign_attrs(view="bars", title=f"heads kept, {name} ablation")
    return xr.Dataset(found)


def spread(damage: Damage) -> Float[Tensor, " layer"]:
    """How evenly the damage is spread over heads: the entropy of its shares over that of equal ones; what does no harm
    has no share, and where nothing does there is no number.

    >>> spread(torch.tensor([[1.0, 1.0], [3.0, 0.0], [-1.0, 0.0]])).tolist()
    [1.0, 0.0, nan]
    """
    harm = damage.double().clamp_min(0)
    share = harm / harm.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1) / math.log(damage.shape[1])


def arrangements(damage: Damage) -> dict[str, list[list[int]]]:
    """For every arrangement but the whole, which heads of each layer are dropped.

    >>> arrangements(torch.tensor([[2.0, 1.0], [1.0, 2.0], [4.0, 3.0]]))[FIRST]
    [[], [0], [1]]
    """
    layers, heads = damage.shape
    order = damage.argsort(dim=1, descending=True, stable=True).tolist()
    everything, one = [[] for _ in range(layers)], [sorted(each[1:]) for each in order]
    later = sorted(
        ((float(damage[layer, head]), -layer, -head) for layer in range(1, layers) for head in order[layer][1:]),
        reverse=True,
    )
    kept = {(-layer, -head) for _, layer, head in later[: heads - 1]}  # beside one in each layer
    swapped = [[head for head in dropped if (layer, head) not in kept] for layer, dropped in enumerate(one)]
    return {
        FIRST: [everything[0], *one[1:]],
        LATER: [one[0], *everything[1:]],
        SWAPPED: swapped,
        SINGLE: one,
    }


def _damage(
    model: PreTrainedModel, batch: Batch, kinds: Sequence[Edit], loss: Metric, layers: int, heads: int
) -> tuple[float, list[Damage]]:
    """The intact loss, and for each kind its rise without every head."""
    edits = [
        replace(kind, where={"layer": layer, "head": [head]})
        for kind in kinds
        for layer in range(layers)
        for head in range(heads)
    ]
    intact, rise = rises(model, batch, edits, loss)
    return float(intact.mean()), list(rise.mean(1).reshape(len(kinds), layers, heads))


def _without(model: PreTrainedModel, batch: Batch, kind: Edit, dropped: Sequence[Sequence[int]], loss: Metric) -> float:
    """The loss when some heads of each layer are taken away."""
    places: Mapping[int, list[int]] = {layer: list(heads) for layer, heads in enumerate(dropped) if heads}
    edits = [replace(kind, where={"layer": layer, "head": heads}) for layer, heads in places.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingChanged)  # heads that write nothing may be dropped
        prediction = capture(model, batch, ["prediction"], edits=edits)["prediction"]
    return float(loss(prediction).mean())
