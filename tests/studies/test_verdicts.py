"""A verdict follows from numbers by stated rules, and every rule can go the other way."""

import numpy as np
import pytest
import xarray as xr

from mesascope.studies.base import Claim, Quantity
from mesascope.studies.verdicts import judge


def claim(statistic, control, direction="above", bound=None):
    def numbers(values):
        return lambda results: xr.DataArray(np.asarray(values, float), dims="seed")

    return Claim(
        name="n",
        statement="s",
        source="ours",
        value=Quantity(description="a number", read=numbers(statistic)),
        control=Quantity(description="another", read=numbers(control)),
        direction=direction,
        threshold=bound,
    )


@pytest.mark.parametrize(
    ("statistic", "control", "direction", "bound", "word"),
    [
        ([0.9, 0.8, 0.95], [0.1, 0.2, 0.0], "above", None, "supported"),
        ([0.9, 0.8, 0.95], [0.1, 0.2, 0.0], "below", None, "contradicted"),
        ([0.9, 0.8, 0.95], [0.1, 0.2, 0.0], "above", 0.7, "supported"),
        ([0.9, 0.8, 0.95], [0.1, 0.2, 0.0], "above", 0.85, "inconclusive"),
        ([0.9, 0.8, 0.95], [0.1, 0.2, 0.0], "above", 0.99, "contradicted"),
        ([0.01, 0.02, 0.03], [1, 2, 3], "below", 0.05, "supported"),
        ([0.01, 0.02, 0.09], [1, 2, 3], "below", 0.05, "inconclusive"),
        ([0.3, -0.1, 0.2], [0, 0, 0], "above", None, "inconclusive"),
        ([0, 0, 0], [0, 0, 0], "above", None, "inconclusive"),
        ([0.9, 0.8], [0.1, 0.2], "above", None, "inconclusive"),
        ([0.9, np.nan, 0.95], [0.1, 0.2, 0.0], "above", None, "inconclusive"),
        ([np.nan] * 3, [0.1, 0.2, 0.0], "above", None, "inconclusive"),
    ],
)
def test_the_word_follows_from_the_numbers(statistic, control, direction, bound, word):
    verdict = judge(claim(statistic, control, direction, bound), {}, "laptop")
    assert verdict.status == word, verdict.reason
    assert verdict.reason


def test_the_difference_is_paired_by_seed():
    """Large differences between seeds do not hide a small one that every seed has."""
    verdict = judge(claim([10.1, 20.1, 30.1], [10, 20, 30]), {}, "laptop")
    assert verdict.status == "supported"
    assert verdict.difference == pytest.approx((0.1, 0.1))
    assert verdict.interval[0] < 15 < 25 < verdict.interval[1]


def test_at_a_scale_that_decides_nothing_the_numbers_are_shown_all_the_same():
    verdict = judge(claim([0.9, 0.8, 0.95], [0.1, 0.2, 0.0]), {}, "smoke")
    assert verdict.status == "not tested at this scale"
    assert verdict.value == pytest.approx(0.8833, abs=1e-4)


def test_the_same_numbers_give_the_same_interval_and_it_holds_the_mean():
    one, two = (judge(claim([1.0, 2.0, 4.0, 7.0], [0, 0, 0, 0]), {}, "laptop") for _ in range(2))
    assert one == two
    assert one.interval[0] <= one.value <= one.interval[1]


def test_seeds_without_a_value_are_told():
    verdict = judge(claim([0.9, np.nan, 0.95, 0.8], [0.1, 0.2, 0.0, 0.1]), {}, "laptop")
    assert verdict.per_seed == (0.9, None, 0.95, 0.8)
    assert verdict.status == "supported"
    assert verdict.value == pytest.approx(np.mean([0.9, 0.95, 0.8]))


def test_a_statistic_needs_the_axis_seed_alone():
    wrong = claim([1.0], [1.0])
    table = xr.DataArray(np.ones((2, 3)), dims=("seed", "layer"))
    with pytest.raises(ValueError, match="must have the axis seed and no other"):
        judge(
            Claim(**{**vars(wrong), "value": Quantity(description="a table", read=lambda results: table)}), {}, "laptop"
        )


def test_plain_values_for_a_file():
    row = judge(claim([0.9, 0.8, 0.95], [0.1, 0.2, 0.0]), {}, "laptop").as_json()
    assert row["status"] == "supported"
    assert row["per_seed"] == (0.9, 0.8, 0.95)
