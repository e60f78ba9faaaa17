"""Claims of Wang et al. 2024 on the emergence of an induction head, for the toy model and for decoders."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.induction_heads.citation import CITATION
from mesascope.studies.induction_heads.plateaus import (
    ALPHA_EXPONENT,
    EMERGED_FRACTION,
    LEARNED_FRACTION,
    LENGTH_EXPONENT,
    LOG_SIZE_R2,
)
from mesascope.studies.induction_heads.task import Grams
from mesascope.studies.induction_heads.toy_model import BIGRAM, GRAM
from mesascope.studies.shared.head_claims import head_role_claims

PAPER = CITATION.short
OURS = "ours"
TRANSFER = f"{OURS}: a test of whether the result for the toy model holds for decoders"
AVERAGE = "4-gram and scaled average"  # the baseline that the induction head must beat

MIN_R2 = 0.98  # ours
LENGTH_BAND, ALPHA_BAND = (0.8, 1.1), (1.7, 2.1)  # of exponents; ours: the law says 1 and 2
MAX_PARAMETER_ERROR = 0.01  # relative; ours


def induction_claims(task: Grams) -> tuple[Claim, ...]:
    """Return all claims of the study, in the order of the page.

    Args:
        task: gives the score and the scale that the induction head should learn.
    """
    return (*_toy_model_claims(task), *_DECODER_CLAIMS, *head_role_claims())


def _learning_steps(part: str) -> Quantity:
    label = {GRAM: "the 4-gram is learned", BIGRAM: "the induction head has half the error of an unweighted average"}
    return Quantity(
        description=f"steps until {label[part]}, toy model",
        read=lambda results: _select_learning_step(results["toy_model"], part),
        unit="step",
    )


def _step_ratio(simulation: str, label: str) -> Quantity:
    def read_ratio(results: Results) -> xr.DataArray:
        data = results[simulation]
        return _select_learning_step(data, BIGRAM) / _select_learning_step(data, GRAM)

    return Quantity(
        description="steps until the induction head emerges divided by steps until the 4-gram is learned, "
        f"toy model with the {label}",
        read=read_ratio,
    )


def _plateau_law(name: str) -> Quantity:
    return Quantity(description=f"{name}, toy model", read=lambda results: _select_law(results, name))


def _exponent_distance(name: str, band: tuple[float, float]) -> Quantity:
    return Quantity(
        description=f"distance of the {name} from {_band_center(band):g}, toy model",
        read=lambda results: abs(_select_law(results, name) - _band_center(band)),
    )


def _parameter_error(task: Grams, label: str, *, trained: bool) -> Quantity:
    def read_error(results: Results) -> xr.DataArray:
        parameter = results["toy_model"]["parameter"]
        parameter = select_last_step(parameter) if trained else select_untrained(parameter)
        score = abs(parameter.sel(component="c", drop=True) / task.score - 1)
        scale = abs(parameter.sel(component="b", drop=True) * (1 + task.alpha) - 1)
        return xr.where(score > scale, score, scale)

    return Quantity(
        description=f"relative error of the induction head's score or scale, the larger of the two, {label}",
        read=read_error,
    )


def _toy_model_claims(task: Grams) -> tuple[Claim, ...]:
    return (
        _gram_first_claim(),
        _initial_size_claim(),
        _length_claim(),
        _gram_weight_claim(),
        _exact_target_claim(task),
        _squared_score_claim(),
    )


def _gram_first_claim() -> Claim:
    return Claim(
        name="the 4-gram is learned first",
        statement="The 4-gram is learned long before the induction head emerges.",
        source=f"{PAPER}; comparison with an unweighted average is {OURS}",
        value=_learning_steps(GRAM),
        control=_learning_steps(BIGRAM),
        direction="below",
    )


def _initial_size_claim() -> Claim:
    return Claim(
        name="plateau: initial size",
        statement="The length of the plateau is linear in the logarithm of the inverse initial size.",
        source=f"{PAPER}; the threshold is ours",
        value=_plateau_law(LOG_SIZE_R2),
        control=Quantity(
            description="R² of a plateau that does not depend on the initial size",
            read=lambda results: xr.zeros_like(_select_law(results, LOG_SIZE_R2)),
        ),
        direction="above",
        threshold=MIN_R2,
    )


def _length_claim() -> Claim:
    return Claim(
        name="plateau: sequence length",
        statement="The length of the plateau is proportional to the sequence length.",
        source=f"{PAPER}; the tolerance is ours",
        value=_exponent_distance(LENGTH_EXPONENT, LENGTH_BAND),
        control=Quantity(
            description="distance of the exponent of a plateau that does not depend on the sequence length",
            read=lambda results: xr.full_like(_select_law(results, LENGTH_EXPONENT), _band_center(LENGTH_BAND)),
        ),
        direction="below",
        threshold=(LENGTH_BAND[1] - LENGTH_BAND[0]) / 2,
    )


def _gram_weight_claim() -> Claim:
    return Claim(
        name="plateau: weight of the 4-gram",
        statement="The length of the plateau grows as the square of one plus the weight of the 4-gram.",
        source=f"{PAPER}; the tolerance is ours",
        value=_exponent_distance(ALPHA_EXPONENT, ALPHA_BAND),
        control=Quantity(
            description="distance of the exponent of a plateau proportional to one plus the weight",
            read=lambda results: (
                abs(1 - _band_center(ALPHA_BAND)) + xr.zeros_like(_select_law(results, ALPHA_EXPONENT))
            ),
        ),
        direction="below",
        threshold=(ALPHA_BAND[1] - ALPHA_BAND[0]) / 2,
    )


def _exact_target_claim(task: Grams) -> Claim:
    return Claim(
        name="the target is learned exactly",
        statement="At the end of training, the induction head has the scale and the score of the target.",
        source=f"{PAPER}; the threshold is ours",
        value=_parameter_error(task, "toy model", trained=True),
        control=_parameter_error(task, "before training", trained=False),
        direction="below",
        threshold=MAX_PARAMETER_ERROR,
    )


def _squared_score_claim() -> Claim:
    return Claim(
        name="the order depends on the squared score",
        statement="If the decay rate of the 4-gram's head is squared as well, the lead of the 4-gram shrinks.",
        source=f"a reviewer of {PAPER}: the order may come from the form of the model",
        value=_step_ratio("squared", "decay rate squared"),
        control=_step_ratio("toy_model", "decay rate unchanged"),
        direction="below",
    )


def _band_center(band: tuple[float, float]) -> float:
    return sum(band) / 2


def _select_law(results: Results, name: str) -> xr.DataArray:
    return results["plateaus"]["law"].sel(_law=name, drop=True)


def _select_learning_step(data: xr.Dataset, part: str) -> xr.DataArray:
    error = data["error"].sel(stat=part, drop=True)
    if part == GRAM:
        return _first_step(error <= LEARNED_FRACTION * select_untrained(error))
    return _first_step(error <= EMERGED_FRACTION * data["average_error"])


def _first_step(reached: xr.DataArray) -> xr.DataArray:
    """Return the first step at which a condition holds, by seed; NaN if it never does."""
    step = reached["step"].astype(float)
    return step.where(reached).min("step")


def _decoder_error(results: Results, output: int, predictor: str = "model") -> xr.DataArray:
    return results["error_by_output"]["error"].sel(d_out=output, predictor=predictor, drop=True)


def _relative_bigram_error(results: Results) -> xr.DataArray:
    return _decoder_error(results, 1) / _decoder_error(results, 1, AVERAGE)


def _decoder_gram_step(results: Results) -> xr.DataArray:
    error = _decoder_error(results, 0)
    return _first_step(error <= select_untrained(error) * EMERGED_FRACTION)


def _decoder_bigram_step(results: Results) -> xr.DataArray:
    return _first_step(_decoder_error(results, 1) <= EMERGED_FRACTION * _decoder_error(results, 1, AVERAGE))


_DECODER_CLAIMS = (
    Claim(
        name="decoder: better than an unweighted average",
        statement="A decoder predicts the in-context 2-gram better than an unweighted average of the terms.",
        source=TRANSFER,
        value=Quantity(
            description="error of the 2-gram divided by that of the best multiple of an unweighted average",
            read=lambda results: select_last_step(_relative_bigram_error(results)),
        ),
        control=Quantity(
            description="the same ratio in the untrained model",
            read=lambda results: select_untrained(_relative_bigram_error(results)),
        ),
        direction="below",
        threshold=EMERGED_FRACTION,
    ),
    Claim(
        name="decoder: the 4-gram is learned first",
        statement="A decoder learns the 4-gram before the induction head emerges.",
        source=TRANSFER,
        value=Quantity(
            description="first checkpoint at which the error of the 4-gram is halved",
            read=_decoder_gram_step,
            unit="step",
        ),
        control=Quantity(
            description="first checkpoint at which the error of the 2-gram is half that of an unweighted average",
            read=_decoder_bigram_step,
            unit="step",
        ),
        direction="below",
    ),
)
