"""Two runs, and how far something brings one of them towards the other."""

import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.axes import label
from mesascope.interventions.metrics import Metric
from mesascope.tasks.base import Batch


def refuse_unlike(inputs: Tensor | Batch, source: Tensor | Batch) -> None:
    """Refuse two runs of which one cannot be put into the other."""
    ours, theirs = (tuple((x.inputs if isinstance(x, Batch) else x).shape) for x in (inputs, source))
    if ours != theirs:
        raise ValueError(f"both runs must be as many sequences of the same length, but got {ours} and {theirs}")


def targeted(
    measured: Metric, ours: Float[Tensor, "batch predicted d_out"], theirs: Float[Tensor, "batch pos d_out"]
) -> float:
    """The metric of the run that is patched in; refuse it where it is that of the run that is patched."""
    intact, target = (float(measured(found).mean()) for found in (ours, theirs))
    if abs(target - intact) <= 1e-6 * max(abs(target), abs(intact)):
        raise ValueError(
            f"the metric must differ between the two runs, but {measured.name} is {intact:.4g} on both; "
            "choose another metric or another pair"
        )
    return target


def with_share(found: xr.Dataset, measured: Metric, target: float) -> xr.Dataset:
    """What was found, with the share of the way to the metric of the run that is patched in."""
    share = (found["value"] - found["intact"]) / (target - found["intact"])
    about = f"{measured.name}: share of the way from the run that is patched (0) to the one patched in (1)"
    return found.assign(
        recovered=share.assign_attrs(units="1", about=about, headline=1),
        target=label(target, units=measured.units, about=f"{measured.about}; on the run that is patched in"),
    )
