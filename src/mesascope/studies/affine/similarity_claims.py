"""Claims about negative-similarity heads: scores, gains and ablation effects in the last layer."""

import numpy as np
import xarray as xr

from mesascope.analyses.heads.similarity import MIN_SCORE_STD
from mesascope.studies.affine.citation import CITATION
from mesascope.studies.base import Claim, Quantity, Results, select_last_step

PAPER = f"{CITATION.short}, abstract"
OURS = "ours"


def negative_similarity_claims(top: int) -> tuple[Claim, ...]:
    """Return the claims that the last layer has negative-similarity heads.

    Args:
        top: index of the last layer.
    """
    return (
        _score_claim(top),
        _main_effects_claim(top),
        _gain_claim(top),
        _strongest_layer_claim(top),
    )


def _score_claim(top: int) -> Claim:
    return Claim(
        name="negative similarity: attention score",
        statement=f"Layer {top} has heads whose attention score falls with the similarity of query and key.",
        source=f"{PAPER}, first reading",
        value=_lowest_interaction(top),
        control=Quantity(
            description="lower edge of the null band with shuffled partners",
            read=lambda results: _find_lowest(results, "interaction_null_low", slice(top, top)),
        ),
        direction="below",
    )


def _main_effects_claim(top: int) -> Claim:
    return Claim(
        name="negative similarity: attention score with main effects",
        statement=f"Layer {top} has heads whose attention score falls with the similarity of query and key; "
        "main effects of query and key are included.",
        source=f"{PAPER}, first reading, without removing the main effects of query and key",
        value=Quantity(
            description=f"lowest correlation of score and similarity of a head in layer {top}, position fixed",
            read=lambda results: _find_lowest(results, "fixed_position", slice(top, top)),
        ),
        control=Quantity(
            description="lower edge of the null band with shuffled partners",
            read=lambda results: _find_lowest(results, "fixed_position_null_low", slice(top, top)),
        ),
        direction="below",
    )


def _gain_claim(top: int) -> Claim:
    return Claim(
        name="negative similarity: gain",
        statement=f"Layer {top} has heads that attend to terms similar to the query and subtract them.",
        source=f"{PAPER}, second reading",
        value=Quantity(
            description="lowest gain among heads whose score rises with similarity; 0 without such heads",
            read=lambda results: _find_lowest_gain(results, "gain", top),
        ),
        control=Quantity(
            description="the same gain with shuffled keys",
            read=lambda results: _find_lowest_gain(results, "gain_null", top),
        ),
        direction="below",
    )


def _strongest_layer_claim(top: int) -> Claim:
    return Claim(
        name=f"negative similarity is strongest in layer {top}",
        statement=f"Negative similarity is stronger in layer {top} than in the earlier layers.",
        source=f"{PAPER}, in our words",
        value=_lowest_interaction(top),
        control=Quantity(
            description="the lowest correlation in earlier layers",
            read=lambda results: _find_lowest(results, "interaction", slice(0, top - 1)),
        ),
        direction="below",
    )


def negative_head_ablation_claims(top: int) -> tuple[Claim, ...]:
    """Return the claims that negative-similarity heads have larger ablation effects than other heads.

    Args:
        top: index of the last layer.
    """
    return (
        _negative_heads_claim(top),
        _most_important_claim(top),
    )


def _negative_heads_claim(top: int) -> Claim:
    return Claim(
        name="negative-similarity heads have larger effects",
        statement=f"In layer {top}, ablating negative-similarity heads raises the loss more than ablating others.",
        source=f"{OURS}: a causal test of the abstract's word 'refined'",
        value=Quantity(
            description="increase of the loss when they are mean-ablated; NaN if there are none, or no others",
            read=lambda results: _compare_negative_heads(results, top)[0],
            unit="units of the loss",
        ),
        control=Quantity(
            description="the same increase, mean over all groups of equally many other heads of the layer",
            read=lambda results: _compare_negative_heads(results, top)[1],
            unit="units of the loss",
        ),
        direction="above",
    )


def _most_important_claim(top: int) -> Claim:
    return Claim(
        name="the most important head has negative similarity",
        statement=f"The head with the largest ablation effect in layer {top} is a negative-similarity head.",
        source=f"{OURS}: a causal test of the abstract's word 'refined'",
        value=Quantity(
            description="correlation of score and similarity of that head, main effects removed",
            read=lambda results: _select_most_important(results, "interaction", top),
        ),
        control=Quantity(
            description="lower edge of the head's null band with shuffled partners",
            read=lambda results: _select_most_important(results, "interaction_null_low", top),
        ),
        direction="below",
    )


def _lowest_interaction(top: int) -> Quantity:
    return Quantity(
        description=f"lowest correlation of score and similarity of a head in layer {top}, main effects removed",
        read=lambda results: _find_lowest(results, "interaction", slice(top, top)),
    )


def _find_lowest(results: Results, variable: str, layers: slice) -> xr.DataArray:
    scores, std = (select_last_step(results["similarity"][name]).sel(layer=layers) for name in (variable, "score_std"))
    # The rank correlation of a head with constant scores is noise, so such a head counts as 0.
    return scores.where(std >= MIN_SCORE_STD, 0.0).min(("layer", "head"))


def _find_lowest_gain(results: Results, variable: str, layer: int) -> xr.DataArray:
    role = select_last_step(results["similarity"]["role"]).sel(layer=layer, drop=True)
    gain = select_last_step(results["value_copying"][variable]).sel(layer=layer, drop=True)
    return gain.where(role > 0, 0.0).min("head")


def _compare_negative_heads(results: Results, layer: int) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the effect of ablating the layer's negative heads, and the mean effect of as many others, by seed."""
    roles = select_last_step(results["similarity"]["role"]).sel(layer=layer)
    effects = select_last_step(results["head_ablation"]["group_effect"]).sel(layer=layer, stat="mean")
    negative_effects, other_effects = [], []
    for seed in roles["seed"].values:
        role, effect = roles.sel(seed=seed).values, effects.sel(seed=seed)
        negative = [int(head) for head in np.flatnonzero(role < 0)]
        others = set(range(len(role))) - set(negative)
        groups = [name for name in map(str, effect["component"].values) if _is_group_of(name, len(negative), others)]
        defined = bool(negative) and bool(groups)
        negative_effects.append(float(effect.sel(component="+".join(map(str, negative)))) if defined else np.nan)
        other_effects.append(float(effect.sel(component=groups).mean()) if defined else np.nan)
    coords = {"seed": roles["seed"]}
    return xr.DataArray(negative_effects, coords, ("seed",)), xr.DataArray(other_effects, coords, ("seed",))


def _is_group_of(name: str, size: int, allowed: set[int]) -> bool:
    heads = {int(head) for head in name.split("+")}  # the name of a group is such as 0+2
    return len(heads) == size and heads <= allowed


def _select_most_important(results: Results, variable: str, layer: int) -> xr.DataArray:
    effect = select_last_step(results["head_ablation"]["effect"]).sel(layer=layer, stat="mean", drop=True)
    scores = select_last_step(results["similarity"][variable]).sel(layer=layer, drop=True)
    return scores.isel(head=effect.argmax("head")).drop_vars("head", errors="ignore")
