"""The shared statistics against scipy and against hand-made data."""

import numpy as np
import pytest
import scipy.stats
import torch

from mesascope.statistics import normalized_ranks, slope_and_r_squared


def test_ranks_give_scipys_spearman_with_ties():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, size=(5, 40)).astype(float), rng.normal(size=(5, 40)).round(1)
    for row in range(5):
        ours = float((normalized_ranks(torch.tensor(x[row])) * normalized_ranks(torch.tensor(y[row]))).sum())
        assert ours == pytest.approx(scipy.stats.spearmanr(x[row], y[row]).statistic, abs=1e-12)


def test_a_constant_has_no_ranks():
    assert torch.equal(normalized_ranks(torch.ones(2, 5)), torch.zeros(2, 5, dtype=torch.float64))


def test_slope_is_scipys():
    rng = np.random.default_rng(1)
    x = rng.normal(size=50)
    y = 2 * x + rng.normal(size=50)
    slope, share = slope_and_r_squared(torch.tensor(x)[:, None], torch.tensor(y)[:, None])
    fit = scipy.stats.linregress(x, y)
    assert slope == pytest.approx(fit.slope)
    assert share == pytest.approx(fit.rvalue**2)


def test_a_constant_has_neither_slope_nor_r_squared():
    assert slope_and_r_squared(torch.ones(9, 1), torch.randn(9, 1)) == (0.0, 0.0)
