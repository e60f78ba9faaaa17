"""Toy model and task of next-token prediction: margins, stages, and orders implied by training sentences."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.studies.next_token_convergence.descent_record import fit_log_decay
from mesascope.studies.next_token_convergence.max_margin import solve_max_margin
from mesascope.studies.next_token_convergence.task import CollocationLanguage, Collocations
from mesascope.studies.next_token_convergence.toy_model import (
    DESCENTS,
    STAGE_DESCENTS,
    STAGES,
    NextTokenModel,
    check_predictions,
)
from mesascope.studies.next_token_convergence.training_stages import (
    TrainingStage,
    attend_to_sentences,
    compute_next_logits,
)
from mesascope.testing import check_task, check_toy_model

SMALL = NextTokenModel(vocabulary=5, length=3, sentences=8, unseen=30, steps=150, checkpoints=4)


def sample_language(vocabulary=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return CollocationLanguage.sample(vocabulary, generator), generator


def test_toy_model_contract():
    result = check_toy_model(SMALL)
    assert result["excess_loss"].dims == ("step", "stat")
    assert result["stat"].values.tolist() == STAGE_DESCENTS


def test_attention_and_logits_equal_the_matrix_formula():
    sentences, scores = torch.tensor([[0, 2, 1]]), torch.randn(3, 3, dtype=torch.float64)
    one_hot = torch.eye(3, dtype=torch.float64)
    x, query = one_hot[[0, 2, 1]], one_hot[1]
    weights = (x @ scores @ query).softmax(0)
    assert torch.allclose(attend_to_sentences(sentences, scores)[0], weights)
    values = torch.randn(3, 3, dtype=torch.float64)
    assert torch.allclose(compute_next_logits(sentences, values, scores)[0], values @ (x.T @ weights))


def test_max_margin_equals_that_of_another_solver():
    from scipy.optimize import minimize

    ordered = [((0, 0), (1, 0)), ((0, 0), (2, 0)), ((1, 1), (0, 0)), ((2, 1), (1, 1))]
    result = solve_max_margin(ordered, 3)
    lines = [
        {"type": "ineq", "fun": lambda m, h=h, w=w: m.reshape(3, 3)[h] - m.reshape(3, 3)[w] - 1} for h, w in ordered
    ]
    other = minimize(lambda m: m @ m, np.ones(9), jac=lambda m: 2 * m, constraints=lines, method="SLSQP", tol=1e-12)
    assert result.ravel().numpy() == pytest.approx(other.x, abs=1e-5)
    assert all(result[high] - result[low] > 1 - 1e-9 for high, low in ordered)


def test_contradictory_orders_have_no_margin():
    with pytest.raises(ValueError, match="must not contradict"):
        solve_max_margin([((0, 0), (1, 0)), ((1, 0), (0, 0))], 2)


def test_max_margin_of_collocations_has_a_closed_form():
    """Every column is 1 - 1 / V at its collocation and -1 / V elsewhere."""
    language, _ = sample_language()
    margin = TrainingStage.from_collocations(language).margin_matrix
    expected = torch.full((6, 6), -1 / 6, dtype=torch.float64)
    expected[language.collocations, torch.arange(6)] += 1
    assert torch.allclose(margin, expected, atol=1e-9)


def test_normalised_descent_converges_linearly_and_plain_descent_does_not():
    result = replace(SMALL, steps=600, checkpoints=61).simulate(0)
    for stage in STAGES:
        normalised, plain = (result.sel(stat=f"{stage}, {descent}") for descent in DESCENTS)
        assert float(normalised["loss_r2"]) > 0.99
        assert float(normalised["fitted_decades"]) > 3 > float(plain["fitted_decades"])
        norm = normalised["norm"].values
        assert norm[1] == pytest.approx(0.1 * 10, rel=0.05)
        assert float(normalised["margin_cosine"][-1]) > 0.95
    assert float(result["attention"][0]) == pytest.approx(1 / 3)
    assert float(result["attention"][-1]) > 0.99
    assert result["accuracy"]["distribution"].values.tolist()[0] == "training"
    assert float(result["accuracy"][0]) == 1
    assert result["count"].values.sum() == 8 + 30


def test_descent_stops_before_rounding_determines_the_direction():
    result = replace(SMALL, steps=1600, checkpoints=17).simulate(0)
    for stage, fraction in zip(STAGES, (1e-6, 1e-10), strict=True):
        normalised = result.sel(stat=f"{stage}, {DESCENTS[0]}")
        assert 0.5 * fraction < float(normalised["excess_loss"][-1] / normalised["excess_loss"][0]) <= fraction
        assert float(normalised["norm"][-1]) == float(normalised["norm"][-2])


def test_log_decay_distinguishes_exponential_from_power_law():
    steps = np.arange(1, 2000)
    r2, decades = fit_log_decay(10.0 ** (-steps / 200))
    assert (r2, decades) == (pytest.approx(1), pytest.approx(5, abs=0.02))
    assert fit_log_decay(1.0 / steps)[0] < 0.95
    assert np.isnan(fit_log_decay(np.full(10, 0.5))[0])


def test_order_is_implied_by_transitivity():
    """After 0 the order is 1, 2, 3, 0: only both sentences together imply that 1 ranks before 3."""
    ranks = torch.tensor([[3, 0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]])
    language = CollocationLanguage(collocations=torch.arange(4), frequencies=torch.full((4,), 0.25), ranks=ranks)
    training = torch.tensor([[1, 2, 0], [2, 3, 0]])
    sentences = torch.tensor([[3, 1, 0], [1, 2, 0], [3, 1, 2], [1, 3, 2]])
    assert language.implies_order(training, sentences).tolist() == [True, True, False, False]
    assert language.implies_order(training[:1], torch.tensor([[3, 1, 0]])).tolist() == [False]


def test_scores_of_the_true_ranks_are_always_correct():
    language, generator = sample_language()
    sentences = language.sample_sentences(40, 4, generator)
    values = torch.nn.functional.one_hot(language.collocations, 6).double().T
    scores = -5.0 * language.ranks.double().T
    assert check_predictions(language, sentences, values, scores).tolist() == [1.0] * 40
    assert check_predictions(language, sentences, values, -scores).mean() < 0.5


def test_too_few_steps_are_refused():
    with pytest.raises(ValueError, match=r"steps must be enough .* but after 10 it is 0.\d+ of it; take more"):
        replace(SMALL, steps=10).simulate(0)


def test_sentences_longer_than_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="length must lie between 2 and the vocabulary"):
        replace(SMALL, length=6)


def test_training_and_validation_sentences_are_disjoint():
    task = Collocations()
    check_task(task)
    training = task.sample(4000, torch.Generator().manual_seed(0))
    unseen = task.validation_task().sample(500, torch.Generator().manual_seed(1))
    training_sentences = set(map(tuple, training.inputs.tolist()))
    assert len(training_sentences) == 60
    assert not training_sentences & set(map(tuple, unseen.inputs.tolist()))
    assert training.latents["order_implied"].min() == 1
    assert {0, 1} == set(unseen.latents["order_implied"].ravel().tolist())
    for batch in (training, unseen):
        predicted = task.baselines(batch)["exact rule"][:, -1].argmax(-1)
        assert (predicted == batch.targets[:, -1]).all()
    assert (task.baselines(unseen)["last token"][:, -1].argmax(-1) == unseen.targets[:, -1]).float().mean() < 0.5


@pytest.mark.parametrize("invalid", [{"length": 13}, {"sentences": 0}, {"vocabulary": 3, "length": 3, "sentences": 4}])
def test_invalid_sizes_are_refused(invalid):
    with pytest.raises(ValueError, match="must lie between"):
        replace(Collocations(), **invalid)
