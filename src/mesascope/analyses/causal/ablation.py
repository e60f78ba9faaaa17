"""Ablation of heads and of groups of heads."""

from dataclasses import replace
from itertools import combinations

import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import capture
from mesascope.analyses.base import analysis
from mesascope.axes import to_data_array
from mesascope.interventions.edits import mean, resample
from mesascope.interventions.head_ablation_effects import measure_edit_effects
from mesascope.interventions.metrics import task_loss
from mesascope.tasks.base import Batch, Task

MAX_HEADS = 6  # 63 groups in a layer; with more heads there would be hundreds


@analysis(
    title="Head ablation",
    description="""
        Increase of the loss when the output of a head is replaced: by its mean over sequences at the same position
        (mean ablation), or by its value on another sequence (resample ablation). Mean ablation removes the content of
        the head; resample ablation replaces it by content that belongs to another sequence. Both are applied to every
        head and to every group of heads within a layer. A head without an effect on the loss has no causal role,
        even if its scores are high.
    """,
    input="model",
    steps="last",
)
def head_ablation(
    model: PreTrainedModel,
    task: Task,
    batch: Batch,
    first: int = 0,
    seed: int = 0,
    groups: bool = True,
    sequences: int = 256,
) -> xr.Dataset:
    """Compute the increase of the loss under mean and resample ablation of heads and of groups of heads.

    Args:
        model: a model that capture supports.
        task: task whose loss is computed.
        batch: sequences; the loss is the mean over their positions from ``first`` on.
        first: positions before this one are left out of the loss.
        seed: seed of the permutation of sequences.
        groups: whether groups of heads are ablated too.
        sequences: maximum number of sequences of the batch that are used.

    Returns:
        ``cost`` by layer, head and kind of ablation, ``group_cost`` by layer, group and kind, and the ``loss`` of the
        intact model.

    Raises:
        ValueError: groups are requested in layers of more than 6 heads.
    """
    batch = batch[:sequences]
    acts = capture(model, batch, ["z"])
    layers, heads = acts["z"].shape[0], acts["z"].shape[3]
    named = {"+".join(map(str, group)): group for group in _list_groups(heads, groups)}
    kinds = {"mean": mean("z", acts), "resample": resample("z", acts, seed=seed)}
    edits = [
        replace(edit, where={"layer": layer, "head": list(group)})
        for layer in range(layers)
        for group in named.values()
        for edit in kinds.values()
    ]
    intact, loss_increase = measure_edit_effects(model, batch, edits, task_loss(task, batch, first))
    mean_increase = loss_increase.mean(1).float().reshape(layers, len(named), len(kinds))
    about, loss = "loss of the intact model", float(intact.mean())
    return xr.Dataset(
        {
            "cost": _label_heads(mean_increase[:, :heads], list(kinds)).assign_attrs(headline=1),
            "group_cost": _label_groups(mean_increase, list(kinds), list(named)).assign_attrs(view="table"),
            "loss": to_data_array(loss, units="units of the loss", description=about),
        }
    )


def _label_heads(increase: Tensor, kinds: list[str]) -> xr.DataArray:
    about, coords = "increase of the loss when this head is ablated", {"stat": kinds}
    return to_data_array(increase, "layer", "head", "stat", units="units of the loss", description=about, coords=coords)


def _label_groups(increase: Tensor, kinds: list[str], groups: list[str]) -> xr.DataArray:
    about, coords = "increase of the loss when these heads of one layer are ablated", {"stat": kinds}
    return to_data_array(
        increase,
        "layer",
        "component",
        "stat",
        units="units of the loss",
        description=about,
        coords={**coords, "component": groups},
    )


def _list_groups(heads: int, include_groups: bool) -> list[tuple[int, ...]]:
    # single heads first
    if include_groups and heads > MAX_HEADS:
        raise ValueError(f"groups need at most {MAX_HEADS} heads in a layer, but got {heads}; use groups=False")
    largest = heads if include_groups else 1
    return [group for size in range(1, largest + 1) for group in combinations(range(heads), size)]
