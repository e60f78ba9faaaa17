"""Claims on flip-flop: every model learns it, and memory between chunks makes models robust to shifts."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Results
from mesascope.studies.dynamic_halt.models import DECODER, FLIP_FLOP_MODELS, GUT, GUTLB, TITLES, TLB
from mesascope.studies.dynamic_halt.readers import (
    FLIP_FLOP,
    OURS,
    SUMMARY,
    lowest_accuracy_over_models,
    read_accuracy,
    require_accuracy,
)
from mesascope.studies.dynamic_halt.shifts import DOUBLE_LENGTH, SPARSE, TRAINING
from mesascope.tasks.flip_flop import LAST_BIT, MAJORITY

MIN_ACCURACY, MIN_ACCURACY_GAIN = 0.99, 0.01  # ours
ERROR_FRACTION, MIN_ERROR_DROP = 0.5, 0.005  # ours


def flip_flop_claims() -> tuple[Claim, ...]:
    """Return the claims on flip-flop, in the order of the page."""
    return (
        _learned_claim(),
        _shift_claim(TLB, DECODER, DOUBLE_LENGTH, "sequences of twice the length", SUMMARY),
        _shift_claim(TLB, DECODER, SPARSE, "sequences in which 98 % of the pairs are ignored", SUMMARY),
        _shift_claim(
            GUTLB,
            GUT,
            DOUBLE_LENGTH,
            "sequences of twice the length",
            f"{OURS}: GUTLB is GUT with chunks, memory and half as many steps; its learning rate differs, too",
        ),
    )


def _learned_claim() -> Claim:
    return Claim(
        name="flip-flop: the last written bit is read",
        statement="Every model gives the last written bit at the last read, and neither the last bit of any pair nor "
        "the majority of the bits.",
        source=f"{OURS}: the paper's task; the threshold is ours",
        value=lowest_accuracy_over_models(FLIP_FLOP, FLIP_FLOP_MODELS),
        control=Quantity(
            description="accuracy of the last bit of any pair or the majority of bits, whichever is larger (exact)",
            read=_read_best_baseline,
        ),
        direction="above",
        threshold=MIN_ACCURACY,
        margin=MIN_ACCURACY_GAIN,
    )


def _read_best_baseline(results: Results) -> xr.DataArray:
    last_bit, majority = (
        read_accuracy(results, FLIP_FLOP, DECODER, TRAINING, predictor) for predictor in (LAST_BIT, MAJORITY)
    )
    return last_bit.where(last_bit > majority, majority)


def _shift_claim(kind: str, other: str, distribution: str, sequences: str, source: str) -> Claim:
    def read_error(model: str, factor: float, label: str) -> Quantity:
        return Quantity(
            description=f"{label} on flip-flop, {distribution}, {TITLES[model]}",
            read=lambda results: factor * (1 - read_accuracy(results, FLIP_FLOP, model, distribution)),
        )

    reference = "a transformer" if other == DECODER else TITLES[other]
    return Claim(
        name=f"flip-flop: {TITLES[kind]} on {distribution}",
        statement=f"On {sequences}, {TITLES[kind]} makes less than half the errors of {reference}.",
        source=f"{source}; the factor of 2 is ours",
        value=read_error(kind, 1.0, "fraction of wrong answers"),
        control=read_error(other, ERROR_FRACTION, "half the fraction of wrong answers"),
        direction="below",
        margin=MIN_ERROR_DROP,
        by_paper=source == SUMMARY,
        requirements=(require_accuracy(FLIP_FLOP, (kind, other), MIN_ACCURACY),),
        # at laptop scale, pilot models made no error on sparse sequences, so that none could make half as many
        scales=("paper",) if distribution == SPARSE else ("laptop", "paper"),
    )
