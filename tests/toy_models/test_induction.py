"""Toy model and task of induction heads: target, gradients and learning times."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.studies.induction_heads.first_layer import compute_lag_weights, train_first_layer
from mesascope.studies.induction_heads.plateaus import (
    ALPHA_EXPONENT,
    LENGTH_EXPONENT,
    LOG_SIZE_R2,
    Plateaus,
    measure_learning_steps,
)
from mesascope.studies.induction_heads.task import (
    Grams,
    average_earlier_terms,
    compute_in_context_bigram,
    fit_average_scale,
)
from mesascope.studies.induction_heads.toy_model import BIGRAM, InductionHead, SequenceSample
from mesascope.studies.toy_model import simulation_generator
from mesascope.testing import check_task, check_toy_model

SMALL = InductionHead(length=6, steps=30, sequences=50, checkpoints=4)
PREVIOUS_TERM = torch.eye(5, dtype=torch.float64)  # a first layer that outputs the preceding term exactly


def compute_layer_errors(parameters, x, model, first_rate, first_scale):
    """Return half the mean squared error of both parts, computed by the two layers as in the paper."""
    a, p, b, c = parameters
    length = model.length
    outputs = torch.zeros_like(x)
    for s in range(1, length):
        outputs[:, s] = first_scale * x[:, :s].flip(1) @ compute_lag_weights(first_rate, s)
    weights = compute_lag_weights(p.square() if model.squared else p, length - 2)
    gram = a * sum(weights[j] * outputs[:, length - 2 - j] for j in range(length - 2))
    weight = (c**2 * x[:, -1:] * outputs[:, 1:-1]).softmax(1)
    bigram = b * (weight * x[:, 1:-1]).sum(1)
    right = (model.score**2 * x[:, -1:] * x[:, :-2]).softmax(1)
    target = (right * x[:, 1:-1]).sum(1) / (1 + model.alpha)
    return (
        0.5 * (gram - model.alpha / (1 + model.alpha) * x[:, -3]).square().mean(),
        0.5 * (bigram - target).square().mean(),
    )


def test_toy_model_contract():
    result = check_toy_model(SMALL)
    assert result["error"].dims == ("step", "stat")
    assert result["step"].values.tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize("squared", [False, True], ids=["plain", "squared"])
def test_updates_equal_gradient_descent_on_the_two_layers(squared):
    """One update of the toy model is one update of gradient descent on the error of the layers."""
    model = replace(SMALL, squared=squared, initial_size=0.3, sequences=400_000, steps=1, learning_rate=0.5)
    before, after = model.iterate_states(0)
    scale, decay = train_first_layer(model.initial_size, model.learning_rate, model.length - 1)
    x = torch.randn(model.sequences, model.length, generator=simulation_generator(0), dtype=torch.float64)
    parameters = torch.tensor(before.parameters, dtype=torch.float64, requires_grad=True)
    gram, bigram = compute_layer_errors(parameters, x, model, decay, scale)
    assert before.bigram_error == pytest.approx(bigram.item(), rel=1e-9)
    assert before.gram_error == pytest.approx(gram.item(), rel=0.02)  # the model is exact, the layers use a sample
    (slope,) = torch.autograd.grad(gram + bigram, parameters)
    moved = (np.array(before.parameters) - np.array(after.parameters)) / model.learning_rate
    assert moved[2:] == pytest.approx(slope[2:].numpy(), rel=1e-9)
    assert moved[:2] == pytest.approx(slope[:2].numpy(), rel=0.03, abs=1e-3)


def test_the_first_layer_learns_the_preceding_term():
    scale, decay = train_first_layer(0.01, 1.0, 19)
    assert scale * compute_lag_weights(decay, 19)[0].item() > 0.97


def test_average_error_is_minimal_over_scales():
    sample = SequenceSample.sample(replace(SMALL, sequences=3000), PREVIOUS_TERM, simulation_generator(0))
    mean = sample.value.mean(1)
    errors = [0.5 * (scale * mean - sample.target).square().mean().item() for scale in np.linspace(0, 1, 101)]
    assert sample.average_error == pytest.approx(min(errors), rel=1e-3)
    assert sample.average_error <= min(errors) + 1e-12


def test_the_four_gram_is_learned_before_the_induction_head():
    model = InductionHead(length=30, steps=1200, sequences=500, checkpoints=241)
    result = model.simulate(0)
    learned, emerged = measure_learning_steps(model, 0)
    assert learned < emerged < 1200
    errors = result["error"].interp(step=emerged)
    assert float(errors.sel(stat=BIGRAM)) == pytest.approx(0.5 * float(result["average_error"][0]), rel=0.05)
    parameters = result["parameter"].isel(step=-1)
    assert float(parameters.sel(component="c")) == pytest.approx(model.score, rel=0.02)
    assert float(parameters.sel(component="b")) == pytest.approx(0.5, rel=0.02)


def test_a_head_without_initial_score_does_not_emerge():
    """A zero score has no gradient, so only an average is learned."""
    model = InductionHead(length=10, initial_size=1e-12, steps=400, sequences=500)
    assert np.isnan(measure_learning_steps(model, 0)[1])
    result = model.simulate(0)
    assert float(result["error"].sel(stat=BIGRAM)[-1]) > 0.9 * float(result["average_error"][0])


@pytest.mark.slow
def test_laws_are_fitted_over_the_varied_values():
    plateaus = Plateaus(
        base=replace(SMALL, length=12, sequences=200, learning_rate=1.5),
        initial_sizes=(0.1, 0.03, 0.01),
        lengths=(12, 20, 30),
        alphas=(0.5, 1),
        scores=(0.7, 0.8),
    )
    result = check_toy_model(plateaus)
    assert result["steps_by_initial_size"].dims == ("stat", "_initial_size")
    steps = result["steps_by_length"].sel(stat=BIGRAM).values
    assert (np.diff(steps) > 0).all()
    law = result["law"].to_series()
    assert 0.9 < law[LOG_SIZE_R2] <= 1
    assert law[LENGTH_EXPONENT] == pytest.approx(np.polyfit(np.log([12, 20, 30]), np.log(steps), 1)[0])
    assert law[ALPHA_EXPONENT] > 1


def test_a_plateau_without_end_has_nan_laws():
    plateaus = Plateaus(
        base=SMALL, initial_sizes=(0.1, 0.01), lengths=(6, 8), alphas=(1, 2), scores=(0.7, 0.8), max_steps=3
    )
    assert np.isnan(plateaus.simulate(0)["law"].values).all()


@pytest.mark.parametrize("invalid", [{"length": 4}, {"score": 0.0}, {"alpha": -1.0}, {"initial_size": 0.0}])
def test_invalid_numbers_are_refused(invalid):
    with pytest.raises(ValueError, match=f"{next(iter(invalid))} must be"):
        replace(SMALL, **invalid)


def test_task_and_toy_model_have_the_same_target():
    check_task(Grams())
    task = Grams(length=6, score=0.7, alpha=3.0)
    batch = task.sample(40, torch.Generator().manual_seed(0))
    x = batch.inputs[..., 0].double()
    sample = SequenceSample(
        product=x[:, -1:] * x[:, :-2], value=x[:, 1:-1], target=torch.zeros(40, dtype=torch.float64)
    )
    error, _ = sample.compute_error(torch.tensor(1.0), torch.tensor(0.7))
    assert error == pytest.approx(0.5 * (batch.targets[:, -1, 1].double() * 4).square().mean().item(), rel=1e-5)
    assert torch.allclose(batch.targets[:, 3:, 0], 0.75 * batch.inputs[:, 1:-2, 0])
    assert batch.weight.sum(0).tolist() == [0, 0, 0, 40, 40, 40]


def test_baselines_are_ordered_by_error():
    task = Grams(length=8)
    batch = task.sample(2000, torch.Generator().manual_seed(0))
    error = {name: (task.loss(each, batch) * batch.weight).sum().item() for name, each in task.baselines(batch).items()}
    assert error["exact target"] < 1e-6 < error["4-gram and scaled average"] < error["4-gram only"]


def test_average_scale_is_optimal():
    scale = fit_average_scale(8, 0.7)
    x = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(5))
    mean, target = average_earlier_terms(x), compute_in_context_bigram(x, 0.7)

    def error(scale):
        return (scale * mean - target).square().mean(0)[3:]

    assert (error(scale) < error(scale - 0.1)).all()
    assert (error(scale) < error(scale + 0.1)).all()
