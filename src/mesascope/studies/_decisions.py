"""The rules by which numbers of seeds become a status."""

from dataclasses import dataclass, replace
from math import nan

import numpy as np

from mesascope.studies._claims import Claim
from mesascope.studies.inference import (
    ERROR_RATE,
    min_agreeing_seeds,
    p_value_above,
    p_value_higher_rate,
    upper_rate_bound,
)

SUPPORTED = "supported"
CONTRADICTED = "contradicted"
NO_EFFECT = "no effect"
INCONCLUSIVE = "inconclusive"
NOT_LEARNED = "not learned"
NOT_TESTED = "not tested at this scale"
HOLDS = "holds"
FAILS = "fails"


@dataclass(frozen=True)
class Decision:
    """A status, its reason, and the p-value of the test for "supported" (NaN if there was no test)."""

    status: str
    reason: str
    p_value: float = nan

    def correct(self, p_value: float) -> "Decision":
        """Return the decision after a correction for multiple claims; only "supported" can change.

        Args:
            p_value: the corrected p-value.

        Returns:
            the decision with the corrected p-value.
        """
        if self.status == SUPPORTED and p_value > ERROR_RATE:
            reason = f"not supported after Holm's correction over the claims of the paper (p = {p_value:.2g})"
            return Decision(INCONCLUSIVE, reason, p_value)
        return replace(self, p_value=p_value)


def decide_comparison(claim: Claim, value: np.ndarray, control: np.ndarray) -> Decision:
    """Compare a value with its control and its threshold over seeds.

    Args:
        claim: states direction, margin and threshold.
        value: one number per seed.
        control: one number per seed.

    Returns:
        the decision.
    """
    if min_agreeing_seeds(len(value)) is None:
        return Decision(INCONCLUSIVE, f"{len(value)} seeds have a value; at least 5 are needed")
    sign = 1.0 if claim.direction == "above" else -1.0
    difference = sign * (value - control)
    tests = [(f"the control ({claim.control.description})", difference, claim.margin)]
    if claim.threshold is not None:
        tests.append((f"the threshold {claim.threshold:g}", sign * (value - claim.threshold), 0.0))
    higher = "higher" if claim.direction == "above" else "lower"
    p_values = [p_value_above(distance, margin) for _, distance, margin in tests]
    opposite = [p_value_above(-distance, margin) for _, distance, margin in tests]
    if max(p_values) <= ERROR_RATE:
        return Decision(SUPPORTED, f"{higher} than {' and '.join(name for name, *_ in tests)}", max(p_values))
    if min(opposite) * len(tests) <= ERROR_RATE:
        name = tests[int(np.argmin(opposite))][0]
        return Decision(CONTRADICTED, f"not {higher} than {name}, but the opposite", max(p_values))
    if claim.margin and max(p_value_above(difference, -claim.margin), p_value_above(-difference, -claim.margin)) <= (
        ERROR_RATE
    ):
        return Decision(NO_EFFECT, f"differs from the control by less than the margin {claim.margin:g}", max(p_values))
    undecided = tests[int(np.argmax(p_values))][0]
    return Decision(INCONCLUSIVE, f"the seeds do not decide if it is {higher} than {undecided}", max(p_values))


def decide_check(claim: Claim, value: np.ndarray, control: np.ndarray) -> Decision:
    """Decide whether a check holds for every seed.

    Args:
        claim: states the direction and the threshold; without a threshold, the control is the bound.
        value: one number per seed.
        control: one number per seed.

    Returns:
        the decision; a check without a value fails.
    """
    bound = control if claim.threshold is None else np.full_like(value, claim.threshold)
    holding = value > bound if claim.direction == "above" else value < bound
    status = HOLDS if len(value) and holding.all() else FAILS
    return Decision(status, f"holds for {int(holding.sum())} of {len(value)} seeds")


def decide_existence(claim: Claim, value: np.ndarray, control: np.ndarray) -> Decision:
    """Compare the rate of trained models that have a property with the rate of untrained models.

    Args:
        claim: its margin is the smallest rate that matters.
        value: 1 for a trained model that has the property, else 0; the rate, if there are several models per seed.
        control: the same of untrained models.

    Returns:
        the decision.
    """
    if not len(value):
        return Decision(INCONCLUSIVE, "no model has a value")
    hits, trials = count_models(value, claim.value.models)
    control_hits, control_trials = count_models(control, claim.control.models)
    p_value = p_value_higher_rate(hits, trials, control_hits, control_trials)
    rates = f"trained {hits} of {trials}, untrained {control_hits} of {control_trials}"
    if p_value <= ERROR_RATE:
        return Decision(SUPPORTED, rates, p_value)
    if upper_rate_bound(hits, trials) < claim.margin:
        return Decision(CONTRADICTED, f"{rates}; a rate of {claim.margin:g} is excluded", p_value)
    return Decision(INCONCLUSIVE, rates, p_value)


def count_models(rates: np.ndarray, models: int) -> tuple[int, int]:
    """Return the number of models that have a property, and the number of models.

    Args:
        rates: one rate per seed.
        models: number of models per seed.

    >>> count_models(np.array([0.5, 1.0]), 2)
    (3, 4)
    """
    return round(float(rates.sum()) * models), len(rates) * models
