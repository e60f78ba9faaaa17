"""From numbers to verdicts: a bootstrap over seeds, and plain words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mesascope.studies.base import Claim, Results, per_seed

SUPPORTED = "supported"
CONTRADICTED = "contradicted"
INCONCLUSIVE = "inconclusive"
NOT_TESTED = "not tested at this scale"

LEVEL = 0.95
RESAMPLES = 10_000
FEWEST_SEEDS = 3


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the numbers say of one claim.

    Attributes:
        name: the claim's.
        sentence: the claim.
        source: who claims it.
        word: supported, contradicted, inconclusive, or not tested at this scale.
        reason: why, in one sentence.
        about: what the statistic is.
        unit: of all numbers here.
        direction: whether the statistic was to lie above or below its control.
        bound: the fixed number it was to lie beyond, if any.
        value: mean of the statistic over seeds.
        interval: bootstrap interval of that mean.
        control: mean of the control.
        control_about: what the control is.
        difference: bootstrap interval of the mean of statistic minus control, paired by seed.
        per_seed: the statistic of each seed.
        control_per_seed: the control of each seed.
        level: of the intervals.
    """

    name: str
    sentence: str
    source: str
    word: str
    reason: str
    about: str
    unit: str
    direction: str
    bound: float | None
    value: float | None
    interval: tuple[float, float] | None
    control: float | None
    control_about: str
    difference: tuple[float, float] | None
    per_seed: tuple[float | None, ...]
    control_per_seed: tuple[float | None, ...]
    level: float = LEVEL

    def as_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Verdict":
        """The verdict that :meth:`as_json` made these values of; JSON's lists become tuples again."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        return cls(**values)


def judge(claim: Claim, results: Results, scale: str) -> Verdict:
    """Decide a claim. Supported: the whole interval of statistic minus control lies on the claimed side of 0, and the
    whole interval of the statistic beyond the bound, if there is one. Contradicted: one of the two intervals lies
    wholly on the other side. Inconclusive: anything else, and whenever fewer than 3 seeds have a value.

    The interval is that of the mean over seeds (percentile bootstrap, 10,000 resamples, 95 %).

    Raises:
        KeyError: the results lack what the claim needs.
    """
    statistic, control = per_seed(claim.statistic(results)), per_seed(claim.control(results))
    kept = np.isfinite(statistic) & np.isfinite(control)
    described: dict[str, Any] = {
        "name": claim.name,
        "sentence": claim.sentence,
        "source": claim.source,
        "about": claim.about,
        "unit": claim.unit,
        "direction": claim.direction,
        "bound": claim.bound,
        "control_about": claim.control_about,
        "per_seed": _plain(statistic),
        "control_per_seed": _plain(control),
    }
    if not kept.any():
        word = NOT_TESTED if scale not in claim.scales else INCONCLUSIVE
        reason = "no seed has a value: there is nothing to measure it on"
        return Verdict(**described, word=word, reason=reason, value=None, interval=None, control=None, difference=None)
    interval, difference = _interval(statistic[kept]), _interval(statistic[kept] - control[kept])
    word, reason = _word(claim, scale, int(kept.sum()), interval, difference)
    return Verdict(
        **described,
        word=word,
        reason=reason,
        value=float(statistic[kept].mean()),
        interval=interval,
        control=float(control[kept].mean()),
        difference=difference,
    )


def _word(
    claim: Claim, scale: str, seeds: int, interval: tuple[float, float], difference: tuple[float, float]
) -> tuple[str, str]:
    """The verdict and its reason."""
    if scale not in claim.scales:
        return NOT_TESTED, f"decided at the scales {', '.join(claim.scales)} only; the numbers are shown all the same"
    if seeds < FEWEST_SEEDS:
        return INCONCLUSIVE, f"{seeds} seed{'s' * (seeds > 1)} with a value; at least {FEWEST_SEEDS} are needed"
    tests = [(*_signed(difference, claim, 0.0), f"than the control ({claim.control_about})")]
    if claim.bound is not None:
        tests.append((*_signed(interval, claim, claim.bound), f"than the bound {claim.bound:g}"))
    compared = {"above": ("higher", "not higher"), "below": ("lower", "not lower")}[claim.direction]
    for _, high, than in tests:
        if high < 0:
            return CONTRADICTED, f"{compared[1]} {than}, in the whole interval"
    for low, _, than in tests:
        if low <= 0:
            return INCONCLUSIVE, f"the interval does not exclude being {compared[1]} {than}"
    return SUPPORTED, " and ".join(f"{compared[0]} {than}" for *_, than in tests)


def _signed(interval: tuple[float, float], claim: Claim, zero: float) -> tuple[float, float]:
    """The interval's distance from zero, counted positive in the claimed direction."""
    low, high = interval[0] - zero, interval[1] - zero
    return (low, high) if claim.direction == "above" else (-high, -low)


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap of the mean; the same values always give the same interval."""
    drawn = np.random.default_rng(0).choice(values, size=(RESAMPLES, len(values)))
    low, high = np.quantile(drawn.mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _plain(values: np.ndarray) -> tuple[float | None, ...]:
    """Numbers that JSON has: not-a-number becomes nothing."""
    return tuple(float(value) if np.isfinite(value) else None for value in values)
