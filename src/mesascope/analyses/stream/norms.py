"""Norms of the residual stream, and attention sinks."""

from collections.abc import Mapping
from typing import Any

import torch
import xarray as xr
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mesascope.activations import Capture, Reduction
from mesascope.analyses.base import analysis
from mesascope.analyses.stream.probes import depth_names
from mesascope.axes import to_data_array

SINK_RATIO = 10.0  # a token is an attention sink if its norm exceeds this many medians of its depth
MAX_DEVIATION = 5.0  # median absolute deviations at which deviations are clipped

Norms = Float[Tensor, "layer batch pos"]


def vector_norms(stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
    """Return the norm of each vector in float64.

    Args:
        stream: the residual stream (batch, pos, d_model).

    Returns:
        norms (batch, pos).
    """
    # one sequence at a time, so that at most one is in memory in float64
    return torch.stack([sequence.double().norm(dim=-1) for sequence in stream])


NORM_REDUCTIONS = {site: f"{site}_norm" for site in ("resid_pre", "resid_post")}


@analysis(
    title="Token norms",
    description="""The norm of every token's vector in the residual stream, at each depth. Attention sinks (the first
    position, and any token whose norm exceeds ten times the median of its depth) are reported separately and excluded
    from mean and variation. Padding is left out.""",
    reductions={
        name: Reduction(site=site, fn=vector_norms, axes=("batch", "pos")) for site, name in NORM_REDUCTIONS.items()
    },
    supports_padding=True,
)
def norms(acts: Capture) -> xr.Dataset:
    """Compute the norm of every token's vector in the residual stream at each depth.

    Args:
        acts: a capture.

    Returns:
        ``norm`` and ``robust_z_score`` (layer, batch, pos); ``mean``, ``variation``, ``first_token`` and ``sinks``
        (layer).
    """
    norm, first = norms_by_depth(acts), _first_positions(acts.inputs, acts.attention_mask)
    is_later_sink = _find_outliers(norm, acts.attention_mask) & ~first
    norm_without_sinks = norm.masked_fill(is_later_sink | first, torch.nan)
    mean = norm_without_sinks.flatten(1).nanmean(1)
    std = (norm_without_sinks - mean[:, None, None]).square().flatten(1).nanmean(1).sqrt()
    robust_z_score, num_sinks = _robust_z_scores(norm_without_sinks).float(), is_later_sink.flatten(1).sum(1)
    values = {
        "mean": mean,
        "variation": std / mean,
        "first_token": norm[:, first].mean(1),
        "sinks": num_sinks,
        "norm": norm.float(),
        "robust_z_score": robust_z_score,
    }
    return xr.Dataset({name: _label_variable(name, value, acts) for name, value in values.items()})


VARIABLES: Mapping[str, tuple[str, str, dict[str, Any]]] = {  # units, description and display attributes
    "mean": ("1", "mean norm of a token's vector, excluding attention sinks", {"scale": "log", "headline": 1}),
    "variation": ("1", "coefficient of variation of the norm over tokens, excluding attention sinks", {"headline": 1}),
    "first_token": ("1", "mean norm of the first token", {"scale": "log"}),
    "sinks": ("tokens", "number of attention sinks after the first token", {}),
    "norm": ("1", "norm of each token's vector", {"scale": "log"}),
    "robust_z_score": (
        "median absolute deviations",
        f"deviation of each norm from the median of its depth, clipped at ±{MAX_DEVIATION:g}, without sinks",
        {"title": "robust z-score", "center": 0, "headline": 1},
    ),
}


def _label_variable(name: str, values: Tensor, acts: Capture) -> xr.DataArray:
    (units, about, display_attrs), coords = VARIABLES[name], {"layer": depth_names(acts.layers)}
    dims = ("layer", "batch", "pos")[: values.ndim]
    return to_data_array(values, *dims, units=units, description=about, coords=coords).assign_attrs(display_attrs)


def norms_by_depth(acts: Capture) -> Norms:
    """Return the norm of every token's vector at the embedding and after each layer, in float64; NaN at padding.

    Args:
        acts: a capture of the reductions of `norms`, or of ``resid_pre`` and ``resid_post``.

    Returns:
        norms (layer, batch, pos).
    """
    before, after = (_norms_at_site(acts, site) for site in NORM_REDUCTIONS)
    norm = torch.cat([before[:1], after])
    mask = acts.attention_mask
    return norm if mask is None else norm.masked_fill(~mask.bool(), torch.nan)


def find_sinks(norm: Norms) -> Bool[Tensor, "batch pos"]:
    """Find attention sinks: the first token of each sequence, and any whose norm exceeds ten medians at some depth.

    Args:
        norm: the norm of every token at every depth; padding is NaN, and never a sink.

    Returns:
        a mask (batch, pos).

    >>> norm = torch.ones(2, 1, 5)
    >>> norm[1, 0, 3] = 20.0
    >>> find_sinks(norm).tolist()
    [[True, False, False, True, False]]
    """
    mask = (~norm[0].isnan()).long()
    return _first_positions(norm[0], mask) | _find_outliers(norm, mask).any(0)


def _norms_at_site(acts: Capture, site: str) -> Norms:
    if NORM_REDUCTIONS[site] in acts or site not in acts:
        return acts[NORM_REDUCTIONS[site]]
    return torch.stack([vector_norms(stream) for stream in acts[site]])


def _first_positions(
    inputs: Shaped[Tensor, "batch pos *rest"], mask: Shaped[Tensor, "batch pos"] | None
) -> Bool[Tensor, "..."]:
    """Find the first token of each sequence that is not padding."""
    is_token = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device) if mask is None else mask.bool()
    return is_token & (is_token.long().cumsum(1) == 1)


def _find_outliers(norm: Norms, mask: Shaped[Tensor, "batch pos"] | None) -> Bool[Tensor, "layer batch pos"]:
    """Find tokens whose norm exceeds ten medians of their depth; first tokens are excluded from the median."""
    norm_without_first = norm.masked_fill(_first_positions(norm[0], mask), torch.nan)
    return norm > SINK_RATIO * norm_without_first.flatten(1).nanmedian(1).values[:, None, None]


def _robust_z_scores(norm: Norms) -> Norms:
    """Return the deviation from the median of the depth in median absolute deviations, clipped."""
    deviation = norm - norm.flatten(1).nanmedian(1).values[:, None, None]
    return (deviation / deviation.abs().flatten(1).nanmedian(1).values[:, None, None]).clamp(
        -MAX_DEVIATION, MAX_DEVIATION
    )
