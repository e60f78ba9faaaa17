"""Claims of the regression studies on synthetic results: supported where they hold, not where they fail."""

import numpy as np
import pytest
import xarray as xr

from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION
from mesascope.studies.function_classes import study as function_classes
from mesascope.studies.gradient_descent import study as gradient_descent
from mesascope.studies.gradient_descent.claims import SHIFTED_DISTRIBUTIONS
from mesascope.studies.newton import study as newton
from mesascope.studies.newton.claims import DESCENT as NORMALISED_DESCENT
from mesascope.studies.newton.claims import NEWTON
from mesascope.studies.verdicts import judge

SEEDS = 3
PREDICTORS = ["least squares", "gradient descent", "GD++", "nearest neighbours"]
STATS = ["predictions", "weights: context targets"]
DISTRIBUTIONS = [TRAINING_DISTRIBUTION, *SHIFTED_DISTRIBUTIONS]
DEPTHS = ["embedding", *(f"after {layer}" for layer in range(6))]


def stack_steps(untrained, trained, *dims, **coords):
    """Build an array over seeds, with a little noise, and two checkpoints."""
    values = [
        np.stack([np.asarray(v, float) * (1 + 1e-3 * seed) for v in (untrained, trained)]) for seed in range(SEEDS)
    ]
    names = {"seed": range(SEEDS), "step": [0, 100]} | coords
    return xr.DataArray(np.stack(values), dims=("seed", "step", *dims), coords=names)


def build_algorithms(similar, iterations=1, step=gradient_descent.OPTIMAL_STEP, model_error=0.1, error=0.1):
    """Build the results of which_algorithm from the similarity of each algorithm."""
    table = np.array([[similar.get(name, 0.1)] * len(STATS) for name in PREDICTORS])
    trained = np.broadcast_to(table, (len(DISTRIBUTIONS), *table.shape))
    predictors, distributions = {"predictor": PREDICTORS}, {"distribution": DISTRIBUTIONS}
    numbers = np.full(len(PREDICTORS), 1.0)
    losses = np.full(len(DISTRIBUTIONS), model_error)
    return xr.Dataset(
        {
            "similarity": stack_steps(
                trained * 0, trained, "distribution", "predictor", "stat", **distributions, **predictors, stat=STATS
            ),
            "iterations": stack_steps(numbers, numbers * iterations, "predictor", **predictors),
            "fitted": stack_steps(numbers, numbers * step, "predictor", **predictors),
            "model_error": stack_steps(losses, losses, "distribution", **distributions),
            "error": stack_steps(
                *[np.full((len(DISTRIBUTIONS), len(PREDICTORS)), error)] * 2,
                "distribution",
                "predictor",
                **distributions,
                **predictors,
            ),
        }
    )


ONE = {"gradient descent": 0.998, "least squares": 0.5}
TWO = {"gradient descent": 0.7, "GD++": 0.9}


def build_descent(one=None, two=None, lens=(1.0, 0.3, 0.05)):
    return {
        "which_algorithm": build_algorithms(ONE, **(one or {})) if not isinstance(one, xr.Dataset) else one,
        "two_which_algorithm": build_algorithms(TWO, iterations=7),
        "two_two_steps": build_algorithms(TWO, model_error=0.05) if two is None else two,
        "two_probe_and_logit_lens": xr.Dataset({"affine_error": stack_steps([1.0, 1.1, 1.2], lens, "layer")}),
    }


DESCENT_CLAIMS = {claim.name: claim for claim in gradient_descent.STUDY.claims}
DESCENT_COUNTEREXAMPLES = {
    "one layer agrees with gradient descent": build_descent(
        one=build_algorithms({"gradient descent": 0.9, "least squares": 0.5})
    ),
    "one layer takes one step": build_descent(one={"iterations": 9}),
    "the step size is optimal": build_descent(one={"step": 0.8 * gradient_descent.OPTIMAL_STEP}),
    "one layer weights the context like gradient descent": build_descent(
        one=build_algorithms({"gradient descent": 0.8, "least squares": 0.9})
    ),
    "out of distribution: gradient descent": build_descent(
        one=build_algorithms({"gradient descent": 0.5, "least squares": 0.1})
    ),
    "two layers outperform two steps": build_descent(two=build_algorithms(TWO, model_error=0.2)),
    "two layers agree with GD++": build_descent(two=build_algorithms({"gradient descent": 0.9, "GD++": 0.7})),
    "the second layer refines the prediction": build_descent(lens=(1.0, 0.3, 0.4)),
}


