"""Decoys of gradient descent predict what their formulas say; heads may change places."""

import pytest
import torch

from mesascope.analyses import measure_all, position, which_algorithm
from mesascope.ground_truth.models.descent import planted_descent
from mesascope.ground_truth.models.pairs import DECOYS, planted_pairs
from mesascope.ground_truth.models.vectors import MECHANISMS, planted
from mesascope.tasks.regression import Regression

DIM, SHOWN, STEP = 3, 8, 0.4
TASK = Regression(dim=DIM, examples_shown=SHOWN, layout="joined")
BATCH = TASK.sample(64, torch.Generator().manual_seed(0))
X, Y, ASKED = BATCH.inputs[:, :-1, :DIM], BATCH.inputs[:, :-1, DIM:], BATCH.inputs[:, -1:, :DIM]
ALIKE = ASKED @ X.mT  # (batch, 1, pair)
ITSELF = torch.cat([ALIKE, (ASKED * ASKED).sum(-1, keepdim=True)], dim=-1)
PREDICTED = {
    "scores ignore the query": STEP / SHOWN * X[:, None, :, 0] @ Y,
    "values are inputs": STEP / SHOWN * ALIKE @ X[..., :1],
    "ascends": -STEP / SHOWN * ALIKE @ Y,
    "through a softmax": ITSELF.softmax(-1)[..., :-1] @ Y,
    "averages the answers": Y.sum(1, keepdim=True) / (SHOWN + 1),
    "the last answer": Y[:, -1:],
}


@pytest.mark.parametrize("name", DECOYS)
def test_a_decoy_predicts_what_its_formula_says(name):
    model = planted_pairs(name, DIM, SHOWN, STEP, nuisance=0.02, seed=3)
    torch.testing.assert_close(model(BATCH.inputs).logits[:, -1:], PREDICTED[name], atol=1e-5, rtol=1e-4)


def test_an_unknown_decoy_is_refused():
    with pytest.raises(ValueError, match=r"a decoy must be one of scores ignore the query, .*, but got 'magic'"):
        planted_pairs("magic", DIM, SHOWN)


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_model_is_the_same_whichever_head_has_the_mechanism(name):
    x = torch.randn(4, 20, 1, generator=torch.Generator().manual_seed(0))
    first, *others = (planted(name, seed=2, head=head)(x).logits for head in range(4))
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="head must be from 0 to 3, but got 4"):
        planted(name, head=4)


def test_position_refuses_attention_that_is_not_shared_out():
    with pytest.raises(ValueError, match=r"position needs attention that is shared out between keys, but in layer 0"):
        measure_all(planted_descent(DIM, SHOWN), BATCH, [position])


def test_steps_are_counted_where_many_more_of_another_size_come_nearest_on_the_grid():
    """In these prompts eight steps of a size that is on the grid are nearer to three than three of the nearest size."""
    batch = TASK.sample(64, torch.Generator().manual_seed(11))
    model = planted_descent(DIM, SHOWN, 3, step=0.32980834)
    found = which_algorithm(model, TASK, batch, layers=False, elsewhere=False)
    assert found["named"].item() == "3 steps of gradient descent"
    assert float(found["fitted"].sel(predictor="gradient descent")) == pytest.approx(0.32980834, rel=1e-4)
