"""A verdict follows from numbers by stated rules, every rule can go the other way, and errors are rare."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from cases import covering
from mesascope.studies.base import Claim, Quantity, Requirement
from mesascope.studies.inference import (
    ERROR_RATE,
    adjust_holm,
    min_agreeing_seeds,
    p_value_above,
    rate_interval,
    t_interval,
)
from mesascope.studies.verdicts import CONTRADICTED, SUPPORTED, judge, judge_claims

from .error_rates import KINDS, NULLS, SEEDS, count_statuses

HIGH, LOW = [0.9, 0.8, 0.95, 0.85, 0.9], [0.1, 0.2, 0.0, 0.1, 0.15]
SMALL = [0.01, 0.02, 0.03, 0.02, 0.01]


def make_claim(value, control, direction="above", threshold=None, **fields):
    def read_numbers(values):
        return lambda results: xr.DataArray(np.asarray(values, float), dims="seed")

    return Claim(
        **{"name": "n", "statement": "s", "source": "ours", **fields},
        value=Quantity(description="a number", read=read_numbers(value)),
        control=Quantity(description="another", read=read_numbers(control)),
        direction=direction,
        threshold=threshold,
    )


@pytest.mark.parametrize(
    ("value", "control", "direction", "threshold", "margin", "status"),
    [
        (HIGH, LOW, "above", None, 0.0, "supported"),
        (HIGH, LOW, "below", None, 0.0, "contradicted"),
        (HIGH, LOW, "above", 0.7, 0.0, "supported"),
        (HIGH, LOW, "above", 0.85, 0.0, "inconclusive"),
        (HIGH, LOW, "above", 1.1, 0.0, "contradicted"),
        (SMALL, [1, 2, 3, 2, 1], "below", 0.05, 0.0, "supported"),
        ([*SMALL[:4], 0.09], [1, 2, 3, 2, 1], "below", 0.05, 0.0, "inconclusive"),
        (HIGH, LOW, "above", None, 0.5, "supported"),
        (HIGH, LOW, "above", None, 0.75, "inconclusive"),
        (HIGH, LOW, "above", None, 2.0, "no effect"),
        (HIGH, LOW, "below", None, 2.0, "no effect"),
        (SMALL, [0] * 5, "above", None, 0.1, "no effect"),
        (SMALL, [0] * 5, "above", None, 0.02, "inconclusive"),
        ([0.3, -0.1, 0.2, 0.1, 0.2], [0] * 5, "above", None, 0.0, "inconclusive"),
        ([0] * 5, [0] * 5, "above", None, 0.0, "inconclusive"),
        ([1] * 5, [0] * 5, "above", None, 0.0, "supported"),
        (HIGH[:4], LOW[:4], "above", None, 0.0, "inconclusive"),
        ([np.nan, *HIGH[1:]], LOW, "above", None, 0.0, "inconclusive"),
        ([np.nan] * 5, LOW, "above", None, 0.0, "inconclusive"),
    ],
)
def test_the_status_follows_from_the_numbers(value, control, direction, threshold, margin, status):
    verdict = judge(make_claim(value, control, direction, threshold, margin=margin), {}, "laptop")
    assert verdict.status == status, verdict.reason
    assert verdict.reason


def test_the_difference_is_paired_by_seed():
    """Large differences between seeds do not hide a small one that every seed has."""
    verdict = judge(make_claim([10.1, 20.1, 30.1, 40.1, 50.1], [10, 20, 30, 40, 50]), {}, "laptop")
    assert verdict.status == "supported"
    assert verdict.difference == pytest.approx((0.1, 0.1))
    assert verdict.interval[0] < 15 < 45 < verdict.interval[1]


@pytest.mark.parametrize(
    ("value", "control", "status"),
    [
        ([1] * 5, [0] * 5, "supported"),
        ([1, 1, 1, 1, 0], [0] * 5, "supported"),
        ([1, 1, 1, 0, 0], [0] * 5, "inconclusive"),
        ([1] * 5, [1, 1, 1, 1, 0], "inconclusive"),  # untrained models have it as well
        ([0] * 12, [0] * 12, "contradicted"),  # a rate of one half is excluded
        ([0] * 4, [0] * 4, "inconclusive"),
    ],
)
def test_existence_is_a_rate_against_that_of_control_models(value, control, status):
    verdict = judge(make_claim(value, control, existence=True, margin=0.5), {}, "laptop")
    assert verdict.status == status, verdict.reason


def test_existence_has_the_exact_interval_of_a_rate_and_states_both_counts():
    verdict = judge(make_claim([1, 0, 0, 0, 0], [1, 0, 1, 0, 0], existence=True, margin=0.5), {}, "laptop")
    assert verdict.value == pytest.approx(0.2)
    low, high = (stats.beta.ppf(q, a, b) for q, a, b in ((0.01, 1, 5), (0.99, 2, 4)))  # Clopper & Pearson 1934
    assert verdict.interval == pytest.approx((low, high))
    assert verdict.difference is None
    assert verdict.reason == "trained 1 of 5, untrained 2 of 5"
    everyone = judge(make_claim([1] * 5, [0] * 5, existence=True, margin=0.5), {}, "laptop")
    assert everyone.interval == pytest.approx((0.01 ** (1 / 5), 1.0))  # a t interval would be [1, 1]
    assert everyone.reason == "trained 5 of 5, untrained 0 of 5"
    nothing = judge(make_claim([np.nan] * 5, [0] * 5, existence=True, margin=0.5), {}, "laptop")
    assert nothing.interval is None
    assert judge(make_claim([1] * 5, [0] * 5), {}, "laptop").interval == (1.0, 1.0)  # a quantity, not a rate


def test_the_interval_of_a_rate_covers_it_at_least_as_often_as_stated():
    hits = np.arange(6)
    ends = np.array([rate_interval(int(one), 5) for one in hits])
    for rate in np.linspace(0.01, 0.99, 50):
        covered = (ends[:, 0] <= rate) & (rate <= ends[:, 1])
        assert stats.binom.pmf(hits[covered], 5, rate).sum() >= 0.98
    assert rate_interval(0, 0) is None


def test_nothing_is_said_of_a_model_that_has_not_learned():
    def requirement(loss):
        return Requirement(
            statement="the loss is at most 1.1 times that of least squares",
            value=Quantity(description="ratio", read=lambda results: xr.DataArray([loss] * 5, dims="seed")),
            threshold=1.1,
            direction="below",
        )

    met, failed = (judge(make_claim(HIGH, LOW, requirements=(requirement(x),)), {}, "laptop") for x in (1.0, 1.5))
    assert met.status == "supported"
    assert failed.status == "not learned"
    assert "1.1 times that of least squares" in failed.reason
    assert judge(make_claim(HIGH, LOW, requirements=(requirement(np.nan),)), {}, "laptop").status == "not learned"


def test_holm_covers_the_claims_of_the_paper():
    """An effect that is decided alone is not among ten that are tested together."""
    weak = [0.9, 0.3, 0.7, 0.5, 0.6]
    claims = [make_claim(weak if k == 0 else SMALL, [0.02] * 5, name=str(k), by_paper=True) for k in range(10)]
    assert judge(claims[0], {}, "laptop").status == "supported"
    together = judge_claims(claims, {}, "laptop")
    assert together[0].status == "inconclusive"
    assert "Holm" in together[0].reason
    ours = [make_claim(weak, [0] * 5), *claims[1:]]
    assert judge_claims(ours, {}, "laptop")[0].status == "supported"


def test_holm_is_the_textbook_procedure():
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.01, float("nan")])[0] == 0.01


def test_the_interval_and_the_p_value_are_those_of_scipy():
    values = np.array([0.3, 0.9, 0.5, 0.8, 0.4, 0.7])
    expected = stats.t.interval(0.98, 5, values.mean(), stats.sem(values))
    assert t_interval(values) == pytest.approx(expected)
    t_test = stats.ttest_1samp(values, 0.2, alternative="greater").pvalue
    assert p_value_above(values, 0.2) == pytest.approx(2.5 * t_test)
    assert p_value_above(values, 0.45) == 1.0  # 4 of 6 lie above it: the sign test needs 6
    assert min_agreeing_seeds(6) == 6


@pytest.mark.parametrize(("family", "kind", "seeds"), covering(NULLS, KINDS, SEEDS))
def test_wrong_verdicts_are_rare(seeds, kind, family):
    """At the boundary, "supported" and "contradicted" are each given in at most 2.5 % of studies; docs/verdicts.md."""
    draws = 500  # 20,000 in the table of docs/verdicts.md
    rates = count_statuses(draws, seeds, NULLS[family], kind=kind)
    slack = 3 * (ERROR_RATE * (1 - ERROR_RATE) / draws) ** 0.5  # of the simulation
    assert rates[SUPPORTED] <= ERROR_RATE + slack
    assert rates[CONTRADICTED] <= ERROR_RATE + slack


def test_clear_effects_are_found():
    for seeds, least in ((5, 0.9), (8, 0.99)):
        assert count_statuses(300, seeds, NULLS["normal"], effect=3.0, kind="fixed control")[SUPPORTED] > least


KNOWN_EFFECTS = {  # status -> true difference from the control and margin, in standard deviations between seeds
    "supported": (6.0, 1.0),
    "contradicted": (-6.0, 1.0),
    "no effect": (0.0, 5.0),
    "inconclusive": (1.0, 1.0),
}


def test_results_with_a_known_effect_get_the_right_word():
    """20 synthetic result sets of 5 seeds, 5 of each word; at least 19 are right."""
    right = 0
    for draw in range(20):
        rng = np.random.default_rng(draw)
        status = list(KNOWN_EFFECTS)[draw % len(KNOWN_EFFECTS)]
        effect, margin = KNOWN_EFFECTS[status]
        control = rng.normal(size=5)
        claim = make_claim(control + effect + rng.normal(size=5), control, margin=margin)
        right += judge(claim, {}, "laptop").status == status
    assert right >= 19


def test_at_a_scale_that_decides_nothing_the_numbers_are_shown():
    verdict = judge(make_claim(HIGH, LOW), {}, "smoke")
    assert verdict.status == "not tested at this scale"
    assert verdict.value == pytest.approx(0.88)


def test_seeds_without_a_value_are_listed():
    verdict = judge(make_claim([np.nan, *HIGH], [0.1, *LOW]), {}, "laptop")
    assert verdict.per_seed == (None, *HIGH)
    assert verdict.status == "supported"
    assert verdict.value == pytest.approx(np.mean(HIGH))


def test_a_quantity_needs_the_axis_seed_alone():
    table = xr.DataArray(np.ones((2, 3)), dims=("seed", "layer"))
    wrong = Quantity(description="a table", read=lambda results: table)
    with pytest.raises(ValueError, match="must have the axis seed and no other"):
        judge(Claim(**{**vars(make_claim([1.0], [1.0])), "value": wrong}), {}, "laptop")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"margin": -1.0}, "a margin must be 0 or more"),
        ({"existence": True}, "needs direction='above', a margin between 0 and 1"),
        ({"existence": True, "margin": 0.5, "threshold": 1.0}, "no threshold"),
        ({"existence": True, "margin": 0.5, "direction": "below"}, "needs direction='above'"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make_claim(HIGH, LOW, **fields)


def test_plain_values_for_a_file():
    row = judge(make_claim(HIGH, LOW), {}, "laptop").as_json()
    assert row["status"] == "supported"
    assert row["per_seed"] == tuple(HIGH)
