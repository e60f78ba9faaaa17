"""Claims of Huang et al. 2024 on the convergence of next-token prediction, for the toy model and for decoders."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.next_token_convergence.citation import CITATION
from mesascope.studies.next_token_convergence.toy_model import IMPLIED, NORMALISED, NOT_IMPLIED, PLAIN, STAGES
from mesascope.studies.shared.head_claims import head_role_claims

PAPER = CITATION.short
OURS = "ours"
TRANSFER = f"{OURS}: a test of whether the result for the toy model holds for decoders"

MIN_R2 = 0.99  # ours
MIN_DECADES = 3.0  # ours
MIN_COSINE = 0.95  # ours
MIN_ACCURACY = 0.95  # ours
MIN_ATTENTION = 0.99  # ours


def next_token_claims() -> tuple[Claim, ...]:
    """Return all claims of the study, in the order of the page."""
    stage_claims = (claim for stage in STAGES for claim in _stage_claims(stage))
    return (*stage_claims, *_GENERALISATION_CLAIMS, *head_role_claims())


def _stage_claims(stage: str) -> tuple[Claim, ...]:
    return (
        _linear_convergence_claim(stage),
        _fitted_range_claim(stage),
        _norm_growth_claim(stage),
        _max_margin_claim(stage),
    )


def _linear_convergence_claim(stage: str) -> Claim:
    return Claim(
        name=f"{stage}: linear convergence",
        statement=f"{stage.capitalize()}: the logarithm of the loss decreases linearly.",
        source=f"{PAPER}; the threshold is ours",
        value=_stage_fit(stage, NORMALISED, "loss_r2", "R² of a linear fit of the log excess loss by step"),
        control=_stage_fit(stage, PLAIN, "loss_r2", "R² of a linear fit of the log excess loss by step"),
        direction="above",
        threshold=MIN_R2,
    )


def _fitted_range_claim(stage: str) -> Claim:
    return Claim(
        name=f"{stage}: fitted range",
        statement=f"{stage.capitalize()}: the fit extends over at least three powers of ten of the excess loss.",
        source=f"{OURS}: over a smaller range, many curves are nearly straight",
        value=_stage_fit(stage, NORMALISED, "fitted_decades", "powers of ten of the excess loss in the fit"),
        control=_stage_fit(stage, PLAIN, "fitted_decades", "powers of ten of the excess loss in the fit"),
        direction="above",
        threshold=MIN_DECADES,
    )


def _norm_growth_claim(stage: str) -> Claim:
    return Claim(
        name=f"{stage}: linear norm growth",
        statement=f"{stage.capitalize()}: the norm of the matrix grows linearly with the steps.",
        source=f"{PAPER}; the threshold is ours",
        value=_stage_fit(stage, NORMALISED, "norm_r2", "R² of a linear fit of the norm by step"),
        control=_stage_fit(stage, PLAIN, "norm_r2", "R² of a linear fit of the norm by step"),
        direction="above",
        threshold=MIN_R2,
    )


def _max_margin_claim(stage: str) -> Claim:
    return Claim(
        name=f"{stage}: max-margin direction",
        statement=f"{stage.capitalize()}: the direction of the matrix converges to the max-margin direction.",
        source=f"{PAPER}; the threshold is ours",
        value=Quantity(
            description="cosine with the minimum-norm matrix that has a margin of 1, at the end",
            read=lambda results: select_last_step(_select_stage(results, "margin_cosine", stage, NORMALISED)),
        ),
        control=Quantity(
            description="the same cosine at the second recorded step",
            read=lambda results: _select_stage(results, "margin_cosine", stage, NORMALISED).isel(step=1, drop=True),
        ),
        direction="above",
        threshold=MIN_COSINE,
    )


def _stage_fit(stage: str, descent: str, variable: str, description: str) -> Quantity:
    return Quantity(
        description=f"{description}, {descent}",
        read=lambda results: _select_stage(results, variable, stage, descent),
    )


def _sentence_accuracy(kind: str, label: str) -> Quantity:
    return Quantity(
        description=f"accuracy on unseen sentences {label}, toy model",
        read=lambda results: results["toy_model"]["accuracy"].sel(distribution=kind, drop=True),
    )


def _decoder_loss(implied: int, label: str) -> Quantity:
    return Quantity(
        description=f"cross-entropy on unseen sentences {label}",
        read=lambda results: select_last_step(results["error_by_label"]["error"]).sel(
            predictor="model", stat=f"order_implied {implied}", drop=True
        ),
        unit="nat",
    )


def _select_stage(results: Results, variable: str, stage: str, descent: str) -> xr.DataArray:
    return results["toy_model"][variable].sel(stat=f"{stage}, {descent}", drop=True)


_GENERALISATION_CLAIMS = (
    Claim(
        name="attention converges to the deciding token",
        statement="On the training sentences, attention converges to the deciding token.",
        source=f"{PAPER}; the threshold is ours",
        value=Quantity(
            description="attention to the deciding token, mean over training sentences, toy model",
            read=lambda results: select_last_step(results["toy_model"]["attention"]),
        ),
        control=Quantity(
            description="the same attention before training",
            read=lambda results: select_untrained(results["toy_model"]["attention"]),
        ),
        direction="above",
        threshold=MIN_ATTENTION,
    ),
    Claim(
        name="unseen sentences with implied order",
        statement="The model predicts unseen sentences correctly if the training sentences imply their order.",
        source=f"{PAPER} on comparable tokens; the split of the unseen sentences is {OURS}",
        value=_sentence_accuracy(IMPLIED, "whose order is implied by training"),
        control=_sentence_accuracy(NOT_IMPLIED, "whose order is not implied by training"),
        direction="above",
        threshold=MIN_ACCURACY,
    ),
    Claim(
        name="decoder: unseen sentences with implied order",
        statement="A decoder has a lower loss on unseen sentences if the training sentences imply their order.",
        source=TRANSFER,
        value=_decoder_loss(1, "whose order is implied by training"),
        control=_decoder_loss(0, "whose order is not implied by training"),
        direction="below",
    ),
)
