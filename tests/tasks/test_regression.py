"""Regression in context: what is shown is what the function gives, and every algorithm is what it says."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, LinearRegression, Ridge
from sklearn.neighbors import KNeighborsRegressor

from mesascope.tasks import algorithms
from mesascope.tasks.functions import DecisionTrees, LinearFunctions, TwoLayerNetworks
from mesascope.tasks.regression import Regression
from mesascope.testing import check_task

TASKS = [
    Regression(dim=3, num_examples=6),
    Regression(dim=3, num_examples=6, layout="joined"),
    Regression(functions=LinearFunctions(num_nonzero=2), noise=0.1),
    Regression(functions=TwoLayerNetworks(num_hidden=7), num_examples=2, skew=1.0),
    Regression(functions=DecisionTrees(depth=2), num_examples=2, scale=2.0),
]


def drawn(task: Regression, n: int = 16, seed: int = 0):
    return task.sample(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_every_kind_of_task_is_sound(task):
    check_task(task)


@pytest.mark.parametrize(
    "functions", [LinearFunctions(), LinearFunctions(num_nonzero=2), TwoLayerNetworks(), DecisionTrees()], ids=repr
)
def test_answers_have_unit_variance(functions):
    batch = drawn(Regression(functions=functions), 4000)
    assert float(batch.targets[:, ::2].var()) == pytest.approx(1.0, abs=0.08)


def test_skewed_inputs_are_as_large_and_have_the_variances_that_are_set():
    batch = drawn(Regression(dim=3, num_examples=400, skew=2.0), 20)
    x = batch.inputs[:, ::2].double()
    sizes = torch.linalg.eigvalsh(x.mT @ x / x.shape[1]).flip(-1).mean(0)
    wanted = torch.tensor([1.0, 1 / 4, 1 / 9], dtype=torch.float64)
    assert torch.allclose(sizes, wanted / wanted.mean(), rtol=0.1)


def test_both_layouts_show_the_same_pairs():
    for layout in ("alternating", "joined"):
        task = Regression(dim=3, num_examples=4, layout=layout)
        batch = drawn(task)
        shown = task.extract_examples(batch.inputs)
        x = batch.inputs[:, :-1:2] if layout == "alternating" else batch.inputs[:, :-1, :3]
        y = batch.inputs[:, 1::2, :1] if layout == "alternating" else batch.inputs[:, :-1, 3:]
        assert torch.equal(shown.context_x[:, -1], x.double())
        assert torch.equal(shown.context_y[:, -1], y.double())
        assert torch.equal(shown.query_x[:, -1], batch.inputs[:, -1, :3].double())
        assert int(shown.num_context[-1]) == 4
        assert shown.positions[-1] == task.length - 1


def test_nothing_later_is_among_what_was_seen():
    task = Regression(dim=2, num_examples=5)
    shown = task.extract_examples(drawn(task).inputs)
    for place, seen in enumerate(shown.num_context.tolist()):
        assert seen == place
        assert (shown.context_x[:, place, seen:] == 0).all()
        assert (shown.context_x[:, place, :seen] != 0).all()


def by_hand(task, estimator, place: int):
    batch = drawn(task)
    shown = task.extract_examples(batch.inputs)
    for row in range(len(batch)):
        x, y = shown.context_x[row, place, :place].numpy(), shown.context_y[row, place, :place, 0].numpy()
        yield shown, row, estimator.fit(x, y).predict(shown.query_x[row, place][None].numpy())[0]


@pytest.mark.parametrize(
    ("algorithm", "parameters", "estimator", "tick"),
    [
        (algorithms.least_squares(), {}, LinearRegression(fit_intercept=False), 1),
        (algorithms.ridge_regression(), {"ridge": 0.3}, Ridge(alpha=0.3, fit_intercept=False), 1),
        (
            algorithms.lasso_regression(),
            {"penalty": 0.05},
            Lasso(alpha=0.05, fit_intercept=False, tol=1e-9, max_iter=9999),
            1,
        ),
        (algorithms.nearest_neighbours(), {}, KNeighborsRegressor(3), 3),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_algorithms_agree_with_scikit_learn(algorithm, parameters, estimator, tick):
    for shown, row, wanted in by_hand(Regression(dim=3, num_examples=7), estimator, place=6):
        found = algorithm.predict(shown, (tick,), **parameters)[0, row, 6, 0]
        assert float(found) == pytest.approx(wanted, abs=2e-5)


@pytest.mark.parametrize("per", ["mean", "curvature"])
def test_many_steps_at_once_are_single_steps_of_autograd(per):
    task = Regression(dim=3, num_examples=7)
    shown = task.extract_examples(drawn(task, 4).inputs)
    algorithm = algorithms.gradient_descent(per)
    found = algorithm.predict(shown, (1, 2, 5, 13, 100), step=0.5)
    known, following, asked = shown.context_x[:, 5], shown.context_y[:, 5], shown.query_x[:, 5]
    top = torch.linalg.eigvalsh(known.mT @ known)[:, -1, None, None]
    rate = 0.5 / top if per == "curvature" else 0.5 / 5
    rule = torch.zeros(4, 3, 1, dtype=torch.float64)
    for step in range(1, 101):
        rule.requires_grad_()
        half = (known @ rule - following).square().sum() / 2
        (gradient,) = torch.autograd.grad(half, rule)
        rule = (rule - rate * gradient).detach()
        if step in (1, 2, 5, 13, 100):
            wanted = (asked[:, None] @ rule)[:, 0]
            assert torch.allclose(found[(1, 2, 5, 13, 100).index(step)][:, 5], wanted, atol=1e-10)


@pytest.mark.parametrize(
    "algorithm", [algorithms.gradient_descent("curvature"), algorithms.newton_iteration()], ids=lambda a: a.name
)
def test_iterations_tend_to_least_squares(algorithm):
    task = Regression(dim=2, num_examples=9)
    shown = task.extract_examples(drawn(task).inputs)
    exact = algorithms.least_squares().predict(shown, (1,))[0][:, 6:]
    path = algorithm.predict(shown, algorithm.iteration_grid, **dict.fromkeys(algorithm.hyperparameter_bounds, 1.0))[
        :, :, 6:
    ]
    error = (path - exact).square().mean((1, 2, 3))
    assert float(error[-1]) < 1e-6 * float(error[0])


def test_newton_doubles_the_digits():
    """Its error in an eigendirection of value v is (1 - start v^2 / top^2) to the power 2^k."""
    task = Regression(dim=2, num_examples=9)
    shown = task.extract_examples(drawn(task, 8).inputs)
    values, vectors = torch.linalg.eigh(shown.gram_matrix[:, 6])
    moment = (vectors.mT @ shown.cross_moment[:, 6])[..., 0]
    for tick in (1, 3, 6):
        left = (1 - (values / values[:, -1:]).square()) ** (2**tick)
        rule = vectors @ ((1 - left) / values * moment)[..., None]
        wanted = (shown.query_x[:, 6, None] @ rule)[:, 0]
        found = algorithms.newton_iteration().predict(shown, (tick,), start=1.0)[0][:, 6]
        assert torch.allclose(found, wanted, atol=1e-9)


def test_descent_with_correction_is_plain_descent_without_any():
    task = Regression(dim=3, num_examples=8, layout="joined")
    shown = task.extract_examples(drawn(task).inputs)
    plain = algorithms.gradient_descent().predict(shown, (2, 4), step=0.4)
    corrected = algorithms.gd_plus_plus().predict(shown, (2, 4), step=0.4, gamma=0.0)
    assert torch.allclose(plain, corrected, atol=1e-12)
    turned = algorithms.gd_plus_plus().predict(shown, (2, 4), step=0.4, gamma=0.2)
    assert not torch.allclose(plain, turned, atol=1e-3)


def test_values_side_by_side_are_values_one_by_one():
    task = Regression(dim=3, num_examples=8, layout="joined", functions=LinearFunctions(num_nonzero=1))
    shown = task.extract_examples(drawn(task).inputs)
    for algorithm in task.candidate_algorithms():
        if not algorithm.hyperparameter_bounds:
            continue
        values = {
            name: torch.tensor([low, (low * high) ** 0.5], dtype=torch.float64)
            for name, (low, high) in algorithm.hyperparameter_bounds.items()
        }
        together = algorithm.predict(
            shown,
            algorithm.iteration_grid[:3],
            **{name: each[:, None, None, None, None] for name, each in values.items()},
        )
        for number in range(2):
            alone = algorithm.predict(
                shown, algorithm.iteration_grid[:3], **{name: float(each[number]) for name, each in values.items()}
            )
            assert torch.allclose(together[:, number], alone, rtol=1e-7, atol=1e-9), algorithm.name


def test_what_is_asked_stays_where_pairs_are_swapped():
    task = Regression(dim=3, num_examples=5)
    shown = task.extract_examples(drawn(task, 3).inputs)
    swapped = shown.with_shuffled_context(torch.tensor([1, 2, 0]))
    assert torch.equal(swapped.query_x, shown.query_x)
    assert torch.equal(swapped.context_x[0], shown.context_x[1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 0}, r"dim must be at least 1, but got 0"),
        ({"num_examples": 0}, r"num_examples must be at least 1"),
        ({"skew": -1.0}, r"skew must be 0 or more"),
        ({"noise": -0.1}, r"noise must be 0 or more"),
        ({"scale": 0.0}, r"scale must be above 0"),
    ],
)
def test_what_cannot_be_sampled_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Regression(**fields)


def test_more_coefficients_than_coordinates_are_refused():
    with pytest.raises(ValueError, match=r"nonzero must lie in 1\.\.5"):
        drawn(Regression(functions=LinearFunctions(num_nonzero=6)))


def test_a_tree_answers_with_the_leaf_that_signs_lead_to():
    answer = DecisionTrees(depth=1).sample_functions(1, 1, torch.Generator().manual_seed(0))
    left, right = answer(torch.tensor([[[-1.0], [1.0]]])).flatten().tolist()
    assert left != right
    assert np.isclose(answer(torch.tensor([[[-5.0]]])).item(), left)
