"""Head roles compared with ablation effects."""

import numpy as np
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.analyses.base import Analysis, analysis, run_analyses
from mesascope.analyses.heads.attention import positional_attention, value_copying
from mesascope.analyses.heads.labels import label_head_roles
from mesascope.analyses.heads.natural_induction import earlier_occurrences, natural_induction
from mesascope.analyses.heads.ov_circuit import ov_copying_score
from mesascope.analyses.heads.similarity import similarity
from mesascope.analyses.heads.token_similarity import FIRST_QUERY, token_similarity
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.interventions.head_ablation_effects import ABLATION_KINDS, head_ablation_effects, mask_significant
from mesascope.interventions.metrics import task_loss
from mesascope.statistics import bootstrap_interval
from mesascope.tasks.base import Batch, Task

MIN_EFFECT_FRACTION = 0.01  # ours: minimum effect as a fraction of the intact loss, however significant


@analysis(
    title="Head roles vs ablation effect",
    description=f"""
        Effect: increase of the loss when the head's output is replaced by its mean over sequences at the same position
        (mean), or by its value on another sequence (resample). A head has an effect if, for one of the two, the 95 %
        bootstrap interval over sequences excludes 0 and the change is at least {MIN_EFFECT_FRACTION} of the intact
        loss, in
        either direction. Roles are those of the other analyses: similarity and copying, the position that gets the
        largest fraction of the attention (0.3 or more), and for tokens induction and duplicate-token heads. A role
        without an effect is only a correlation and is marked "no effect"; a head with an effect but without a known
        role is marked "no role". Control: a norm-matched random perturbation, which is the change of the residual
        stream by mean ablation with its coordinates permuted and their signs redrawn. Where it raises the loss as much,
        any perturbation does.
    """,
    input="model",
    steps="ends",
)
def head_importance(
    model: PreTrainedModel, task: Task, batch: Batch, first: int = 0, seed: int = 0, sequences: int = 256
) -> xr.Dataset:
    """Compute the ablation effect of every head, and compare it with the roles of the head.

    Args:
        model: a model that capture supports.
        task: task whose loss is computed.
        batch: two or more sequences; the loss is the mean over their positions from ``first`` on.
        first: positions before this one are left out of the loss.
        seed: seed of the permutation of sequences, of the perturbations and of the bootstrap.
        sequences: maximum number of sequences of the batch that are used.

    Returns:
        the variables of :func:`ablation_effects`; ``role``, the roles of each head; and ``label``, the same with marks
        for roles without an effect and effects without a role.

    Raises:
        UnsupportedModel: a layer has no linear output projection.
        ValueError: there is one sequence, or no position from ``first`` on.
    """
    batch = batch[:sequences]
    effects = ablation_effects(model, task, batch, first, seed)
    role = label_head_roles(run_analyses(model, batch, select_role_analyses(batch)))
    labels = to_data_array(
        mark_ineffective_roles(role.values, effects["caused"].any("stat").values),
        "layer",
        "head",
        units="text",
        description="roles of each head, and whether it has an effect",
    )
    return effects.assign(role=role, label=labels)


def ablation_effects(model: PreTrainedModel, task: Task, batch: Batch, first: int = 0, seed: int = 0) -> xr.Dataset:
    """Compute the ablation effect of every head with its interval, and that of a norm-matched random perturbation.

    Args:
        model: a model that capture supports.
        task: task whose loss is computed.
        batch: two or more sequences; the loss is the mean over their positions from ``first`` on.
        first: positions before this one are left out of the loss.
        seed: seed of the permutation of sequences, of the perturbations and of the bootstrap.

    Returns:
        ``effect`` with ``low``, ``high`` and ``caused`` by layer, head and kind of ablation; ``effect_null`` by layer
        and head; and the ``loss`` of the intact model.

    Raises:
        UnsupportedModel: a layer has no linear output projection.
        ValueError: there is one sequence, or no position from ``first`` on.

    >>> import torch
    >>> from mesascope.ground_truth.models.vectors import build_planted_model
    >>> from mesascope.tasks.affine import Affine
    >>> batch = Affine().sample(32, torch.Generator().manual_seed(0))
    >>> ablation_effects(build_planted_model("copying"), Affine(), batch)["caused"].any("stat").values.tolist()
    [[True, False, False, False]]
    """
    increases = head_ablation_effects(model, batch, task_loss(task, batch, first), seed=seed)
    intact, effect = float(increases.intact.mean()), increases.effect.mean(-1)
    low, high = bootstrap_interval(increases.effect, seed)
    has_effect = mask_significant(low, high, effect, MIN_EFFECT_FRACTION * abs(intact))
    unit = "units of the loss"

    def label_effects(values: Tensor, about: str, units: str = unit) -> xr.DataArray:
        axes, coords = (("stat",), {"stat": list(ABLATION_KINDS)}) if values.ndim == 3 else ((), {})
        return to_data_array(values, "layer", "head", *axes, units=units, description=about, coords=coords)

    perturbed = label_effects(
        increases.perturbation_effect.mean(-1), "increase of the loss under a norm-matched random perturbation"
    )
    rise = label_effects(effect, "increase of the loss when this head is ablated")
    return xr.Dataset(
        {
            **with_null(
                "effect",
                rise.assign_attrs(view="head_importance", headline=1, center=0),
                Null(name="norm-matched random perturbation", value=perturbed),
            ),
            "low": label_effects(low, "lower end of the effect's 95 % interval over sequences"),
            "high": label_effects(high, "upper end of the effect's 95 % interval over sequences"),
            "caused": label_effects(
                has_effect.int(),
                f"1 if the interval excludes 0 and the effect is {MIN_EFFECT_FRACTION} of the loss or more",
                "1",
            ),
            "loss": to_data_array(intact, units=unit, description="loss of the intact model"),
        }
    )


def select_role_analyses(batch: Batch) -> list[Analysis]:
    """Return the analyses that report roles of heads on these sequences.

    Args:
        batch: sequences of vectors or of tokens.

    Returns:
        analyses of captures that apply to the sequences.
    """
    if batch.inputs.is_floating_point():
        copies = [value_copying] if batch.inputs.shape == batch.targets.shape else []
        return [similarity, positional_attention, *copies]
    recurs = earlier_occurrences(batch.inputs)["induction"].any()
    enough = batch.inputs.shape[1] > FIRST_QUERY
    return [
        positional_attention,
        ov_copying_score,
        *([token_similarity] if enough else []),
        *([natural_induction] if recurs else []),
    ]


def mark_ineffective_roles(roles: np.ndarray, has_effect: np.ndarray) -> list[list[str]]:
    """Return the roles of every head, marked where a role has no effect or an effect has no role.

    Args:
        roles: roles by layer and head, empty where there is none.
        has_effect: mask of the heads with an ablation effect.

    >>> mark_ineffective_roles(np.array([["copying", "copying", "", ""]]), np.array([[True, False, True, False]]))
    [['copying', 'copying, no effect', 'no role', 'neither']]
    """
    templates = {
        (True, True): "{}",
        (True, False): "{}, no effect",
        (False, True): "no role",
        (False, False): "neither",
    }
    return [
        [templates[bool(role), bool(effect)].format(role) for role, effect in zip(*row, strict=True)]
        for row in zip(roles.tolist(), has_effect.tolist(), strict=True)
    ]
