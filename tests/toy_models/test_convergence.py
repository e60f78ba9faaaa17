"""The reduced model of in-context convergence: its gradient is that of the prompts' error, and its story can fail."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.studies.in_context_convergence.toy_model import (
    FeatureAttention,
    HalfTimes,
    attention,
    errors,
    gradient,
    prompts,
)
from mesascope.studies.toy_model import generator
from mesascope.tasks.regression import Features
from mesascope.testing import check_reduced

SMALL = FeatureAttention(features=4, examples=12, steps=40, prompts=30, points=5)


def drawn(features=4, examples=12, count=30, dominant=None):
    frequency = Features(dominant=dominant).share(features)
    scores = torch.randn(features, features, generator=generator(7), dtype=torch.float64)
    return frequency, scores, prompts(frequency, examples, count, generator(3))


def test_it_keeps_the_promises_of_reduced_models():
    found = check_reduced(SMALL)
    assert found["attention"].dims == ("step", "stat")
    assert found["step"].values.tolist() == [0, 10, 20, 30, 40]


def test_prompts_show_as_many_examples_as_they_should_and_the_dominant_feature_most():
    counts = prompts(Features(dominant=0.6).share(5), 50, 400, generator(0))
    assert (counts.sum(1) == 50).all()
    assert counts.mean(0).numpy() / 50 == pytest.approx([0.6, 0.1, 0.1, 0.1, 0.1], abs=0.02)


def test_the_error_is_that_of_a_head_that_reads_every_example():
    """Softmax over single examples, answers w x mixed: its error, averaged over many w, is the one in closed form."""
    _, scores, counts = drawn(count=1)
    shown = torch.arange(4).repeat_interleave(counts[0].long())
    w = torch.randn(200_000, 4, generator=generator(1), dtype=torch.float64)
    for query in range(4):
        weights = scores[shown, query].softmax(0)
        answer = (weights * w[:, shown]).sum(1)
        measured = 0.5 * (answer - w[:, query]).square().mean()
        closed = errors(attention(scores, counts))[0, query]
        assert measured.item() == pytest.approx(closed.item(), rel=0.01)


def test_the_gradient_is_that_of_autograd():
    frequency, scores, counts = drawn(dominant=0.4)
    scores.requires_grad_()
    given = attention(scores, counts)
    (errors(given).mean(0) * frequency).sum().backward()
    assert torch.allclose(gradient(given.detach(), frequency), scores.grad, rtol=1e-12, atol=1e-14)


def test_the_gradient_is_that_of_the_paper():
    """By the score of k with itself and with another, as they follow from the mean error."""
    frequency, scores, counts = drawn(dominant=0.4)
    a = attention(scores, counts)
    found = gradient(a, frequency)
    for k in range(4):
        own, squares = a[:, k, k], a[:, :, k].square().sum(1)
        rise = (own * ((1 - own) ** 2 + squares - own**2)).mean()
        assert found[k, k].item() == pytest.approx(-frequency[k].item() * rise.item())
        for n in set(range(4)) - {k}:
            fall = (a[:, n, k] * (a[:, n, k] - squares + own)).mean()
            assert found[n, k].item() == pytest.approx(frequency[k].item() * fall.item())


def test_a_feature_that_no_prompt_shows_gets_no_attention():
    counts = torch.tensor([[3.0, 0.0, 2.0]], dtype=torch.float64)
    given = attention(torch.full((3, 3), 50.0, dtype=torch.float64), counts)
    assert given[0, 1].tolist() == [0.0, 0.0, 0.0]
    assert given.sum(1).numpy() == pytest.approx(np.ones((1, 3)))


def test_all_alike_nothing_sets_the_first_feature_apart():
    found = FeatureAttention(features=6, examples=60, steps=400, prompts=400, points=9).simulate(0)
    first, others = (found["attention"].sel(stat=stat).values for stat in ("first feature", "other features"))
    assert others[-1] > 0.8
    assert first == pytest.approx(others, rel=0.05)


def test_a_dominant_feature_is_learned_first_and_turned_away_from():
    found = FeatureAttention(features=8, examples=64, dominant=0.5, steps=400, prompts=200, points=41).simulate(0)
    first, others = (found["attention"].sel(stat=stat) for stat in ("first feature", "other features"))
    assert float(first.sel(step=40)) > 0.8 > 0.2 > float(others.sel(step=40))
    early = found.sel(step=20, stat="other features")
    assert -float(early["cross_score"]) > float(early["own_score"]) > 0
    shown, every = (found[name].sel(stat="other features").values[-1] for name in ("error_present", "error"))
    assert shown < every


def test_half_times_do_not_depend_on_the_length_of_a_step():
    often = HalfTimes(features=(3, 4, 5, 6), prompts=10)
    coarse, fine = (one.simulate(0)["half_time"].values for one in (often, replace(often, rate=often.rate / 2)))
    assert coarse == pytest.approx(fine, rel=0.01)


def test_half_times_grow_with_features_that_are_drawn_alike_and_not_with_the_others_of_a_dominant_one():
    found = check_reduced(HalfTimes(features=(5, 6, 8, 10), prompts=30))
    alike, dominant = found["exponent"].values
    assert 1.5 < alike < 2.5
    assert abs(dominant) < 0.5
    assert (np.diff(found["half_time"].values[0]) > 0).all()


def test_what_takes_too_long_has_no_half_time():
    assert np.isnan(HalfTimes(features=(4, 5, 6, 8), prompts=20, most=3).simulate(0)["half_time"].values).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"features": 2}, "features must be 3 or more"),
        ({"examples": 0}, "examples 1 or more"),
        ({"dominant": 1.0}, "dominant must be a share"),
    ],
)
def test_what_has_nothing_to_tell_apart_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        replace(SMALL, **wrong)


def test_an_exponent_needs_four_numbers_of_features():
    with pytest.raises(ValueError, match="four numbers or more"):
        HalfTimes(features=(4, 8, 16))
