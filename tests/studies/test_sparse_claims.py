"""Each claim on heads in sparse regression is supported by results that agree with it and contradicted by others."""

import numpy as np
import pytest
import xarray as xr

from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION
from mesascope.analyses.causal.pruning import (
    HEAD_SETS,
    PRUNING_KINDS,
)
from mesascope.studies.sparse_regression_heads.algorithm_claims import LASSO, PLAIN, PREPROCESSED, REVERSED, RIDGE
from mesascope.studies.sparse_regression_heads.conditions import NOISE_LEVELS, NUM_EXAMPLES
from mesascope.studies.sparse_regression_heads.problems import PROBLEM_SETTINGS
from mesascope.studies.sparse_regression_heads.study import STUDY
from mesascope.studies.sparse_regression_heads.toy_model import METHODS
from mesascope.studies.verdicts import judge

from .seed_results import stack_seeds, stack_steps

SETTING_NAMES = [setting.name for setting in PROBLEM_SETTINGS]
DEPTHS = ["embedding", "after 0", "after 1", "after 2"]
TOY_MODEL = "preprocess_then_optimise"
CLAIMS = {claim.name: claim for claim in STUDY.claims}


def algorithm_results(improved=0.7, reversed_risk=10.0, ridge=1.0, lasso=0.5):
    """Make results of the toy model, in which plain descent has a risk of 1."""
    best = [[1.0, reversed_risk if name == REVERSED else improved, ridge, lasso] for name in SETTING_NAMES]
    return xr.Dataset(
        {
            "best_risk": stack_seeds(best, "distribution", "predictor", distribution=SETTING_NAMES, predictor=METHODS),
        }
    )


def loss_results(excess_risk):
    return xr.Dataset(
        {"scored": stack_steps([1.0], [excess_risk], "predictor", predictor=["model"])},
    )


def context_length_results(model, ridge, lasso=None):
    """Make the excess risk of the model and of algorithms with their best penalties, after 4 and all examples."""
    risks = {"model": model, RIDGE: ridge} | ({} if lasso is None else {LASSO: lasso})
    values = [[9.0, *[1.0] * (len(risks) - 1)], list(risks.values())]
    coords = {"_examples": [4, NUM_EXAMPLES], "predictor": list(risks)}
    return xr.Dataset({"excess": stack_steps(values, values, *coords, **coords)})


def noise_results(*risks):
    """Make the excess risk of the model at every noise level."""
    coords = {"_noise": list(NOISE_LEVELS), "predictor": ["model"]}
    values = np.array(risks)[:, None]
    return xr.Dataset({"excess": stack_steps(values, values, *coords, **coords)})


def pruning_results(first=0.9, later=0.3, before=0.6, costs=(0.0, 0.02, 0.9, 0.9, 1.0), unit=0.1):
    trained = np.array([first, later, later])[:, None].repeat(2, 1)
    untrained = np.full((3, 2), before)
    cost_of_set = dict(zip(HEAD_SETS, costs, strict=True))
    variables = {"entropy": stack_steps(untrained, trained, "layer", "stat", layer=range(3), stat=list(PRUNING_KINDS))}
    for kind in PRUNING_KINDS:
        loss = np.array([0.01 + unit * cost_of_set[name] for name in HEAD_SETS])
        variables[f"pruned_loss_{kind}"] = stack_steps(loss, loss, "component", component=list(HEAD_SETS))
    return xr.Dataset(variables)


def make_results(**changed):
    explained = stack_steps([0.0, 0.2, 0.2, 0.2], [0.0, 0.8, 0.8, 0.8], "layer", layer=DEPTHS)
    similarity = [[[0.6], [0.9]]]
    coords = {"distribution": [TRAINING_DISTRIBUTION], "predictor": [PLAIN, PREPROCESSED], "stat": ["predictions"]}
    supporting = {
        TOY_MODEL: algorithm_results(),
        "loss_vs_baselines": loss_results(0.01),
        "single_loss_vs_baselines": loss_results(0.02),
        "dense_loss_vs_baselines": loss_results(0.019),
        "dense_single_loss_vs_baselines": loss_results(0.02),
        "pruning": pruning_results(),
        "excess_risk_vs_context_length": context_length_results(0.01, 0.016, 0.008),
        "dense_excess_risk_vs_context_length": context_length_results(0.019, 0.018),
        "excess_risk_vs_noise": noise_results(0.005, 0.01, 0.02),
        "single_excess_risk_vs_noise": noise_results(0.01, 0.02, 0.03),
        "preprocessing": xr.Dataset({"explained": explained}),
        "which_algorithm": xr.Dataset(
            {"similarity": stack_steps(np.zeros((1, 2, 1)), similarity, "distribution", "predictor", "stat", **coords)}
        ),
    }
    return supporting | changed


@pytest.mark.parametrize("name", list(CLAIMS))
def test_supporting_results_support_every_claim(name):
    assert judge(CLAIMS[name], make_results(), "laptop").status == "supported"


