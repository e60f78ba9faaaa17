"""Claims of Huang et al. 2024 on the convergence of next-token prediction, for the toy model and for decoders.

Margins and the requirement were added after a run of 3 seeds, without a change of thresholds.
"""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Requirement, Results, select_last_step, select_untrained
from mesascope.studies.next_token_convergence.citation import CITATION
from mesascope.studies.next_token_convergence.toy_model import IMPLIED, NORMALISED, NOT_IMPLIED, PLAIN, STAGES

PAPER = CITATION.short
OURS = "ours"
MIXTURE = "mixture of all tokens"  # the baseline that knows the collocations and nothing of the order

MIN_R2 = 0.99  # ours
MIN_R2_GAIN = 0.01  # ours: the variance that the threshold leaves unexplained
MIN_DECADES = 3.0  # ours
MIN_COSINE = 0.95  # ours
MIN_COSINE_GAIN = 0.005  # ours: a tenth of what the threshold leaves to 1
MIN_ACCURACY = 0.95  # ours
MIN_ATTENTION = 0.99  # ours
MIN_LOSS_GAIN = 0.1  # nat; ours


def _lowest_over_stages(variable_name: str, descent: str, description: str) -> Quantity:
    def read_lowest(results: Results) -> xr.DataArray:
        variable = results["toy_model"][variable_name]
        if "step" in variable.dims:
            variable = select_last_step(variable)
        by_stage = variable.sel(stat=[f"{stage}, {descent}" for stage in STAGES])
        return by_stage.min("stat", skipna=False)

    return Quantity(description=f"{description}, the lower of both stages, {descent}", read=read_lowest)


def _sentence_accuracy(kind: str, label: str) -> Quantity:
    return Quantity(
        description=f"accuracy on unseen sentences {label}, toy model",
        read=lambda results: results["toy_model"]["accuracy"].sel(distribution=kind, drop=True),
    )


def _unseen_loss(predictor: str, label: str) -> Quantity:
    return Quantity(
        description=f"cross-entropy on unseen sentences whose order is implied by training, {label}",
        read=lambda results: select_last_step(results["error_by_label"]["error"]).sel(
            predictor=predictor, stat="order_implied 1", drop=True
        ),
        unit="nat",
    )


LOSS_FIT, MARGIN_COSINE = "R² of a linear fit of the log excess loss by step", "cosine with the max-margin matrix"
WIDE_FIT = Requirement(
    statement=f"the linear fit covers at least {MIN_DECADES:g} powers of ten of the excess loss in both stages",
    value=_lowest_over_stages("fitted_decades", NORMALISED, "powers of ten of the excess loss in the fit"),
    threshold=MIN_DECADES,
    direction="above",
)

TOY_MODEL_CLAIMS = (
    Claim(
        name="linear convergence",
        statement="In both stages, the logarithm of the loss decreases linearly under normalised gradient descent.",
        source=f"{PAPER}; the threshold is ours",
        value=_lowest_over_stages("loss_r2", NORMALISED, LOSS_FIT),
        control=_lowest_over_stages("loss_r2", PLAIN, LOSS_FIT),
        direction="above",
        threshold=MIN_R2,
        margin=MIN_R2_GAIN,
        by_paper=True,
        requirements=(WIDE_FIT,),
        kind="simulation",
    ),
    Claim(
        name="max-margin direction",
        statement="In both stages, the direction of the matrix converges to the max-margin direction, faster than "
        "under gradient descent.",
        source=f"{PAPER}; the threshold is ours, and so is gradient descent as the control, chosen after the first run",
        value=_lowest_over_stages("margin_cosine", NORMALISED, MARGIN_COSINE),
        control=_lowest_over_stages("margin_cosine", PLAIN, MARGIN_COSINE),
        direction="above",
        threshold=MIN_COSINE,
        margin=MIN_COSINE_GAIN,
        by_paper=True,
        kind="simulation",
    ),
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
        kind="check",
    ),
    Claim(
        name="unseen sentences with implied order",
        statement="The model predicts unseen sentences correctly if the training sentences imply their order.",
        source=f"{PAPER} on comparable tokens; the split of the unseen sentences is {OURS}",
        value=_sentence_accuracy(IMPLIED, "whose order is implied by training"),
        control=_sentence_accuracy(NOT_IMPLIED, "whose order is not implied by training"),
        direction="above",
        threshold=MIN_ACCURACY,
        kind="check",
    ),
)

DECODER_CLAIM = Claim(
    name="decoder: unseen sentences with implied order",
    statement="If the training sentences imply the order of unseen sentences, a decoder predicts them better than a "
    "mixture of the collocations of all their tokens.",
    source=f"{OURS}: a test of whether the result for the toy model holds for decoders; the control was chosen after "
    "the first run",
    value=_unseen_loss("model", "decoder"),
    control=_unseen_loss(MIXTURE, MIXTURE),
    direction="below",
    margin=MIN_LOSS_GAIN,
)

CLAIMS = (*TOY_MODEL_CLAIMS, DECODER_CLAIM)
