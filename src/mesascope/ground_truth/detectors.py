"""Detectors: the analyses of this package with the criteria that turn their results into detected mechanisms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from mesascope.analyses import (
    clusters,
    ov_copying_score,
    positional_attention,
    refinement_heads,
    repeated_token_heads,
    similarity,
    value_copying,
    which_algorithm,
)
from mesascope.analyses.algorithms.identify import NO_ALGORITHM
from mesascope.analyses.base import Analysis
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.analyses.heads.repeated_tokens import ROLES
from mesascope.ground_truth.adapters import (
    ATTRIBUTION_STEPS,
    attribution_patching,
    find_uniform_heads,
    head_sweep,
    signed_similarity,
    uniform_averaging,
)
from mesascope.ground_truth.evaluation import DetectedLocations

MIN_ATTENTION = 0.9  # minimum fraction of a head's attention
MIN_LOSS_CHANGE = 0.01  # minimum change relative to the loss: a head below it does not affect the prediction
MIN_RELATIVE_EFFECT = 0.1  # minimum effect relative to the largest effect of a head
MIN_AGREEMENT_CHANGE = (
    0.03  # minimum change relative to the target agreement, which is linear where the loss is quadratic
)
MIN_EXPLAINED = 0.95  # minimum explained variance of predictions (lower interval end): less is similarity, not identity
MIN_RAND_INDEX = 0.5  # minimum adjusted Rand index, which is 0 by chance and 1 where clusters equal the labels


@dataclass(frozen=True, kw_only=True)
class Detector:
    """An analysis and the criterion that turns its results into detections.

    Attributes:
        analysis: an analysis of a capture or of a model, or a function of a model and a batch.
        detect: function of the returned dataset that gives the detected locations, by mechanism.
        criterion: a short description of the criterion.
    """

    analysis: Analysis | Callable[..., xr.Dataset]
    detect: Callable[[xr.Dataset], DetectedLocations]
    description: str


def heads_where(mask: xr.DataArray) -> set[tuple[int, int]]:
    """Return the heads at which a boolean mask is true.

    Args:
        mask: boolean array (layer, head).

    Returns:
        The indices (layer, head).

    >>> sorted(heads_where(xr.DataArray([[True, False], [False, True]], dims=("layer", "head"))))
    [(0, 0), (1, 1)]
    """
    return {(int(layer), int(head)) for layer, head in np.argwhere(mask.transpose("layer", "head").values)}


def _detect_by_role(positive: str, negative: str) -> Callable[[xr.Dataset], DetectedLocations]:
    return lambda dataset: {positive: heads_where(dataset["role"] == 1), negative: heads_where(dataset["role"] == -1)}


def _detect_positions(dataset: xr.Dataset) -> DetectedLocations:
    locations = {
        label: heads_where(dataset["score"].sel(stat=stat) > MIN_ATTENTION)
        for stat, label in POSITION_MECHANISMS.items()
    }
    return locations | {UNIFORM_MECHANISM: heads_where(find_uniform_heads(dataset))}


def _detect_roles(dataset: xr.Dataset) -> DetectedLocations:
    roles_of_heads = np.ndenumerate(dataset["role"].transpose("layer", "head").values)
    by_head = {location: str(text).split(", ") for location, text in roles_of_heads}
    return {role: {location for location, words in by_head.items() if role in words} for role in ROLES}


def _detect_by_effect(
    effect: str, baseline: str, min_fraction: float = MIN_LOSS_CHANGE
) -> Callable[[xr.Dataset], DetectedLocations]:
    """Return a function that detects heads by their effect relative to the original value and to the largest effect."""

    def detect_heads(data: xr.Dataset) -> DetectedLocations:
        magnitude = abs(_select_mean_ablation(data[effect]))
        important = (magnitude > min_fraction * abs(data[baseline])) & (
            magnitude > MIN_RELATIVE_EFFECT * magnitude.max()
        )
        return {"affects the prediction": heads_where(important)}

    return detect_heads


def _select_mean_ablation(effect: xr.DataArray) -> xr.DataArray:
    return effect.sel(stat="mean", drop=True) if "stat" in effect.dims else effect


def _detect_algorithm(dataset: xr.Dataset) -> DetectedLocations:
    name = str(dataset["named"].item())
    is_named = dataset["display_name"] == name
    rows = is_named if bool(is_named.any()) else dataset["tied"] == 1  # several are named together
    explained = name != NO_ALGORITHM and float(dataset["low"].where(rows).min()) >= MIN_EXPLAINED
    return {"algorithm": {name} if explained else set()}


def _detect_encoded_labels(dataset: xr.Dataset) -> DetectedLocations:
    score = dataset["adjusted_rand_index"]
    layers = [int(depth.split()[-1]) if depth.startswith("after") else -1 for depth in score["layer"].values.tolist()]
    return {
        f"encodes the {label}": {
            (layer,)
            for layer, above in zip(layers, score.sel(stat=label).values > MIN_RAND_INDEX, strict=True)
            if above
        }
        for label in ("generator", "next token")
    }


POSITION_MECHANISMS = {
    "first": "attends to the first position",
    "self": "attends to itself",
    "previous": "attends to the previous position",
    "two back": "attends two positions back",
}
UNIFORM_MECHANISM = "attends uniformly"
DETECTORS: Mapping[str, Detector] = {
    "similarity": Detector(
        analysis=similarity,
        detect=_detect_by_role("attends to similar inputs", "attends to dissimilar inputs"),
        description="the reported role",
    ),
    "value_copying": Detector(
        analysis=value_copying,
        detect=_detect_by_role("copies inputs", "copies negated inputs"),
        description="the reported role",
    ),
    "similarity and value_copying": Detector(
        analysis=signed_similarity,
        detect=lambda dataset: {
            "adds dissimilar inputs": heads_where((dataset["similarity_role"] == -1) & (dataset["copying_role"] == 1)),
            "subtracts similar inputs": heads_where(
                (dataset["similarity_role"] == 1) & (dataset["copying_role"] == -1)
            ),
        },
        description="both reported roles, which separate the two kinds of negative similarity",
    ),
    "refinement_heads": Detector(
        analysis=refinement_heads,
        detect=lambda dataset: {"refines the estimate": heads_where((dataset["role"] == 1).all("stat"))},
        description="the reported role, by direct and by total contribution",
    ),
    "positional_attention": Detector(
        analysis=positional_attention,
        detect=_detect_positions,
        description=f"more than {MIN_ATTENTION} of the attention",
    ),
    "positional_attention and value_copying": Detector(
        analysis=uniform_averaging,
        detect=lambda dataset: {"averages inputs": heads_where(dataset["uniform"] & (dataset["copying_role"] == 1))},
        description="uniform attention and the role of a copying head",
    ),
    "repeated_token_heads": Detector(
        analysis=repeated_token_heads, detect=_detect_roles, description="the reported roles"
    ),
    "ov_copying_score": Detector(
        analysis=ov_copying_score,
        detect=_detect_by_role("copies tokens", "suppresses tokens"),
        description="the reported role",
    ),
    "head_ablation": Detector(
        analysis=head_ablation.using(groups=False, sequences=64),
        detect=_detect_by_effect("effect", "loss"),
        description=(
            f"mean ablation changes the loss by more than {MIN_LOSS_CHANGE} of its value and {MIN_RELATIVE_EFFECT} "
            "of the largest change"
        ),
    ),
    "sweep": Detector(
        analysis=head_sweep,
        detect=_detect_by_effect("effect", "intact"),
        description="as for head_ablation, with all heads edited in batched forward passes",
    ),
    "attribution_patch": Detector(
        analysis=attribution_patching,
        detect=_detect_by_effect("estimate", "intact", MIN_AGREEMENT_CHANGE),
        description=(
            f"the estimated change of the agreement with the targets exceeds {MIN_AGREEMENT_CHANGE} of its value "
            f"and {MIN_RELATIVE_EFFECT} of the largest change, with {ATTRIBUTION_STEPS} gradients"
        ),
    ),
    "clusters": Detector(
        analysis=clusters.using(labels=("generator", "next token")),
        detect=_detect_encoded_labels,
        description=f"adjusted Rand index above {MIN_RAND_INDEX}",
    ),
    "which_algorithm": Detector(
        analysis=which_algorithm.using(layers=False, shifted=False),
        detect=_detect_algorithm,
        description=f"the reported algorithm, if it explains at least {MIN_EXPLAINED} of the variance of predictions",
    ),
}
