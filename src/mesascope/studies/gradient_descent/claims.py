"""Claims about linear attention as gradient descent: one step for one layer, more than two steps for two layers."""

import xarray as xr

from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION
from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.gradient_descent.citation import CITATION
from mesascope.studies.shared.selectors import (
    compute_log_error_changes,
    select_shifted_similarity,
    select_similarity,
)

PAPER = CITATION.short
DESCENT = "gradient descent"
CONTEXT_WEIGHTS = "weights: context targets"  # gradients of the prediction by the context's targets
SHIFTED_DISTRIBUTIONS = ("inputs twice as large", "correlated inputs", "noisy targets", "coefficients twice as large")

# All thresholds are ours.
MIN_DESCENT_SIMILARITY = 0.99
MIN_SHIFTED_SIMILARITY = 0.9
MAX_STEP_ERROR = 0.05  # relative to the optimal step size
MAX_STEPS = 1.5  # between one step and two


def gradient_descent_claims(optimal_step: float) -> tuple[Claim, ...]:
    """Return the claims about one layer and two layers of linear attention.

    Args:
        optimal_step: step size that minimises the expected error after one step.
    """
    return (*_one_layer_claims(optimal_step), *_TWO_LAYER_CLAIMS)


def _one_layer_claims(optimal_step: float) -> tuple[Claim, ...]:
    return (
        _agreement_claim(),
        _single_step_claim(),
        _step_size_claim(optimal_step),
        _context_weights_claim(),
        _shifted_claim(),
    )


def _agreement_claim() -> Claim:
    return Claim(
        name="one layer agrees with gradient descent",
        statement="The predictions of one trained layer of linear attention agree with gradient descent.",
        source=f"{PAPER}; the threshold is ours",
        value=Quantity(
            description="fraction of the variance of the predictions that fitted gradient descent explains",
            read=lambda results: select_last_step(select_similarity(results, DESCENT)),
        ),
        control=Quantity(
            description="the same fraction for the untrained layer",
            read=lambda results: select_untrained(select_similarity(results, DESCENT)),
        ),
        direction="above",
        threshold=MIN_DESCENT_SIMILARITY,
    )


def _single_step_claim() -> Claim:
    return Claim(
        name="one layer takes one step",
        statement="The gradient descent nearest to one layer takes a single step.",
        source=PAPER,
        value=Quantity(
            description="fitted number of steps of gradient descent",
            read=lambda results: _select_fit(results["which_algorithm"], "iterations").astype(float),
        ),
        control=Quantity(
            description="the same number for two layers",
            read=lambda results: _select_fit(results["two_which_algorithm"], "iterations").astype(float),
        ),
        direction="below",
        threshold=MAX_STEPS,
    )


def _step_size_claim(optimal_step: float) -> Claim:
    return Claim(
        name="the step size is optimal",
        statement="The fitted step size is the one that minimises the expected error.",
        source=f"{PAPER}; the formula, examples / (examples + dim + 1), and the threshold are ours",
        value=Quantity(
            description="relative difference of the fitted step size from the optimal one",
            read=lambda results: abs(_select_fit(results["which_algorithm"], "fitted") / optimal_step - 1),
        ),
        control=Quantity(
            description="the same difference for averaging, which is a step of size 1",
            read=lambda results: xr.full_like(
                _select_fit(results["which_algorithm"], "fitted"), abs(1 / optimal_step - 1)
            ),
        ),
        direction="below",
        threshold=MAX_STEP_ERROR,
    )


def _context_weights_claim() -> Claim:
    return Claim(
        name="one layer weights the context like gradient descent",
        statement="The layer weights the targets in the context as one step of gradient descent does.",
        source=f"{PAPER}, for sensitivities",
        value=Quantity(
            description="mean cosine of the model's and gradient descent's gradients by the context's targets",
            read=lambda results: select_last_step(select_similarity(results, DESCENT, stat=CONTEXT_WEIGHTS)),
        ),
        control=Quantity(
            description="the same cosine for least squares",
            read=lambda results: select_last_step(select_similarity(results, "least squares", stat=CONTEXT_WEIGHTS)),
        ),
        direction="above",
        threshold=MIN_DESCENT_SIMILARITY,
    )


def _shifted_claim() -> Claim:
    return Claim(
        name="out of distribution: gradient descent",
        statement="Out of distribution, the predictions agree with the same fitted gradient descent.",
        source=f"{PAPER}, for inputs from a larger range; the other distributions are ours",
        value=Quantity(
            description="fraction of the variance that gradient descent explains, lowest over the distributions",
            read=lambda results: select_shifted_similarity(results, DESCENT, SHIFTED_DISTRIBUTIONS),
        ),
        control=Quantity(
            description="the same fraction for least squares",
            read=lambda results: select_shifted_similarity(results, "least squares", SHIFTED_DISTRIBUTIONS),
        ),
        direction="above",
        threshold=MIN_SHIFTED_SIMILARITY,
    )


def _select_fit(result: xr.Dataset, variable: str) -> xr.DataArray:
    return select_last_step(result[variable]).sel(predictor=DESCENT, drop=True)


def _compute_descent_ratio(result: xr.Dataset) -> xr.DataArray:
    model, algorithms = (
        select_last_step(result[variable]).sel(distribution=TRAINING_DISTRIBUTION, drop=True)
        for variable in ("model_error", "error")
    )
    return model / algorithms.sel(predictor=DESCENT, drop=True)


def _select_probe_error(results: Results) -> xr.DataArray:
    return results["two_probe_and_logit_lens"]["affine_error"]


def _compute_second_change(error: xr.DataArray) -> xr.DataArray:
    return compute_log_error_changes(error).isel(layer=-1, drop=True)


_TWO_LAYER_CLAIMS = (
    Claim(
        name="two layers outperform two steps",
        statement="Two layers have a lower error than the nearest two steps of gradient descent.",
        source=PAPER,
        value=Quantity(
            description="error of two layers over that of the nearest two steps of gradient descent",
            read=lambda results: _compute_descent_ratio(results["two_two_steps"]),
        ),
        control=Quantity(
            description="error of one layer over that of the nearest gradient descent",
            read=lambda results: _compute_descent_ratio(results["which_algorithm"]),
        ),
        direction="below",
        threshold=1.0,
    ),
    Claim(
        name="two layers agree with GD++",
        statement="Two layers agree more with two steps of GD++ than with two steps of gradient descent.",
        source=PAPER,
        value=Quantity(
            description="fraction of the variance of the predictions that two fitted steps of GD++ explain",
            read=lambda results: select_last_step(select_similarity(results, "GD++", result="two_two_steps")),
        ),
        control=Quantity(
            description="the same fraction for gradient descent, which is GD++ without curvature correction",
            read=lambda results: select_last_step(select_similarity(results, DESCENT, result="two_two_steps")),
        ),
        direction="above",
    ),
    Claim(
        name="the second layer refines the prediction",
        statement="The error of a linear probe for the target falls from the first layer to the second.",
        source=f"{PAPER}, in our words",
        value=Quantity(
            description="change of the log10 error of the linear probe from the first layer to the second",
            read=lambda results: _compute_second_change(select_last_step(_select_probe_error(results))),
        ),
        control=Quantity(
            description="the same change in the untrained model",
            read=lambda results: _compute_second_change(select_untrained(_select_probe_error(results))),
        ),
        direction="below",
        threshold=0.0,
    ),
)
