"""Claims on function classes on synthetic results: supported where they hold, not where they fail."""

import numpy as np
import pytest
import xarray as xr

from mesascope.studies.function_classes import study as function_classes
from mesascope.studies.verdicts import judge

from .seed_results import stack_steps

STATS = ["predictions"]


def build_errors(errors, final=1.0):
    """Build errors by predictor, the same at all positions but the last, at which the model's is ``final`` times it."""
    values = np.array(list(errors.values()), float)
    by_position = np.repeat(values[:, None], 12, 1)
    by_position[list(errors).index("model"), -1] *= final
    predictors = {"predictor": list(errors)}
    error = stack_steps(by_position, by_position, "predictor", "pos", **predictors)
    return xr.Dataset({"scored": stack_steps(values, values, "predictor", **predictors), "error": error})


def build_similarities(**distributions):
    """Build similarities by distribution and predictor."""
    predictors = list(next(iter(distributions.values())))
    table = np.array([[[distributions[name][one]] for one in predictors] for name in distributions])
    names = {
        "distribution": [name.replace("_", " ") for name in distributions],
        "predictor": predictors,
        "stat": STATS,
    }
    return xr.Dataset({"similarity": stack_steps(table * 0, table, *names, **names)})


def build_classes(
    linear=(0.97, 0.95),
    shifted=(0.95, 0.9),
    sparse=0.5,
    lasso=0.9,
    network=1.0,
    on_linear=(0.95, 0.9),
    tree=0.7,
    linear_final=0.05,
    sparse_final=0.1,
):
    """Build the results of the study function-classes.

    Pairs are the similarities of least squares and ridge regression; errors of the model are relative to the learner's.
    """
    first, other, functions = (
        dict(zip(("least squares", "ridge regression"), pair, strict=True)) for pair in (linear, shifted, on_linear)
    )
    network_errors = {"model": network, "trained network": 1.0, "3 nearest neighbours": 2.0}
    return {
        "loss_vs_baselines": build_errors({"model": 1.0, "zero": 1.0}, linear_final),
        "which_algorithm": build_similarities(
            training_distribution=first, correlated_inputs=other, inputs_twice_as_large=dict.fromkeys(other, 0.99)
        ),
        "sparse_loss_vs_baselines": build_errors({"model": sparse, "zero": 1.6, "least squares": 1.0}, sparse_final),
        "sparse_which_algorithm": build_similarities(training_distribution={"lasso": lasso, "ridge regression": 0.8}),
        "network_loss_vs_baselines": build_errors(network_errors),
        "network_linear_algorithms": build_similarities(
            training_distribution={"least squares": -9.0, "ridge regression": 0.5}, linear_functions=functions
        ),
        "tree_loss_vs_baselines": build_errors(
            {"model": tree, "greedy tree": 3.0, "greedy tree of signs": 1.0, "boosted trees": 2.0}
        ),
    }


CLASS_CLAIMS = {claim.name: claim for claim in function_classes.STUDY.claims}
CLASS_COUNTEREXAMPLES = {
    "linear: least squares": build_classes(linear=(0.5, 0.4)),
    "linear: out of distribution": build_classes(shifted=(0.2, 0.1)),
    "sparse: better than least squares": build_classes(sparse=1.1),
    "sparse: lasso": build_classes(lasso=0.5),
    "networks: trained network": build_classes(network=1.4),
    "networks: linear functions": build_classes(on_linear=(0.5, 0.4)),
    "trees: better than tree learners": build_classes(tree=1.1),
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
        ("linear: least squares", build_classes(linear=(0.95, 0.99))),
        ("linear: out of distribution", build_classes(shifted=(0.95, 0.99))),
        ("networks: trained network", build_classes(network=2.1)),
        ("networks: linear functions", build_classes(on_linear=(0.95, 0.99))),
        ("sparse: lasso", build_classes(lasso=0.7)),
    ],
)
def test_claim_is_contradicted_where_the_control_is_better(name, results):
    assert judge(CLASS_CLAIMS[name], results, "laptop").status == "contradicted"


@pytest.mark.parametrize(
    ("name", "results"),
    [
        ("sparse: better than least squares", build_classes(sparse=0.98)),
        ("sparse: lasso", build_classes(lasso=0.802)),
        ("trees: better than tree learners", build_classes(tree=0.98)),
    ],
)
def test_class_difference_within_the_margin_is_no_effect(name, results):
    assert judge(CLASS_CLAIMS[name], results, "laptop").status == "no effect"


@pytest.mark.parametrize(
    ("name", "results"),
    [
        ("linear: least squares", build_classes(linear_final=0.2)),
        ("linear: out of distribution", build_classes(linear_final=0.2)),
        ("sparse: better than least squares", build_classes(sparse_final=0.5)),
        ("sparse: lasso", build_classes(sparse_final=0.5)),
        ("networks: linear functions", build_classes(network=1.4)),
    ],
)
def test_class_claim_is_not_judged_without_learning(name, results):
    assert judge(CLASS_CLAIMS[name], results, "laptop").status == "not learned"
