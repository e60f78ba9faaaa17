"""Whether inputs are preprocessed is seen where it is known, and not in decoys; errors by the number of examples."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope.activations import capture
from mesascope.analyses import excess_risk_vs_context_length, preprocessing, run_analyses
from mesascope.analyses.algorithms.agreement import predict_at_queries
from mesascope.analyses.algorithms.context_length import COMPARED_ALGORITHMS, minimize_error
from mesascope.analyses.algorithms.noise_levels import excess_risk_vs_noise
from mesascope.ground_truth.models.descent import build_gradient_descent_model
from mesascope.ground_truth.models.preprocessing import build_preprocessing_model
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.studies.sparse_regression_heads.problems import ProblemSetting
from mesascope.studies.sparse_regression_heads.toy_model import descent_risks
from mesascope.studies.toy_model import simulation_generator
from mesascope.tasks import algorithms
from mesascope.tasks.functions import LinearFunctions
from mesascope.tasks.icl.context import build_context
from mesascope.tasks.regression import Regression
from mesascope.testing import check_analysis, check_ground_truth, check_task
from sparse_models import CASES, DIM, NUM_EXAMPLES, TASK, build_split_descent_model, sample_batch


def probed(model, count=400):
    return run_analyses(model, sample_batch(count), [preprocessing])["preprocessing"]


def test_products_that_a_layer_writes_are_read_wholly_and_raw_inputs_do_not_tell_them():
    found = probed(build_preprocessing_model(DIM, NUM_EXAMPLES))
    for variable in ("explained", "explained_context"):
        assert float(found[variable].sel(layer="after 0")) == pytest.approx(1, abs=1e-6)
        assert float(found[f"{variable}_null"].max()) < 0.1
    assert abs(float(found["explained"].sel(layer="embedding"))) < 0.1
    assert float(found["explained_context"].sel(layer="embedding")) < 0.5  # the answer beside an input tells some


def test_it_is_found_where_it_is_and_a_step_of_descent_is_passed_over():
    def found(data):
        rise = data["explained"].diff("layer")
        return {"preprocesses": {(layer,) for layer in np.flatnonzero(rise.values > 0.9).tolist()}}

    check_ground_truth(preprocessing, found, draws=2, cases=CASES).assert_exact()


def test_a_step_of_descent_tells_one_part_of_as_many_as_there_are_coordinates():
    explained = probed(build_split_descent_model(0), 2000)["explained"].sel(layer="after 0")
    assert float(explained) == pytest.approx(1 / DIM, abs=0.1)


def test_it_conforms_and_refuses_what_has_no_pairs():
    check_analysis(preprocessing, build_gradient_descent_model(DIM, NUM_EXAMPLES, 1), sample_batch(32))
    alternating = replace(TASK, layout="alternating")
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(d_in=DIM, d_out=1, hidden_size=16)).eval()
    drawn = alternating.sample(8, torch.Generator().manual_seed(0))
    sites = ["resid_pre", "resid_post"]
    with pytest.raises(ValueError, match="needs inputs joined with their targets"):
        preprocessing(capture(model, drawn, sites))
    with pytest.raises(ValueError, match="needs vectors with targets of dimension 1"):
        preprocessing(capture(model, drawn.inputs, sites))
    with pytest.raises(ValueError, match="needs four sequences or more, but got 3"):
        preprocessing(capture(build_gradient_descent_model(DIM, NUM_EXAMPLES, 1), sample_batch(3), sites))


def test_preprocessed_descent_is_that_of_the_reduced_model():
    x, y, rule = ProblemSetting(features=5, nonzero=2, examples=7).sample_problems(6, simulation_generator(0))
    scale = (x * y[..., None]).mean(1)
    expected = descent_risks(x, y, rule, scale, 4)
    for feature in range(5):  # asked along a coordinate, it answers with that coordinate of its rule
        points = torch.cat([x, torch.eye(5, dtype=torch.float64)[feature].expand(6, 1, 5)], 1)
        answers = torch.cat([y, torch.zeros(6, 1, dtype=torch.float64)], 1)[..., None]
        shown = build_context(points, answers, positions=(7,), queries=(7,))
        found = algorithms.preprocessed_gradient_descent().predict(shown, (1, 4), step=1.0)[..., 0, 0]
        wrong = (found - rule[:, feature]).square().mean(1)
        total = wrong if feature == 0 else total + wrong
    assert total.tolist() == pytest.approx([expected[1], expected[4]], rel=1e-6)


def test_it_is_an_algorithm_of_sparse_rules_and_pairs_alone():
    name = "preprocessed gradient descent"
    sparse = replace(TASK, functions=LinearFunctions(num_nonzero=1))
    assert name in [one.name for one in sparse.candidate_algorithms()]
    for other in (TASK, replace(sparse, layout="alternating")):
        assert name not in [one.name for one in other.candidate_algorithms()]
    check_task(sparse)
    shown = TASK.extract_examples(sample_batch(4).inputs)
    with pytest.raises(ValueError, match="preprocessing needs targets of dimension 1, but got 2"):
        algorithms.preprocessed_gradient_descent().predict(
            replace(shown, context_y=shown.context_y.expand(-1, -1, -1, 2)), (1,), step=1.0
        )


def test_the_error_of_a_planted_model_is_that_of_its_algorithm_by_any_number_of_examples():
    task = Regression(dim=3, num_examples=6, layout="joined", noise=0.5, functions=LinearFunctions(num_nonzero=1))
    model = build_gradient_descent_model(3, 6, 1, 0.7)
    few = task.sample(8, torch.Generator().manual_seed(0))
    found = excess_risk_vs_context_length(model, task, few, counts=(3, 6), sequences=200)["excess"]
    assert found["predictor"].values.tolist() == [
        "model",
        *(one.name for one in task.candidate_algorithms() if one.name in COMPARED_ALGORITHMS),
    ]
    for count in (3, 6):
        here = replace(task, num_examples=count)
        drawn = here.sample(200, torch.Generator().manual_seed(count))
        step = 0.7 * count / 6  # its sum is divided by the number it was made for
        exact = algorithms.gradient_descent().predict(here.extract_examples(drawn.inputs), (1,), step=step)[0]
        error = (exact - drawn.targets[:, -1:].double()).square().mean().item() - 0.25
        assert float(found.sel(_examples=count, predictor="model")) == pytest.approx(error, rel=1e-4)


def test_in_hindsight_an_algorithm_is_no_worse_than_with_any_numbers_of_the_grid():
    there = predict_at_queries(build_gradient_descent_model(DIM, NUM_EXAMPLES, 1), TASK, sample_batch(100))
    for algorithm, numbers in (
        (algorithms.ridge_regression(), {"ridge": 0.1}),
        (algorithms.lasso_regression(), {"penalty": 0.01}),
    ):
        exact = algorithm.predict(there.context, (1,), **numbers)[0]
        assert minimize_error(algorithm, there)[0] <= there.mean_squared_error(exact) + 1e-9
    assert minimize_error(algorithms.averaging_estimator(), there)[0] == pytest.approx(
        there.mean_squared_error(algorithms.averaging_estimator().predict(there.context, (1,))[0])
    )


def test_a_best_number_at_the_edge_of_its_grid_is_reported():
    """Without noise and with many examples, the smallest ridge is best; with much noise, a larger one."""
    model = build_gradient_descent_model(3, 6, 1)
    for noise, expected in ((0.0, 1), (1.0, 0)):
        task = Regression(dim=3, num_examples=6, layout="joined", noise=noise)
        found = excess_risk_vs_context_length(model, task, sample_batch(4), counts=(12,), sequences=300)["at_edge"]
        assert found.sel(predictor="ridge regression").values.tolist() == [expected]
        assert found.sel(predictor="model").values.tolist() == [0]


def test_the_number_of_examples_must_be_one_that_can_be_chosen():
    few, model = sample_batch(4), build_gradient_descent_model(DIM, NUM_EXAMPLES, 1)
    with pytest.raises(ValueError, match="must be Regression with layout='joined'"):
        excess_risk_vs_context_length(model, replace(TASK, layout="alternating"), few)
    with pytest.raises(ValueError, match=r"counts must be 1 or more each, but got \[0\]"):
        excess_risk_vs_context_length(model, TASK, few, counts=(0,))


def test_a_query_without_noise_has_the_excess_risk_as_its_loss():
    task = Regression(dim=3, num_examples=6, layout="joined", noise=0.5, functions=LinearFunctions(num_nonzero=1))
    noisy, clean = (
        replace(task, noisy_query=noisy).sample(50_000, torch.Generator().manual_seed(0)) for noisy in (True, False)
    )
    assert torch.equal(noisy.inputs, clean.inputs)
    assert torch.equal(noisy.targets[:, :-1], clean.targets[:, :-1])
    assert (noisy.targets - clean.targets)[:, -1].std().item() == pytest.approx(0.5, rel=0.02)
    model = build_gradient_descent_model(3, 6, 1, 0.7)
    excess = [
        excess_risk_vs_context_length(model, each, noisy[:4], counts=(6,), sequences=20_000, algorithm_names=())
        for each in (task, replace(task, noisy_query=False))
    ]
    assert excess[0]["excess"].item() == pytest.approx(excess[1]["excess"].item(), rel=0.05)
    with pytest.raises(ValueError, match="a query without noise needs layout='joined', but got 'alternating'"):
        replace(task, noisy_query=False, layout="alternating")


def test_the_excess_risk_at_the_noise_of_the_task_is_that_at_its_number_of_examples():
    task = Regression(dim=3, num_examples=6, layout="joined", noise=0.5, functions=LinearFunctions(num_nonzero=1))
    model, few = build_gradient_descent_model(3, 6, 1, 0.7), task.sample(4, torch.Generator().manual_seed(0))
    found = excess_risk_vs_noise(model, task, few, factors=(1.0, 3.0), sequences=200, seed=6)["excess"]
    by_examples = excess_risk_vs_context_length(model, task, few, counts=(6,), sequences=200)["excess"]
    assert found.sel(_noise=1.0).values.tolist() == pytest.approx(
        by_examples.sel(_examples=6).values.tolist(), abs=1e-9
    )
    louder = excess_risk_vs_context_length(model, replace(task, noise=1.5), few, counts=(6,), sequences=200, seed=1)
    assert found.sel(_noise=3.0).values.tolist() == pytest.approx(louder["excess"][0].values.tolist(), abs=1e-9)
    with pytest.raises(ValueError, match="must be Regression with noise"):
        excess_risk_vs_noise(model, replace(task, noise=0.0), few)
    with pytest.raises(ValueError, match=r"factors must be 0 or more each, but got \[-1.0\]"):
        excess_risk_vs_noise(model, task, few, factors=(-1.0,))
