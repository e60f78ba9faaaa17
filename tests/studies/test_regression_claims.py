"""Claims on gradient descent and Newton's method on synthetic results: supported where they hold, else not."""

import numpy as np
import pytest
import torch
import xarray as xr

from mesascope.analyses.algorithms.fit import fit_hyperparameters, fit_iterations
from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION
from mesascope.studies.gradient_descent import study as gradient_descent
from mesascope.studies.newton import study as newton
from mesascope.studies.newton.claims import NEWTON, RIVALS
from mesascope.studies.verdicts import judge

from .seed_results import SEEDS, stack_steps

PREDICTORS = ["least squares", "gradient descent", "GD++", "ridge regression"]
STATS = ["predictions"]
DEPTHS = ["embedding", *(f"after {layer}" for layer in range(6))]


def build_scored(relative_error):
    """Build the error of a model and of predicting 0."""
    errors = np.array([2.0 * relative_error, 2.0])
    return xr.Dataset({"scored": stack_steps(errors, errors, "predictor", predictor=["model", "zero"])})


def build_algorithms(similar, step=gradient_descent.OPTIMAL_STEP, model_error=0.1, error=0.1):
    """Build the results of which_algorithm from the similarity of each algorithm."""
    table = np.array([[[similar.get(name, 0.1)] for name in PREDICTORS]])
    predictors, distributions = {"predictor": PREDICTORS}, {"distribution": [TRAINING_DISTRIBUTION]}
    numbers, errors = np.full(len(PREDICTORS), 1.0), np.full((1, len(PREDICTORS)), error)
    dims = ("distribution", "predictor")
    return xr.Dataset(
        {
            "similarity": stack_steps(table * 0, table, *dims, "stat", **distributions, **predictors, stat=STATS),
            "fitted": stack_steps(numbers, numbers * step, "predictor", **predictors),
            "model_error": stack_steps([model_error], [model_error], "distribution", **distributions),
            "error": stack_steps(errors, errors, *dims, **distributions, **predictors),
        }
    )


ONE = {"gradient descent": 0.995, "GD++": 0.985, "ridge regression": 0.83}
TWO = {"gradient descent": 0.7, "GD++": 0.995}


