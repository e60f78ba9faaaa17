"""What claims of several studies read from results: likeness to algorithms, and the answer's coming about."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from mesascope.analyses.algorithms.identify import TRAINED
from mesascope.studies.base import Claim, Results, last, untrained

WHICH = "which_algorithm"


def likeness(
    results: Results, predictor: str, *, stat: str = "predictions", setting: str = TRAINED, result: str = WHICH
) -> xr.DataArray:
    """How alike an algorithm and the model are at each checkpoint, as `which_algorithm` found.

    Args:
        results: of a run.
        predictor: the algorithm.
        stat: what of them is compared.
        setting: on which sequences.
        result: whose result it is, such as ``two_which_algorithm``.
    """
    return results[result]["similarity"].sel(setting=setting, predictor=predictor, stat=stat, drop=True)


def likeness_elsewhere(
    results: Results, predictor: str, settings: Sequence[str] | None = None, *, result: str = WHICH
) -> xr.DataArray:
    """The least likeness of the trained model's predictions over other distributions, or over some of them."""
    found = last(results[result]["similarity"]).sel(predictor=predictor, stat="predictions", drop=True)
    found = found.drop_sel(setting=TRAINED) if settings is None else found.sel(setting=list(settings))
    return found.min("setting")


def steps_down(error: xr.DataArray) -> xr.DataArray:
    """The change of log10 error from each depth to the next: below 0 where the step is down."""
    return xr.apply_ufunc(np.log10, error).diff("layer")


def refined_claim(name: str, sentence: str, source: str) -> Claim:
    """Whether the affine lens reads the answer better at every depth."""
    return Claim(
        name=name,
        sentence=sentence,
        source=source,
        statistic=lambda results: steps_down(last(results["lens"]["affine_error"])).max("layer"),
        about="largest change of log10 error of the affine lens from one depth to the next",
        control=lambda results: steps_down(untrained(results["lens"]["affine_error"])).max("layer"),
        control_about="the same in the untrained model",
        direction="below",
        bound=0.0,
    )
