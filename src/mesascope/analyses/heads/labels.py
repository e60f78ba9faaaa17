"""What heads are called: the roles that several instruments found, as text."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from mesascope.analyses.heads.repeated_tokens import LEAST_MASS
from mesascope.axes import label

SIGNED = {  # instrument -> what its role of 1 and of -1 is called
    "similarity": ("similarity", "negative similarity"),
    "token_similarity": ("similarity", "negative similarity"),
    "copying": ("copying", "subtracting"),
    "token_copying": ("copying", "taking away"),
}
PLACES = ("first", "self", "previous", "two back")  # position scores that are shares of the attention


def role_names(found: Mapping[str, xr.Dataset]) -> xr.DataArray:
    """The roles of every head, joined by commas; empty where there is none.

    A role is what its instrument says it is: of `similarity` and `copying` (`token_similarity`, `token_copying`) by
    their sign, of `repeats` and `roles` by name. Of the position scores the largest share counts, if it is 0.3 or more
    and more than uniform attention would have. Averaging is no role here: it is what untrained heads do.

    Args:
        found: results of any of these instruments by name; others are passed over.

    Raises:
        ValueError: there is none of them.

    >>> role = xr.DataArray([[1, 0, -1]], dims=("layer", "head"))
    >>> role_names({"copying": xr.Dataset({"role": role})}).values.tolist()
    [['copying', '', 'subtracting']]
    """
    grids = [_signed(found[name]["role"], *words) for name, words in SIGNED.items() if name in found]
    if "repeats" in found:
        grids.append(_above(found["repeats"]["score"], found["repeats"]["score_bound"]))
    if "roles" in found:
        grids.append(found["roles"]["role"].transpose("layer", "head").values)
    if "position" in found:
        grids.append(_placed(found["position"]))
    if not grids:
        raise ValueError(f"roles must come from an instrument that tells them, but got {', '.join(found) or 'nothing'}")
    layers, heads = grids[0].shape
    words = [[", ".join(filter(None, (g[k, h] for g in grids))) for h in range(heads)] for k in range(layers)]
    some = next(iter(found.values()))
    coords = {"layer": some["layer"].values} if "layer" in some.coords else {}
    return label(words, "layer", "head", units="text", about="the roles of each head", coords=coords)


def _signed(role: xr.DataArray, positive: str, negative: str) -> np.ndarray:
    """The name for each sign."""
    signs = role.transpose("layer", "head").values
    return np.where(signs > 0, positive, np.where(signs < 0, negative, "")).astype(object)


def _above(score: xr.DataArray, bound: xr.DataArray) -> np.ndarray:
    """The names of the scores that lie above their bounds."""
    beyond = (score > bound).transpose("layer", "head", "stat")
    names = beyond["stat"].values.tolist()
    words = [[", ".join(n for n, yes in zip(names, head, strict=True) if yes) for head in row] for row in beyond.values]
    return np.array(words, dtype=object)


def _placed(position: xr.Dataset) -> np.ndarray:
    """The place that gets the largest share of the attention, if it is large enough."""
    score, null = (
        position[name].sel(stat=list(PLACES)).transpose("layer", "head", "stat") for name in ("score", "score_null")
    )
    best = score.argmax("stat").values
    large = ((score >= LEAST_MASS) & (score > null)).values
    kept = np.take_along_axis(large, best[..., None], -1)[..., 0]
    return np.where(kept, np.array(PLACES, dtype=object)[best], "").astype(object)