def build_descent(
    one=ONE, two=TWO, free=0.98, step=gradient_descent.OPTIMAL_STEP, two_error=0.05, lens=(1.0, 0.3, 0.05), errors=None
):
    """Build the results of the study gradient-descent; ``free`` is the similarity of any number of steps."""
    errors = {"one": 0.38, "two": 0.1} | (errors or {})
    return {
        "loss_vs_baselines": build_scored(errors["one"]),
        "two_loss_vs_baselines": build_scored(errors["two"]),
        "which_algorithm": build_algorithms(one, step=step),
        "two_which_algorithm": build_algorithms({"gradient descent": free}),
        "two_two_steps": build_algorithms(two, model_error=two_error),
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


def predict_two_steps(first, second):
    """Return a predictor that takes two steps of gradient descent, of different sizes."""

    def predict(inputs):
        context = gradient_descent.TASK.extract_examples(inputs)
        count = gradient_descent.TASK.num_examples
        gram, moment = context.gram_matrix / count, context.cross_moment / count
        rule = (first + second) * moment - first * second * gram @ moment
        return context.scatter_to_positions(context.apply_rule(rule), inputs.shape[1]).to(inputs.dtype)

    return predict


def test_two_plain_steps_of_different_sizes_are_not_gd_plus_plus():
    batch = gradient_descent.TASK.sample(512, torch.Generator().manual_seed(1))
    decoy, results = predict_two_steps(0.3, 0.9), build_descent()
    for name, iterations in (("two_two_steps", 2), ("two_which_algorithm", None)):
        compare = gradient_descent.TWO_STEPS.using(iterations=iterations)
        one_seed = compare(decoy, gradient_descent.TASK, batch)
        results[name] = one_seed.expand_dims(seed=range(SEEDS), step=[100])
    verdict = judge(DESCENT_CLAIMS["two layers agree with GD++"], results, "laptop")
    assert verdict.difference is not None
    assert verdict.difference[0] > 0
    assert verdict.status == "contradicted"


def build_newton(
    newton_similarity=(-3.0, 0.2, 0.9, 0.95, 0.97, 0.98, 0.99),
    lead=0.05,
    lens=(1.0, *(1.01 * 0.5**n for n in range(6))),
    least=0.95,
    final=0.05,
):
    """Build the results of the study newton; the best rival agrees less with each layer than Newton by ``lead``."""
    by_depth = np.array(newton_similarity)
    near = np.stack([by_depth, by_depth - lead, by_depth - 2 * lead], axis=-1)[:, None]
    predictors = ["least squares", NEWTON, *RIVALS]
    similarity = np.array([[[least], [0.9], [0.9], [0.9]]])
    coords = {"layer": DEPTHS, "lens": ["affine lens"], "predictor": [NEWTON, *RIVALS]}
    dims = {"distribution": [TRAINING_DISTRIBUTION], "predictor": predictors, "stat": STATS}
    errors = np.array([[1.0, final], [1.0, 1.0]])
    return {
        "loss_vs_baselines": xr.Dataset(
            {"error": stack_steps(errors, errors, "predictor", "pos", predictor=["model", "zero"])}
        ),
        "which_algorithm": xr.Dataset(
            {
                "similarity": stack_steps(similarity * 0, similarity, *dims, **dims),
                "layer_similarity": stack_steps(near, near, *coords, **coords),
            }
        ),
        "probe_and_logit_lens": xr.Dataset({"affine_error": stack_steps(np.linspace(1, 1.3, 7), lens, "layer")}),
    }


NEWTON_CLAIMS = {claim.name: claim for claim in newton.STUDY.claims}
NEWTON_COUNTEREXAMPLES = {
    "predictions: least squares": build_newton(least=0.1),
    "layers agree with Newton's iterations": build_newton(lead=-0.05),
    "predictions are refined layer by layer": build_newton(lens=(1, 0.5, 0.2, 0.3, 0.1, 0.05, 0.01)),
}


@pytest.mark.parametrize("name", NEWTON_CLAIMS)
def test_newton_claim_is_supported_where_it_holds(name):
    assert judge(NEWTON_CLAIMS[name], build_newton(), "laptop").status == "supported"


@pytest.mark.parametrize("name", NEWTON_CLAIMS)
def test_newton_claim_is_contradicted_where_it_fails(name):
    assert judge(NEWTON_CLAIMS[name], NEWTON_COUNTEREXAMPLES[name], "laptop").status == "contradicted"


@pytest.mark.parametrize("name", NEWTON_CLAIMS)
def test_newton_claim_is_not_judged_without_learning(name):
    assert judge(NEWTON_CLAIMS[name], build_newton(final=0.3), "laptop").status == "not learned"


def test_average_over_layers_leaves_out_depths_without_agreement():
    verdict = judge(NEWTON_CLAIMS["layers agree with Newton's iterations"], build_newton(), "laptop")
    assert verdict.value == pytest.approx(np.mean([0.9, 0.95, 0.97, 0.98, 0.99]), rel=0.01)
    assert verdict.difference is not None
    assert np.mean(verdict.difference) == pytest.approx(0.05, rel=0.01)


def test_two_depths_with_agreement_are_too_few():
    results = build_newton(newton_similarity=(-3.0, 0.2, 0.2, 0.2, 0.2, 0.9, 0.95))
    assert judge(NEWTON_CLAIMS["layers agree with Newton's iterations"], results, "laptop").status == "inconclusive"


def test_equally_similar_algorithms_are_no_evidence_for_newton():
    results = build_newton(lead=0.001)
    assert judge(NEWTON_CLAIMS["layers agree with Newton's iterations"], results, "laptop").status == "no effect"


def measure_layer_similarity(predict_layers):
    """Return the similarity of fitted algorithms to layers whose readouts are known predictions; the last is final."""
    fitting, scoring = (
        newton.TASK.extract_examples(newton.TASK.sample(256, torch.Generator().manual_seed(seed)).inputs)
        for seed in (2, 3)
    )
    layers, expected = ([predict(context) for predict in predict_layers] for context in (fitting, scoring))
    weight = torch.ones(layers[0].shape[:2], dtype=torch.float64)
    similarity = []
    for algorithm in (NEWTON_ALGORITHMS[name] for name in (NEWTON, *RIVALS)):
        fitted = fit_hyperparameters(algorithm, fitting, layers[-1], weight)
        for one, layer in zip(fit_iterations(fitted, fitting, layers, weight), expected, strict=True):
            distance = (one(scoring) - layer).square().sum() / (layer - layer.mean(0)).square().sum()
            similarity.append(1 - float(distance))
    return np.array(similarity).reshape(1 + len(RIVALS), len(predict_layers)).T


def plant(name, iterations, **hyperparameters):
    return lambda context: NEWTON_ALGORITHMS[name].predict(context, (iterations,), **hyperparameters)[0]


NEWTON_ALGORITHMS = {one.name: one for one in newton.TASK.candidate_algorithms()}
DESCENT, RIDGE = RIVALS
PLANTED_LAYERS = {
    "supported": [plant(NEWTON, 2 * layer, start=1.0) for layer in range(1, 7)],
    "contradicted: gradient descent": [plant(DESCENT, 2**layer, step=1.0) for layer in range(1, 7)],
    "contradicted: ridge regression": [plant(RIDGE, 1, ridge=penalty) for penalty in (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)],
}


@pytest.mark.parametrize("expected", PLANTED_LAYERS)
def test_planted_layers_are_distinguished_from_newton(expected):
    results = build_newton()
    coords = {"layer": DEPTHS[1:], "lens": ["affine lens"], "predictor": [NEWTON, *RIVALS]}
    similarity = measure_layer_similarity(PLANTED_LAYERS[expected])[:, None]
    results["which_algorithm"] = results["which_algorithm"].drop_dims("layer")
    results["which_algorithm"]["layer_similarity"] = stack_steps(similarity, similarity, *coords, **coords)
    status = judge(NEWTON_CLAIMS["layers agree with Newton's iterations"], results, "laptop").status
    assert status == expected.split(":")[0]


def test_first_layer_need_not_refine_the_prediction():
    results = build_newton(lens=(1.0, 1.2, 0.5, 0.2, 0.1, 0.05, 0.02))
    assert judge(NEWTON_CLAIMS["predictions are refined layer by layer"], results, "laptop").status == "supported"
