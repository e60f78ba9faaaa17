"""The reduced model of induction heads: its target, slopes and times are what they are said to be."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.studies.induction_heads.task import Grams, best_average, following_alike, mean_before
from mesascope.studies.induction_heads.toy_model import (
    BY_ALPHA,
    BY_LENGTH,
    PARTS,
    STRAIGHT,
    InductionHead,
    Plateaus,
    Sample,
    by_lag,
    first_layer,
    times_of,
)
from mesascope.studies.toy_model import generator
from mesascope.testing import check_reduced, check_task

SMALL = InductionHead(length=6, steps=30, sequences=50, points=4)
SEES = torch.eye(5, dtype=torch.float64)  # a first layer that writes the term before, and nothing else


def whole_error(numbers, x, model, rate_of_first, scale_of_first):
    """Half the mean squared error of both parts, told by the two layers as they are written in the paper."""
    a, p, b, c = numbers
    length = model.length
    written = torch.zeros_like(x)
    for s in range(1, length):
        written[:, s] = scale_of_first * x[:, :s].flip(1) @ by_lag(rate_of_first, s)
    shares = by_lag(p.square() if model.squared else p, length - 2)
    gram = a * sum(shares[j] * written[:, length - 2 - j] for j in range(length - 2))
    weight = (c**2 * x[:, -1:] * written[:, 1:-1]).softmax(1)
    induced = b * (weight * x[:, 1:-1]).sum(1)
    right = (model.score**2 * x[:, -1:] * x[:, :-2]).softmax(1)
    wanted = (right * x[:, 1:-1]).sum(1) / (1 + model.alpha)
    return (
        0.5 * (gram - model.alpha / (1 + model.alpha) * x[:, -3]).square().mean(),
        0.5 * (induced - wanted).square().mean(),
    )


def test_it_keeps_the_promises_of_reduced_models():
    found = check_reduced(SMALL)
    assert found["error"].dims == ("step", "stat")
    assert found["step"].values.tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize("squared", [False, True], ids=["as it is", "squared"])
def test_errors_and_steps_are_those_of_the_two_layers(squared):
    """One step of the reduced model is one step of gradient descent on the error of the layers."""
    model = replace(SMALL, squared=squared, size=0.3, sequences=400_000, steps=1, rate=0.5)
    before, after = model.states(0)
    scale, fall = first_layer(model.size, model.rate, model.length - 1)
    x = torch.randn(model.sequences, model.length, generator=generator(0), dtype=torch.float64)
    numbers = torch.tensor(before.numbers, dtype=torch.float64, requires_grad=True)
    told, induced = whole_error(numbers, x, model, fall, scale)
    assert before.induced == pytest.approx(induced.item(), rel=1e-9)
    assert before.told == pytest.approx(told.item(), rel=0.02)  # there exact, here of a sample
    (slope,) = torch.autograd.grad(told + induced, numbers)
    moved = (np.array(before.numbers) - np.array(after.numbers)) / model.rate
    assert moved[2:] == pytest.approx(slope[2:].numpy(), rel=1e-9)
    assert moved[:2] == pytest.approx(slope[:2].numpy(), rel=0.03, abs=1e-3)


def test_the_first_layer_learns_the_term_before():
    scale, fall = first_layer(0.01, 1.0, 19)
    assert scale * by_lag(fall, 19)[0].item() > 0.97


def test_the_least_error_of_an_average_is_the_least():
    sample = Sample.drawn(replace(SMALL, sequences=3000), SEES, generator(0))
    mean = sample.term.mean(1)
    tried = [0.5 * (share * mean - sample.wanted).square().mean().item() for share in np.linspace(0, 1, 101)]
    assert sample.average == pytest.approx(min(tried), rel=1e-3)
    assert sample.average <= min(tried) + 1e-12


def test_the_four_gram_is_told_first_and_then_the_head_is_found():
    model = InductionHead(length=30, steps=1200, sequences=500, points=241)
    found = model.simulate(0)
    told, emerged = times_of(model, 0)
    assert told < emerged < 1200
    errors = found["error"].interp(step=emerged)
    assert float(errors.sel(stat=PARTS[1])) == pytest.approx(0.5 * float(found["average"][0]), rel=0.05)
    numbers = found["number"].isel(step=-1)
    assert float(numbers.sel(component="c")) == pytest.approx(model.score, rel=0.02)
    assert float(numbers.sel(component="b")) == pytest.approx(0.5, rel=0.02)


def test_a_head_that_never_compares_does_not_emerge():
    """With no score at first there is no slope: nothing but an average is ever learned."""
    model = InductionHead(length=10, size=1e-12, steps=400, sequences=500)
    assert np.isnan(times_of(model, 0)[1])
    found = model.simulate(0)
    assert float(found["error"].sel(stat=PARTS[1])[-1]) > 0.9 * float(found["average"][0])


def test_plateaus_are_fitted_over_what_was_tried():
    tried = Plateaus(
        base=replace(SMALL, length=12, sequences=200, rate=1.5),
        sizes=(0.1, 0.03, 0.01),
        lengths=(12, 20, 30),
        alphas=(0.5, 1),
        scores=(0.7, 0.8),
    )
    found = check_reduced(tried)
    assert found["steps_by_size"].dims == ("stat", "_size")
    steps = found["steps_by_length"].sel(stat=PARTS[1]).values
    assert (np.diff(steps) > 0).all()
    law = found["law"].to_series()
    assert 0.9 < law[STRAIGHT] <= 1
    assert law[BY_LENGTH] == pytest.approx(np.polyfit(np.log([12, 20, 30]), np.log(steps), 1)[0])
    assert law[BY_ALPHA] > 1


def test_a_plateau_that_never_ends_has_no_law():
    tried = Plateaus(base=SMALL, sizes=(0.1, 0.01), lengths=(6, 8), alphas=(1, 2), scores=(0.7, 0.8), most=3)
    assert np.isnan(tried.simulate(0)["law"].values).all()


@pytest.mark.parametrize("wrong", [{"length": 4}, {"score": 0.0}, {"alpha": -1.0}, {"size": 0.0}])
def test_what_has_no_plateau_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        replace(SMALL, **wrong)


def test_the_task_tells_the_same_target():
    check_task(Grams())
    task = Grams(length=6, score=0.7, alpha=3.0)
    batch = task.sample(40, torch.Generator().manual_seed(0))
    x = batch.inputs[..., 0].double()
    sample = Sample(product=x[:, -1:] * x[:, :-2], term=x[:, 1:-1], wanted=torch.zeros(40, dtype=torch.float64))
    error, _ = sample.error(torch.tensor(1.0), torch.tensor(0.7))
    assert error == pytest.approx(0.5 * (batch.targets[:, -1, 1].double() * 4).square().mean().item(), rel=1e-5)
    assert torch.allclose(batch.targets[:, 3:, 0], 0.75 * batch.inputs[:, 1:-2, 0])
    assert batch.weight.sum(0).tolist() == [0, 0, 0, 40, 40, 40]


def test_its_oracles_are_in_order():
    task = Grams(length=8)
    batch = task.sample(2000, torch.Generator().manual_seed(0))
    error = {name: (task.loss(each, batch) * batch.weight).sum().item() for name, each in task.oracles(batch).items()}
    assert error["both"] < 1e-6 < error["4-gram and a plain average"] < error["4-gram alone"]


def test_the_best_average_is_the_best():
    share = best_average(8, 0.7)
    x = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(5))
    mean, wanted = mean_before(x), following_alike(x, 0.7)

    def error(by):
        return (by * mean - wanted).square().mean(0)[3:]

    assert (error(share) < error(share - 0.1)).all()
    assert (error(share) < error(share + 0.1)).all()
