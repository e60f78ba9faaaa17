"""Claims about negative-similarity heads: whether models have them, in which layer, and what they do.

The abstract does not define the term. A head has negative similarity by one of three readings, each of which compares
the head with its own null: its score falls with similarity (R1), it attends to similar terms and subtracts them (R2),
or it opposes the estimate in the residual stream and adds what this misses (R3).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr

from mesascope.analyses.causal.value_paths import ALL_SENDERS
from mesascope.analyses.nulls import NUM_UNTRAINED_DRAWS
from mesascope.studies.affine.citation import CITATION
from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.shared.head_claims import select_log_effect

PAPER = f"{CITATION.short}, abstract"
OURS = "ours"

MIN_MODEL_RATE = 0.5  # ours, fixed before the run: "models have such heads" means half of them or more
MIN_HEAD_FRACTION = 0.25  # ours, fixed before the run: one head of the four in a layer
MIN_LOG_RATIO = float(np.log10(2))  # ours, fixed before the run: a factor of the loss that is twice as large
COPY = "attention 0"  # what layer 0's attention writes, as `value_paths` names it
NUM_UNTRAINED = 1 + NUM_UNTRAINED_DRAWS  # untrained models per seed: that of step 0, and further draws

RoleReader = Callable[[Results, str], xr.DataArray]  # role of an analysis in some models, by seed, layer and head
HeadFinder = Callable[[Results, RoleReader], xr.DataArray]


@dataclass(frozen=True, kw_only=True)
class HeadCriterion:
    """One reading of "negative similarity": what is said of a head, and how such heads are found."""

    name: str
    ordinal: str
    statement: str
    criterion: str
    find_heads: HeadFinder


def negative_similarity_claims(top: int) -> tuple[Claim, ...]:
    """Return the claims about negative-similarity heads in the last layer.

    Args:
        top: index of the last layer.
    """
    existence = tuple(_existence_claim(top, reading) for reading in READINGS)
    return (*existence, _layer_claim(top), _effect_claim(top), _source_claim(top))


def _existence_claim(top: int, reading: HeadCriterion) -> Claim:
    return Claim(
        name=f"negative similarity: {reading.name}",
        statement=f"Layer {top} has heads {reading.statement}.",
        source=f"{PAPER}, {reading.ordinal} reading",
        value=Quantity(
            description=f"1 if layer {top} has a head of which {reading.criterion}, else 0",
            read=lambda results: _has_head(reading.find_heads(results, _read_trained), top),
        ),
        control=Quantity(
            description=f"the rate of the same over {NUM_UNTRAINED} untrained models per seed",
            read=lambda results: _has_head(reading.find_heads(results, _read_untrained), top).mean("draw"),
            models=NUM_UNTRAINED,
        ),
        direction="above",
        existence=True,
        margin=MIN_MODEL_RATE,
        by_paper=True,
    )


def _layer_claim(top: int) -> Claim:
    return Claim(
        name=f"training adds negative-similarity heads to layer {top}",
        statement=f"Training adds negative-similarity heads to layer {top}, and more of them than to earlier layers.",
        source=f"{OURS}: the abstract places these heads in layer {top}; untrained models have some in every layer",
        value=Quantity(
            description=f"fraction of heads in layer {top} with negative similarity by the first or second reading, "
            "trained minus untrained",
            read=lambda results: _compute_change(results).sel(layer=top, drop=True),
        ),
        control=Quantity(
            description="the same difference, mean over the earlier layers",
            read=lambda results: _compute_change(results).sel(layer=slice(0, top - 1)).mean("layer"),
        ),
        direction="above",
        threshold=0.0,
        margin=MIN_HEAD_FRACTION,
    )


def _effect_claim(top: int) -> Claim:
    return Claim(
        name="negative-similarity heads have larger effects",
        statement=f"In layer {top}, ablating heads that subtract similar terms raises the loss more than ablating "
        "others.",
        source=f"{OURS}: a causal test of the abstract's word 'refined'",
        value=Quantity(
            description="log10 of the factor by which mean ablation of the heads with negative similarity, by the "
            "second reading, multiplies the loss of a sequence, mean over sequences; not defined if there are none, or "
            "too few others",
            read=lambda results: _compare_effects(results, top)[0],
        ),
        control=Quantity(
            description="the same, mean over all groups of equally many other heads of the layer",
            read=lambda results: _compare_effects(results, top)[1],
        ),
        direction="above",
        margin=MIN_LOG_RATIO,
    )


def _source_claim(top: int) -> Claim:
    return Claim(
        name="the copy is what is subtracted",
        statement=f"The heads in layer {top} that subtract similar terms read what layer 0's attention wrote.",
        source=f"{OURS}: the abstract's first estimate is formed by copying in layer 0 and refined in layer {top}",
        value=Quantity(
            description="log10 of the factor by which the loss rises when these heads' values read layer 0's attention "
            "output of another sequence (path patching), mean over heads; not defined if there are none",
            read=lambda results: _average_value_effect(results, top).sel(component=COPY, drop=True),
        ),
        control=Quantity(
            description="the largest of the same for the embedding and the other sublayers",
            read=lambda results: _average_value_effect(results, top).drop_sel(component=COPY).max("component"),
        ),
        direction="above",
        margin=MIN_LOG_RATIO,
    )


def _read_trained(results: Results, analysis: str) -> xr.DataArray:
    return select_last_step(results[analysis]["role"])


def _read_untrained(results: Results, analysis: str) -> xr.DataArray:
    """Return the role in all untrained models, along the axis draw; the first is that of step 0."""
    first = select_untrained(results[analysis]["role"]).expand_dims("draw")
    return xr.concat([first.drop_vars("draw", errors="ignore"), _drop_draw(results[analysis])], dim="draw")


def _drop_draw(dataset: xr.Dataset) -> xr.DataArray:
    return dataset["role_null_untrained"].drop_vars("draw", errors="ignore").drop_attrs()


def _find_falling(results: Results, read_role: RoleReader) -> xr.DataArray:
    return read_role(results, "similarity") < 0


def _find_subtracting(results: Results, read_role: RoleReader) -> xr.DataArray:
    return (read_role(results, "similarity") > 0) & (read_role(results, "value_copying") < 0)


def _find_refining(results: Results, read_role: RoleReader) -> xr.DataArray:
    return read_role(results, "refinement_heads").sel(stat="total", drop=True) > 0


def _has_head(heads: xr.DataArray, layer: int) -> xr.DataArray:
    return heads.sel(layer=layer, drop=True).any("head").astype(float)


def _compute_change(results: Results) -> xr.DataArray:
    trained, untrained = (
        (_find_falling(results, read) | _find_subtracting(results, read)).mean("head")
        for read in (_read_trained, _read_untrained)
    )
    return trained - untrained.mean("draw")


def _average_value_effect(results: Results, layer: int) -> xr.DataArray:
    """Return the effect of patching each component into the values of the subtracting heads, by seed and component."""
    subtracting = _find_subtracting(results, _read_trained).sel(layer=layer, drop=True)
    effect = select_last_step(results["value_paths"]["effect"]).drop_sel(component=ALL_SENDERS)
    return effect.where(subtracting.drop_vars("head", errors="ignore")).mean("head")


def _compare_effects(results: Results, layer: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the effect of ablating the layer's subtracting heads, and the mean effect of as many others, by seed."""
    is_negative = _find_subtracting(results, _read_trained).sel(layer=layer)
    effects = select_log_effect(results, "log_group_effect").sel(layer=layer)
    negative_effects, other_effects = [], []
    for seed in is_negative["seed"].values:
        heads, effect = is_negative.sel(seed=seed).values, effects.sel(seed=seed)
        negative, others = ([int(head) for head in np.flatnonzero(mask)] for mask in (heads, ~heads))
        groups = [name for name in map(str, effect["component"].values) if _is_group_of(name, len(negative), others)]
        defined = bool(negative) and bool(groups)
        negative_effects.append(float(effect.sel(component="+".join(map(str, negative)))) if defined else np.nan)
        other_effects.append(float(effect.sel(component=groups).mean()) if defined else np.nan)
    coords = {"seed": is_negative["seed"]}
    return xr.DataArray(negative_effects, coords, ("seed",)), xr.DataArray(other_effects, coords, ("seed",))


def _is_group_of(name: str, size: int, allowed: list[int]) -> bool:
    heads = {int(head) for head in name.split("+")}  # the name of a group is such as 0+2
    return len(heads) == size and heads <= set(allowed)


READINGS = (
    HeadCriterion(
        name="attention score",
        ordinal="first",
        statement="whose attention score falls with the similarity of query and key",
        criterion="the correlation of score and similarity lies below the head's own null band",
        find_heads=_find_falling,
    ),
    HeadCriterion(
        name="subtraction",
        ordinal="second",
        statement="that attend to terms similar to the query and subtract them",
        criterion="the score rises with similarity, beyond the head's own null band, and the head subtracts the "
        "attended value from the output, with R² above its own null",
        find_heads=_find_subtracting,
    ),
    HeadCriterion(
        name="refinement",
        ordinal="third",
        statement="that oppose the estimate in the residual stream and add what it misses",
        criterion="the total contribution falls with the estimate in the stream and rises with the target, beyond the "
        "head's own null bands",
        find_heads=_find_refining,
    ),
)
