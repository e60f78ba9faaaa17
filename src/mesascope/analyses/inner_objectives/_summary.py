"""Averages of the quantities of an inner objective over tokens."""

from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mesascope.activations import SUBLAYERS, Capture
from mesascope.analyses.inner_objectives._objective import Objective
from mesascope.analyses.nulls import Null, control_attrs, with_null
from mesascope.analyses.stream.norms import find_sinks, norms_by_depth
from mesascope.axes import to_data_array

QUANTITIES: Mapping[str, tuple[str, str]] = {
    "before": ("units of the objective", "objective at the representation that the sublayer reads"),
    "after": ("units of the objective", "objective after the update"),
    "descends": ("1", "fraction of tokens at which the update lowers the objective"),
    "cosine": ("1", "cosine between the update and the negative gradient of the objective"),
    "step_size": ("1", "step size at which the negative gradient is nearest to the update, median over tokens"),
    "unexplained": ("1", "fraction of the squared update that remains after the best step"),
    "cosine_null_other_positions": ("1", "cosine between the update half a sequence away and the negative gradient"),
    "opposition": ("1", "minus the cosine between the representation and the update"),
    "alignment": ("1", "one minus the objective over its mean for values of the same norms in random directions"),
}
NO_TAUTOLOGY = ("opposition", "alignment")  # quantities that are no identity in objectives whose descent is one
HEADLINES = ("before", "cosine", "descends", "alignment")
NULL_QUANTITY_ATTRS = {
    "cosine_null_other_positions": control_attrs("cosine", "other positions")
}  # quantities that are nulls


def result_name(inner_objective: Objective, kind: str) -> str:
    """Return the name of a reduction's result.

    Args:
        inner_objective: the objective.
        kind: ``real`` or ``shuffled``.
    """
    return f"inner_{inner_objective.name}_{kind}"


def per_token_quantities(inner_objective: Objective) -> list[str]:
    """Return the quantities that are computed token by token: all but ``descends``.

    Args:
        inner_objective: the objective.
    """
    return [name for name in inner_objective.quantities if name != "descends"]


def summarize_quantities(inner_objective: Objective, acts: Capture) -> xr.Dataset:
    """Average every quantity over the tokens that are no attention sinks, over its null, and over the sinks.

    Args:
        inner_objective: the objective.
        acts: a capture with the reductions of `mesascope.analyses.inner_objectives.measure.inner`.

    Returns:
        the mean of every quantity by layer, with its null, and over the attention sinks.
    """
    is_sink = find_sinks(norms_by_depth(acts))[:, list(acts.queries)].cpu()
    variables: dict[str, xr.DataArray] = {}
    for name in inner_objective.quantities:
        variables |= _summarize_quantity(inner_objective, name, acts, is_sink)
    tokens = {"tokens": int((~is_sink).sum()), "sinks": int(is_sink.sum())}
    tautology = {"tautology": inner_objective.tautology} if inner_objective.tautology else {}
    return xr.Dataset(variables, attrs=tokens | tautology)


def _summarize_quantity(
    inner_objective: Objective, name: str, acts: Capture, is_sink: Bool[Tensor, "batch query"]
) -> dict[str, xr.DataArray]:
    observed, shuffled = acts[result_name(inner_objective, "real")], result_name(inner_objective, "shuffled")
    coords = {"layer": list(acts.layers), "sublayer": list(SUBLAYERS)}
    units, about = QUANTITIES[name]

    def label_means(values: Tensor, *draw: str, about: str = about) -> xr.DataArray:
        return to_data_array(values, *draw, "layer", "sublayer", units=units, description=about, coords=coords)

    means = label_means(_average_quantity(inner_objective, name, observed, ~is_sink))
    variables = {name: means.assign_attrs(_display_attrs(inner_objective, name))}
    if shuffled in acts:
        draws = [_average_quantity(inner_objective, name, each, ~is_sink) for each in acts[shuffled].unbind(-1)]
        null = Null(name="keys shuffled", value=label_means(torch.stack(draws), "draw"))
        variables |= with_null(name, variables[name], null)
    at_sinks = _average_quantity(inner_objective, name, observed, is_sink)
    return variables | {f"{name}_at_sinks": label_means(at_sinks, about=f"at sinks: {about}")}


def _display_attrs(inner_objective: Objective, name: str) -> dict[str, Any]:
    is_identity = bool(inner_objective.tautology) and name not in NO_TAUTOLOGY
    attrs: dict[str, Any] = {"headline": 1, "over_training": 1} if name in HEADLINES else {}
    attrs |= NULL_QUANTITY_ATTRS.get(name, {})
    return attrs | ({"tautology": inner_objective.tautology} if is_identity else {})


def _average_quantity(
    inner_objective: Objective,
    name: str,
    quantities: Float[Tensor, "layer batch query sublayer stat"],
    token_mask: Bool[Tensor, "..."],
) -> Float[Tensor, "layer sublayer"]:
    """Average a quantity over the selected tokens that have it; the median for ``step_size``."""
    index_of = per_token_quantities(inner_objective).index
    if name == "descends":
        before, after = quantities[..., index_of("before")], quantities[..., index_of("after")]
        values = torch.where((before + after).isnan(), torch.nan, (after < before).double())
    else:
        values = quantities[..., index_of(name)]
    if not token_mask.any():
        return values.new_full((len(values), len(SUBLAYERS)), torch.nan)
    selected = values[:, token_mask]
    return selected.nanmedian(1).values if name == "step_size" else selected.nanmean(1)
