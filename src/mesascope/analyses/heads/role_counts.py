"""Number of heads with each role in each layer, which can be compared with that of untrained models."""

import numpy as np
import xarray as xr

from mesascope.axes import to_data_array

MIN_ATTENTION = 0.3  # ours: minimum fraction of the attention
SIGN_LABELS = {  # analysis -> label of its roles 1 and -1
    "similarity": ("similarity", "negative similarity"),
    "token_similarity": ("similarity", "negative similarity"),
    "value_copying": ("copying", "subtracting"),
    "ov_copying_score": ("copying", "anti-copying"),
}
POSITION_STATS = ("first", "self", "previous", "two back")  # position scores that are fractions of the attention
INPUT_LABELS = ("similarity of inputs", "negative similarity of inputs")  # of the roles 1 and -1
NAMED_BY_STAT = ("natural_induction", "repeated_token_heads")  # a head has the role if its score exceeds a threshold


def with_role_counts(name: str, result: xr.Dataset) -> xr.Dataset:
    """Add the number of heads with each role to the results of an analysis of head roles.

    The number of an untrained model is its null, because attention with random weights has many roles. A single head
    has no such null: the heads of an untrained model are exchangeable within a layer.

    Args:
        name: the name of the analysis.
        result: its results by layer and head.

    Returns:
        the results with ``role_count`` by layer and role (axis ``role_name``); its attribute ``num_heads`` is the
        number of heads in a layer. Numeric roles have the attribute ``categorical``: their mean has no meaning.

    Raises:
        ValueError: the analysis reports no roles.

    >>> role = xr.DataArray([[1, 1, -1, 0]], dims=("layer", "head"))
    >>> counts = with_role_counts("value_copying", xr.Dataset({"role": role}))["role_count"]
    >>> counts["role_name"].values.tolist(), counts.values.tolist()
    (['copying', 'subtracting'], [[2, 1]])
    """
    masks = find_role_masks(name, result)
    num_heads = next(iter(masks.values())).sizes["head"]
    counts = xr.concat([mask.sum("head") for mask in masks.values()], dim="role_name")
    coords = {"role_name": list(masks)} | ({"layer": counts["layer"].values} if "layer" in counts.coords else {})
    count = to_data_array(
        counts.transpose("layer", "role_name").values.astype("int64"),
        "layer",
        "role_name",
        units="heads",
        description="number of heads with each role",
        coords=coords,
    )
    categorical = {
        str(role): array.assign_attrs(categorical=1)
        for role, array in result.data_vars.items()
        if role in ("role", "input_role") and array.dtype.kind == "i"
    }
    attrs = {"view": "role_counts", "num_heads": num_heads, "headline": 1}
    return result.assign({**categorical, "role_count": count.assign_attrs(attrs)})


def find_role_masks(name: str, result: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return a mask of the heads with each role.

    Args:
        name: the name of an analysis of head roles.
        result: its results by layer and head.

    Returns:
        masks by layer and head, by the name of the role.

    Raises:
        ValueError: the analysis reports no roles.
    """
    if name in SIGN_LABELS:
        masks = _split_signs(result["role"], *SIGN_LABELS[name])
        return masks | (_split_signs(result["input_role"], *INPUT_LABELS) if "input_role" in result else {})
    if name in NAMED_BY_STAT:
        above = result["score"] > result["score_threshold"]
        return {str(stat): above.sel(stat=stat, drop=True) for stat in above["stat"].values}
    if name == "positional_attention":
        names = label_position_roles(result)
        return {stat: xr.DataArray(names == stat, dims=("layer", "head")) for stat in POSITION_STATS}
    if name == "refinement_heads":
        return {f"refining, {stat}": result["role"].sel(stat=stat, drop=True) > 0 for stat in result["stat"].values}
    raise ValueError(f"an analysis of head roles must be one that reports them, but got {name!r}")


def label_position_roles(position: xr.Dataset) -> np.ndarray:
    """Return the role by position of every head: where most of its attention goes, empty where it is spread.

    Args:
        position: results of ``positional_attention``.

    Returns:
        one of :data:`POSITION_STATS`, or an empty text, by layer and head.
    """
    score, null = (
        position[name].sel(stat=list(POSITION_STATS)).transpose("layer", "head", "stat")
        for name in ("score", "score_null")
    )
    best = score.argmax("stat").values
    has_role = ((score >= MIN_ATTENTION) & (score > null)).values
    chosen = np.take_along_axis(has_role, best[..., None], -1)[..., 0]
    return np.where(chosen, np.array(POSITION_STATS, dtype=object)[best], "").astype(object)


def _split_signs(role: xr.DataArray, positive: str, negative: str) -> dict[str, xr.DataArray]:
    return {positive: role > 0, negative: role < 0}
