"""What a head is worth: the loss without it."""

from dataclasses import replace
from itertools import combinations

import xarray as xr
from transformers import PreTrainedModel

from mesascope.activations import capture
from mesascope.analyses.instrument import instrument
from mesascope.axes import label
from mesascope.interventions.edits import mean, resample
from mesascope.interventions.head_effects import rises
from mesascope.interventions.metrics import task_loss
from mesascope.tasks.base import Batch, Task

MOST_HEADS = 6  # 63 groups in a layer; with more there would be hundreds


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
    recorded = capture(model, batch, ["head_out"])
    layers, heads = recorded["head_out"].shape[0], recorded["head_out"].shape[3]
    named = {"+".join(map(str, group)): group for group in _groups(heads, groups)}
    kinds = {"mean": mean("head_out", recorded), "resample": resample("head_out", recorded, seed=seed)}
    edits = [
        replace(everywhere, where={"layer": layer, "head": list(group)})
        for layer in range(layers)
        for group in named.values()
        for everywhere in kinds.values()
    ]
    intact, rise = rises(model, batch, edits, task_loss(task, batch, first))
    cost = rise.mean(1).float().reshape(layers, len(named), len(kinds))
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
            "loss": label(float(intact.mean()), units=unit, about="loss of the intact model"),
        }
    )


def _groups(heads: int, groups: bool) -> list[tuple[int, ...]]:
    """Every head alone, then every larger group."""
    if groups and heads > MOST_HEADS:
        raise ValueError(f"groups need at most {MOST_HEADS} heads in a layer, but got {heads}; use groups=False")
    largest = heads if groups else 1
    return [group for size in range(1, largest + 1) for group in combinations(range(heads), size)]
