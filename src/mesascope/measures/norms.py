"""How long the vectors of the residual stream are."""

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.axes import label
from mesascope.capturing import Capture
from mesascope.measures.base import measure
from mesascope.measures.lens import depth_names, depths

SINK = 10.0  # a token is a sink where its norm exceeds so many medians of its layer


CUT = 5.0  # median absolute deviations: beyond it a token is simply far out


@measure(title="Token norms", sites=["resid_pre", "resid_post"], order=15)
def norms(recorded: Capture) -> xr.Dataset:
    """Length of every token's vector in the residual stream, at each depth. Sinks (the first position, and any token
    over ten times the median of its depth) are reported apart and are not part of mean and variation.
    """
    stream = depths(recorded).double()
    norm = stream.norm(dim=-1)
    median = norm[:, :, 1:].flatten(1).median(dim=1).values
    sink = norm > SINK * median[:, None, None]
    sink[:, :, 0] = True
    kept = torch.where(sink, torch.nan, norm)
    mean = kept.flatten(1).nanmean(1)
    spread = (kept - mean[:, None, None]).square().flatten(1).nanmean(1).sqrt()
    depth = {"layer": depth_names(len(stream) - 1)}
    others = sink.clone()
    others[:, :, 0] = False
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
            norm[:, :, 0].mean(1), "layer", units="1", about="mean norm of the first token", coords=depth
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


def _standing(norm: Float[Tensor, "layer batch pos"]) -> Float[Tensor, "layer batch pos"]:
    """The distance from the median of the layer, in median absolute deviations, cut at either end."""
    away = norm - norm.flatten(1).nanmedian(1).values[:, None, None]
    return (away / away.abs().flatten(1).nanmedian(1).values[:, None, None]).clamp(-CUT, CUT)