UNPROCESSED = xr.Dataset({"explained": stack_steps([0.0, 0.2, 0.2, 0.2], [0.0, 0.2, 0.2, 0.2], "layer", layer=DEPTHS)})
CONTRADICTING_RESULTS = {
    "algorithm: preprocessing lowers the risk": {TOY_MODEL: algorithm_results(improved=1.1)},
    "algorithm: lower risk than ridge regression": {TOY_MODEL: algorithm_results(ridge=0.6)},
    "algorithm: comparable to the lasso": {TOY_MODEL: algorithm_results(lasso=0.2)},
    "more heads lower the risk": {"loss_vs_baselines": loss_results(0.018)},
    "more heads lower the risk more for sparse functions": {"dense_loss_vs_baselines": loss_results(0.005)},
    "the first layer preprocesses the inputs": {"preprocessing": UNPROCESSED},
    "predictions are closer to preprocessed gradient descent": {
        "which_algorithm": make_results()["which_algorithm"].assign_coords(predictor=[PREPROCESSED, PLAIN])
    },
    "importance is even in the first layer, concentrated in later ones": {
        "pruning": pruning_results(first=0.3, later=0.9)
    },
    "later layers need one head": {"pruning": pruning_results(costs=(0.0, 0.5, 0.9, 0.9, 1.0))},
    "more heads lower the risk at several noise levels": {"excess_risk_vs_noise": noise_results(0.005, 0.01, 0.04)},
    "the pruned model has a lower risk than a model with one head": {"pruning": pruning_results(unit=1.0)},
}


@pytest.mark.parametrize("name", list(CLAIMS))
def test_contradicting_results_contradict_the_claim(name):
    assert judge(CLAIMS[name], make_results(**CONTRADICTING_RESULTS[name]), "laptop").status == "contradicted"


def explained_results(untrained, trained):
    explained = stack_steps([0.0, untrained, 0.0, 0.0], [0.0, trained, 0.0, 0.0], "layer", layer=DEPTHS)
    return xr.Dataset({"explained": explained})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("more heads lower the risk", {"loss_vs_baselines": loss_results(0.03)}),
        ("later layers need one head", {"pruning": pruning_results(costs=(0.0, 0.3, 0.05, 0.9, 1.0))}),
        ("the first layer preprocesses the inputs", {"preprocessing": explained_results(0.9, 0.7)}),
        ("algorithm: preprocessing lowers the risk", {TOY_MODEL: algorithm_results(reversed_risk=0.5)}),
    ],
)
def test_better_controls_contradict_the_claim(name, changes):
    assert judge(CLAIMS[name], make_results(**changes), "laptop").status == "contradicted"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("the first layer preprocesses the inputs", {"preprocessing": explained_results(0.79, 0.8)}),
        ("more heads lower the risk more for sparse functions", {"dense_loss_vs_baselines": loss_results(0.0104)}),
    ],
)
def test_differences_within_the_margin_are_no_effect(name, changes):
    assert judge(CLAIMS[name], make_results(**changes), "laptop").status == "no effect"


TRAINED_CLAIMS = [name for name, claim in CLAIMS.items() if claim.kind == "replication"]


def test_claims_about_the_toy_model_are_simulations():
    others = [claim.kind for name, claim in CLAIMS.items() if name not in TRAINED_CLAIMS]
    assert others == ["simulation"] * 3


@pytest.mark.parametrize("name", TRAINED_CLAIMS)
@pytest.mark.parametrize("best_risks", [(0.0162, 0.0044), (0.0162, 0.0149), (0.1, 0.0044)])
def test_models_near_ridge_regression_or_far_from_the_lasso_have_not_learned_sparse_functions(name, best_risks):
    unlearned = {"excess_risk_vs_context_length": context_length_results(0.0149, *best_risks)}
    assert judge(CLAIMS[name], make_results(**unlearned), "laptop").status == "not learned"


def test_the_paper_s_algorithm_meets_the_requirement():
    learned = {"excess_risk_vs_context_length": context_length_results(0.0077, 0.0155, 0.0044)}
    assert judge(CLAIMS["more heads lower the risk"], make_results(**learned), "laptop").status == "supported"


def test_comparison_with_dense_functions_needs_a_model_that_has_learned_them():
    name = "more heads lower the risk more for sparse functions"
    unlearned = {"dense_excess_risk_vs_context_length": context_length_results(0.03, 0.018)}
    assert judge(CLAIMS[name], make_results(**unlearned), "laptop").status == "not learned"


def test_costs_are_fractions_of_the_cost_of_one_head_per_layer():
    verdict = judge(CLAIMS["later layers need one head"], make_results(), "laptop")
    assert (verdict.value, verdict.control) == pytest.approx((0.02, 0.9), rel=1e-2)


@pytest.mark.parametrize(
    ("risks", "status"),
    [
        ((0.005, 0.01, 0.0294), "no effect"),
        ((0.005, 0.01, np.nan), "inconclusive"),
        ((0.1, 0.01, 0.02), "contradicted"),
    ],
)
def test_the_noise_level_with_the_highest_ratio_decides(risks, status):
    changed = make_results(excess_risk_vs_noise=noise_results(*risks))
    assert judge(CLAIMS["more heads lower the risk at several noise levels"], changed, "laptop").status == status


def test_a_pruned_model_as_good_as_one_with_a_single_head_has_no_effect():
    name = "the pruned model has a lower risk than a model with one head"
    changed = make_results(single_loss_vs_baselines=loss_results(0.0121))
    assert judge(CLAIMS[name], changed, "laptop").status == "no effect"
