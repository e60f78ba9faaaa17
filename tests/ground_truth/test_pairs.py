"""Decoys of gradient descent match their formulas; the function does not depend on the index of the planted head."""

import pytest
import torch

from mesascope.analyses import positional_attention, run_analyses, which_algorithm
from mesascope.ground_truth.models.descent import build_gradient_descent_model
from mesascope.ground_truth.models.pairs import PAIR_DECOYS, build_pair_decoy
from mesascope.ground_truth.models.vectors import VECTOR_MECHANISMS, build_planted_model
from mesascope.tasks.regression import Regression

DIM, NUM_EXAMPLES, STEP = 3, 8, 0.4
TASK = Regression(dim=DIM, num_examples=NUM_EXAMPLES, layout="joined")
BATCH = TASK.sample(64, torch.Generator().manual_seed(0))
X, Y, QUERY_X = BATCH.inputs[:, :-1, :DIM], BATCH.inputs[:, :-1, DIM:], BATCH.inputs[:, -1:, :DIM]
SCORES = QUERY_X @ X.mT  # (batch, 1, pair)
SCORES_WITH_QUERY = torch.cat([SCORES, (QUERY_X * QUERY_X).sum(-1, keepdim=True)], dim=-1)
PREDICTED = {
    "scores ignore the query": STEP / NUM_EXAMPLES * X[:, None, :, 0] @ Y,
    "values are inputs": STEP / NUM_EXAMPLES * SCORES @ X[..., :1],
    "ascends": -STEP / NUM_EXAMPLES * SCORES @ Y,
    "softmax attention": SCORES_WITH_QUERY.softmax(-1)[..., :-1] @ Y,
    "averages the targets": Y.sum(1, keepdim=True) / (NUM_EXAMPLES + 1),
    "copies the last target": Y[:, -1:],
}


@pytest.mark.parametrize("name", PAIR_DECOYS)
def test_decoy_prediction_matches_its_formula(name):
    model = build_pair_decoy(name, DIM, NUM_EXAMPLES, STEP, nuisance=0.02, seed=3)
    torch.testing.assert_close(model(BATCH.inputs).logits[:, -1:], PREDICTED[name], atol=1e-5, rtol=1e-4)


def test_unknown_decoy_raises():
    with pytest.raises(ValueError, match=r"a decoy must be one of scores ignore the query, .*, but got 'magic'"):
        build_pair_decoy("magic", DIM, NUM_EXAMPLES)


@pytest.mark.parametrize("name", VECTOR_MECHANISMS)
def test_predictions_do_not_depend_on_the_planted_head_index(name):
    x = torch.randn(4, 20, 1, generator=torch.Generator().manual_seed(0))
    first, *others = (build_planted_model(name, seed=2, head=head)(x).logits for head in range(4))
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="head must be from 0 to 3, but got 4"):
        build_planted_model(name, head=4)


def test_position_raises_for_linear_attention():
    with pytest.raises(
        ValueError,
        match=r"positional_attention needs attention weights of 0 or more that sum to 1 over keys, but in layer 0",
    ):
        run_analyses(build_gradient_descent_model(DIM, NUM_EXAMPLES), BATCH, [positional_attention])


def test_number_of_steps_is_recovered_off_the_step_size_grid():
    """On the grid of step sizes, eight steps are closer to the model than three steps of the nearest size."""
    batch = TASK.sample(64, torch.Generator().manual_seed(11))
    model = build_gradient_descent_model(DIM, NUM_EXAMPLES, 3, step=0.32980834)
    found = which_algorithm(model, TASK, batch, layers=False, shifted=False)
    assert found["named"].item() == "3 steps of gradient descent"
    assert float(found["fitted"].sel(predictor="gradient descent")) == pytest.approx(0.32980834, rel=1e-4)
