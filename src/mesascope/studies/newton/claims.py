"""Claims about layers as iterations of Newton's method: iterations per layer, and steps of gradient descent."""

from collections.abc import Callable

import numpy as np
import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step
from mesascope.studies.newton.citation import CITATION
from mesascope.studies.shared.icl import MIN_SIMILARITY, least_squares_claim
from mesascope.studies.shared.selectors import refinement_claim

PAPER = CITATION.short
NEWTON, DESCENT = "Newton's iteration", "normalised gradient descent"
MIN_LENS_SIMILARITY = 0.5  # ours: explained variance of the affine lens above which fitted iterations mean anything
MIN_DEPTHS = 3  # ours: points of a line fit


def newton_claims() -> tuple[Claim, ...]:
    """Return the claims, in the order of the paper's abstract."""
    return (
        least_squares_claim(
            "predictions: least squares", "The model's predictions agree with those of least squares.", PAPER
        ),
        _LINEAR_DEPTH_CLAIM,
        _EXPONENTIAL_STEPS_CLAIM,
        refinement_claim(
            name="predictions are refined layer by layer",
            statement="The error of a linear probe for the target falls at every layer.",
            source=f"{PAPER}, in our words",
        ),
    )


def _fit_against_depth(results: Results, predictor: str) -> xr.DataArray:
    steps = _select_by_depth(results, "layer_iterations", predictor)
    return _compute_line_r2(results, np.broadcast_to(np.arange(steps.shape[1]), steps.shape), steps)


def _fit_against_newton(results: Results, transform: Callable[[np.ndarray], np.ndarray]) -> xr.DataArray:
    newton, descent = (_select_by_depth(results, "layer_iterations", name) for name in (NEWTON, DESCENT))
    return _compute_line_r2(results, newton, transform(descent))


def _compute_line_r2(results: Results, x: np.ndarray, y: np.ndarray) -> xr.DataArray:
    """Return R² of a line by seed, over the depths that agree with both algorithms; NaN where there are too few."""
    agreement = np.minimum(*(_select_by_depth(results, "layer_similarity", name) for name in (NEWTON, DESCENT)))
    values = []
    for x_seed, y_seed, selected in zip(x, y, agreement > MIN_LENS_SIMILARITY, strict=True):
        x_fit, y_fit = x_seed[selected], y_seed[selected]
        defined = len(x_fit) >= MIN_DEPTHS and np.ptp(x_fit) > 0 and np.ptp(y_fit) > 0
        values.append(np.corrcoef(x_fit, y_fit)[0, 1] ** 2 if defined else np.nan)
    return xr.DataArray(values, dims=("seed",), coords={"seed": results["which_algorithm"]["seed"]})


def _select_by_depth(results: Results, variable: str, predictor: str) -> np.ndarray:
    values = select_last_step(results["which_algorithm"][variable])
    values = values.sel(lens="affine lens", predictor=predictor, drop=True)
    return values.transpose("seed", "layer").values.astype(float)


_LINEAR_DEPTH_CLAIM = Claim(
    name="Newton iterations are linear in depth",
    statement="The number of Newton iterations nearest to each layer grows linearly with depth.",
    source=PAPER,
    value=Quantity(
        description="R² of a linear fit of Newton iterations against depth, over depths that agree with both",
        read=lambda results: _fit_against_depth(results, NEWTON),
    ),
    control=Quantity(
        description="the same R² for the steps of gradient descent",
        read=lambda results: _fit_against_depth(results, DESCENT),
    ),
    direction="above",
    threshold=MIN_SIMILARITY,
)

_EXPONENTIAL_STEPS_CLAIM = Claim(
    name="gradient descent steps are exponential in Newton iterations",
    statement="Each Newton iteration is worth exponentially many steps of gradient descent.",
    source=PAPER,
    value=Quantity(
        description="R² of a linear fit of the logarithm of gradient descent steps against Newton iterations",
        read=lambda results: _fit_against_newton(results, np.log),
    ),
    control=Quantity(
        description="the same R² for the steps instead of their logarithm",
        read=lambda results: _fit_against_newton(results, lambda steps: steps),
    ),
    direction="above",
)
