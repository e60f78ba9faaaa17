"""The sparse-regression toy model: descent steps, ridge and lasso baselines, and the effect of preprocessing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, Ridge

from mesascope.studies.sparse_regression_heads.problems import (
    PROBLEM_SETTINGS,
    ProblemSetting,
    compute_mean_products,
)
from mesascope.studies.sparse_regression_heads.toy_model import (
    DESCENT_METHODS,
    METHODS,
    PENALTIES,
    SparseDescent,
    descent_risks,
    excess_risk,
    ridge_estimates,
)
from mesascope.studies.toy_model import simulation_generator
from mesascope.tasks.algorithms import compute_duality_gap, solve_lasso
from mesascope.testing import check_toy_model

SMALL = SparseDescent(settings=(ProblemSetting(features=6, nonzero=2, examples=8),), steps=20, problems=10)


def test_sparse_descent_passes_the_toy_model_checks():
    results = check_toy_model(SMALL)
    for method, name in zip(DESCENT_METHODS, ("plain_risk", "preprocessed_risk"), strict=True):
        assert results[name].dims == ("_steps", "distribution")
        assert results["best_risk"].sel(predictor=method).item() == pytest.approx(results[name].min().item())
    assert np.allclose(results["risk_ratio"], results["preprocessed_risk"] / results["plain_risk"])


def test_sampled_problems_have_the_requested_sizes():
    setting = ProblemSetting(features=10, nonzero=3, examples=5, noise=0.5)
    x, y, coefficients = setting.sample_problems(4000, simulation_generator(0))
    assert ((coefficients != 0).sum(1) == 3).all()
    assert coefficients.square().sum(1).mean().item() == pytest.approx(3, rel=0.05)
    noise = y - torch.einsum("pef,pf->pe", x, coefficients)
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)


def test_descent_agrees_with_autograd_on_scaled_inputs():
    x, y, coefficients = ProblemSetting(features=4, nonzero=2, examples=6).sample_problems(3, simulation_generator(0))
    scale = torch.rand(3, 4, dtype=torch.float64) + 0.5
    risks = descent_risks(x, y, coefficients, scale, 3)
    weights = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    scaled = x * scale[:, None]
    rate = 1 / torch.linalg.matrix_norm(scaled.mT @ scaled / 6, 2)[:, None]
    for step in range(4):
        assert risks[step] == pytest.approx(excess_risk(scale * weights.detach(), coefficients))
        loss = 0.5 * (torch.einsum("pef,pf->pe", scaled, weights) - y).square().mean(1).sum()
        weights = (weights - rate * torch.autograd.grad(loss, weights)[0]).detach().requires_grad_()


def test_plain_descent_converges_to_least_squares():
    x, y, coefficients = ProblemSetting(features=3, nonzero=2, examples=12).sample_problems(5, simulation_generator(0))
    exact = (torch.linalg.pinv(x) @ y[..., None])[..., 0]
    risks = descent_risks(x, y, coefficients, torch.ones(5, 3, dtype=torch.float64), 3000)
    assert risks[-1] == pytest.approx(excess_risk(exact, coefficients))


@pytest.mark.parametrize("penalty", [0.01, 0.3])
def test_ridge_agrees_with_scikit_learn(penalty):
    x, y, _ = ProblemSetting(features=6, nonzero=2, examples=9).sample_problems(4, simulation_generator(0))
    for row in range(4):
        ridge = ridge_estimates(x, y, penalty)[row].numpy()
        assert ridge == pytest.approx(Ridge(penalty * 9, fit_intercept=False).fit(x[row], y[row]).coef_)


@pytest.mark.parametrize("setting", PROBLEM_SETTINGS, ids=lambda setting: setting.name)
def test_lasso_agrees_with_scikit_learn_in_every_setting(setting):
    x, y, _ = setting.sample_problems(3, simulation_generator(0))
    estimates = solve_lasso(*compute_mean_products(x, y), y.square().mean(1), torch.tensor(PENALTIES))
    for penalty, found in zip(PENALTIES, estimates, strict=True):
        for row in range(3):
            solver = Lasso(penalty, fit_intercept=False, tol=1e-10, max_iter=1_000_000).fit(x[row], y[row])
            assert found[row].numpy() == pytest.approx(solver.coef_, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("penalty", [0.003, 0.1])
def test_duality_gap_bounds_the_distance_from_the_minimum_and_is_0_there(penalty):
    x, y, _ = ProblemSetting(features=6, nonzero=2, examples=5).sample_problems(4, simulation_generator(0))
    (gram, moment), mean_square = compute_mean_products(x, y), y.square().mean(1)

    def loss(weights):
        residual = torch.einsum("pef,pf->pe", x, weights) - y
        return 0.5 * residual.square().mean(1) + penalty * weights.abs().sum(1)

    exact = solve_lasso(gram, moment, mean_square, torch.tensor([penalty]))[0]
    assert compute_duality_gap(gram, moment, mean_square, exact, penalty).tolist() == pytest.approx(
        [0.0] * 4, abs=1e-12
    )
    for offset in (0.01, 0.3):
        gap = compute_duality_gap(gram, moment, mean_square, exact + offset, penalty)
        assert (gap >= loss(exact + offset) - loss(exact)).all()
        assert (loss(exact + offset) > loss(exact)).all()


def test_a_best_penalty_or_number_of_steps_at_the_edge_is_reported():
    """Without noise, the smallest penalty is best; with much noise, neither a penalty nor the last step is."""
    settings = (ProblemSetting(noise=0.0, examples=40), ProblemSetting(noise=2.0))
    at_edge = SparseDescent(settings=settings, steps=200, problems=100).simulate(0)["best_at_edge"]
    assert at_edge.sel(predictor=METHODS[2:]).values.tolist() == [[1, 1], [0, 0]]
    assert at_edge.sel(predictor=METHODS[0]).values.tolist() == [1, 0]


def test_preprocessing_lowers_the_risk_except_without_noise_and_with_many_examples():
    """The direction of the effect in every setting of the study, including the one where it is reversed."""
    model = SparseDescent(problems=200, steps=400)
    for setting in PROBLEM_SETTINGS:
        x, y, coefficients = setting.sample_problems(model.problems, simulation_generator(0))
        scale = (x * y[..., None]).mean(1)
        plain, preprocessed = (
            descent_risks(x, y, coefficients, factor, model.steps).min() for factor in (torch.ones_like(scale), scale)
        )
        is_reversed = setting.examples > setting.features and not setting.noise
        assert (preprocessed < plain) == (not is_reversed), setting.name


def test_preprocessing_raises_the_risk_for_dense_coefficients():
    setting = ProblemSetting(features=16, nonzero=16, examples=40)
    x, y, coefficients = setting.sample_problems(200, simulation_generator(0))
    scale = (x * y[..., None]).mean(1)
    plain, preprocessed = (
        descent_risks(x, y, coefficients, factor, 200).min() for factor in (torch.ones_like(scale), scale)
    )
    assert preprocessed > plain


@pytest.mark.parametrize("invalid", [{"nonzero": 0}, {"nonzero": 17}, {"examples": 0}, {"noise": -1.0}])
def test_invalid_problem_sizes_are_rejected(invalid):
    with pytest.raises(ValueError, match="nonzero must lie between 1 and features"):
        replace(ProblemSetting(), **invalid)


def test_problem_settings_have_distinct_names():
    assert len({setting.name for setting in PROBLEM_SETTINGS}) == len(PROBLEM_SETTINGS)
    assert np.isfinite(SMALL.simulate(0)["best_risk"].values).all()
