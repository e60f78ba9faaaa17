"""Claims about decoders on multi-concept prompts: tests of whether the results for the toy model hold for them."""

from collections.abc import Callable
from dataclasses import replace

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Requirement, Results, select_last_step, select_untrained
from mesascope.studies.multi_concept.readers import lowest_accuracy
from mesascope.studies.multi_concept.shifted_accuracy import INTACT, UNIFORM
from mesascope.studies.multi_concept.task import NEAREST, SHIFTS, SWAPPED_LABELS, TRAINING_PROMPTS
from mesascope.studies.shared.head_claims import head_effect_claims
from mesascope.studies.shared.icl import make_constant_control
from mesascope.studies.shared.selectors import select_condition_result

OURS = "ours"
TRANSFER = f"{OURS}: a test of whether the result for the toy model holds for decoders"
DRAWN = "drawn"  # the condition in which the label rule is drawn for each prompt

MIN_ACCURACY, MIN_ACCURACY_GAIN = 0.95, 0.01  # ours
MIN_ATTENTION_EFFECT = 0.05  # of the accuracy; ours
MIN_HEAD_ATTENTION = 0.75  # ours: halfway between chance and 1
MIN_MODEL_RATE = 0.5  # ours: the claim is about most models


def decoder_claims() -> tuple[Claim, ...]:
    """Return the claims about decoders, in the order of the page."""
    claims = (
        _shift_claim(),
        _label_claim(),
        _attention_effect_claim(),
        _head_claim("", "decoder", "prompts of the paper's setting"),
    )
    drawn = _head_claim(
        DRAWN, "decoder, label rule drawn for each prompt", "a label rule that is drawn for each prompt"
    )
    return (
        *(replace(claim, requirements=(_require_learned(),)) for claim in claims),
        replace(drawn, requirements=(_require_learned(DRAWN),)),
        *(replace(claim, requirements=(_require_learned(),)) for claim in head_effect_claims()),
    )


def _shift_claim() -> Claim:
    return Claim(
        name="decoder: shifted prompts",
        statement="A decoder answers prompts of other lengths, with skewed concepts, switched features and unseen "
        "combinations.",
        source=TRANSFER,
        value=lowest_accuracy("shifted_accuracy", INTACT, SHIFTS, "decoder"),
        control=lowest_accuracy("shifted_accuracy", NEAREST, SHIFTS, f"label of the {NEAREST}"),
        direction="above",
        threshold=MIN_ACCURACY,
        margin=MIN_ACCURACY_GAIN,
    )


def _label_claim() -> Claim:
    value = lowest_accuracy("shifted_accuracy", INTACT, (SWAPPED_LABELS,), "decoder")
    return Claim(
        name="decoder: answers follow the demonstrations",
        statement="A decoder takes the answer from the labels of the demonstrations: it follows swapped labels.",
        source=f"{OURS}: words and labels are paired in the same way in all prompts, so that the sign of the query "
        "determines the answer; the values of the toy model exclude this solution",
        value=value,
        control=make_constant_control(value, 0.5, "chance"),
        direction="above",
        margin=MIN_ATTENTION_EFFECT,
    )


def _attention_effect_claim() -> Claim:
    return Claim(
        name="decoder: answers depend on attention",
        statement="A decoder answers worse if its attention is replaced by uniform attention.",
        source=TRANSFER,
        value=lowest_accuracy("shifted_accuracy", INTACT, (TRAINING_PROMPTS,), "decoder"),
        control=lowest_accuracy("shifted_accuracy", UNIFORM, (TRAINING_PROMPTS,), "decoder with uniform attention"),
        direction="above",
        margin=MIN_ATTENTION_EFFECT,
    )


def _head_claim(condition: str, label: str, prompts: str) -> Claim:
    def has_sign_head(select_step: Callable[[xr.DataArray], xr.DataArray], model: str) -> Quantity:
        def read_heads(results: Results) -> xr.DataArray:
            data = select_condition_result(results, "same_label_attention", condition)
            attention, null = (select_step(data[name]).mean("stat") for name in ("attention", "attention_null"))
            return ((attention > MIN_HEAD_ATTENTION) & (attention > null)).any(("layer", "head")).astype(float)

        return Quantity(
            description=f"1 if a head has more than {MIN_HEAD_ATTENTION:g} of its attention, mean over signs, on "
            f"demonstrations with the sign of the query, and more than with those of another prompt, else 0, {model}",
            read=read_heads,
        )

    return Claim(
        name=f"{label}: a head attends to the sign of the query",
        statement=f"Decoders that are trained on {prompts} have a head that attends to demonstrations with the sign of "
        "the query.",
        source=TRANSFER,
        value=has_sign_head(select_last_step, "trained"),
        control=has_sign_head(select_untrained, "untrained"),
        direction="above",
        margin=MIN_MODEL_RATE,
        existence=True,
    )


def _require_learned(condition: str = "") -> Requirement:
    result = f"{condition}_shifted_accuracy" if condition else "shifted_accuracy"
    return Requirement(
        statement=f"the decoder answers {100 * MIN_ACCURACY:g} % of the prompts of its training distribution",
        value=lowest_accuracy(result, INTACT, (TRAINING_PROMPTS,), "decoder"),
        threshold=MIN_ACCURACY,
        direction="above",
    )