@pytest.mark.parametrize("name", DESCENT_CLAIMS)
def test_descent_claim_is_supported_where_it_holds(name):
    assert judge(DESCENT_CLAIMS[name], build_descent(), "laptop").status == "supported"


@pytest.mark.parametrize("name", DESCENT_CLAIMS)
def test_descent_claim_is_contradicted_where_it_fails(name):
    assert judge(DESCENT_CLAIMS[name], DESCENT_COUNTEREXAMPLES[name], "laptop").status == "contradicted"


def build_newton(newton_steps, descent_steps, agreeing=True, lens=tuple(0.5**n for n in range(7)), least=0.95):
    """Build the results of the study newton."""
    predictors = ["least squares", NEWTON, NORMALISED_DESCENT, "nearest neighbours"]
    near = np.full((7, 1, 4), 0.9 if agreeing else 0.2)
    near[:2] = -3.0
    ones = np.ones(7)
    steps = np.stack([ones, np.asarray(newton_steps, float), np.asarray(descent_steps, float), ones], axis=-1)[:, None]
    coords = {"layer": DEPTHS, "lens": ["affine lens"], "predictor": predictors}
    similarity = np.array([[[least], [0.9], [0.9], [0.2]]])
    exact = xr.DataArray(
        np.broadcast_to(steps, (SEEDS, 2, *steps.shape)).copy(),
        dims=("seed", "step", "layer", "lens", "predictor"),
        coords={"seed": range(SEEDS), "step": [0, 100], **coords},
    )
    return {
        "which_algorithm": xr.Dataset(
            {
                "similarity": stack_steps(
                    similarity * 0,
                    similarity,
                    "distribution",
                    "predictor",
                    "stat",
                    distribution=[TRAINING_DISTRIBUTION],
                    predictor=predictors,
                    stat=STATS[:1],
                ),
                "layer_similarity": stack_steps(near, near, "layer", "lens", "predictor", **coords),
                "layer_iterations": exact,
            }
        ),
        "probe_and_logit_lens": xr.Dataset({"affine_error": stack_steps(np.linspace(1, 1.3, 7), lens, "layer")}),
    }


LINE, DOUBLING = [1, 1, 3, 6, 9, 12, 15], [1, 1, 8, 64, 512, 4096, 8192 * 4]
NEWTON_CLAIMS = {claim.name: claim for claim in newton.STUDY.claims}
NEWTON_COUNTEREXAMPLES = {
    "predictions: least squares": build_newton(LINE, DOUBLING, least=0.1),
    "Newton iterations are linear in depth": build_newton([1, 1, 3, 3, 3, 3, 20], [1, 1, 8, 16, 24, 32, 40]),
    "gradient descent steps are exponential in Newton iterations": build_newton(LINE, [1, 1, 8, 16, 24, 32, 40]),
    "predictions are refined layer by layer": build_newton(LINE, DOUBLING, lens=(1, 0.5, 0.2, 0.3, 0.1, 0.05, 0.01)),
}


@pytest.mark.parametrize("name", NEWTON_CLAIMS)
def test_newton_claim_is_supported_where_it_holds(name):
    assert judge(NEWTON_CLAIMS[name], build_newton(LINE, DOUBLING), "laptop").status == "supported"


@pytest.mark.parametrize("name", NEWTON_CLAIMS)
def test_newton_claim_is_contradicted_where_it_fails(name):
    assert judge(NEWTON_CLAIMS[name], NEWTON_COUNTEREXAMPLES[name], "laptop").status == "contradicted"


def test_depths_without_agreement_are_inconclusive():
    verdict = judge(
        NEWTON_CLAIMS["gradient descent steps are exponential in Newton iterations"],
        build_newton(LINE, DOUBLING, agreeing=False),
        "laptop",
    )
    assert verdict.status == "inconclusive"


