"""The reduced model of next-token prediction: margins, stages, and what is told of unseen sentences."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.studies.next_token_convergence.task import Collocations, Language
from mesascope.studies.next_token_convergence.toy_model import (
    DESCENTS,
    PATHS,
    STAGES,
    NextToken,
    Stage,
    accuracy,
    attention,
    fall,
    logits,
    max_margin,
)
from mesascope.testing import check_reduced, check_task

SMALL = NextToken(vocabulary=5, length=3, sentences=8, unseen=30, steps=150, points=4)


def language(vocabulary=6, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return Language.drawn(vocabulary, draws), draws


def test_it_keeps_the_promises_of_reduced_models():
    found = check_reduced(SMALL)
    assert found["excess"].dims == ("step", "stat")
    assert found["stat"].values.tolist() == PATHS


def test_attention_is_that_of_the_matrix():
    sentences, scores = torch.tensor([[0, 2, 1]]), torch.randn(3, 3, dtype=torch.float64)
    one_hot = torch.eye(3, dtype=torch.float64)
    x, query = one_hot[[0, 2, 1]], one_hot[1]
    weights = (x @ scores @ query).softmax(0)
    assert torch.allclose(attention(sentences, scores)[0], weights)
    values = torch.randn(3, 3, dtype=torch.float64)
    assert torch.allclose(logits(sentences, values, scores)[0], values @ (x.T @ weights))


def test_the_largest_margin_is_that_of_a_solver_that_knows_nothing_of_it():
    from scipy.optimize import minimize

    above = [((0, 0), (1, 0)), ((0, 0), (2, 0)), ((1, 1), (0, 0)), ((2, 1), (1, 1))]
    found = max_margin(above, 3)
    lines = [{"type": "ineq", "fun": lambda m, h=h, w=w: m.reshape(3, 3)[h] - m.reshape(3, 3)[w] - 1} for h, w in above]
    other = minimize(lambda m: m @ m, np.ones(9), jac=lambda m: 2 * m, constraints=lines, method="SLSQP", tol=1e-12)
    assert found.ravel().numpy() == pytest.approx(other.x, abs=1e-5)
    assert all(found[high] - found[low] > 1 - 1e-9 for high, low in above)


def test_orders_that_contradict_each_other_have_no_margin():
    with pytest.raises(ValueError, match="must not contradict"):
        max_margin([((0, 0), (1, 0)), ((1, 0), (0, 0))], 2)


def test_the_margin_of_pairs_is_known():
    """Every column has 1 - 1 / V where its collocation is, and -1 / V elsewhere."""
    spoken, _ = language()
    margin = Stage.of_pairs(spoken).margin
    wanted = torch.full((6, 6), -1 / 6, dtype=torch.float64)
    wanted[spoken.follows, torch.arange(6)] += 1
    assert torch.allclose(margin, wanted, atol=1e-9)


def test_steps_of_one_length_fall_along_a_line_and_plain_ones_do_not():
    found = replace(SMALL, steps=600, points=61).simulate(0)
    for stage in STAGES:
        even, plain = (found.sel(stat=f"{stage}, {descent}") for descent in DESCENTS)
        assert float(even["straight"]) > 0.99
        assert float(even["decades"]) > 3 > float(plain["decades"])
        norm = even["norm"].values
        assert norm[1] == pytest.approx(0.1 * 10, rel=0.05)
        assert float(even["direction"][-1]) > 0.95
    assert float(found["attention"][0]) == pytest.approx(1 / 3)
    assert float(found["attention"][-1]) > 0.99
    assert found["accuracy"]["setting"].values.tolist()[0] == "shown"
    assert float(found["accuracy"][0]) == 1
    assert found["count"].values.sum() == 8 + 30


def test_a_descent_stops_before_rounding_chooses_its_direction():
    found = replace(SMALL, steps=1600, points=17).simulate(0)
    for stage, least in zip(STAGES, (1e-6, 1e-10), strict=True):
        even = found.sel(stat=f"{stage}, {DESCENTS[0]}")
        assert 0.5 * least < float(even["excess"][-1] / even["excess"][0]) <= least
        assert float(even["norm"][-1]) == float(even["norm"][-2])


def test_what_falls_along_a_line_is_told_from_what_does_not():
    steps = np.arange(1, 2000)
    straight, decades = fall(10.0 ** (-steps / 200))
    assert (straight, decades) == (pytest.approx(1), pytest.approx(5, abs=0.02))
    assert fall(1.0 / steps)[0] < 0.95
    assert np.isnan(fall(np.full(10, 0.5))[0])


def test_what_is_told_of_an_order_follows_from_what_is_shown():
    """After 0 the order is 1, 2, 3, 0: both sentences together tell that 1 comes before 3, no single one does."""
    order = torch.tensor([[3, 0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]])
    spoken = Language(follows=torch.arange(4), share=torch.full((4,), 0.25), order=order)
    shown = torch.tensor([[1, 2, 0], [2, 3, 0]])
    asked = torch.tensor([[3, 1, 0], [1, 2, 0], [3, 1, 2], [1, 3, 2]])
    assert spoken.told_by(shown, asked).tolist() == [True, True, False, False]
    assert spoken.told_by(shown[:1], torch.tensor([[3, 1, 0]])).tolist() == [False]


def test_a_matrix_that_knows_all_orders_is_always_right():
    spoken, draws = language()
    sentences = spoken.sentences(40, 4, draws)
    values = torch.nn.functional.one_hot(spoken.follows, 6).double().T
    scores = -5.0 * spoken.order.double().T
    assert accuracy(spoken, sentences, values, scores).tolist() == [1.0] * 40
    assert accuracy(spoken, sentences, values, -scores).mean() < 0.5


def test_collocations_that_are_not_learned_are_named():
    with pytest.raises(ValueError, match=r"steps must be enough .* but after 10 it is 0.\d+ of it; take more"):
        replace(SMALL, steps=10).simulate(0)


def test_no_sentence_is_longer_than_its_language():
    with pytest.raises(ValueError, match="length must lie between 2 and the vocabulary"):
        replace(SMALL, length=6)


def test_the_task_shows_few_sentences_and_asks_others():
    task = Collocations()
    check_task(task)
    shown = task.sample(4000, torch.Generator().manual_seed(0))
    unseen = task.validation().sample(500, torch.Generator().manual_seed(1))
    known = set(map(tuple, shown.inputs.tolist()))
    assert len(known) == 60
    assert not known & set(map(tuple, unseen.inputs.tolist()))
    assert shown.latents["order_shown"].min() == 1
    assert {0, 1} == set(unseen.latents["order_shown"].ravel().tolist())
    for batch in (shown, unseen):
        right = task.oracles(batch)["the language"][:, -1].argmax(-1)
        assert (right == batch.targets[:, -1]).all()
    assert (task.oracles(unseen)["the last token"][:, -1].argmax(-1) == unseen.targets[:, -1]).float().mean() < 0.5


@pytest.mark.parametrize("wrong", [{"length": 13}, {"sentences": 0}, {"vocabulary": 3, "length": 3, "sentences": 4}])
def test_a_task_without_an_order_or_without_other_sentences_is_refused(wrong):
    with pytest.raises(ValueError, match="must lie between"):
        replace(Collocations(), **wrong)
