"""Verdicts on claims: a bootstrap over seeds, and one of four words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mesascope.studies.base import Claim, Results

SUPPORTED = "supported"
CONTRADICTED = "contradicted"
INCONCLUSIVE = "inconclusive"
NOT_TESTED = "not tested at this scale"

VERDICT_LEVEL = 0.95
VERDICT_RESAMPLES = 10_000
MIN_SEEDS = 3
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of judging one claim.

    Attributes:
        name: the claim's.
        statement: the claim.
        source: who claims it.
        status: supported, contradicted, inconclusive, or not tested at this scale.
        reason: why, in one sentence.
        description: the quantity that decided it.
        unit: of all numbers here.
        direction: whether the value had to lie above or below its control.
        threshold: the fixed number that it had to lie beyond, if any.
        value: mean of the quantity over seeds.
        interval: bootstrap interval of that mean.
        control: mean of the control over seeds.
        control_description: the control in words.
        difference: bootstrap interval of the mean of value minus control, paired by seed.
        per_seed: the value of each seed.
        control_per_seed: the control of each seed.
        level: of the intervals.
    """

    name: str
    statement: str
    source: str
    status: str
    reason: str
    description: str
    unit: str
    direction: str
    threshold: float | None
    value: float | None
    interval: Interval | None
    control: float | None
    control_description: str
    difference: Interval | None
    per_seed: tuple[float | None, ...]
    control_per_seed: tuple[float | None, ...]
    level: float = VERDICT_LEVEL

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


def judge(claim: Claim, results: Results, scale: str) -> Verdict:
    """Judge a claim.

    Supported: the whole interval of value minus control lies on the claimed side of 0, and the whole interval of the
    value beyond the threshold, if there is one. Contradicted: one of the two intervals lies wholly on the other side.
    Inconclusive: anything else, and whenever fewer than 3 seeds have a value. The interval is that of the mean over
    seeds (percentile bootstrap, 10,000 resamples, 95 %).

    Args:
        claim: the claim.
        results: Datasets of a run, by name.
        scale: at which the run was made.

    Returns:
        the verdict.

    Raises:
        KeyError: the results lack what the claim needs.
    """
    value, control = claim.value.per_seed(results), claim.control.per_seed(results)
    defined = np.isfinite(value) & np.isfinite(control)
    described = _describe_claim(claim) | {"per_seed": _json_numbers(value), "control_per_seed": _json_numbers(control)}
    decision = _compare(claim, scale, value[defined], control[defined]) if defined.any() else _undefined(claim, scale)
    return Verdict(**described, **decision)


def _describe_claim(claim: Claim) -> dict[str, Any]:
    return {
        "name": claim.name,
        "statement": claim.statement,
        "source": claim.source,
        "description": claim.value.description,
        "unit": claim.value.unit,
        "direction": claim.direction,
        "threshold": claim.threshold,
        "control_description": claim.control.description,
    }


def _undefined(claim: Claim, scale: str) -> dict[str, Any]:
    """Return the decision where the quantity is not defined for any seed."""
    status = NOT_TESTED if scale not in claim.scales else INCONCLUSIVE
    reason = "no seed has a value: there is nothing to measure it on"
    return {"status": status, "reason": reason, "value": None, "interval": None, "control": None, "difference": None}


def _compare(claim: Claim, scale: str, value: np.ndarray, control: np.ndarray) -> dict[str, Any]:
    """Return the decision, its intervals and means, from the seeds that have a value."""
    interval, difference = _bootstrap(value), _bootstrap(value - control)
    status, reason = _decide(claim, scale, len(value), interval, difference)
    return {
        "status": status,
        "reason": reason,
        "value": float(value.mean()),
        "interval": interval,
        "control": float(control.mean()),
        "difference": difference,
    }


def _decide(claim: Claim, scale: str, seeds: int, interval: Interval, difference: Interval) -> tuple[str, str]:
    """Return the status and its reason."""
    if scale not in claim.scales:
        return NOT_TESTED, f"decided only at the scales {', '.join(claim.scales)}; the numbers are shown all the same"
    if seeds < MIN_SEEDS:
        return INCONCLUSIVE, f"{seeds} seed{'s' * (seeds > 1)} with a value; at least {MIN_SEEDS} are needed"
    tests = [(*_signed_distance(difference, claim, 0.0), f"than the control ({claim.control.description})")]
    if claim.threshold is not None:
        tests.append((*_signed_distance(interval, claim, claim.threshold), f"than the threshold {claim.threshold:g}"))
    yes, no = {"above": ("higher", "not higher"), "below": ("lower", "not lower")}[claim.direction]
    for _, high, than in tests:
        if high < 0:
            return CONTRADICTED, f"{no} {than}, in the whole interval"
    for low, _, than in tests:
        if low <= 0:
            return INCONCLUSIVE, f"the interval does not exclude being {no} {than}"
    return SUPPORTED, " and ".join(f"{yes} {than}" for *_, than in tests)


def _signed_distance(interval: Interval, claim: Claim, zero: float) -> Interval:
    """Return the distance of the interval from ``zero``, positive in the claimed direction."""
    low, high = interval[0] - zero, interval[1] - zero
    return (low, high) if claim.direction == "above" else (-high, -low)


def _bootstrap(values: np.ndarray) -> Interval:
    """Return the percentile bootstrap interval of the mean; it is deterministic."""
    drawn = np.random.default_rng(0).choice(values, size=(VERDICT_RESAMPLES, len(values)))
    low, high = np.quantile(drawn.mean(1), [(1 - VERDICT_LEVEL) / 2, (1 + VERDICT_LEVEL) / 2])
    return float(low), float(high)


def _json_numbers(values: np.ndarray) -> tuple[float | None, ...]:
    """Return numbers that JSON has: NaN becomes None."""
    return tuple(float(value) if np.isfinite(value) else None for value in values)
