"""How long the vectors of the residual stream are."""

import torch
import xarray as xr
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from mesascope.activations import Capture, Reduction
from mesascope.analyses.base import measure
from mesascope.analyses.stream.probes import depth_names
from mesascope.axes import label

SINK = 10.0  # a token is a sink where its norm exceeds so many medians of its depth
CUT = 5.0  # median absolute deviations: beyond it a token is simply far out

Norms = Float[Tensor, "layer batch pos"]


def lengths(stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
    """The norm of each vector, in float64, one sequence at a time: never is more than one held in that precision."""
    return torch.stack([sequence.double().norm(dim=-1) for sequence in stream])


REDUCED = {site: f"{site}_norm" for site in ("resid_pre", "resid_post")}


@measure(
    title="Token norms",
    sites=[],
    reductions={name: Reduction(site=site, fn=lengths, axes=("batch", "pos")) for site, name in REDUCED.items()},
    order=15,
    padded=True,
)
def norms(recorded: Capture) -> xr.Dataset:
    """Length of every token's vector in the residual stream, at each depth. Sinks (the first position, and any token
    over ten times the median of its depth) are reported apart and are not part of mean and variation; padding counts
    for nothing.
    """
    norm, first = at_depths(recorded), _first(recorded.inputs, recorded.attention_mask)
    others = _outliers(norm, recorded.attention_mask) & ~first
    kept = norm.masked_fill(others | first, torch.nan)
    mean = kept.flatten(1).nanmean(1)
    spread = (kept - mean[:, None, None]).square().flatten(1).nanmean(1).sqrt()
    depth = {"layer": depth_names(recorded.layers)}
    found = {
        "mean": label(
            mean, "layer", units="1", about="mean norm of a token's vector, sinks apart", coords=depth
        ).assign_attrs(scale="log", headline=1),
        "variation": label(
            spread / mean,
            "layer",
            units="1",
            about="coefficient of variation of the norm over tokens, sinks apart",
            coords=depth,
        ).assign_attrs(headline=1),
        "first_token": label(
            norm[:, first].mean(1), "layer", units="1", about="mean norm of the first token", coords=depth
        ).assign_attrs(scale="log"),
        "sinks": label(others.flatten(1).sum(1), "layer", units="tokens", about="further sinks found", coords=depth),
        "norm": label(
            norm.float(), "layer", "batch", "pos", units="1", about="norm of each token's vector", coords=depth
        ).assign_attrs(scale="log"),
        "standing": label(
            _standing(kept).float(),
            "layer",
            "batch",
            "pos",
            units="median absolute deviations",
            about=f"each norm's distance from the median of its depth, cut at {CUT:g} to either side, sinks left out",
            coords=depth,
        ).assign_attrs(center=0, headline=1),
    }
    return xr.Dataset(found)


def at_depths(recorded: Capture) -> Norms:
    """The norm of every token's vector at the embedding and after each layer, in float64; padding is not a number.

    They are read from the reductions of `norms`, or computed from the stream where that was kept.
    """
    before, after = (_of(recorded, site) for site in REDUCED)
    norm = torch.cat([before[:1], after])
    mask = recorded.attention_mask
    return norm if mask is None else norm.masked_fill(~mask.bool(), torch.nan)


def sinks(norm: Norms) -> Bool[Tensor, "batch pos"]:
    """Which tokens stand apart: the first of each sequence, and any whose norm at some depth is over ten medians.

    Args:
        norm: of every token at every depth; padding is not a number, and is no sink.

    >>> norm = torch.ones(2, 1, 5)
    >>> norm[1, 0, 3] = 20.0
    >>> sinks(norm).tolist()
    [[True, False, False, True, False]]
    """
    mask = (~norm[0].isnan()).long()
    return _first(norm[0], mask) | _outliers(norm, mask).any(0)


def _of(recorded: Capture, site: str) -> Norms:
    """The norms at one site."""
    if REDUCED[site] in recorded or site not in recorded:
        return recorded[REDUCED[site]]
    return torch.stack([lengths(stream) for stream in recorded[site]])


def _first(like: Shaped[Tensor, "batch pos *rest"], mask: Shaped[Tensor, "batch pos"] | None) -> Bool[Tensor, "..."]:
    """The first real position of each sequence."""
    real = torch.ones(like.shape[:2], dtype=torch.bool, device=like.device) if mask is None else mask.bool()
    return real & (real.long().cumsum(1) == 1)


def _outliers(norm: Norms, mask: Shaped[Tensor, "batch pos"] | None) -> Bool[Tensor, "layer batch pos"]:
    """Tokens over ten medians of their depth; the first ones are no part of the median."""
    later = norm.masked_fill(_first(norm[0], mask), torch.nan)
    return norm > SINK * later.flatten(1).nanmedian(1).values[:, None, None]


def _standing(norm: Norms) -> Norms:
    """The distance from the median of the layer, in median absolute deviations, cut at either end."""
    away = norm - norm.flatten(1).nanmedian(1).values[:, None, None]
    return (away / away.abs().flatten(1).nanmedian(1).values[:, None, None]).clamp(-CUT, CUT)
