"""Claims about negative-similarity heads: whether models have them, in which layer, and what their ablation costs.

The abstract does not define the term. A head has negative similarity by one of two readings, each of which compares
the head with its own null: its score falls with similarity, or it attends to similar terms and subtracts them.
"""

from collections.abc import Callable

import numpy as np
import xarray as xr

from mesascope.studies.affine.citation import CITATION
from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.shared.head_claims import compute_log_factor

PAPER = f"{CITATION.short}, abstract"
OURS = "ours"

MIN_MODEL_RATE = 0.5  # ours, fixed before the run: "models have such heads" means half of them or more
MIN_HEAD_FRACTION = 0.25  # ours, fixed before the run: one head of the four in a layer
MIN_LOG_RATIO = float(np.log10(2))  # ours, fixed before the run: a factor of the loss that is twice as large

StepSelector = Callable[[xr.DataArray], xr.DataArray]


def negative_similarity_claims(top: int) -> tuple[Claim, ...]:
    """Return the claims about negative-similarity heads in the last layer.

    Args:
        top: index of the last layer.
    """
    return (_falling_score_claim(top), _subtraction_claim(top), _layer_claim(top), _effect_claim(top))


def _falling_score_claim(top: int) -> Claim:
    return Claim(
        name="negative similarity: attention score",
        statement=f"Layer {top} has heads whose attention score falls with the similarity of query and key.",
        source=f"{PAPER}, first reading",
        value=Quantity(
            description=f"1 if the correlation of score and similarity of a head in layer {top} lies below the head's "
            "own null band, else 0",
            read=lambda results: _has_head(_find_falling_scores(results, select_last_step), top),
        ),
        control=Quantity(
            description="the same in the untrained model",
            read=lambda results: _has_head(_find_falling_scores(results, select_untrained), top),
        ),
        direction="above",
        existence=True,
        margin=MIN_MODEL_RATE,
        by_paper=True,
    )


def _subtraction_claim(top: int) -> Claim:
    return Claim(
        name="negative similarity: subtraction",
        statement=f"Layer {top} has heads that attend to terms similar to the query and subtract them.",
        source=f"{PAPER}, second reading",
        value=Quantity(
            description=f"1 if the score of a head in layer {top} rises with similarity, beyond the head's own null "
            "band, and the head subtracts the attended value from the output, with R² above its own null, else 0",
            read=lambda results: _has_head(_find_subtraction(results, select_last_step), top),
        ),
        control=Quantity(
            description="the same in the untrained model",
            read=lambda results: _has_head(_find_subtraction(results, select_untrained), top),
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
            description=f"fraction of heads in layer {top} with negative similarity by either reading, "
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
        statement=f"In layer {top}, ablating negative-similarity heads raises the loss more than ablating others.",
        source=f"{OURS}: a causal test of the abstract's word 'refined'",
        value=Quantity(
            description="log10 of the factor by which mean ablation of the heads with negative similarity, by either "
            "reading, multiplies the loss; not defined if there are none, or too few others",
            read=lambda results: _compare_effects(results, top)[0],
        ),
        control=Quantity(
            description="the same, mean over all groups of equally many other heads of the layer",
            read=lambda results: _compare_effects(results, top)[1],
        ),
        direction="above",
        margin=MIN_LOG_RATIO,
    )


def _find_falling_scores(results: Results, select_step: StepSelector) -> xr.DataArray:
    return select_step(results["similarity"]["role"]) < 0


def _find_subtraction(results: Results, select_step: StepSelector) -> xr.DataArray:
    rises = select_step(results["similarity"]["role"]) > 0
    return rises & (select_step(results["value_copying"]["role"]) < 0)


def _find_negative_heads(results: Results, select_step: StepSelector) -> xr.DataArray:
    return _find_falling_scores(results, select_step) | _find_subtraction(results, select_step)


def _has_head(heads: xr.DataArray, layer: int) -> xr.DataArray:
    return heads.sel(layer=layer, drop=True).any("head").astype(float)


def _compute_change(results: Results) -> xr.DataArray:
    trained, untrained = (
        _find_negative_heads(results, select_step).mean("head") for select_step in (select_last_step, select_untrained)
    )
    return trained - untrained


def _compare_effects(results: Results, layer: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the effect of ablating the layer's negative heads, and the mean effect of as many others, by seed."""
    is_negative = _find_negative_heads(results, select_last_step).sel(layer=layer)
    effects = compute_log_factor(results, "group_effect").sel(layer=layer)
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
