"""Preprocessed gradient descent: its steps, the estimators beside it, and where preprocessing is in the way."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, Ridge

from mesascope.studies.sparse_regression_heads import toy_model
from mesascope.studies.sparse_regression_heads.toy_model import (
    SETTINGS,
    SOLVED,
    WAYS,
    Setting,
    SparseDescent,
    gap,
    lasso,
    ridge,
    risk,
    risks,
)
from mesascope.studies.toy_model import generator
from mesascope.testing import check_reduced

SMALL = SparseDescent(settings=(Setting(features=6, nonzero=2, examples=8),), steps=20, problems=10)


def test_it_keeps_the_promises_of_reduced_models():
    found = check_reduced(SMALL)
    for way, name in zip(WAYS, ("plain", "preprocessed"), strict=True):
        assert found[name].dims == ("_steps", "setting")
        assert found["best"].sel(predictor=way).item() == pytest.approx(found[name].min().item())
    assert np.allclose(found["ratio"], found["preprocessed"] / found["plain"])


def test_problems_have_the_sizes_that_were_asked_for():
    x, y, rule = Setting(features=10, nonzero=3, examples=5, noise=0.5).draw(4000, generator(0))
    assert ((rule != 0).sum(1) == 3).all()
    assert rule.square().sum(1).mean().item() == pytest.approx(3, rel=0.05)
    noise = y - torch.einsum("pef,pf->pe", x, rule)
    assert noise.std().item() == pytest.approx(0.5, rel=0.02)


def test_steps_are_gradient_descent_on_the_inputs_as_they_are_scaled():
    x, y, rule = Setting(features=4, nonzero=2, examples=6).draw(3, generator(0))
    scale = torch.rand(3, 4, dtype=torch.float64) + 0.5
    found = risks(x, y, rule, scale, 3)
    at = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    seen = x * scale[:, None]
    rate = 1 / torch.linalg.matrix_norm(seen.mT @ seen / 6, 2)[:, None]
    for step in range(4):
        assert found[step] == pytest.approx(risk(scale * at.detach(), rule))
        loss = 0.5 * (torch.einsum("pef,pf->pe", seen, at) - y).square().mean(1).sum()
        at = (at - rate * torch.autograd.grad(loss, at)[0]).detach().requires_grad_()


def test_plain_descent_comes_to_least_squares():
    x, y, rule = Setting(features=3, nonzero=2, examples=12).draw(5, generator(0))
    exact = (torch.linalg.pinv(x) @ y[..., None])[..., 0]
    assert risks(x, y, rule, torch.ones(5, 3, dtype=torch.float64), 3000)[-1] == pytest.approx(risk(exact, rule))


@pytest.mark.parametrize("penalty", [0.01, 0.3])
def test_ridge_and_lasso_are_those_of_a_library(penalty):
    x, y, _ = Setting(features=6, nonzero=2, examples=9).draw(4, generator(0))
    for row in range(4):
        ours = ridge(x, y, penalty)[row].numpy()
        assert ours == pytest.approx(Ridge(penalty * 9, fit_intercept=False).fit(x[row], y[row]).coef_)
        ours = lasso(x, y, penalty)[row].numpy()
        theirs = Lasso(penalty, fit_intercept=False, tol=1e-10, max_iter=100_000).fit(x[row], y[row]).coef_
        assert ours == pytest.approx(theirs, abs=2e-3)


@pytest.mark.parametrize("penalty", [0.003, 0.1])
def test_the_gap_bounds_how_far_a_lasso_is_from_its_least_value_and_closes_there(penalty):
    x, y, _ = Setting(features=6, nonzero=2, examples=5).draw(4, generator(0))
    gram, moment, nothing = x.mT @ x / 5, torch.einsum("pef,pe->pf", x, y) / 5, y.square().mean(1)

    def loss(at):
        return 0.5 * (torch.einsum("pef,pf->pe", x, at) - y).square().mean(1) + penalty * at.abs().sum(1)

    solvers = [
        Lasso(penalty, fit_intercept=False, tol=1e-12, max_iter=1_000_000).fit(*each) for each in zip(x, y, strict=True)
    ]
    exact = torch.tensor(np.stack([each.coef_ for each in solvers]))
    assert gap(gram, moment, nothing, exact, penalty).tolist() == pytest.approx([0.0] * 4, abs=1e-9)
    for away in (0.01, 0.3):
        at = exact + away
        assert (gap(gram, moment, nothing, at, penalty) >= loss(at) - loss(exact)).all()
    ours = lasso(x, y, penalty)
    assert (loss(ours) - loss(exact) <= SOLVED * nothing).all()


def test_a_lasso_may_begin_anywhere_and_says_where_it_cannot_end(monkeypatch):
    x, y, _ = Setting(features=6, nonzero=2, examples=9).draw(4, generator(0))
    begun = lasso(x, y, 0.1, torch.ones(4, 6, dtype=torch.float64))
    assert begun.numpy() == pytest.approx(lasso(x, y, 0.1).numpy(), abs=0.02)
    with pytest.raises(ValueError, match="penalty must be above 0, but got 0"):
        lasso(x, y, 0.0)
    monkeypatch.setattr(toy_model, "SHRINKING", 1)
    with pytest.raises(ValueError, match="a lasso must be solved in 1 steps, but 4 of 4 problems were not"):
        lasso(x, y, 0.01)


def test_preprocessing_helps_where_noise_or_few_examples_leave_room_and_not_otherwise():
    """The direction in every setting of the study, the reversal without noise and with many examples included."""
    found = SparseDescent(problems=200, steps=400)
    for setting in SETTINGS:
        x, y, rule = setting.draw(found.problems, generator(0))
        scale = (x * y[..., None]).mean(1)
        plain, preprocessed = (risks(x, y, rule, each, found.steps).min() for each in (torch.ones_like(scale), scale))
        reverses = setting.examples > setting.features and not setting.noise
        assert (preprocessed < plain) == (not reverses), setting.name


def test_its_control_is_a_rule_that_is_not_sparse():
    x, y, rule = Setting(features=16, nonzero=16, examples=40).draw(200, generator(0))
    scale = (x * y[..., None]).mean(1)
    plain, preprocessed = (risks(x, y, rule, each, 200).min() for each in (torch.ones_like(scale), scale))
    assert preprocessed > plain


@pytest.mark.parametrize("wrong", [{"nonzero": 0}, {"nonzero": 17}, {"examples": 0}, {"noise": -1.0}])
def test_what_is_no_problem_is_refused(wrong):
    with pytest.raises(ValueError, match="nonzero must lie between 1 and features"):
        replace(Setting(), **wrong)


def test_settings_have_names_of_their_own():
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)
    assert np.isfinite(SMALL.simulate(0)["best"].values).all()
