"""Roles of heads on the sequences of an ablation, and marks for roles without an ablation effect."""

import numpy as np
import xarray as xr
from transformers import PreTrainedModel

from mesascope.analyses.base import Analysis, run_analyses
from mesascope.analyses.heads.attention import positional_attention
from mesascope.analyses.heads.labels import label_head_roles
from mesascope.analyses.heads.natural_induction import earlier_occurrences, natural_induction
from mesascope.analyses.heads.ov_circuit import ov_copying_score
from mesascope.analyses.heads.similarity import similarity
from mesascope.analyses.heads.token_similarity import FIRST_QUERY, token_similarity
from mesascope.analyses.heads.value_copying import value_copying
from mesascope.axes import to_data_array
from mesascope.tasks.base import Batch


def find_head_roles(model: PreTrainedModel, batch: Batch, shape: tuple[int, ...]) -> xr.DataArray:
    """Return the roles of every head, from all analyses of roles that apply to the model and the sequences.

    An analysis that refuses the model, such as one of softmax attention for linear attention, is left out.

    Args:
        model: a model that capture supports.
        batch: sequences of vectors or of tokens.
        shape: number of layers, and of heads in a layer.

    Returns:
        the roles by layer and head, as text, empty where there is none; the attribute ``not_applicable`` names the
        analyses that were left out.
    """
    results, refused = {}, []
    for one in select_role_analyses(batch):
        try:
            results |= run_analyses(model, batch, [one])
        except ValueError:
            refused.append(one.name)
    no_roles = to_data_array(np.full(shape, ""), "layer", "head", units="text", description="the roles of each head")
    role = label_head_roles(results) if results else no_roles
    return role.assign_attrs(not_applicable=", ".join(refused)) if refused else role


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

    Returns:
        one label per head, by layer.

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
