"""The lasso: agreement with scikit-learn at every place and penalty, gradients, and what is refused."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from mesascope.analyses.algorithms.fit import _log_grid
from mesascope.tasks.algorithms import _lasso, compute_duality_gap, lasso_regression, solve_lasso
from mesascope.tasks.functions import LinearFunctions
from mesascope.tasks.regression import Regression

TASKS = {
    "no noise": Regression(dim=5, num_examples=10, functions=LinearFunctions(num_nonzero=2)),
    "noise": Regression(dim=6, num_examples=8, functions=LinearFunctions(num_nonzero=1), scale=0.3, noise=0.075),
    "dense": Regression(dim=4, num_examples=5, noise=0.5),
}
ALGORITHM = lasso_regression()
PENALTIES = _log_grid(ALGORITHM.hyperparameter_bounds)["penalty"]


def draw_context(task, n=3):
    return task.extract_examples(task.sample(n, torch.Generator().manual_seed(5)).inputs)


@pytest.mark.parametrize("name", TASKS)
def test_lasso_agrees_with_scikit_learn_at_every_place_and_penalty(name):
    """Contexts are empty, shorter than the dimension, as long, and longer."""
    context = draw_context(TASKS[name])
    found = ALGORITHM.predict(context, (1,), penalty=PENALTIES[:, None, None, None, None])[0, ..., 0].numpy()
    expected = np.zeros_like(found)
    for place, seen in enumerate(context.num_context.tolist()):
        for row in range(found.shape[1] if seen else 0):
            x, y = context.context_x[row, place, :seen].numpy(), context.context_y[row, place, :seen, 0].numpy()
            for number, penalty in enumerate(PENALTIES.tolist()):
                solver = Lasso(alpha=penalty, fit_intercept=False, tol=1e-12, max_iter=2_000_000).fit(x, y)
                expected[number, row, place] = solver.predict(context.query_x[row, place][None].numpy())[0]
    scale = np.sqrt(np.square(expected).mean(1, keepdims=True))  # of the predictions at each place and penalty
    assert (np.abs(found - expected) <= 1e-4 * scale).all()
    assert (found[:, :, 0] == 0).all()


def test_one_penalty_is_as_accurate_as_a_path_of_them():
    context = draw_context(TASKS["noise"], 64)
    path = ALGORITHM.predict(context, (1,), penalty=PENALTIES[:, None, None, None, None])[0]
    for number in (0, 8, 16):
        alone = ALGORITHM.predict(context, (1,), penalty=float(PENALTIES[number]))[0]
        assert torch.allclose(path[number], alone, rtol=1e-9, atol=1e-9)


def make_problems(context, examples):
    gram, moment = context.gram_matrix[:, -1] / examples, context.cross_moment[:, -1, :, 0] / examples
    return gram, moment, context.context_y[:, -1, :, 0].square().mean(1)


def test_path_and_proximal_descent_find_the_same_coefficients(monkeypatch):
    """Two independent solvers; both must reach the same duality gap."""
    problems = make_problems(draw_context(TASKS["noise"], 32), 8)
    by_path = solve_lasso(*problems, PENALTIES[8:])
    monkeypatch.setattr(_lasso, "MAX_PATH_EVENTS", 0)
    assert torch.allclose(solve_lasso(*problems, PENALTIES[8:]), by_path, rtol=1e-6, atol=1e-9)
    gap = compute_duality_gap(*problems, by_path[0], float(PENALTIES[8]))
    assert (gap <= _lasso.GAP_TOLERANCE / 2 * problems[2]).all()


def test_nearly_singular_contexts_are_solved_up_to_rounding():
    """As many examples as coordinates; some Gram matrices have a condition number of a million."""
    task = Regression(dim=3, num_examples=3, layout="joined", noise=0.5, functions=LinearFunctions(num_nonzero=1))
    gram, moment, mean_square = make_problems(draw_context(task, 2000), 3)
    assert float(torch.linalg.cond(gram).max()) > 1e6
    coefficients = solve_lasso(gram, moment, mean_square, torch.tensor([1e-4], dtype=torch.float64))[0]
    correlation = moment - (gram @ coefficients[..., None])[..., 0]
    assert (correlation.abs() <= 1e-4 * (1 + 1e-6)).all()
    assert ((correlation - 1e-4 * coefficients.sign()).abs()[coefficients != 0] < 1e-4 * 1e-6).all()


def test_order_of_penalties_does_not_matter():
    problems = make_problems(draw_context(TASKS["noise"], 8), 8)
    assert torch.allclose(solve_lasso(*problems, PENALTIES.flip(0)).flip(0), solve_lasso(*problems, PENALTIES))


def test_collinear_inputs_share_the_coefficient_and_equal_products_enter_together():
    x = torch.randn(4, 6, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram, moment, penalty = (x.mT @ x / 6), (x.mT @ x / 6)[..., 0], torch.tensor([0.1])
    single = solve_lasso(gram, moment, moment[:, 0], penalty)
    double = solve_lasso(gram.expand(4, 2, 2), moment.expand(4, 2), moment[:, 0], penalty)
    assert torch.allclose(double.sum(2, keepdim=True), single)
    eye = torch.eye(3, dtype=torch.float64)[None]
    equal = solve_lasso(eye, torch.tensor([[0.5, -0.5, 0.2]]), torch.tensor([0.54]), torch.tensor([0.3, 0.1]))
    assert torch.allclose(equal[:, 0], torch.tensor([[0.2, -0.2, 0.0], [0.4, -0.4, 0.1]]).double())


def test_gradients_are_those_of_the_solution():
    gram, moment, mean_square = make_problems(draw_context(TASKS["noise"], 4), 8)
    moment.requires_grad_()
    penalty = torch.tensor([0.01])
    gradient = torch.autograd.grad(solve_lasso(gram, moment, mean_square, penalty).sum(), moment)[0]
    step = torch.zeros_like(moment)
    step[:, 2] = 1e-7
    ahead, behind = (solve_lasso(gram, moment.detach() + sign * step, mean_square, penalty)[0] for sign in (1, -1))
    assert torch.allclose(gradient[:, 2], (ahead - behind).sum(1) / 2e-7, atol=1e-5)


def test_no_penalty_and_no_convergence_are_refused(monkeypatch):
    problems = make_problems(draw_context(TASKS["noise"], 4), 8)
    with pytest.raises(ValueError, match=r"penalties must be above 0, but got \[0\.0\]; use least squares"):
        solve_lasso(*problems, torch.tensor([0.0]))
    monkeypatch.setattr(_lasso, "MAX_PATH_EVENTS", 0)
    monkeypatch.setattr(_lasso, "MAX_PROXIMAL_STEPS", 0)
    with pytest.raises(ValueError, match=r"the lasso must reach a duality gap of 1e-12 .* in 0 steps, but 4 of 4"):
        solve_lasso(*problems, torch.tensor([1e-3]))
