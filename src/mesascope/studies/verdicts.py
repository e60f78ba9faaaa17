"""Verdicts on claims: tests over seeds with a bounded error rate, and one of six words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mesascope.formulas import render_plain
from mesascope.studies._claims import Claim, Results
from mesascope.studies._decisions import (
    CONTRADICTED,
    INCONCLUSIVE,
    NO_EFFECT,
    NOT_LEARNED,
    NOT_TESTED,
    SUPPORTED,
    Decision,
    count_models,
    decide_check,
    decide_comparison,
    decide_existence,
)
from mesascope.studies.inference import INTERVAL_LEVEL, Interval, adjust_holm, rate_interval, t_interval
from mesascope.summaries import Summarised, Summary

__all__ = [
    "CONTRADICTED",
    "INCONCLUSIVE",
    "NOT_LEARNED",
    "NOT_TESTED",
    "NO_EFFECT",
    "SUPPORTED",
    "Verdict",
    "judge",
    "judge_claims",
]


@dataclass(frozen=True, kw_only=True, repr=False)
class Verdict(Summarised):
    """The result of judging one claim.

    Attributes:
        name: the claim's.
        statement: the claim.
        source: who claims it.
        kind: replication, simulation or check.
        status: supported, contradicted, no effect, inconclusive, not learned, or not tested at this scale; of a check:
            holds or fails.
        reason: why, in one sentence.
        description: the quantity that decided it.
        unit: of all numbers here.
        direction: whether the value had to lie above or below its control.
        threshold: the fixed number that it had to lie beyond, if any.
        margin: the smallest difference that matters.
        value: mean of the quantity over seeds; the rate of models that have the property, for a claim of existence.
        interval: t interval of that mean; exact (Clopper-Pearson) interval of that rate.
        control: mean of the control over seeds.
        control_description: the control in words.
        difference: t interval of the mean of value minus control, paired by seed; none for a claim of existence.
        p_value: of the test that decides "supported", after Holm's correction.
        per_seed: the value of each seed.
        control_per_seed: the control of each seed.
        level: of the intervals.
    """

    name: str
    statement: str
    source: str
    kind: str
    status: str
    reason: str
    description: str
    unit: str
    direction: str
    threshold: float | None
    margin: float
    value: float | None
    interval: Interval | None
    control: float | None
    control_description: str
    difference: Interval | None
    p_value: float | None
    per_seed: tuple[float | None, ...]
    control_per_seed: tuple[float | None, ...]
    level: float = INTERVAL_LEVEL

    def summarise(self) -> Summary:
        """Return the verdict with the numbers that decided it."""
        numbers = [
            ("value", render_plain(self.description), self.value, self.interval),
            ("control", render_plain(self.control_description), self.control, None),
            ("difference", f"must be {self.direction} 0, margin {self.margin:g}", None, self.difference),
        ]
        rows = [
            (name, _format_number(number, interval), about)
            for name, about, number, interval in numbers
            if number is not None or interval is not None
        ]
        return Summary(
            title=render_plain(f"{self.status}: {self.statement} ({self.source})"),
            header=("", f"in {self.unit}" if self.unit != "1" else "", ""),
            rows=[*rows, ("reason", "", render_plain(self.reason))],
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Verdict":
        """Return the verdict that :meth:`as_json` turned into these values; lists become tuples again.

        Args:
            row: the values.
        """
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        return cls(**values)


def _format_number(number: float | None, interval: Interval | None) -> str:
    bounds = f"[{interval[0]:.3g}, {interval[1]:.3g}]" if interval else ""
    return bounds if number is None else f"{number:.3g} {bounds}".rstrip()


def judge(claim: Claim, results: Results, scale: str) -> Verdict:
    """Judge a claim on its own.

    Args:
        claim: the claim.
        results: Datasets of a run, by name.
        scale: at which the run was made.

    Returns:
        the verdict, without a correction for other claims.

    Raises:
        KeyError: the results lack what the claim needs.
    """
    return judge_claims([claim], results, scale)[0]


def judge_claims(claims: Sequence[Claim], results: Results, scale: str) -> list[Verdict]:
    """Judge the claims of a study; docs/verdicts.md states the rules and their error rates.

    Args:
        claims: the claims; the p-values of those that the paper makes are corrected together (Holm).
        results: Datasets of a run, by name.
        scale: at which the run was made.

    Returns:
        one verdict per claim, in their order.

    Raises:
        KeyError: the results lack what a claim needs.
    """
    numbers = [(claim.value.per_seed(results), claim.control.per_seed(results)) for claim in claims]
    decisions = [
        _decide(claim, results, scale, value, control) for claim, (value, control) in zip(claims, numbers, strict=True)
    ]
    corrected = iter(adjust_holm([one.p_value for claim, one in zip(claims, decisions, strict=True) if claim.by_paper]))
    decisions = [
        decision.correct(next(corrected)) if claim.by_paper else decision
        for claim, decision in zip(claims, decisions, strict=True)
    ]
    return [
        _build_verdict(claim, decision, *values)
        for claim, decision, values in zip(claims, decisions, numbers, strict=True)
    ]


def _decide(claim: Claim, results: Results, scale: str, value: np.ndarray, control: np.ndarray) -> Decision:
    if scale not in claim.scales:
        return Decision(NOT_TESTED, f"judged at {' and '.join(claim.scales)} scale only")
    failed = [one.statement for one in claim.requirements if not one.is_met(results)]
    if failed:
        return Decision(NOT_LEARNED, f"the run does not meet a requirement: {'; '.join(failed)}")
    defined = np.isfinite(value) & np.isfinite(control)
    decide = decide_check if claim.kind == "check" else decide_existence if claim.existence else decide_comparison
    return decide(claim, value[defined], control[defined])


def _build_verdict(claim: Claim, decision: Decision, value: np.ndarray, control: np.ndarray) -> Verdict:
    defined = np.isfinite(value) & np.isfinite(control)
    any_defined = bool(defined.any())
    return Verdict(
        name=claim.name,
        statement=claim.statement,
        source=claim.source,
        kind=claim.kind,
        status=decision.status,
        reason=decision.reason,
        description=claim.value.description,
        unit=claim.value.unit,
        direction=claim.direction,
        threshold=claim.threshold,
        margin=claim.margin,
        value=float(value[defined].mean()) if any_defined else None,
        interval=_compute_interval(claim, value[defined]),
        control=float(control[defined].mean()) if any_defined else None,
        control_description=claim.control.description,
        difference=None if claim.existence else t_interval(value[defined] - control[defined]),
        p_value=decision.p_value if np.isfinite(decision.p_value) else None,
        per_seed=_convert_to_json(value),
        control_per_seed=_convert_to_json(control),
    )


def _compute_interval(claim: Claim, value: np.ndarray) -> Interval | None:
    return rate_interval(*count_models(value, claim.value.models)) if claim.existence else t_interval(value)


def _convert_to_json(values: np.ndarray) -> tuple[float | None, ...]:
    # JSON has no NaN
    return tuple(float(value) if np.isfinite(value) else None for value in values)
