"""A vector that is moved: its norm is what the derivation says, and neither of its premises can be left out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.analyses.training.parameter_norms import exponent
from mesascope.studies.norm_growth.toy_model import ALIGNED, PAPERS, PROPORTION, RATES, WALK, NormGrowth, Way, rates
from mesascope.studies.toy_model import generator
from mesascope.testing import check_reduced

SMALL = NormGrowth(dimensions=300, steps=400, points=30)


def walked(way: Way, model: NormGrowth = SMALL, seed: int = 0) -> np.ndarray:
    """The norm after every step."""
    return model.norms([way], range(model.steps + 1), generator(seed))[:, 0]


def test_it_keeps_the_promises_of_reduced_models():
    found = check_reduced(SMALL)
    assert found["norm_by_constant"].dims == ("step", "_constant")
    assert found["step"].values[[0, -1]].tolist() == [0, 400]
    assert found["norm_by_schedule"].sel(step=0).values == pytest.approx(1)


@pytest.mark.parametrize("schedule", RATES)
def test_rates_have_one_sum_of_squares_and_the_form_that_they_are_named_for(schedule):
    found = rates(schedule, 100)
    assert (found**2).sum() == pytest.approx((1 / np.arange(1, 101)).sum())
    shape = {"constant": 1.0, "1/√t": np.arange(1, 101) ** -0.5, "linear decay": np.arange(100, 0, -1) / 100}
    assert found / found[0] == pytest.approx(np.broadcast_to(shape[schedule], 100))


def test_the_norm_is_the_product_that_is_derived():
    """|theta|^2 is multiplied by 1 + c eta^2 at every step, but for what directions are not quite at right angles."""
    ways = [Way(c=0.5), Way(c=2.0), Way(kind=ALIGNED)]
    *found, aligned = replace(SMALL, dimensions=6_000).norms(ways, range(401), generator(0)).T
    for way, norm in zip(ways, found, strict=False):
        expected = np.cumprod(1 + way.c * rates(PAPERS, 400) ** 2) ** 0.5
        assert norm[1:] == pytest.approx(expected, rel=0.1)
    assert aligned[1:] == pytest.approx(np.cumprod(1 + rates(PAPERS, 400)))


def test_a_walk_has_the_norm_of_one():
    """Its mean square is 1 + c sum eta^2, whatever the norm."""
    squares = np.mean([walked(Way(kind=WALK, c=2.0), seed=seed) ** 2 for seed in range(10)], 0)
    assert squares[1:] == pytest.approx(1 + 2 * np.cumsum(rates(PAPERS, 400) ** 2), rel=0.15)


def test_powers_are_c_over_2_and_follow_from_the_schedule():
    found = replace(SMALL, dimensions=1_500, steps=1_200).simulate(0)
    powers = found["power_by_constant"]
    assert powers.values == pytest.approx(powers["_constant"].values / 2, abs=0.1)
    by_schedule = found["power_by_schedule"]
    assert float(by_schedule.sel(_schedule="constant")) > 1.0 > float(by_schedule.sel(_schedule=PAPERS)) + 0.3
    straight = found["straight"]
    assert float(straight.sel(_fit="1/√t, on √t")) > 0.99 > float(straight.sel(_fit="1/√t, on t"))
    by_size = found["power_by_size"]
    assert float(by_size.sel(_size=WALK)) < 0.15 < float(by_size.sel(_size=PROPORTION))
    aligned = np.log(found["norm_along_itself"])
    assert np.corrcoef(aligned, aligned["step"] ** 0.5)[0, 1] > 0.999


def test_the_power_is_that_which_trails_are_told_to_have():
    """By the fit of trained networks: a + b t^g, here with c = 1."""
    norm = walked(Way(), replace(SMALL, dimensions=6_000))
    steps = np.arange(40, 401, 40)
    assert exponent(steps.astype(float), norm[steps]) == pytest.approx(0.5, abs=0.1)


def test_directions_are_drawn_anew():
    first, other = (walked(Way(), seed=seed) for seed in (0, 1))
    assert not np.array_equal(first, other)
    assert np.array_equal(first, walked(Way(), seed=0))
    assert torch.equal(torch.from_numpy(first), torch.from_numpy(walked(Way())))


@pytest.mark.parametrize("wrong", [{"dimensions": 1}, {"steps": 19}, {"points": 10}])
def test_sizes_that_give_no_power_are_refused(wrong):
    with pytest.raises(ValueError, match="dimensions must be 2 or more, steps and points 20 or more, but got"):
        replace(SMALL, **wrong)


@pytest.mark.parametrize("wrong", [(), (0.0, 1.0), (-1.0,)])
def test_moves_of_no_size_are_refused(wrong):
    with pytest.raises(ValueError, match="constants must be one or more, above 0, but got"):
        replace(SMALL, constants=wrong)
