"""Claims on saturated networks and on the heads that they have under two masks (Merrill et al. 2021).

Margins and requirements were added after a run of 3 seeds, without a change of thresholds.
"""

from collections.abc import Callable

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.norm_growth.conditions import (
    MAIN,
    MULTIPLICATIVE,
    OURS,
    OUTPUT_NORM,
    OUTPUT_NORM_MULTIPLICATIVE,
    PAPER,
    require_learned,
)
from mesascope.studies.shared.selectors import select_condition_result

MAX_ATTENDED_POSITIONS = 5.0  # ours: a head that attends to more positions does not select
SINGLE_POSITION = 1.5  # ours: a head that attends to fewer positions, averaged over queries, attends to one
MIN_HEAD_FRACTION = 0.05  # ours
MIN_MODEL_RATE = 0.5  # ours: the claim is about most models
MIN_COSINE_GAIN = 0.05  # ours
MIN_LATER_ATTENTION = 0.9  # ours
MIN_ATTENTION_GAIN = 0.1  # ours

StepSelector = Callable[[xr.DataArray], xr.DataArray]


def _mean_saturation(condition: str, label: str, select_step: StepSelector) -> Quantity:
    return Quantity(
        description="cosine of the residual stream with that of the network with parameters times 1000, mean over "
        f"layers, {label}",
        read=lambda results: select_step(select_condition_result(results, "saturation", condition)["cosine"]).mean(
            "layer"
        ),
    )


def _saturation_claim(condition: str, form: str) -> Claim:
    return Claim(
        name=f"training increases saturation, {form}",
        statement=f"With {form}, a trained network is closer to its saturated form than an untrained one.",
        source=PAPER,
        value=_mean_saturation(condition, "trained", select_last_step),
        control=_mean_saturation(condition, "untrained", select_untrained),
        direction="above",
        margin=MIN_COSINE_GAIN,
        by_paper=True,
        requirements=require_learned(condition),
    )


def _has_two_types(label: str, select_step: StepSelector) -> Quantity:
    def read_types(results: Results) -> xr.DataArray:
        attended = select_step(results["saturation"]["attended"])
        fractions = [
            each.mean(("layer", "head")) for each in (attended > MAX_ATTENDED_POSITIONS, attended < SINGLE_POSITION)
        ]
        return ((fractions[0] > MIN_HEAD_FRACTION) & (fractions[1] > MIN_HEAD_FRACTION)).astype(float)

    return Quantity(
        description=f"1 if more than {MIN_HEAD_FRACTION:.0%} of the heads of the saturated network attend to one "
        f"position and more than {MIN_HEAD_FRACTION:.0%} to more than {MAX_ATTENDED_POSITIONS:g}, else 0, {label}",
        read=read_types,
    )


def _wide_head_fractions(results: Results, *conditions: str) -> xr.DataArray:
    """Return the fraction of heads that attend to many positions, by condition."""
    attended = [
        select_last_step(select_condition_result(results, "saturation", each)["attended"]) for each in conditions
    ]
    return (xr.concat(attended, "condition") > MAX_ATTENDED_POSITIONS).mean(("layer", "head"))


def _later_attention(results: Results, *, wide: bool) -> xr.DataArray:
    """Return the attention to later positions of heads that attend to many or to few positions; NaN without any."""
    dataset = select_condition_result(results, "saturation", MULTIPLICATIVE)
    is_wide = dataset["attended"] > MAX_ATTENDED_POSITIONS
    later = dataset["later_attention"].where(is_wide if wide else ~is_wide)
    return select_last_step(later).mean(("layer", "head"))


def _lookahead_effect(condition: str, label: str) -> Quantity:
    return Quantity(
        description=f"increase of the loss without attention to later positions, {label}",
        read=lambda results: select_last_step(
            select_condition_result(results, "lookahead_ablation", condition)["loss_increase"]
        ),
        unit="nat",
    )


SATURATION_CLAIMS = tuple(
    _saturation_claim(*row) for row in ((MAIN, "norm(x + f(x))"), (OUTPUT_NORM, "x + norm(f(x))"))
)

HEAD_CLAIMS = (
    Claim(
        name="two types of heads",
        statement="Saturated networks have heads that attend to one position and heads that attend to many.",
        source=f"{PAPER}, here with a causal mask; the threshold is ours",
        value=_has_two_types("trained", select_last_step),
        control=_has_two_types("untrained", select_untrained),
        direction="above",
        margin=MIN_MODEL_RATE,
        existence=True,
        by_paper=True,
        requirements=require_learned(MAIN),
    ),
    Claim(
        name="heads that attend to many positions require the multiplicative mask",
        statement="With both norm positions, heads that attend to many positions emerge with a multiplicative mask and "
        "not with a causal one.",
        source=f"{OURS}: the paper's code multiplies scores by its mask, which leaves later positions visible",
        value=Quantity(
            description=f"fraction of heads of the saturated network that attend to more than "
            f"{MAX_ATTENDED_POSITIONS:g} positions, multiplicative mask, the smaller of both norm positions",
            read=lambda results: _wide_head_fractions(results, MULTIPLICATIVE, OUTPUT_NORM_MULTIPLICATIVE).min(
                "condition"
            ),
        ),
        control=Quantity(
            description="the same fraction, causal mask, the larger of both norm positions",
            read=lambda results: _wide_head_fractions(results, MAIN, OUTPUT_NORM).max("condition"),
        ),
        direction="above",
        threshold=MIN_HEAD_FRACTION,
        margin=MIN_HEAD_FRACTION,
        requirements=require_learned(MAIN, OUTPUT_NORM),
    ),
    Claim(
        name="heads that attend to many positions attend to later positions",
        statement="With a multiplicative mask, heads that attend to many positions attend to later positions.",
        source=f"{OURS}: where all visible scores are negative, the zeros at later positions receive all attention",
        value=Quantity(
            description="fraction of the attention of these heads on later positions; NaN if there are no such heads",
            read=lambda results: _later_attention(results, wide=True),
        ),
        control=Quantity(
            description="the same fraction of the other heads",
            read=lambda results: _later_attention(results, wide=False),
        ),
        direction="above",
        threshold=MIN_LATER_ATTENTION,
        margin=MIN_ATTENTION_GAIN,
        requirements=require_learned(MULTIPLICATIVE),
    ),
    Claim(
        name="multiplicative mask: the model uses later positions",
        statement="With a multiplicative mask, ablating attention to later positions increases the loss, so that it is "
        "not that of a language model.",
        source=OURS,
        value=_lookahead_effect(MULTIPLICATIVE, "multiplicative mask"),
        control=_lookahead_effect(MAIN, "causal mask, which has no such attention"),
        direction="above",
        threshold=0.0,
        kind="check",
    ),
)
