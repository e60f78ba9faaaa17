"""Role labels of heads, combined from the results of several analyses."""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from mesascope.analyses.heads.role_counts import SIGN_LABELS, label_position_roles
from mesascope.argument_types import validate_arguments
from mesascope.axes import to_data_array


@validate_arguments
def label_head_roles(results: Mapping[str, xr.Dataset]) -> xr.DataArray:
    """Return the roles of every head, joined by commas; empty where a head has none.

    Roles of ``similarity``, ``token_similarity``, ``value_copying`` and ``ov_copying_score`` are given by their sign,
    those of ``natural_induction`` and ``repeated_token_heads`` by name. The role of ``refinement_heads`` is that by
    total contribution, or by direct contribution where only this was computed. Of the scores of
    ``positional_attention`` the largest fraction of the attention counts, if it is 0.3 or more and above that of
    uniform attention. Averaging is not a role here, because heads of untrained models average.

    Args:
        results: results of these analyses by name; others are ignored.

    Returns:
        the roles by layer and head, as text.

    Raises:
        ValueError: no result is of one of these analyses.

    >>> role = xr.DataArray([[1, 0, -1]], dims=("layer", "head"))
    >>> label_head_roles({"value_copying": xr.Dataset({"role": role})}).values.tolist()
    [['copying', '', 'subtracting']]
    """
    grids = [_name_signs(results[name]["role"], *words) for name, words in SIGN_LABELS.items() if name in results]
    if "refinement_heads" in results:  # total contributions come last, if they were computed
        grids.append(_name_signs(results["refinement_heads"]["role"].isel(stat=-1, drop=True), "refining", ""))
    if "natural_induction" in results:
        grids.append(
            _name_above_threshold(
                results["natural_induction"]["score"], results["natural_induction"]["score_threshold"]
            )
        )
    if "repeated_token_heads" in results:
        grids.append(results["repeated_token_heads"]["role"].transpose("layer", "head").values)
    if "positional_attention" in results:
        grids.append(label_position_roles(results["positional_attention"]))
    if not grids:
        raise ValueError(
            f"roles must come from an analysis that reports roles, but got {', '.join(results) or 'no result'}; add "
            "positional_attention, for example"
        )
    layers, heads = grids[0].shape
    words = [[", ".join(filter(None, (g[k, h] for g in grids))) for h in range(heads)] for k in range(layers)]
    result = next(iter(results.values()))
    coords = {"layer": result["layer"].values} if "layer" in result.coords else {}
    return to_data_array(words, "layer", "head", units="text", description="the roles of each head", coords=coords)


def _name_signs(role: xr.DataArray, positive: str, negative: str) -> np.ndarray:
    signs = role.transpose("layer", "head").values
    return np.where(signs > 0, positive, np.where(signs < 0, negative, "")).astype(object)


def _name_above_threshold(score: xr.DataArray, threshold: xr.DataArray) -> np.ndarray:
    above = (score > threshold).transpose("layer", "head", "stat")
    names = above["stat"].values.tolist()
    words = [[", ".join(n for n, yes in zip(names, head, strict=True) if yes) for head in row] for row in above.values]
    return np.array(words, dtype=object)
