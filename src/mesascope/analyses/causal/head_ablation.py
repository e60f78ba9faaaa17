"""Ablation of heads and of groups of heads, compared with the roles of the heads."""

from dataclasses import replace
from itertools import combinations

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import capture
from mesascope.analyses.base import analysis
from mesascope.analyses.causal.head_roles import find_head_roles, mark_ineffective_roles
from mesascope.analyses.nulls import Null, with_null
from mesascope.analyses.uncertainty import with_interval, with_standard_error
from mesascope.axes import to_data_array
from mesascope.interventions.edits import mean, resample
from mesascope.interventions.head_ablation_effects import (
    ABLATION_KINDS,
    HeadAblationEffects,
    head_ablation_effects,
    log_factor,
    mask_significant,
    measure_edit_effects,
)
from mesascope.interventions.metrics import Metric, task_loss
from mesascope.statistics import bootstrap_interval, ratio_of_sums
from mesascope.tasks.base import Batch, Task

MAX_HEADS = 6  # 63 groups in a layer; with more heads there would be hundreds
MIN_EFFECT_FRACTION = 0.01  # ours: minimum effect as a fraction of the intact loss, however significant
UNITS = "units of the loss"
PERTURBATION = "norm-matched random perturbation"


@analysis(
    title="Head ablation",
    description=f"""
        Effect: increase of the loss when the output of a head is replaced by its mean over sequences at the same
        position (mean ablation), which removes its content, or by its value on another sequence (resample ablation),
        which replaces it by content that belongs to another sequence. The log effect is the mean over sequences of
        log10 of the ablated over the intact loss of the sequence, so that a few sequences with a large loss do not
        decide it. Where the table of groups is shown, every group
        of heads within a layer is ablated as well. A head has an effect if, for one of the two kinds, the 95 %
        bootstrap interval over sequences excludes 0 and the change is at least {MIN_EFFECT_FRACTION} of the intact
        loss, in either direction. Roles are those of the other analyses: similarity and copying, the position that gets
        the largest fraction of the attention (0.3 or more), and for tokens induction and duplicate-token heads. A role
        without an effect is only a correlation and is marked "no effect"; a head with an effect but without a known
        role is marked "no role". Control: a norm-matched random perturbation, which is the change of the residual
        stream by mean ablation with its coordinates permuted and their signs redrawn. Where it raises the loss as much,
        any perturbation does.
    """,
    input="model",
    steps="ends",
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
    """Compute the effect of mean and resample ablation of heads and of groups of heads, and compare it with roles.

    Args:
        model: a model that capture supports.
        task: task whose loss is computed.
        batch: two or more sequences; the loss is the mean over their positions from ``first`` on.
        first: positions before this one are left out of the loss.
        seed: seed of the permutation of sequences, of the perturbations and of the bootstrap.
        groups: whether groups of two or more heads are ablated too.
        sequences: maximum number of sequences of the batch that are used.

    Returns:
        ``effect`` with ``low``, ``high`` and ``has_effect`` by layer, head and kind of ablation; ``effect_null`` by
        layer and head; ``log_effect`` with ``log_effect_low``, ``log_effect_high`` and ``log_effect_null``, the mean
        over sequences of log10 of the ablated over the intact loss; with ``groups``, ``group_effect`` and
        ``log_group_effect`` by layer, group and kind; ``role``, the roles of each head; ``label``, the same with marks
        for roles without an effect and effects without a role; and the ``loss`` of the intact model with its standard
        error ``loss_se``.

    Raises:
        UnsupportedModel: a layer has no linear output projection.
        ValueError: groups are requested in layers of more than 6 heads, there is one sequence, there is no position
            from ``first`` on, or the loss of a sequence is negative.
    """
    batch = batch[:sequences]
    metric = task_loss(task, batch, first)
    group_effects = _measure_group_effects(model, batch, metric, seed) if groups else {}
    increases = head_ablation_effects(model, batch, metric, seed=seed)
    effects = _label_effects(increases, seed) | _label_log_effects(increases, seed)
    if groups:
        effects |= _label_group_effects(increases, group_effects, seed)
    role = find_head_roles(model, batch, effects["has_effect"].shape[:2])
    marks = mark_ineffective_roles(role.values, effects["has_effect"].any("stat").values)
    about = "roles of each head, and whether it has an effect"
    label = to_data_array(marks, "layer", "head", units="text", description=about)
    intact, standard_error = ratio_of_sums(increases.intact, torch.ones_like(increases.intact))
    loss = to_data_array(intact, units=UNITS, description="loss of the intact model")
    return xr.Dataset({**effects, "role": role, "label": label, **with_standard_error("loss", loss, standard_error)})


def _label_effects(increases: HeadAblationEffects, seed: int) -> dict[str, xr.DataArray]:
    effect, coords = increases.effect.mean(-1), {"stat": list(ABLATION_KINDS)}
    low, high = bootstrap_interval(increases.effect, seed)
    min_effect = MIN_EFFECT_FRACTION * abs(float(increases.intact.mean()))
    has_effect = mask_significant(low, high, effect, min_effect).int()

    def label_effects(values: Tensor, about: str, units: str = UNITS) -> xr.DataArray:
        return to_data_array(values, "layer", "head", "stat", units=units, description=about, coords=coords)

    rise = label_effects(effect, "increase of the loss when this head is ablated")
    perturbed = to_data_array(
        increases.perturbation_effect.mean(-1),
        "layer",
        "head",
        units=UNITS,
        description="increase of the loss under a norm-matched random perturbation",
    )
    about = f"1 if the interval excludes 0 and the effect is {MIN_EFFECT_FRACTION} of the loss or more"
    return {
        **with_null(
            "effect",
            rise.assign_attrs(view="head_ablation", headline=1, center=0),
            Null(name=PERTURBATION, value=perturbed),
        ),
        "low": label_effects(low, "lower end of the effect's 95 % interval over sequences"),
        "high": label_effects(high, "upper end of the effect's 95 % interval over sequences"),
        "has_effect": label_effects(has_effect, about, "1"),
    }


def _label_log_effects(increases: HeadAblationEffects, seed: int) -> dict[str, xr.DataArray]:
    logs = log_factor(increases.intact, increases.effect)
    about = "mean over sequences of log10 of the factor by which {} multiplies the loss"
    effect = to_data_array(
        logs.mean(-1),
        "layer",
        "head",
        "stat",
        units="1",
        description=about.format("ablating this head"),
        coords={"stat": list(ABLATION_KINDS)},
    ).assign_attrs(center=0)
    perturbed = to_data_array(
        log_factor(increases.intact, increases.perturbation_effect).mean(-1),
        "layer",
        "head",
        units="1",
        description=about.format("a norm-matched random perturbation"),
    )
    return {
        **with_null("log_effect", effect, Null(name=PERTURBATION, value=perturbed)),
        **with_interval("log_effect", effect, *bootstrap_interval(logs, seed)),
    }


def _measure_group_effects(
    model: PreTrainedModel, batch: Batch, metric: Metric, seed: int
) -> dict[str, Float[Tensor, "layer kind batch"]]:
    # by name such as 0+2
    acts = capture(model, batch, ["z"]).unrolled()
    groups = _list_groups(acts["z"].shape[3])
    if not groups:
        return {}
    kinds = (mean("z", acts), resample("z", acts, seed=seed))
    edits = [
        replace(kind, where={"layer": layer, "head": list(group)})
        for layer in acts.layers
        for group in groups
        for kind in kinds
    ]
    _, increase = measure_edit_effects(model, batch, edits, metric)
    effects = increase.reshape(len(acts.layers), len(groups), len(kinds), -1)
    return {"+".join(map(str, group)): effects[:, k] for k, group in enumerate(groups)}


def _list_groups(heads: int) -> list[tuple[int, ...]]:
    # groups of two or more heads
    if heads > MAX_HEADS:
        raise ValueError(f"groups need at most {MAX_HEADS} heads in a layer, but got {heads}; use groups=False")
    return [group for size in range(2, heads + 1) for group in combinations(range(heads), size)]


def _label_group_effects(
    increases: HeadAblationEffects, group_effects: dict[str, Float[Tensor, "layer kind batch"]], seed: int
) -> dict[str, xr.DataArray]:
    by_group = {str(head): values for head, values in enumerate(increases.effect.unbind(1))} | group_effects
    increase = torch.stack(list(by_group.values()), 1)
    logs = log_factor(increases.intact, increase)

    def label_groups(values: Tensor, about: str, units: str) -> xr.DataArray:
        coords = {"stat": list(ABLATION_KINDS), "component": list(by_group)}
        array = to_data_array(values, "layer", "component", "stat", units=units, description=about, coords=coords)
        return array.assign_attrs(view="table")

    effect = label_groups(increase.mean(-1), "increase of the loss when these heads of one layer are ablated", UNITS)
    about = "mean over sequences of log10 of the factor by which ablating these heads of one layer multiplies the loss"
    log_effect = label_groups(logs.mean(-1), about, "1")
    return {
        "group_effect": effect,
        **with_interval("log_group_effect", log_effect, *bootstrap_interval(logs, seed)),
    }
