"""What our own instruments claim of a model: their results, read as places that have a mechanism."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from mesascope.analyses import clusters, copying, position, roles, similarity, token_copying, which_algorithm
from mesascope.analyses.algorithms.identify import NONE
from mesascope.analyses.causal.ablation import ablation
from mesascope.analyses.heads.repeated_tokens import ROLES
from mesascope.analyses.instrument import Instrument
from mesascope.ground_truth.adapters import STEPS, attributed, averaging, nearly_uniform, signed_similarity, swept
from mesascope.ground_truth.check_instrument import Claims

MOST = 0.9  # of a head's attention: what it always does
WORTH = 0.01  # of the loss: a head whose removal changes less carries nothing that is predicted
TENTH = 0.1  # of the effect of the costliest head: a head with less carries little beside it
SHARE = 0.03  # of the agreement, likewise, which is linear where the loss is quadratic
SAME = 0.95  # of the variance of predictions, at the lower end of the interval: less is likeness, not identity
TOGETHER = 0.5  # adjusted Rand index, which is 0 by chance and 1 where clusters are the labels


@dataclass(frozen=True, kw_only=True)
class Reading:
    """An instrument and what its numbers claim.

    Attributes:
        instrument: a measure, a sweep (model, task, batch), or a function of model and batch.
        found: the places that it claims, by mechanism.
        about: the criterion, in a few words.
    """

    instrument: Instrument | Callable[..., xr.Dataset]
    found: Callable[[xr.Dataset], Claims]
    about: str


def heads_where(marked: xr.DataArray) -> set[tuple[int, int]]:
    """The places (layer, head) at which something holds.

    >>> sorted(heads_where(xr.DataArray([[True, False], [False, True]], dims=("layer", "head"))))
    [(0, 0), (1, 1)]
    """
    return {(int(layer), int(head)) for layer, head in np.argwhere(marked.transpose("layer", "head").values)}


def _role(plus: str, minus: str) -> Callable[[xr.Dataset], Claims]:
    """What is claimed where the role is 1 and -1."""
    return lambda found: {plus: heads_where(found["role"] == 1), minus: heads_where(found["role"] == -1)}


def _positions(found: xr.Dataset) -> Claims:
    """Places that have nearly all attention; attention that is uniform but for less than a key."""
    claims = {label: heads_where(found["score"].sel(stat=stat) > MOST) for stat, label in PLACES.items()}
    return claims | {ALIKE: heads_where(nearly_uniform(found))}


def _roles(found: xr.Dataset) -> Claims:
    """The roles that each head has been given."""
    said = np.ndenumerate(found["role"].transpose("layer", "head").values)
    by_head = {place: str(text).split(", ") for place, text in said}
    return {role: {place for place, words in by_head.items() if role in words} for role in ROLES}


def _worth(effect: str, intact: str, least: float = WORTH) -> Callable[[xr.Dataset], Claims]:
    """Heads without which the loss is another one, by no less than a tenth of what the costliest head does to it."""

    def found(data: xr.Dataset) -> Claims:
        size = abs(_mean(data[effect]))
        return {"carries the prediction": heads_where((size > least * abs(data[intact])) & (size > TENTH * size.max()))}

    return found


def _mean(effect: xr.DataArray) -> xr.DataArray:
    """The effect of replacing by the mean, where there are several kinds."""
    return effect.sel(stat="mean", drop=True) if "stat" in effect.dims else effect


def _algorithm(found: xr.Dataset) -> Claims:
    """The name of the algorithm, if it explains nearly all of the predictions."""
    name = str(found["named"].item())
    same = name != NONE and float(found["low"][found["called"] == name].item()) >= SAME
    return {"algorithm": {name} if same else set()}


def _knows(found: xr.Dataset) -> Claims:
    """Layers after which sequences lie together by label."""
    score = found["adjusted_rand_index"]
    layers = [int(depth.split()[-1]) if depth.startswith("after") else -1 for depth in score["layer"].values.tolist()]
    return {
        f"knows the {label}": {
            (layer,) for layer, yes in zip(layers, score.sel(stat=label).values > TOGETHER, strict=True) if yes
        }
        for label in ("generator", "next token")
    }


PLACES = {
    "first": "attends to the first position",
    "self": "attends to itself",
    "previous": "attends to the previous position",
    "two back": "attends two positions back",
}
ALIKE = "attends alike to all"
READINGS: Mapping[str, Reading] = {
    "similarity": Reading(
        instrument=similarity, found=_role("prefers the like", "prefers the unlike"), about="its role"
    ),
    "copying": Reading(
        instrument=copying,
        found=_role("adds what it attends to", "subtracts what it attends to"),
        about="its role",
    ),
    "similarity and copying": Reading(
        instrument=signed_similarity,
        found=lambda found: {
            "unlike, added": heads_where((found["likes"] == -1) & (found["copies"] == 1)),
            "like, subtracted": heads_where((found["likes"] == 1) & (found["copies"] == -1)),
        },
        about="both roles: the two readings of negative similarity",
    ),
    "position": Reading(instrument=position, found=_positions, about=f"more than {MOST} of the attention"),
    "position and copying": Reading(
        instrument=averaging,
        found=lambda found: {"averages": heads_where(found["uniform"] & (found["copies"] == 1))},
        about="attention alike to all, and the role of a copying head",
    ),
    "roles": Reading(instrument=roles, found=_roles, about="its roles"),
    "token_copying": Reading(
        instrument=token_copying, found=_role("copies tokens", "takes tokens away"), about="its role"
    ),
    "ablation": Reading(
        instrument=ablation.using(groups=False, sequences=64),
        found=_worth("cost", "loss"),
        about=f"with its mean in its place the loss differs by {WORTH} of itself and {TENTH} of the largest difference",
    ),
    "sweep": Reading(
        instrument=swept,
        found=_worth("effect", "intact"),
        about="the same, of all heads side by side",
    ),
    "attribution_patch": Reading(
        instrument=attributed,
        found=_worth("estimate", "intact", SHARE),
        about=f"the same of the agreement with the targets, and by more than {SHARE} of it, from {STEPS} gradients",
    ),
    "clusters": Reading(
        instrument=clusters.using(labels=("generator", "next token")),
        found=_knows,
        about=f"adjusted Rand index above {TOGETHER}",
    ),
    "which_algorithm": Reading(
        instrument=which_algorithm.using(layers=False, elsewhere=False),
        found=_algorithm,
        about=f"its name, where that explains {SAME} of the predictions or more",
    ),
}
