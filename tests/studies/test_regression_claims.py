"""Claims on gradient descent on synthetic results and planted predictors: supported where they hold, else not."""

import numpy as np
import pytest
import torch
import xarray as xr

from cases import spread
from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION
from mesascope.studies.gradient_descent import study as gradient_descent
from mesascope.studies.verdicts import judge

from .seed_results import SEEDS, stack_steps

PREDICTORS = ["least squares", "gradient descent", "GD++", "ridge regression", "variable-step gradient descent"]
STATS = ["predictions"]


def build_scored(relative_error):
    """Build the error of a model and of predicting 0."""
    errors = np.array([2.0 * relative_error, 2.0])
    return xr.Dataset({"scored": stack_steps(errors, errors, "predictor", predictor=["model", "zero"])})


def build_algorithms(similar, step=gradient_descent.OPTIMAL_STEP, model_error=0.1, error=0.1, at_edge=0):
    """Build the results of which_algorithm from the similarity of each algorithm."""
    table = np.array([[[similar.get(name, 0.1)] for name in PREDICTORS]])
    predictors, distributions = {"predictor": PREDICTORS}, {"distribution": [TRAINING_DISTRIBUTION]}
    numbers, errors = np.full(len(PREDICTORS), 1.0), np.full((1, len(PREDICTORS)), error)
    dims = ("distribution", "predictor")
    return xr.Dataset(
        {
            "similarity": stack_steps(table * 0, table, *dims, "stat", **distributions, **predictors, stat=STATS),
            "fitted": stack_steps(numbers, numbers * step, "predictor", **predictors),
            "at_edge": stack_steps(numbers * 0, numbers * at_edge, "predictor", **predictors).round(),
            "tuned_error": stack_steps(numbers * error, numbers * error, "predictor", **predictors),
            "tuned_at_edge": stack_steps(numbers * 0, numbers * at_edge, "predictor", **predictors).round(),
            "model_error": stack_steps([model_error], [model_error], "distribution", **distributions),
            "error": stack_steps(errors, errors, *dims, **distributions, **predictors),
        }
    )


ONE = {"gradient descent": 0.995, "GD++": 0.985, "ridge regression": 0.83}
TWO = {"gradient descent": 0.7, "GD++": 0.995, "variable-step gradient descent": 0.9}


def build_descent(
    one=ONE,
    two=TWO,
    free=0.98,
    step=gradient_descent.OPTIMAL_STEP,
    two_error=0.05,
    lens=(1.0, 0.3, 0.05),
    errors=None,
    at_edge=0,
):
    """Build the results of the study gradient-descent; ``free`` is the similarity of any number of steps."""
    errors = {"one": 0.38, "two": 0.1} | (errors or {})
    return {
        "loss_vs_baselines": build_scored(errors["one"]),
        "two_loss_vs_baselines": build_scored(errors["two"]),
        "which_algorithm": build_algorithms(one, step=step, at_edge=at_edge),
        "two_which_algorithm": build_algorithms({"gradient descent": free}),
        "two_two_steps": build_algorithms(two, model_error=two_error, at_edge=at_edge),
        "two_probe_and_logit_lens": xr.Dataset({"affine_error": stack_steps([1.0, 1.1, 1.2], lens, "layer")}),
    }


DESCENT_CLAIMS = {claim.name: claim for claim in gradient_descent.STUDY.claims}
DESCENT_COUNTEREXAMPLES = {
    "one layer agrees with gradient descent": build_descent(one={"gradient descent": 0.9, "GD++": 0.8}),
    "two layers outperform two steps": build_descent(two_error=0.2),
    "two layers agree with GD++": build_descent(two={"gradient descent": 0.77, "GD++": 0.88}),
    "the second layer refines the prediction": build_descent(lens=(1.0, 0.3, 0.4)),
}


@pytest.mark.parametrize("name", DESCENT_COUNTEREXAMPLES)
def test_descent_claim_is_supported_where_it_holds(name):
    assert judge(DESCENT_CLAIMS[name], build_descent(), "laptop").status == "supported"


@pytest.mark.parametrize("name", DESCENT_COUNTEREXAMPLES)
def test_descent_claim_is_contradicted_where_it_fails(name):
    assert judge(DESCENT_CLAIMS[name], DESCENT_COUNTEREXAMPLES[name], "laptop").status == "contradicted"


