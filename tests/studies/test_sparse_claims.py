"""Each claim on heads in sparse regression is supported by results that agree with it and contradicted by others."""

import numpy as np
import pytest
import xarray as xr

from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION
from mesascope.analyses.causal.pruning import (
    ALL_HEADS,
    ALL_IN_FIRST_LAYER,
    ALL_IN_LATER_LAYERS,
    HEAD_SETS,
    ONE_PER_LAYER,
    PRUNING_KINDS,
    REVERSED_SAME_NUMBER,
)
from mesascope.studies.sparse_regression_heads.algorithm_claims import PLAIN, PREPROCESSED, REVERSED
from mesascope.studies.sparse_regression_heads.problems import PROBLEM_SETTINGS
from mesascope.studies.sparse_regression_heads.study import STUDY, TASK
from mesascope.studies.sparse_regression_heads.toy_model import METHODS
from mesascope.studies.verdicts import judge

SEEDS = 3
SETTING_NAMES = [setting.name for setting in PROBLEM_SETTINGS]
DEPTHS = ["embedding", "after 0", "after 1", "after 2"]
TOY_MODEL = "preprocess_then_optimise"
CLAIMS = {claim.name: claim for claim in STUDY.claims}


def stack_seeds(values, *dims, **coords):
    """Stack three seeds that differ slightly."""
    drawn = np.stack([np.asarray(values, float) * (1 + 1e-3 * seed) for seed in range(SEEDS)])
    return xr.DataArray(drawn, dims=("seed", *dims), coords={"seed": range(SEEDS)} | coords)


def stack_steps(untrained, trained, *dims, **coords):
    """Stack an untrained and a trained checkpoint."""
    return stack_seeds(
        np.stack([np.asarray(values, float) for values in (untrained, trained)]), "step", *dims, **coords
    )


def algorithm_results(improved=0.7, reversed_risk=10.0, early=0.9, ridge=1.0, lasso=0.5):
    """Make results of the toy model, in which plain descent has a risk of 1."""
    best = [[1.0, reversed_risk if name == REVERSED else improved, ridge, lasso] for name in SETTING_NAMES]
    ratio = np.full((10, len(SETTING_NAMES)), early)
    ratio[0], ratio[-1] = 1.0, [reversed_risk if name == REVERSED else improved for name in SETTING_NAMES]
    return xr.Dataset(
        {
            "best_risk": stack_seeds(best, "distribution", "predictor", distribution=SETTING_NAMES, predictor=METHODS),
            "risk_ratio": stack_seeds(ratio, "_steps", "distribution", distribution=SETTING_NAMES),
        }
    )


def loss_results(excess_risk):
    return xr.Dataset(
        {"scored": stack_steps([1.0], [excess_risk + TASK.noise**2], "predictor", predictor=["model"])},
    )


def pruning_results(first=0.9, later=0.3, before=0.6, costs=(0.0, 0.02, 0.9, 0.9, 1.0)):
    trained = np.array([first, later, later])[:, None].repeat(2, 1)
    untrained = np.full((3, 2), before)
    cost_of_set = dict(zip(HEAD_SETS, costs, strict=True))
    variables = {"entropy": stack_steps(untrained, trained, "layer", "stat", layer=range(3), stat=list(PRUNING_KINDS))}
    for kind in PRUNING_KINDS:
        loss = np.array([0.1 + cost_of_set[name] for name in HEAD_SETS])
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
        "dense_pruning": pruning_results(first=0.6, later=0.5),
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
    "algorithm: preprocessing raises the risk without noise": {
        "preprocess_then_optimise": algorithm_results(reversed_risk=0.9)
    },
    "algorithm: lower risk in the first steps in all settings": {
        "preprocess_then_optimise": algorithm_results(early=1.05)
    },
    "algorithm: comparable to the lasso": {TOY_MODEL: algorithm_results(lasso=0.2)},
    "more heads lower the risk": {"loss_vs_baselines": loss_results(0.018)},
    "more heads lower the risk more for sparse functions": {"dense_loss_vs_baselines": loss_results(0.005)},
    "the first layer preprocesses the inputs": {"preprocessing": UNPROCESSED},
    "training improves the preprocessing": {"preprocessing": UNPROCESSED},
    "predictions are closer to preprocessed gradient descent": {
        "which_algorithm": make_results()["which_algorithm"].assign_coords(predictor=[PREPROCESSED, PLAIN])
    },
} | {
    f"{name}: {kind} ablation": changes
    for kind in PRUNING_KINDS
    for name, changes in {
        "importance is even in the first layer, concentrated in later ones": {
            "pruning": pruning_results(first=0.3, later=0.9)
        },
        "importance is more even in the first layer for sparse functions": {
            "dense_pruning": pruning_results(first=1.0, later=0.1)
        },
        "later layers need one head": {"pruning": pruning_results(costs=(0.0, 0.5, 0.9, 0.9, 1.0))},
        "heads of the first layer matter more than those of later layers": {
            "pruning": pruning_results(costs=(0.0, 0.5, 0.1, 0.1, 1.0))
        },
    }.items()
}


@pytest.mark.parametrize("name", list(CLAIMS))
def test_contradicting_results_contradict_the_claim(name):
    status = judge(CLAIMS[name], make_results(**CONTRADICTING_RESULTS[name]), "laptop").status
    assert status == ("inconclusive" if name == "training improves the preprocessing" else "contradicted")


def test_costs_are_fractions_of_the_cost_of_one_head_per_layer():
    claim = CLAIMS["later layers need one head: mean ablation"]
    verdict = judge(claim, make_results(), "laptop")
    assert (verdict.value, verdict.control) == pytest.approx((0.02, 0.9), rel=1e-2)
    assert {ALL_HEADS, ALL_IN_FIRST_LAYER, ALL_IN_LATER_LAYERS, REVERSED_SAME_NUMBER, ONE_PER_LAYER} == set(HEAD_SETS)
