"""The norm-growth toy model agrees with the derivation, and needs both of its premises."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.analyses.training.parameter_norms import fit_norm_exponent
from mesascope.studies.norm_growth.toy_model import (
    ALIGNED,
    CONSTANT_SIZE,
    PAPER_SCHEDULE,
    PROPORTIONAL,
    SCHEDULES,
    NormGrowth,
    UpdateRule,
    learning_rates,
)
from mesascope.studies.toy_model import simulation_generator
from mesascope.testing import check_toy_model

SMALL = NormGrowth(dimensions=300, steps=400, num_points=30)


def simulate_norm(rule: UpdateRule, model: NormGrowth = SMALL, seed: int = 0) -> np.ndarray:
    """Return the norm after every step."""
    return model.simulate_norms([rule], range(model.steps + 1), simulation_generator(seed))[:, 0]


def test_norm_growth_passes_the_toy_model_checks():
    results = check_toy_model(SMALL)
    assert results["norm_by_constant"].dims == ("step", "_constant")
    assert results["step"].values[[0, -1]].tolist() == [0, 400]
    assert results["norm_by_schedule"].sel(step=0).values == pytest.approx(1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rates_have_one_sum_of_squares_and_the_form_of_the_schedule(schedule):
    rates = learning_rates(schedule, 100)
    assert (rates**2).sum() == pytest.approx((1 / np.arange(1, 101)).sum())
    form = {"constant": 1.0, "1/√t": np.arange(1, 101) ** -0.5, "linear decay": np.arange(100, 0, -1) / 100}
    assert rates / rates[0] == pytest.approx(np.broadcast_to(form[schedule], 100))


def test_norm_is_the_derived_product():
    """|theta|^2 is multiplied by 1 + c eta^2 at every step, up to the deviation of directions from orthogonality."""
    rules = [UpdateRule(c=0.5), UpdateRule(c=2.0), UpdateRule(kind=ALIGNED)]
    model = replace(SMALL, dimensions=6_000)
    *norms, aligned = model.simulate_norms(rules, range(401), simulation_generator(0)).T
    for rule, norm in zip(rules, norms, strict=False):
        expected = np.cumprod(1 + rule.c * learning_rates(PAPER_SCHEDULE, 400) ** 2) ** 0.5
        assert norm[1:] == pytest.approx(expected, rel=0.1)
    assert aligned[1:] == pytest.approx(np.cumprod(1 + learning_rates(PAPER_SCHEDULE, 400)))


def test_updates_of_constant_size_give_a_random_walk():
    """The mean squared norm is 1 + c sum eta^2."""
    rule = UpdateRule(kind=CONSTANT_SIZE, c=2.0)
    squares = np.mean([simulate_norm(rule, seed=seed) ** 2 for seed in range(10)], 0)
    assert squares[1:] == pytest.approx(1 + 2 * np.cumsum(learning_rates(PAPER_SCHEDULE, 400) ** 2), rel=0.15)


def test_exponents_are_c_over_2_and_depend_on_the_schedule():
    results = replace(SMALL, dimensions=1_500, steps=1_200).simulate(0)
    exponents = results["exponent_by_constant"]
    assert exponents.values == pytest.approx(exponents["_constant"].values / 2, abs=0.1)
    by_schedule = results["exponent_by_schedule"]
    assert float(by_schedule.sel(_schedule="constant")) > 1.0 > float(by_schedule.sel(_schedule=PAPER_SCHEDULE)) + 0.3
    fit_r2 = results["fit_r2"]
    assert float(fit_r2.sel(_fit="1/√t, on √t")) > 0.99 > float(fit_r2.sel(_fit="1/√t, on t"))
    by_size = results["exponent_by_size"]
    assert float(by_size.sel(_size=CONSTANT_SIZE)) < 0.15 < float(by_size.sel(_size=PROPORTIONAL))
    aligned = np.log(results["norm_aligned"])
    assert np.corrcoef(aligned, aligned["step"] ** 0.5)[0, 1] > 0.999


def test_exponent_agrees_with_the_fit_for_trained_networks():
    """The fit of trained networks is a + b t^g, here with c = 1."""
    norm = simulate_norm(UpdateRule(), replace(SMALL, dimensions=6_000))
    steps = np.arange(40, 401, 40)
    assert fit_norm_exponent(steps.astype(float), norm[steps]) == pytest.approx(0.5, abs=0.1)


def test_directions_depend_on_the_seed_only():
    first, other = (simulate_norm(UpdateRule(), seed=seed) for seed in (0, 1))
    assert not np.array_equal(first, other)
    assert np.array_equal(first, simulate_norm(UpdateRule(), seed=0))
    assert torch.equal(torch.from_numpy(first), torch.from_numpy(simulate_norm(UpdateRule())))


@pytest.mark.parametrize("invalid", [{"dimensions": 1}, {"steps": 19}, {"num_points": 10}])
def test_sizes_without_a_defined_exponent_are_rejected(invalid):
    with pytest.raises(ValueError, match="dimensions must be 2 or more, steps and num_points 20 or more, but got"):
        replace(SMALL, **invalid)


@pytest.mark.parametrize("invalid", [(), (0.0, 1.0), (-1.0,)])
def test_nonpositive_constants_are_rejected(invalid):
    with pytest.raises(ValueError, match="constants must be one or more, above 0, but got"):
        replace(SMALL, constants=invalid)