def build_classes(
    similarity=(0.97, 0.1), shifted=0.95, linear=0.02, sparse=0.5, lasso=0.9, network=1.0, rules=(0.95, 0.1), tree=0.7
):
    """Build the results of the study function-classes; errors of the model are relative to those of a baseline."""

    def build_errors(model, others):
        """Build errors, all 1 before the last four positions; the untrained model's equal those of predicting 0."""
        errors = {"model": model, "zero": 1.6, "3 nearest neighbours": 2.0, **others}
        values = np.array(list(errors.values()))
        first = np.array([1.6, *values[1:]])
        by_position = [np.stack([np.ones_like(each)] * 8 + [each] * 4, -1) for each in (first, values)]
        predictors = {"predictor": list(errors)}
        error = stack_steps(*by_position, "predictor", "pos", **predictors)
        return xr.Dataset({"scored": stack_steps(first, values, "predictor", **predictors), "error": error})

    def build_similarities(**distributions):
        predictors = list(next(iter(distributions.values())))
        table = np.array([[[distributions[name][one]] for one in predictors] for name in distributions])
        distributions = {
            "distribution": [name.replace("_", " ") for name in distributions],
            "predictor": predictors,
            "stat": STATS[:1],
        }
        return xr.Dataset(
            {"similarity": stack_steps(table * 0, table, "distribution", "predictor", "stat", **distributions)}
        )

    first = dict(zip(("least squares", "nearest neighbours"), similarity, strict=True))
    other = {"least squares": shifted, "nearest neighbours": 0.1}
    linear_functions = dict(zip(("least squares", "nearest neighbours"), rules, strict=True))
    trees = {"greedy tree": 1.0, "greedy tree of signs": 1.0, "boosted trees": 1.0}
    return {
        "loss_vs_baselines": build_errors(linear, {"averaging": 0.7, "least squares": 0.9 * linear}),
        "which_algorithm": build_similarities(
            training_distribution=first, correlated_inputs=other, inputs_twice_as_large=other
        ),
        "sparse_loss_vs_baselines": build_errors(sparse, {"least squares": 1.0}),
        "sparse_which_algorithm": build_similarities(training_distribution={"lasso": lasso, "least squares": 0.8}),
        "network_loss_vs_baselines": build_errors(network, {"trained network": 1.0}),
        "network_linear_algorithms": build_similarities(
            training_distribution={"least squares": -9.0, "nearest neighbours": 0.5}, linear_functions=linear_functions
        ),
        "tree_loss_vs_baselines": build_errors(tree, trees),
    }


CLASS_CLAIMS = {claim.name: claim for claim in function_classes.STUDY.claims}
CLASS_COUNTEREXAMPLES = {
    "linear: least squares": build_classes(similarity=(0.5, 0.1)),
    "linear: error after the context": build_classes(linear=0.4),
    "linear: out of distribution": build_classes(shifted=0.2),
    "sparse: better than least squares": build_classes(sparse=1.05),
    "sparse: lasso": build_classes(lasso=0.5),
    "networks: trained network": build_classes(network=1.4),
    "networks: linear functions": build_classes(rules=(0.5, 0.1)),
    "trees: better than greedy trees": build_classes(tree=1.1),
    "trees: better than greedy trees of signs": build_classes(tree=1.1),
    "trees: better than boosted trees": build_classes(tree=1.1),
}


@pytest.mark.parametrize("name", CLASS_CLAIMS)
def test_function_class_claim_is_supported_where_it_holds(name):
    assert judge(CLASS_CLAIMS[name], build_classes(), "laptop").status == "supported"


@pytest.mark.parametrize("name", CLASS_CLAIMS)
def test_function_class_claim_is_contradicted_where_it_fails(name):
    assert judge(CLASS_CLAIMS[name], CLASS_COUNTEREXAMPLES[name], "laptop").status == "contradicted"


@pytest.mark.parametrize(
    ("name", "results"),
    [
        ("linear: least squares", build_classes(similarity=(0.95, 0.96))),
        ("networks: trained network", build_classes(network=2.1)),
        ("networks: linear functions", build_classes(rules=(0.95, 0.97))),
        ("sparse: lasso", build_classes(lasso=0.7)),
    ],
)
def test_claim_is_contradicted_where_the_control_is_better(name, results):
    assert judge(CLASS_CLAIMS[name], results, "laptop").status == "contradicted"
