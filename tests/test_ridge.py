"""Ridge regression against scikit-learn and the written-out definition; a planted map, and rows without one."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge, RidgeCV

from mesascope.ridge import LOG10_PENALTIES, decompose_features, fit_ridge
from mesascope.statistics import r_squared


def noisy_rows(n, features=6, outputs=2, noise=0.5, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(n, features, generator=g).double(), torch.randn(features, outputs, generator=g).double()
    return x, x @ weight + 3.0 + noise * torch.randn(n, outputs, generator=g).double()


def heavy_tailed_rows(n, seed=0):
    """One feature is 100,000 times as large in one row in fifty; the targets are the other features, with noise."""
    g = torch.Generator().manual_seed(seed)
    size = torch.where(torch.rand(n, 1, generator=g) < 0.02, 1e5, 1.0).double()
    latent = torch.randn(n, 2, generator=g).double()
    x = torch.cat([size * torch.randn(n, 1, generator=g).double(), latent], 1)
    return x, latent + 0.2 * torch.randn(n, 2, generator=g).double()


@pytest.mark.parametrize("rows", [5, 7, 40])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_a_given_penalty_gives_the_coefficients_of_scikit_learn(rows, center, exact):
    x, y = noisy_rows(rows)
    fit = decompose_features(x, center=center, exact=exact).solve(y, -1.0)
    spread = (x - x.mean(0) if center else x).square().sum() / x.shape[1]
    expected = Ridge(alpha=0.1 * float(spread), fit_intercept=center, solver="svd").fit(x.numpy(), y.numpy())
    assert np.allclose(fit.weight.T, expected.coef_, atol=1e-9)
    assert np.allclose(fit.predict(x), expected.predict(x.numpy()), atol=1e-9)


@pytest.mark.parametrize("rows", [5, 40])
@pytest.mark.parametrize("center", [True, False])
def test_the_score_of_a_penalty_is_that_of_the_hat_matrix(rows, center):
    x, y = noisy_rows(rows)
    design = decompose_features(x, center=center)
    scores = design.score_penalties(y)
    for index in (20, 28, 36):
        hat = design.solve(torch.eye(rows).double(), LOG10_PENALTIES[index]).predict(x)
        by_hand = (y - hat @ y).square().sum() / (rows - hat.trace()).square()
        assert float(scores[index]) == pytest.approx(float(by_hand), rel=1e-8)
    assert design.fit(y).log10_penalty == LOG10_PENALTIES[int(scores.argmin())]


def test_both_decompositions_choose_the_same_map():
    for rows in (30, 100):
        x, y = noisy_rows(rows, features=60)
        exact, fast = (decompose_features(x, center=False, exact=exact).fit(y) for exact in (True, False))
        assert exact.log10_penalty == fast.log10_penalty
        assert torch.allclose(exact.weight, fast.weight, atol=1e-6)


def test_an_affine_map_is_recovered_and_scored_as_perfect():
    x, y = noisy_rows(200, noise=0.0)
    fit = fit_ridge(x.float(), y)
    assert torch.allclose(fit.intercept, torch.full((2,), 3.0).double(), atol=1e-5)
    assert r_squared(fit.predict(x), y) == pytest.approx(1.0, abs=1e-10)


def test_noise_explains_nothing_and_gets_the_largest_penalty():
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(400, 30, generator=g), torch.randn(400, 8, generator=g)
    fit = fit_ridge(x[:200], y[:200])
    assert fit.log10_penalty >= 1.0
    assert abs(r_squared(fit.predict(x[200:]), y[200:])) < 0.05


def test_an_infinite_penalty_is_the_mean_or_nothing():
    x, y = noisy_rows(20)
    centred, plain = decompose_features(x), decompose_features(x, center=False)
    assert torch.equal(centred.solve(y, torch.inf).predict(x), y.mean(0).expand_as(y))
    assert torch.equal(plain.solve(y, torch.inf).predict(x), torch.zeros_like(y))


def test_heavy_tailed_rows_are_fitted_as_well_as_by_scikit_learn():
    """A fixed penalty in units of the variance would be that of the few large rows."""
    (x, y), (new_x, new_y) = heavy_tailed_rows(400), heavy_tailed_rows(4_000, seed=1)
    fit = fit_ridge(x.float(), y)
    squares = LinearRegression().fit(x.numpy(), y.numpy())
    unit = float((x - x.mean(0)).square().sum() / x.shape[1])
    crossval = RidgeCV(alphas=[10**power * unit for power in LOG10_PENALTIES]).fit(x.numpy(), y.numpy())
    error = float((fit.predict(new_x) - new_y).square().mean())
    for other in (squares, crossval):
        assert error == pytest.approx(float(np.square(other.predict(new_x.numpy()) - new_y.numpy()).mean()), rel=0.01)
    fixed = decompose_features(x).solve(y, -6.0).predict(new_x)
    assert float((fixed - new_y).square().mean()) > 5 * error


def test_constant_features_give_the_mean():
    fit = fit_ridge(torch.ones(4, 3), torch.tensor([[1.0], [2.0], [3.0], [6.0]]))
    assert fit.predict(torch.ones(1, 3)).item() == pytest.approx(3.0)


def test_too_few_rows_and_infinite_features_are_refused():
    with pytest.raises(ValueError, match="needs two rows or more, but got 1"):
        fit_ridge(torch.ones(1, 3), torch.ones(1, 1))
    with pytest.raises(ValueError, match="needs finite features"):
        fit_ridge(torch.full((3, 2), torch.nan), torch.ones(3, 1))