@pytest.mark.parametrize(
    ("name", "results"),
    [
        ("one layer agrees with gradient descent", build_descent(one=ONE | {"ridge regression": 0.9925})),
        ("two layers agree with GD++", build_descent(free=0.993)),
        ("two layers agree with GD++", build_descent(two=TWO | {"variable-step gradient descent": 0.993})),
        ("two layers outperform two steps", build_descent(two_error=0.098)),
    ],
)
def test_a_difference_within_the_margin_is_no_effect(name, results):
    assert judge(DESCENT_CLAIMS[name], results, "laptop").status == "no effect"


def test_every_other_descent_claim_is_a_check_of_the_step_size():
    (check,) = (claim for name, claim in DESCENT_CLAIMS.items() if name not in DESCENT_COUNTEREXAMPLES)
    assert judge(check, build_descent(), "laptop").status == "holds"
    assert judge(check, build_descent(step=0.8 * gradient_descent.OPTIMAL_STEP), "laptop").status == "fails"


@pytest.mark.parametrize(
    ("name", "errors"),
    [
        ("one layer agrees with gradient descent", {"one": 0.5}),
        *[(name, {"two": 0.4}) for name in list(DESCENT_COUNTEREXAMPLES)[1:]],
    ],
)
def test_layers_worse_than_the_optimal_step_have_not_learned(name, errors):
    assert judge(DESCENT_CLAIMS[name], build_descent(errors=errors), "laptop").status == "not learned"


def test_error_of_the_optimal_step_is_that_of_the_formula():
    task, step = gradient_descent.TASK, gradient_descent.OPTIMAL_STEP
    batch = task.sample(20_000, torch.Generator().manual_seed(0))
    descent = next(one for one in task.candidate_algorithms() if one.name == "gradient descent")
    error = task.loss(task.run_algorithm(descent, batch, step=step), batch)[:, -1]
    assert float(error.mean() / batch.targets[:, -1].square().mean()) == pytest.approx(1 - step, rel=0.05)


def test_numbers_at_the_edge_of_their_grid_are_not_judged():
    (check,) = (claim for claim in gradient_descent.STUDY.claims if claim.kind == "check")
    at_edge = build_descent(at_edge=1)
    assert judge(DESCENT_CLAIMS["two layers outperform two steps"], at_edge, "laptop").status == "inconclusive"
    assert judge(check, at_edge, "laptop").status not in ("holds", "supported")


def test_an_algorithm_that_contains_gradient_descent_is_no_rival_of_it():
    contained = build_descent(one=ONE | {"variable-step gradient descent": 0.996})
    assert judge(DESCENT_CLAIMS["one layer agrees with gradient descent"], contained, "laptop").status == "supported"


def predict_two_layers(name, **hyperparameters):
    """Return a predictor that takes two steps of an algorithm."""
    (algorithm,) = (one for one in gradient_descent.TASK.candidate_algorithms() if one.name == name)

    def predict(inputs):
        context = gradient_descent.TASK.extract_examples(inputs)
        answers = algorithm.predict(context, (2,), **hyperparameters)[0]
        return context.scatter_to_positions(answers, inputs.shape[1]).to(inputs.dtype)

    return predict


VARIABLE = "variable-step gradient descent"
PLANTED_PAIRS = {
    "two layers agree with GD++": (
        predict_two_layers("GD++", step=0.6, gamma=0.15),
        predict_two_layers(VARIABLE, step=0.3, ratio=3.0),
    ),
    "two layers outperform two steps": (
        predict_two_layers("GD++", step=1.317, gamma=0.168),  # the smallest errors of both
        predict_two_layers(VARIABLE, step=0.393, ratio=3.04),
    ),
}


def compare_two_layers(predict):
    """Build the results of the study with algorithms compared with a predictor in place of the two-layer model."""
    batch = gradient_descent.TASK.sample(256, torch.Generator().manual_seed(1))
    results = build_descent()
    for name, iterations in (("two_two_steps", 2), ("two_which_algorithm", None)):
        compare = gradient_descent.TWO_STEPS.using(iterations=iterations, tuned=iterations is not None)
        results[name] = compare(predict, gradient_descent.TASK, batch).expand_dims(seed=range(SEEDS), step=[100])
    return results


@pytest.mark.parametrize("name", spread(PLANTED_PAIRS, 1))
def test_two_steps_of_gd_plus_plus_are_supported_and_two_plain_steps_of_different_sizes_are_not(name):
    planted, decoy = (judge(DESCENT_CLAIMS[name], compare_two_layers(one), "laptop") for one in PLANTED_PAIRS[name])
    assert planted.status == "supported"
    assert decoy.status in ("contradicted", "no effect")
