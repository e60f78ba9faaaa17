"""Claims on halting: it is used, steps rise with the nesting depth, and halting saves steps at equal accuracy."""

import xarray as xr

from mesascope.studies.base import Claim, Quantity, Requirement, Results, select_last_step, select_untrained
from mesascope.studies.dynamic_halt.expression_claims import require_nesting
from mesascope.studies.dynamic_halt.halting_steps import DEPTH, DEPTH_AT_LENGTH, EXPECTED, TAKEN
from mesascope.studies.dynamic_halt.models import FIXED, GUT, TITLES
from mesascope.studies.dynamic_halt.readers import LIST_OPS, OURS, SUMMARY, read_accuracy, read_result
from mesascope.studies.dynamic_halt.step_limits import MAX_LOSS, OTHER, OWN

MAX_STEP_FRACTION = 0.9  # of the maximum; ours
MIN_CORRELATION, MIN_CORRELATION_GAIN = 0.3, 0.1  # ours
MIN_STEPS_SAVED = 0.5  # ours
MIN_OWN_GAIN = 0.01  # of the accuracy; ours
MAX_ACCURACY_LOSS = 0.02  # up to which two models are called equally accurate; ours


def halting_claims() -> tuple[Claim, ...]:
    """Return the claims on halting, in the order of the page."""
    return (
        _usage_check(),
        _depth_claim(
            "steps rise with depth", "GUT takes more steps for more deeply nested expressions.", DEPTH, MIN_CORRELATION
        ),
        _depth_claim(
            "steps rise with depth at equal length",
            "Among expressions of the same length, GUT takes more steps for more deeply nested ones.",
            DEPTH_AT_LENGTH,
            None,
        ),
        _saving_claim(
            "halting saves steps against a model without halting",
            "GUT takes fewer steps than a model without halting needs for the same accuracy.",
            SUMMARY,
            Quantity(
                description="smallest limit on steps at which the model without halting is as accurate as without one",
                read=lambda results: _read_limits(results, FIXED, "enough_steps"),
                unit="steps",
            ),
            (require_nesting(LIST_OPS, (GUT, FIXED)), _require_equal_accuracy()),
        ),
        _saving_claim(
            "halting saves steps against a constant number of steps",
            "GUT takes fewer steps on average than the smallest constant number of steps with which it is as accurate.",
            f"{OURS}: halting is dynamic only if it is better than one number of steps for all sequences",
            Quantity(
                description="smallest limit on steps at which GUT is as accurate as without one",
                read=lambda results: _read_limits(results, GUT, "enough_steps"),
                unit="steps",
            ),
            (require_nesting(LIST_OPS, (GUT,)),),
        ),
        _own_steps_claim(),
    )


def _read_limits(results: Results, kind: str, variable: str) -> xr.DataArray:
    return select_last_step(read_result(results, "step_limits", LIST_OPS, kind)[variable])


def _mean_steps(kind: str) -> Quantity:
    return Quantity(
        description=f"steps taken on ListOps, mean over sequences, {TITLES[kind]}",
        read=lambda results: _read_limits(results, kind, "mean_steps").astype(float),
        unit="steps",
    )


def _usage_check() -> Claim:
    return Claim(
        name="halting is used",
        statement=f"On ListOps, GUT takes less than {MAX_STEP_FRACTION:.0%} of the steps of a model without halting.",
        source=f"{OURS}: a number of steps cannot be above the maximum",
        value=_mean_steps(GUT),
        control=Quantity(
            description=f"{MAX_STEP_FRACTION:g} times the steps of the model without halting, which are the maximum",
            read=lambda results: MAX_STEP_FRACTION * _read_limits(results, FIXED, "mean_steps"),
            unit="steps",
        ),
        direction="below",
        kind="check",
    )


def _depth_claim(name: str, statement: str, quantity: str, threshold: float | None) -> Claim:
    depth = f"nesting depth{' at equal length' * (quantity != DEPTH)}"

    def read_correlation(results: Results, stat: str) -> xr.DataArray:
        correlation = read_result(results, "halting_steps", LIST_OPS, GUT)["depth_correlation"]
        return correlation.sel(stat=stat, _correlated_with=quantity, drop=True)

    return Claim(
        name=name,
        statement=statement,
        source=f"{OURS}: what dynamic halting is for",
        value=Quantity(
            description=f"rank correlation of the steps taken with the {depth}, GUT",
            read=lambda results: select_last_step(read_correlation(results, TAKEN)),
        ),
        control=Quantity(
            description=f"absolute rank correlation of the expected steps with the {depth}, untrained GUT, which takes "
            "all steps",
            read=lambda results: abs(select_untrained(read_correlation(results, EXPECTED))),
        ),
        direction="above",
        threshold=threshold,
        margin=MIN_CORRELATION_GAIN,
        requirements=(require_nesting(LIST_OPS, (GUT,)),),
    )


def _saving_claim(
    name: str, statement: str, source: str, control: Quantity, requirements: tuple[Requirement, ...]
) -> Claim:
    return Claim(
        name=name,
        statement=statement,
        source=f"{source}; equal: within {MAX_LOSS:g}, ours",
        value=_mean_steps(GUT),
        control=control,
        direction="below",
        margin=MIN_STEPS_SAVED,
        by_paper=source == SUMMARY,
        requirements=requirements,
    )


def _require_equal_accuracy() -> Requirement:
    return Requirement(
        statement=f"the accuracy of GUT on ListOps is at most {MAX_ACCURACY_LOSS:g} below that of the model without "
        "halting",
        value=Quantity(
            description="accuracy of GUT minus that of the model without halting",
            read=lambda results: read_accuracy(results, LIST_OPS, GUT) - read_accuracy(results, LIST_OPS, FIXED),
        ),
        threshold=-MAX_ACCURACY_LOSS,
        direction="above",
    )


def _own_steps_claim() -> Claim:
    def read_stat(stat: str) -> Quantity:
        return Quantity(
            description=f"accuracy of GUT on ListOps with {stat}",
            read=lambda results: _read_limits(results, GUT, "accuracy").sel(stat=stat, drop=True),
        )

    return Claim(
        name="each sequence gets the steps that it needs",
        statement="GUT is more accurate with the steps that it takes for a sequence than with those of another one.",
        source=f"{OURS}: both have the same mean cost",
        value=read_stat(OWN),
        control=read_stat(OTHER),
        direction="above",
        margin=MIN_OWN_GAIN,
        requirements=(require_nesting(LIST_OPS, (GUT,)),),
    )
