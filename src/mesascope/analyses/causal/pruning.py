"""Pruning of heads: the loss when single heads are ablated, and when most heads of a layer are."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Edit, EditHadNoEffect, capture
from mesascope.analyses.base import analysis
from mesascope.axes import to_data_array
from mesascope.interventions.edits import mean, zero
from mesascope.interventions.head_ablation_effects import measure_edit_effects
from mesascope.interventions.metrics import Metric, task_loss
from mesascope.tasks.base import Batch, Task

PRUNING_KINDS = ("mean", "zero")
ALL_HEADS = "all heads"
ALL_IN_FIRST_LAYER = "all in first layer, one per later layer"
ALL_IN_LATER_LAYERS = "one in first layer, all in later layers"
REVERSED_SAME_NUMBER = "one in first layer, same total number"
ONE_PER_LAYER = "one per layer"
HEAD_SETS = (ALL_HEADS, ALL_IN_FIRST_LAYER, ALL_IN_LATER_LAYERS, REVERSED_SAME_NUMBER, ONE_PER_LAYER)

AblationEffect = Float[Tensor, "layer head"]


@analysis(
    title="Head pruning per layer",
    description="""
        Increase of the loss when each head is ablated, how evenly it is distributed over the heads of a layer, and the
        loss when only the most important heads are kept. Two kinds of ablation: the head's output is replaced by its
        mean over sequences at the same position (mean), or by zero (zero). The normalised entropy is the entropy of the
        increases as fractions of their sum, over that of equal fractions: 1 where all heads of a layer matter equally,
        0 where one head does, undefined where none does. The heads that are kept are those with the largest increase
        under the same kind of ablation; nothing is retrained. Chen et al. 2024 (arXiv 2408.04532) keep all heads of the
        first layer and one in each later layer. Controls: one head in the first layer and all in later ones, and one in
        the first layer with as many heads in total.
    """,
    input="model",
    steps="ends",
)
def pruning(model: PreTrainedModel, task: Task, batch: Batch, first: int = 0, sequences: int = 1024) -> xr.Dataset:
    """Compute the ablation effect of every head, its entropy within layers, and the loss of pruned models.

    Args:
        model: a model that capture supports, with two or more layers of two or more heads.
        task: task whose loss is computed.
        batch: sequences; the loss is the mean over their positions from ``first`` on.
        first: positions before this one are left out of the loss.
        sequences: maximum number of sequences of the batch that are used.

    Returns:
        ``ablation_effect`` by layer, head and kind of ablation; ``entropy`` by layer and kind; and
        ``pruned_loss_mean`` and ``pruned_loss_zero`` by the set of heads that are kept.

    Raises:
        ValueError: the model has one layer, or a layer has one head.
    """
    batch = batch[:sequences]
    acts = capture(model, batch, ["z"]).unrolled()
    layers, heads = acts["z"].shape[0], acts["z"].shape[3]
    if layers < 2 or heads < 2:
        raise ValueError(f"pruning needs two layers and two heads in each, or more, but got {layers} and {heads}")
    kinds = {"mean": mean("z", acts), "zero": zero("z")}
    loss = task_loss(task, batch, first)
    intact, effects = _ablate_each_head(model, batch, list(kinds.values()), loss, layers, heads)
    variables = _label_effects(effects)
    for (name, kind), each in zip(kinds.items(), effects, strict=True):
        losses = [_loss_without_heads(model, batch, kind, dropped, loss) for dropped in heads_to_ablate(each).values()]
        variables[f"pruned_loss_{name}"] = _label_losses([intact, *losses], name)
    return xr.Dataset(variables)


def _label_effects(effects: Sequence[AblationEffect]) -> dict[str, xr.DataArray]:
    values, stats = torch.stack(list(effects), -1), {"stat": list(PRUNING_KINDS)}
    about = "increase of the loss when this head is ablated"
    effect = to_data_array(values, "layer", "head", "stat", units="units of the loss", description=about, coords=stats)
    values = torch.stack([normalized_entropy(each) for each in effects], -1)
    about = "entropy of the ablation effects of a layer's heads, over that of equal effects"
    entropy = to_data_array(values, "layer", "stat", units="1", description=about, coords=stats)
    return {"ablation_effect": effect, "entropy": entropy.assign_attrs(headline=1)}


def _label_losses(losses: Sequence[float], name: str) -> xr.DataArray:
    return to_data_array(
        torch.tensor(losses, dtype=torch.float64),
        "component",
        units="units of the loss",
        description=f"loss when only these heads are kept and the others are {name}-ablated",
        coords={"component": list(HEAD_SETS)},
    ).assign_attrs(view="bars", title=f"loss with pruned heads, {name} ablation")


def normalized_entropy(effect: AblationEffect) -> Float[Tensor, " layer"]:
    """Compute the entropy of the ablation effects of a layer's heads, divided by that of equal effects.

    Args:
        effect: increase of the loss when each head is ablated; negative values count as 0.

    Returns:
        a number from 0 to 1 for each layer, NaN where no head has a positive effect.

    >>> normalized_entropy(torch.tensor([[1.0, 1.0], [3.0, 0.0], [-1.0, 0.0]])).tolist()
    [1.0, 0.0, nan]
    """
    positive = effect.double().clamp_min(0)
    fraction = positive / positive.sum(1, keepdim=True)
    return torch.special.entr(fraction).sum(1) / math.log(effect.shape[1])


def heads_to_ablate(effect: AblationEffect) -> dict[str, list[list[int]]]:
    """Return the heads of each layer that are ablated, for every set of heads that is kept but the whole.

    Args:
        effect: increase of the loss when each head is ablated; heads with the largest are kept.

    Returns:
        ablated heads of each layer, by the name of the set that is kept.

    >>> heads_to_ablate(torch.tensor([[2.0, 1.0], [1.0, 2.0], [4.0, 3.0]]))[ALL_IN_FIRST_LAYER]
    [[], [0], [1]]
    """
    layers, heads = effect.shape
    order = effect.argsort(dim=1, descending=True, stable=True).tolist()
    none, all_but_best = [[] for _ in range(layers)], [sorted(each[1:]) for each in order]
    later = sorted(
        ((float(effect[layer, head]), -layer, -head) for layer in range(1, layers) for head in order[layer][1:]),
        reverse=True,
    )
    extra = {(-layer, -head) for _, layer, head in later[: heads - 1]}  # in addition to one in each layer
    reversed_sets = [
        [head for head in dropped if (layer, head) not in extra] for layer, dropped in enumerate(all_but_best)
    ]
    return {
        ALL_IN_FIRST_LAYER: [none[0], *all_but_best[1:]],
        ALL_IN_LATER_LAYERS: [all_but_best[0], *none[1:]],
        REVERSED_SAME_NUMBER: reversed_sets,
        ONE_PER_LAYER: all_but_best,
    }


def _ablate_each_head(
    model: PreTrainedModel, batch: Batch, kinds: Sequence[Edit], loss: Metric, layers: int, heads: int
) -> tuple[float, list[AblationEffect]]:
    edits = [
        replace(kind, where={"layer": layer, "head": [head]})
        for kind in kinds
        for layer in range(layers)
        for head in range(heads)
    ]
    intact, increase = measure_edit_effects(model, batch, edits, loss)
    return float(intact.mean()), list(increase.mean(1).reshape(len(kinds), layers, heads))


def _loss_without_heads(
    model: PreTrainedModel, batch: Batch, kind: Edit, ablated: Sequence[Sequence[int]], loss: Metric
) -> float:
    by_layer: Mapping[int, list[int]] = {layer: list(heads) for layer, heads in enumerate(ablated) if heads}
    edits = [replace(kind, where={"layer": layer, "head": heads}) for layer, heads in by_layer.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EditHadNoEffect)  # ablated heads may have no output
        prediction = capture(model, batch, ["output"], edits=edits)["output"]
    return float(loss(prediction).mean())
