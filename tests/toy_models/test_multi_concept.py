"""Toy model of multi-concept prompts: steps against autograd, coefficients against all prompts, fits and decoders."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.studies.multi_concept.coefficients import CoefficientDynamics, ConceptCoefficients, SignCounts
from mesascope.studies.multi_concept.error_curves import FIT_WINDOW, fit_decays
from mesascope.studies.multi_concept.shifted_accuracy import INTACT, UNIFORM, shifted_accuracy
from mesascope.studies.multi_concept.task import (
    NEAREST,
    SWAPPED_LABELS,
    TRAINING_PROMPTS,
    ConceptPrompts,
    PromptSample,
)
from mesascope.studies.multi_concept.toy_model import NOISE, SHARED, SIGN, ZERO_ONE, AttentionWeights, ConceptAttention
from mesascope.studies.toy_model import simulation_generator
from mesascope.tasks.affine import Affine
from mesascope.testing import check_toy_model

PROMPTS = ConceptPrompts(concepts=4, group_size=2, demonstrations=6, noise_dims=3)
SIMPLE = replace(PROMPTS, companion_probability=0.0, noise=0.0)
SMALL = ConceptAttention(
    prompts=PROMPTS, neurons=6, initial_size=0.5, steps=6, batch_size=8, evaluation_prompts=32, checkpoints=4
)


def draw_weights(model=SMALL, seed=0):
    """Return weights away from their initial values."""
    generator = simulation_generator(seed)
    weights = AttentionWeights.initialize(model, generator)
    moved = {
        name: getattr(weights, name) + 0.3 * torch.randn(getattr(weights, name).shape, generator=generator).double()
        for name in ("query", "key", "mlp")
    }
    return replace(weights, **moved), model.prompts.sample_prompts(20, generator)


def compute_loss(weights, prompts, uniform=False):
    """Compute the cross-entropy prompt by prompt, with the paper's matrices."""
    losses = []
    for words, labels, answer in zip(prompts.words, prompts.labels, prompts.label_signs[:, -1], strict=True):
        scores = torch.stack([(weights.key @ word) @ (weights.query @ words[-1]) for word in words[:-1]])
        attention = torch.full_like(scores, 1 / len(scores)) if uniform else scores.softmax(0)
        mean_label = sum(weight * label for weight, label in zip(attention, labels, strict=True))
        logit = sum(r * (row @ mean_label).relu() for r, row in zip(weights.output, weights.mlp, strict=True))
        losses.append(torch.nn.functional.softplus(-answer * logit))
    return torch.stack(losses).mean()


def test_toy_model_contract():
    result = check_toy_model(SMALL)
    assert result["attention"].dims == ("step",)
    assert result["score"]["stat"].values.tolist() == [SHARED, SIGN, NOISE]
    assert result["step"].values.tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("uniform", [False, True])
def test_a_step_equals_that_of_autograd(uniform):
    weights, prompts = draw_weights()
    names = ("query", "key", "mlp")
    free = {name: getattr(weights, name).clone().requires_grad_() for name in names}
    loss = compute_loss(replace(weights, **free), prompts, uniform)
    moved = ("mlp",) if uniform else names
    loss = loss + 0.01 / 2 * sum(free[name].square().sum() for name in moved)
    gradients = dict(zip(moved, torch.autograd.grad(loss, [free[name] for name in moved]), strict=True))
    updated = weights.update(prompts, 0.7, 0.01, uniform)
    for name in names:
        expected = getattr(weights, name) - 0.7 * gradients.get(name, torch.zeros(()))
        assert torch.allclose(getattr(updated, name), expected, rtol=1e-10, atol=1e-12)


def enumerate_prompts(task):
    """Return every prompt of words with a single concept and without noise, once."""
    signs = torch.tensor(list(product((1.0, -1.0), repeat=task.length)), dtype=torch.float64)
    signs = signs.repeat(task.concepts, 1)
    concept = torch.arange(task.concepts).repeat_interleave(2**task.length)
    words = task.shared_vectors[concept][:, None] + signs[..., None] * task.sign_vectors[concept][:, None]
    return PromptSample(words=words, labels=words[:, :-1].clone(), signs=signs, label_signs=signs, concept=concept)


@pytest.mark.parametrize("correlation", [0.5, 0.0])
def test_coefficients_follow_the_step_on_all_prompts(correlation):
    model = replace(SMALL, prompts=replace(SIMPLE, demonstrations=4, correlation=correlation))
    weights = AttentionWeights.initialize(model, simulation_generator(0))
    counts, prompts = SignCounts.from_model(model), enumerate_prompts(model.prompts)
    coefficients = ConceptCoefficients.from_weights(weights, model.prompts.concepts)
    for _ in range(4):
        weights, coefficients = weights.update(prompts, 5.0, 0.01), counts.update(coefficients, 5.0, 0.01)
    projected = ConceptCoefficients.from_weights(weights, model.prompts.concepts)
    for name in ("query", "key", "mlp"):
        assert torch.allclose(getattr(coefficients, name), getattr(projected, name), rtol=1e-9, atol=1e-12)
    blocks = torch.block_diag(*coefficients.scores)
    assert torch.allclose(weights.scores[: len(blocks), : len(blocks)], blocks, atol=1e-12)
    same_sign = prompts.signs[:, :-1] == prompts.signs[:, -1:]
    mean_attention = (weights.attend(prompts) * same_sign).sum(1).mean().item()
    assert counts.mean_same_sign(coefficients) == pytest.approx(mean_attention)


