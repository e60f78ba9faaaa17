"""Claims about layers as iterations of Newton's method: agreement of every layer with algorithms, and its error."""

import numpy as np
import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.newton.citation import CITATION
from mesascope.studies.shared.icl import (
    MIN_LEAD,
    MIN_LOG_ERROR_CHANGE,
    final_error_requirement,
    least_squares_claim,
)
from mesascope.studies.shared.selectors import compute_log_error_changes

PAPER = CITATION.short
NEWTON = "Newton's iteration"
RIVALS = ("normalised gradient descent", "ridge regression")  # one number is fitted at each depth, as for Newton
MIN_LENS_SIMILARITY = 0.5  # ours: explained variance of the affine lens above which fitted iterations mean anything
MIN_DEPTHS = 3  # ours: depths that an average needs
FIRST_REFINING_DEPTH = 1  # ours: after the first layer, which can only pair inputs with targets
REQUIREMENT = final_error_requirement()


def newton_claims() -> tuple[Claim, ...]:
    """Return the claims, in the order of the paper's abstract."""
    return (
        least_squares_claim(
            "predictions: least squares",
            "The model's predictions agree with those of least squares.",
            f"{PAPER}; the threshold is ours",
            REQUIREMENT,
        ),
        _LAYER_CLAIM,
        _REFINEMENT_CLAIM,
    )


def _average_layer_similarity(results: Results, predictor: str) -> xr.DataArray:
    """Return the mean over depths at which some algorithm agrees; NaN where there are too few of them."""
    similarity = select_last_step(results["which_algorithm"]["layer_similarity"]).sel(lens="affine lens", drop=True)
    best = similarity.sel(predictor=[NEWTON, *RIVALS]).max("predictor")
    selected = similarity.sel(predictor=predictor, drop=True).fillna(0).clip(min=0).where(best > MIN_LENS_SIMILARITY)
    return selected.mean("layer").where(selected.count("layer") >= MIN_DEPTHS)


def _average_best_rival(results: Results) -> xr.DataArray:
    first, second = (_average_layer_similarity(results, name) for name in RIVALS)
    return xr.apply_ufunc(np.maximum, first, second)


def _select_probe_error(results: Results) -> xr.DataArray:
    return results["probe_and_logit_lens"]["affine_error"].isel(layer=slice(FIRST_REFINING_DEPTH, None))


_LAYER_CLAIM = Claim(
    name="layers agree with Newton's iterations",
    statement="Layers agree more with Newton's iterations than with gradient descent or ridge regression.",
    source=f"{PAPER}, for gradient descent; ridge regression and the margin are ours, added after a run",
    value=Quantity(
        description="fraction of the variance of the affine lens that Newton's iteration explains, with the best "
        "number of iterations at each depth; mean over depths that agree with any of the algorithms",
        read=lambda results: _average_layer_similarity(results, NEWTON),
    ),
    control=Quantity(
        description="the same mean for gradient descent with the best number of steps at each depth, or for ridge "
        "regression with the best penalty at each depth, whichever is higher",
        read=_average_best_rival,
    ),
    direction="above",
    margin=MIN_LEAD,
    by_paper=True,
    requirements=(REQUIREMENT,),
)

_REFINEMENT_CLAIM = Claim(
    name="predictions are refined layer by layer",
    statement="The error of a linear probe for the target falls at every layer after the first.",
    source=f"{PAPER}, in our words; the first layer was left out after a run",
    value=Quantity(
        description="largest change of the log10 error of the linear probe from one layer to the next",
        read=lambda results: compute_log_error_changes(select_last_step(_select_probe_error(results))).max("layer"),
    ),
    control=Quantity(
        description="the same change in the untrained model",
        read=lambda results: compute_log_error_changes(select_untrained(_select_probe_error(results))).max("layer"),
    ),
    direction="below",
    threshold=0.0,
    margin=MIN_LOG_ERROR_CHANGE,
    by_paper=True,
    requirements=(REQUIREMENT,),
)
