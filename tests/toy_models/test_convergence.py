"""Toy model of in-context convergence: gradients against autograd, and half-times."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.studies.in_context_convergence.half_times import HalfTimes
from mesascope.studies.in_context_convergence.toy_model import (
    FeatureAttention,
    attend_to_features,
    compute_query_errors,
    compute_score_gradient,
    sample_feature_counts,
)
from mesascope.studies.toy_model import simulation_generator
from mesascope.tasks.regression import OneHotInputs
from mesascope.testing import check_toy_model

SMALL = FeatureAttention(features=4, examples=12, steps=40, prompts=30, checkpoints=5)


def sample_prompts(features=4, examples=12, count=30, dominant=None):
    frequency = OneHotInputs(dominant=dominant).index_probabilities(features)
    scores = torch.randn(features, features, generator=simulation_generator(7), dtype=torch.float64)
    return frequency, scores, sample_feature_counts(frequency, examples, count, simulation_generator(3))


def test_toy_model_contract():
    result = check_toy_model(SMALL)
    assert result["attention"].dims == ("step", "stat")
    assert result["step"].values.tolist() == [0, 10, 20, 30, 40]


def test_feature_counts_follow_the_frequencies():
    counts = sample_feature_counts(OneHotInputs(dominant=0.6).index_probabilities(5), 50, 400, simulation_generator(0))
    assert (counts.sum(1) == 50).all()
    assert counts.mean(0).numpy() / 50 == pytest.approx([0.6, 0.1, 0.1, 0.1, 0.1], abs=0.02)


def test_errors_equal_those_of_attention_over_single_examples():
    """The closed form agrees with the Monte Carlo mean over w of a head that attends to single examples."""
    _, scores, counts = sample_prompts(count=1)
    features = torch.arange(4).repeat_interleave(counts[0].long())
    w = torch.randn(200_000, 4, generator=simulation_generator(1), dtype=torch.float64)
    for query in range(4):
        weights = scores[features, query].softmax(0)
        answer = (weights * w[:, features]).sum(1)
        measured = 0.5 * (answer - w[:, query]).square().mean()
        closed = compute_query_errors(attend_to_features(scores, counts))[0, query]
        assert measured.item() == pytest.approx(closed.item(), rel=0.01)


def test_gradient_equals_autograd():
    frequency, scores, counts = sample_prompts(dominant=0.4)
    scores.requires_grad_()
    weights = attend_to_features(scores, counts)
    (compute_query_errors(weights).mean(0) * frequency).sum().backward()
    assert torch.allclose(compute_score_gradient(weights.detach(), frequency), scores.grad, rtol=1e-12, atol=1e-14)


def test_gradient_equals_the_formula_of_the_paper():
    """Derivatives of the mean error by the score of k with itself and with another feature."""
    frequency, scores, counts = sample_prompts(dominant=0.4)
    a = attend_to_features(scores, counts)
    result = compute_score_gradient(a, frequency)
    for k in range(4):
        own, squares = a[:, k, k], a[:, :, k].square().sum(1)
        rise = (own * ((1 - own) ** 2 + squares - own**2)).mean()
        assert result[k, k].item() == pytest.approx(-frequency[k].item() * rise.item())
        for n in set(range(4)) - {k}:
            fall = (a[:, n, k] * (a[:, n, k] - squares + own)).mean()
            assert result[n, k].item() == pytest.approx(frequency[k].item() * fall.item())


def test_absent_features_get_no_attention():
    counts = torch.tensor([[3.0, 0.0, 2.0]], dtype=torch.float64)
    weights = attend_to_features(torch.full((3, 3), 50.0, dtype=torch.float64), counts)
    assert weights[0, 1].tolist() == [0.0, 0.0, 0.0]
    assert weights.sum(1).numpy() == pytest.approx(np.ones((1, 3)))


def test_uniform_frequencies_treat_all_features_equally():
    result = FeatureAttention(features=6, examples=60, steps=400, prompts=400, checkpoints=9).simulate(0)
    first, others = (result["attention"].sel(stat=stat).values for stat in ("first feature", "other features"))
    assert others[-1] > 0.8
    assert first == pytest.approx(others, rel=0.05)


def test_a_dominant_feature_is_learned_first_and_suppressed():
    result = FeatureAttention(features=8, examples=64, dominant=0.5, steps=400, prompts=200, checkpoints=41).simulate(0)
    first, others = (result["attention"].sel(stat=stat) for stat in ("first feature", "other features"))
    assert float(first.sel(step=40)) > 0.8 > 0.2 > float(others.sel(step=40))
    early = result.sel(step=20, stat="other features")
    assert -float(early["cross_score"]) > float(early["own_score"]) > 0
    present, average = (result[name].sel(stat="other features").values[-1] for name in ("error_present", "error"))
    assert present < average


def test_half_times_do_not_depend_on_the_learning_rate():
    half_times = HalfTimes(features=(3, 4, 5, 6), prompts=10)
    coarse, fine = (
        one.simulate(0)["half_time"].values
        for one in (half_times, replace(half_times, learning_rate=half_times.learning_rate / 2))
    )
    assert coarse == pytest.approx(fine, rel=0.01)


def test_half_times_grow_with_the_number_of_features_only_for_uniform_frequencies():
    result = check_toy_model(HalfTimes(features=(5, 6, 8, 10), prompts=30))
    uniform, dominant = result["exponent"].values
    assert 1.5 < uniform < 2.5
    assert abs(dominant) < 0.5
    assert (np.diff(result["half_time"].values[0]) > 0).all()


def test_half_time_is_nan_after_max_steps():
    assert np.isnan(HalfTimes(features=(4, 5, 6, 8), prompts=20, max_steps=3).simulate(0)["half_time"].values).all()


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        ({"features": 2}, "features must be 3 or more"),
        ({"examples": 0}, "examples 1 or more"),
        ({"dominant": 1.0}, "dominant must lie between 0 and 1"),
    ],
)
def test_invalid_sizes_are_refused(invalid, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **invalid)


def test_an_exponent_needs_four_numbers_of_features():
    with pytest.raises(ValueError, match="four numbers or more"):
        HalfTimes(features=(4, 8, 16))
