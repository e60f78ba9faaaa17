"""Claims on saturated networks and on the heads that they have under two masks (Merrill et al. 2021)."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results, select_last_step, select_untrained
from mesascope.studies.norm_growth.conditions import (
    MAIN,
    MULTIPLICATIVE,
    OURS,
    OUTPUT_FORM,
    OUTPUT_NORM,
    OUTPUT_NORM_MULTIPLICATIVE,
    PAPER,
    condition_result,
)

PAPER_MASK = f"{OURS}: the paper's code multiplies scores by its mask, which leaves later positions visible"
CAUSAL_MASK, MULTIPLICATIVE_MASK = "causal mask", "multiplicative mask"

MAX_ATTENDED_POSITIONS = 5.0  # ours: a head that attends to more positions does not select
MIN_HEAD_FRACTION = 0.05  # ours
MIN_SATURATION = 0.9  # cosine; ours: the paper's small language models reach 1.00
MIN_LATER_ATTENTION = 0.9  # ours


def _saturation_cosine(reduction: str, condition: str, label: str, *, trained: bool = True) -> Quantity:
    def read_cosine(results: Results) -> xr.DataArray:
        cosine = condition_result(results, "saturation", condition)["cosine"]
        by_layer = select_last_step(cosine) if trained else select_untrained(cosine)
        return by_layer.mean("layer") if reduction == "mean" else by_layer.min("layer")

    return Quantity(
        description="cosine of the residual stream with that of the network with parameters times 1000, "
        f"{reduction} over layers, {label}",
        read=read_cosine,
    )


def _wide_head_fraction(condition: str, label: str, *, trained: bool = True) -> Quantity:
    select_step = select_last_step if trained else select_untrained
    return Quantity(
        description=f"fraction of heads of the saturated network that attend to more than {MAX_ATTENDED_POSITIONS:g} "
        f"positions, {label}",
        read=lambda results: (
            select_step(condition_result(results, "saturation", condition)["attended"]) > MAX_ATTENDED_POSITIONS
        ).mean(("layer", "head")),
    )


def _later_attention(results: Results) -> xr.DataArray:
    """Return the attention to later positions of heads that attend to many positions; NaN if there are none."""
    dataset = condition_result(results, "saturation", MULTIPLICATIVE)
    return select_last_step(dataset["later_attention"].where(dataset["attended"] > MAX_ATTENDED_POSITIONS)).mean(
        ("layer", "head")
    )


def _held_out_loss(condition: str, label: str) -> Quantity:
    return Quantity(
        description=f"held-out loss, {label}",
        read=lambda results: select_last_step(condition_result(results, "loss_vs_baselines", condition)["scored"]).sel(
            predictor="model", drop=True
        ),
        unit="nat",
    )


def _lookahead_effect(condition: str, label: str) -> Quantity:
    return Quantity(
        description=f"increase of the loss without attention to later positions, {label}",
        read=lambda results: select_last_step(
            condition_result(results, "lookahead_ablation", condition)["loss_increase"]
        ),
        unit="nat",
    )


WIDE_HEADS_CAUSAL = _wide_head_fraction(MAIN, CAUSAL_MASK)

SATURATION_CLAIMS = (
    Claim(
        name="training increases saturation",
        statement="A trained network is closer to its saturated form than an untrained one.",
        source=PAPER,
        value=_saturation_cosine("mean", MAIN, "trained"),
        control=_saturation_cosine("mean", MAIN, "untrained", trained=False),
        direction="above",
    ),
    Claim(
        name="training increases saturation, x + norm(f(x))",
        statement="With x + norm(f(x)), a trained network is also closer to its saturated form than an untrained one.",
        source=PAPER,
        value=_saturation_cosine("mean", OUTPUT_NORM, f"trained, {OUTPUT_FORM}"),
        control=_saturation_cosine("mean", OUTPUT_NORM, f"untrained, {OUTPUT_FORM}", trained=False),
        direction="above",
    ),
    Claim(
        name="all layers of the trained network are saturated",
        statement="A trained small language model is saturated in every layer.",
        source=f"{PAPER}: 1.00; the threshold is ours",
        value=_saturation_cosine("min", MAIN, "trained"),
        control=_saturation_cosine("min", MAIN, "untrained", trained=False),
        direction="above",
        threshold=MIN_SATURATION,
    ),
)

HEAD_CLAIMS = (
    Claim(
        name="two types of heads",
        statement="Some heads of the saturated network attend to one position, others to about half of all.",
        source=f"{PAPER}, here with a causal mask; the threshold is ours",
        value=WIDE_HEADS_CAUSAL,
        control=_wide_head_fraction(MAIN, f"{CAUSAL_MASK}, untrained", trained=False),
        direction="above",
        threshold=MIN_HEAD_FRACTION,
    ),
    Claim(
        name="heads that attend to many positions require the multiplicative mask",
        statement="Heads that attend to many positions emerge with a multiplicative mask and not with a causal one.",
        source=PAPER_MASK,
        value=_wide_head_fraction(MULTIPLICATIVE, MULTIPLICATIVE_MASK),
        control=WIDE_HEADS_CAUSAL,
        direction="above",
        threshold=MIN_HEAD_FRACTION,
    ),
    Claim(
        name="heads that attend to many positions require the multiplicative mask, x + norm(f(x))",
        statement="With x + norm(f(x)), such heads also emerge with a multiplicative mask and not with a causal one.",
        source=PAPER_MASK,
        value=_wide_head_fraction(OUTPUT_NORM_MULTIPLICATIVE, f"{MULTIPLICATIVE_MASK}, {OUTPUT_FORM}"),
        control=_wide_head_fraction(OUTPUT_NORM, f"{CAUSAL_MASK}, {OUTPUT_FORM}"),
        direction="above",
        threshold=MIN_HEAD_FRACTION,
    ),
    Claim(
        name="heads that attend to many positions attend to later positions",
        statement="With a multiplicative mask, heads that attend to many positions attend to later positions.",
        source=f"{OURS}: where all visible scores are negative, the zeros at later positions receive all attention",
        value=Quantity(
            description="fraction of the attention of these heads on later positions; NaN if there are no such heads",
            read=_later_attention,
        ),
        control=Quantity(
            description="fraction of their attention on all other positions",
            read=lambda results: 1 - _later_attention(results),
        ),
        direction="above",
        threshold=MIN_LATER_ATTENTION,
    ),
    Claim(
        name="multiplicative mask lowers the loss",
        statement="The loss with a multiplicative mask is below that of a causal model.",
        source=f"{OURS}: such a loss is not that of a language model",
        value=_held_out_loss(MULTIPLICATIVE, MULTIPLICATIVE_MASK),
        control=_held_out_loss(MAIN, CAUSAL_MASK),
        direction="below",
    ),
    Claim(
        name="multiplicative mask: the model uses later positions",
        statement="With a multiplicative mask, ablating attention to later positions increases the loss.",
        source=OURS,
        value=_lookahead_effect(MULTIPLICATIVE, MULTIPLICATIVE_MASK),
        control=_lookahead_effect(MAIN, f"{CAUSAL_MASK}, which has no such attention"),
        direction="above",
        threshold=0.0,
    ),
)