def test_coefficient_dynamics_contract():
    result = check_toy_model(CoefficientDynamics(model=SMALL))
    assert result["score"]["stat"].values.tolist() == [SHARED, SIGN]


def test_the_toy_model_learns_and_its_controls_do_not():
    model = ConceptAttention(
        prompts=replace(PROMPTS, demonstrations=16), steps=100, evaluation_prompts=500, checkpoints=6
    )
    learned = model.simulate(0)
    assert float(learned["attention"][-1]) > 0.9 > 0.7 > float(learned["attention"][0])
    assert float(learned[ZERO_ONE][-1]) < 0.05
    assert float(learned["score"].sel(stat=SIGN)[-1]) > 4 > 1.1 > float(learned["score"].sel(stat=SHARED)[-1])
    assert float(learned["accuracy"].sel(distribution=TRAINING_PROMPTS, predictor=NEAREST)) < 0.97
    shuffled = replace(model, prompts=replace(model.prompts, label_rule="random")).simulate(0)
    assert float(shuffled["attention"][-1]) < 0.7
    uniform = replace(model, uniform=True).simulate(0)
    assert float(uniform[ZERO_ONE][-1]) > 0.4
    assert uniform["attention"].values == pytest.approx(0.5, abs=0.05)


def test_the_better_fit_is_that_of_the_curve():
    steps = np.arange(0.0, 400.0, 2.0)
    exponential, power_law, decades = fit_decays(steps, 0.5 * np.exp(-steps / 40))
    assert exponential == pytest.approx(1)
    assert power_law < 0.97
    assert decades == pytest.approx(np.log10(FIT_WINDOW[0] / FIT_WINDOW[1]), abs=0.05)
    for origin in (0.0, 100.0):  # a power law may begin after a plateau
        error = np.where(steps > origin, 2.0 * np.maximum(steps - origin, 1) ** -1.5, 0.5)
        exponential, power_law, _ = fit_decays(steps, error)
        assert power_law > 0.98 > 0.95 > exponential


def test_a_curve_that_does_not_fall_has_no_fit():
    r2, other, decades = fit_decays(np.arange(50.0), np.full(50, 0.5))
    assert np.isnan([r2, other]).all()
    assert decades == 0


def make_decoder(task, head=(0.0, 0.0), readout=0.0):
    """Make a decoder that adds what a head has copied to what it reads from the query.

    Args:
        task: gives the dimensions.
        head: scale of the scores along the sign parts of words, and of the signs of the labels that it copies.
        readout: scale of the sign of the query.
    """
    decoder = Decoder(
        DecoderConfig(
            d_in=2 * task.dim,
            d_out=2,
            num_hidden_layers=1,
            num_attention_heads=1,
            hidden_size=2 * task.dim,
            positions="none",
            max_position_embeddings=2 * task.demonstrations + 1,
        )
    )
    attention = decoder.layers[0].attention
    sign_of_word = torch.zeros(2 * task.dim)
    sign_of_word[: task.dim] = task.sign_vectors.sum(0)
    sign_of_label = sign_of_word.roll(task.dim)
    for parameter in decoder.parameters():
        parameter.data.zero_()
    decoder.embed.weight.data.copy_(torch.eye(2 * task.dim))
    attention.q_proj.weight.data.copy_(head[0] * torch.diag(sign_of_word))
    attention.k_proj.weight.data.copy_(torch.diag(sign_of_word))
    attention.v_proj.weight.data[0] = head[1] * sign_of_label
    attention.o_proj.weight.data[-1, 0] = 1.0  # an unused coordinate: a label has noise there, the query zero
    answer = readout * sign_of_word
    answer[-1] = 1.0
    decoder.readout.weight.data.copy_(torch.stack([-answer, answer]))
    return decoder


@pytest.fixture(scope="module")
def accuracies():
    """Accuracies of a decoder that looks labels up, and of one that reads the sign of the query."""
    task = replace(ConceptPrompts(), companion_probability=0.0, noise=0.03)  # their readouts sum over concepts
    batch = task.sample(128, torch.Generator().manual_seed(0))
    decoders = {"lookup": make_decoder(task, (1e4, 1.0)), "readout": make_decoder(task, readout=1.0)}
    return {name: shifted_accuracy(one, task, batch)["accuracy"] for name, one in decoders.items()}


def test_a_decoder_that_looks_labels_up_follows_them(accuracies):
    intact = accuracies["lookup"].sel(predictor=INTACT)
    assert intact.min() > 0.99
    assert abs(accuracies["lookup"].sel(predictor=UNIFORM) - 0.5).max() < 0.1


def test_a_decoder_that_reads_the_query_does_not_follow_labels(accuracies):
    for predictor in (INTACT, UNIFORM):
        values = accuracies["readout"].sel(predictor=predictor)
        assert float(values.sel(distribution=SWAPPED_LABELS)) < 0.01
        assert float(values.sel(distribution=TRAINING_PROMPTS)) > 0.99
    assert accuracies["readout"].sel(predictor=NEAREST).min() > 0.95


def test_other_tasks_are_refused():
    task = Affine(length=8)
    batch = task.sample(2, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="needs a task of concept prompts, but Affine is not one"):
        shifted_accuracy(make_decoder(PROMPTS), task, batch)


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        ({"neurons": 3}, "neurons must be an even number"),
        ({"initial_score": 0.0}, "initial_score must be above 0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
    ],
)
def test_invalid_sizes_are_refused(invalid, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **invalid)
