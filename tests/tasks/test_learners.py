"""Learners fitted to every prompt: what scikit-learn and a plain loop give, from the pairs seen so far alone."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.tree import DecisionTreeRegressor
from torch import nn

from mesascope.tasks import learners
from mesascope.tasks.functions import DecisionTrees, TwoLayerNetworks
from mesascope.tasks.regression import Regression


def shown(task: Regression, n: int = 3):
    return task.extract_examples(task.sample(n, torch.Generator().manual_seed(1)).inputs)


TREES = shown(Regression(dim=3, num_examples=9, functions=DecisionTrees(depth=2)))


@pytest.mark.parametrize("signs", [False, True])
def test_a_tree_with_all_its_levels_is_scikit_learns(signs):
    found = learners.greedy_tree(signs_only=signs).predict(TREES, (99,))[0]
    for row in range(3):
        for place in (1, 5, 9):
            x, asked = TREES.context_x[row, place, :place], TREES.query_x[row, place][None]
            x, asked = (x.sign(), asked.sign()) if signs else (x, asked)
            tree = DecisionTreeRegressor(random_state=0).fit(x.numpy(), TREES.context_y[row, place, :place].numpy())
            assert float(found[row, place]) == pytest.approx(float(tree.predict(asked.numpy())[0]), abs=1e-12)


def test_a_tree_of_one_level_is_the_best_split():
    found = learners.greedy_tree().predict(TREES, (1,))[0]
    for row in range(3):
        x, y = TREES.context_x[row, 9].numpy(), TREES.context_y[row, 9, :, 0].numpy()
        asked = TREES.query_x[row, 9].numpy()
        cuts = [(f, (low + high) / 2) for f in range(3) for low, high in pairwise(sorted(x[:, f]))]
        costs = [sum(((y[s] - y[s].mean()) ** 2).sum() for s in (x[:, f] <= cut, x[:, f] > cut)) for f, cut in cuts]
        feature, cut = cuts[int(np.argmin(costs))]
        inside = (x[:, feature] <= cut) == (asked[feature] <= cut)
        assert found[row, 9].item() == pytest.approx(y[inside].mean())


def test_a_tree_is_a_mean_over_pairs_also_when_differentiated():
    answers = TREES.context_y.clone().requires_grad_()
    found = learners.greedy_tree().predict(replace(TREES, context_y=answers), (2,))[0]
    (gradient,) = torch.autograd.grad(found[0, 9, 0], answers)
    assert float(gradient.sum()) == pytest.approx(1.0)
    assert float((gradient * TREES.context_y).sum()) == pytest.approx(found[0, 9, 0].item())
    assert (gradient[0, 9] > 0).sum() < 9


def test_boosted_trees_are_scikit_learns():
    found = learners.boosted_trees().predict(TREES, (1,))[0]
    trees = GradientBoostingRegressor(n_estimators=20, learning_rate=0.3, random_state=0)
    trees.fit(TREES.context_x[1, 7, :7].numpy(), TREES.context_y[1, 7, :7, 0].numpy())
    wanted = trees.predict(TREES.query_x[1, 7][None].numpy())[0]
    assert float(found[1, 7, 0]) == pytest.approx(float(wanted), abs=1e-6)
    assert (found[:, 0] == 0).all()


def test_more_prompts_than_train_side_by_side_are_trained_after_one_another():
    many = shown(
        Regression(dim=2, num_examples=2, functions=TwoLayerNetworks(num_hidden=3)), learners.NETWORK_BATCH_SIZE + 2
    )
    found = learners.trained_network(3).predict(many, (5,))[0]
    assert torch.equal(found[-2:], learners.trained_network(3).predict(many.select_sequences(slice(-2, None)), (5,))[0])


NETWORKS = shown(Regression(dim=2, num_examples=6, functions=TwoLayerNetworks(num_hidden=3)), 2)


def test_networks_side_by_side_are_networks_alone():
    """One that is trained by a plain loop from the same weights."""
    generator = torch.Generator().manual_seed(0)
    into = torch.randn(2, 7, 2, 3, generator=generator) / 2**0.5
    out = torch.randn(2, 7, 3, 1, generator=generator) / 3**0.5
    one = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        one[0].weight.copy_(into[1, 4].mT)
        one[0].bias.zero_()
        one[2].weight.copy_(out[1, 4].mT)
    adam = torch.optim.Adam(one.parameters(), lr=learners.NETWORK_LEARNING_RATE)
    x, y = NETWORKS.context_x[1, 4, :4].float(), NETWORKS.context_y[1, 4, :4].float()
    for _ in range(50):
        adam.zero_grad()
        (one(x) - y).square().mean().backward()
        adam.step()
    found = learners.trained_network(3).predict(NETWORKS, (50,))[0]
    assert float(found[1, 4]) == pytest.approx(one(NETWORKS.query_x[1, 4].float()).item(), abs=1e-5)


def test_networks_come_to_fit_what_is_shown():
    again = replace(
        NETWORKS, query_x=NETWORKS.context_x[:, -1:].expand(-1, 7, -1, -1)[:, :, 0]
    )  # the first pair, again
    path = learners.trained_network(16).predict(again, (1, 600))
    wrong = (path - NETWORKS.context_y[:, -1:, 0]).square().mean((1, 3))
    assert (wrong[1, 1:] < 0.05 * wrong[0, 1:] + 1e-3).all()
    assert (path[:, :, 0] == 0).all()


@pytest.mark.parametrize("learner", [learners.boosted_trees(), learners.trained_network(3)], ids=lambda one: one.name)
def test_gradients_through_a_fit_are_refused(learner):
    asked = NETWORKS.query_x.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"cannot be differentiated with respect to the context"):
        learner.predict(replace(NETWORKS, query_x=asked), (1,))
