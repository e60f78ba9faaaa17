"""Each claim of three studies of toy models is supported by results that agree with it, and not by others."""

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
import xarray as xr

from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION
from mesascope.studies.in_context_convergence.half_times import DOMINANT, UNIFORM
from mesascope.studies.in_context_convergence.study import STUDY as IN_CONTEXT
from mesascope.studies.in_context_convergence.toy_model import FIRST_FEATURE, OTHER_FEATURES
from mesascope.studies.induction_heads.plateaus import (
    ALPHA_EXPONENT,
    GRAM_ALPHA_EXPONENT,
    GRAM_LENGTH_EXPONENT,
    LENGTH_EXPONENT,
    LOG_SIZE_R2,
    POWER_LAW_R2,
)
from mesascope.studies.induction_heads.study import STUDY as INDUCTION
from mesascope.studies.next_token_convergence.study import STUDY as NEXT_TOKEN
from mesascope.studies.next_token_convergence.toy_model import DESCENTS, IMPLIED, NOT_IMPLIED, STAGES
from mesascope.studies.verdicts import judge

SEEDS, STEPS = 5, np.array([0, 100, 200, 400, 800])
PARTS = ["4-gram", "in-context 2-gram"]
HEAD_EFFECTS = "head outputs have specific effects"


def stack_seeds(values, *dims, **coords) -> xr.DataArray:
    """Stack five seeds that differ slightly."""
    noisy = np.stack([np.asarray(values, float) * (1 + 1e-4 * seed) for seed in range(SEEDS)])
    return xr.DataArray(noisy, dims=("seed", *dims), coords={"seed": range(SEEDS)} | coords)


def falling_curve(reached: float, first: float = 1.0, last: float = 0.0) -> np.ndarray:
    """Return a curve by step that falls at a step."""
    return np.where(reached > STEPS, first, last)


def ablation_results(effect=0.1) -> xr.Dataset:
    """Make results of `head_ablation` in which ablation multiplies the loss of every sequence by 1 + effect."""
    axes, steps = ("step", "layer", "head"), {"step": [0, 800]}
    effect, perturbed = np.log10(1 + np.full((2, 2, 4, 1), effect)), np.log10(np.full((2, 2, 4), 1.02))
    return xr.Dataset(
        {
            "log_effect": stack_seeds(effect, *axes, "stat", **steps, stat=["mean"]),
            "log_effect_null": stack_seeds(perturbed, *axes, **steps),
        }
    )


def feature_results(own=6.0, cross=-0.6, delay=8.0, attention=0.97, present=0.002) -> xr.Dataset:
    """Make results of the toy model of in-context convergence."""
    steps = np.arange(0, 1001, 50)
    curves = [np.where(steps >= 50 * each, attention, 0.06) for each in (1, delay)]
    own_score = np.where(steps > 100, own, 0.1)
    axes = {"step": steps, "stat": [FIRST_FEATURE, OTHER_FEATURES]}
    variables = {
        "attention": np.stack(curves, 1),
        "own_score": np.stack([own_score, own_score], 1),
        "cross_score": np.full((len(steps), 2), cross),
        "error_present": np.stack([np.where(steps > 900, present, 1.0)] * 2, 1),
        "error": np.stack([np.where(steps > 900, 0.01, 1.0)] * 2, 1),
    }
    others = {"other_score": stack_seeds(np.full(len(steps), 0.3), "step", step=steps)}
    return xr.Dataset({name: stack_seeds(each, "step", "stat", **axes) for name, each in variables.items()} | others)


def half_time_results(uniform=1.9) -> xr.Dataset:
    return xr.Dataset({"exponent": stack_seeds([uniform, 0.1], "stat", stat=[UNIFORM, DOMINANT])})


def decoder_feature_results(*reached: float) -> xr.Dataset:
    """Make results of `error_by_label` whose errors of each feature fall at these steps."""
    errors = np.stack([falling_curve(each, 1.0, 0.1) for each in reached], 1)[:, None]
    axes = {"step": STEPS, "predictor": ["model"], "stat": [f"feature {k}" for k in range(len(reached))]}
    return xr.Dataset({"error": stack_seeds(errors, "step", "predictor", "stat", **axes)})


def attention_results(trained=0.8, null=0.1) -> xr.Dataset:
    """Make results of `same_label_attention` of one head."""
    values = {"attention": (0.1, trained), "attention_null": (0.1, null)}
    axes = ("step", "layer", "head", "stat")
    shaped = {name: np.array(each)[:, None, None, None] for name, each in values.items()}
    return xr.Dataset({name: stack_seeds(each, *axes, step=[0, 800]) for name, each in shaped.items()})


def similarity_results(least_squares=0.99) -> xr.Dataset:
    coords = {
        "step": [800],
        "distribution": [TRAINING_DISTRIBUTION],
        "predictor": ["least squares", "averaging"],
        "stat": ["predictions"],
    }
    values = np.array([least_squares, 0.4])[None, None, :, None]
    return xr.Dataset({"similarity": stack_seeds(values, *coords, **coords)})


def loss_results(loss=0.08) -> xr.Dataset:
    predictors = {"step": [0, 800], "predictor": ["model", "least squares"]}
    return xr.Dataset({"scored": stack_seeds([[2.0, 0.08], [loss, 0.08]], "step", "predictor", **predictors)})


def induction_results(gram=200.0, bigram=400.0, score=0.7) -> xr.Dataset:
    """Make results of the toy model of induction heads, whose parts are learned at these steps."""
    errors = np.stack([falling_curve(gram), falling_curve(bigram)], 1)
    parameter = [[0.01, 0.01], [0.5, score]]
    return xr.Dataset(
        {
            "error": stack_seeds(errors, "step", "stat", step=STEPS, stat=PARTS),
            "average_error": stack_seeds(0.5),
            "parameter": stack_seeds(np.repeat(parameter, [4, 1], 0), "step", "component", component=["b", "c"]),
        }
    ).assign_coords(step=STEPS)


def plateau_results(size_r2=0.999, length=0.96, alpha=1.9, gram_alpha=-1.5) -> xr.Dataset:
    laws = {
        LOG_SIZE_R2: size_r2,
        POWER_LAW_R2: 0.94,
        LENGTH_EXPONENT: length,
        GRAM_LENGTH_EXPONENT: 0.0,
        ALPHA_EXPONENT: alpha,
        GRAM_ALPHA_EXPONENT: gram_alpha,
    }
    return xr.Dataset({"law": stack_seeds(list(laws.values()), "_law", _law=list(laws))})


def decoder_gram_results(gram=100.0, bigram=400.0, last=0.1) -> xr.Dataset:
    """Make results of `error_by_output`; the unweighted average has an error of 1."""
    model = np.stack([falling_curve(gram), falling_curve(bigram, 1.0, last)], 1)
    errors = np.stack([model, np.ones_like(model)], 1)
    axes = {"step": STEPS, "predictor": ["model", "4-gram and scaled average"]}
    return xr.Dataset({"error": stack_seeds(errors, "step", "predictor", "d_out", **axes)})


def next_token_results(loss_r2=0.999, decades=5.0, cosine=0.998, attention=1.0, accuracy=0.999) -> xr.Dataset:
    """Make results of the toy model of next-token prediction; the second stage differs from the first."""
    stat = {"stat": [f"{stage}, {descent}" for stage in STAGES for descent in DESCENTS]}
    cosines = [[0.0] * 4, [0.998, 0.99, cosine, 0.97]]
    return xr.Dataset(
        {
            "loss_r2": stack_seeds([0.999, 0.9, loss_r2, 0.9], "stat", **stat),
            "fitted_decades": stack_seeds([5.0, 1.0, decades, 1.0], "stat", **stat),
            "margin_cosine": stack_seeds(cosines, "step", "stat", step=[0, 800], **stat),
            "attention": stack_seeds([0.2, attention], "step", step=[0, 800]),
            "accuracy": stack_seeds([accuracy, 0.6], "distribution", distribution=[IMPLIED, NOT_IMPLIED]),
        }
    )


def unseen_results(loss) -> xr.Dataset:
    axes = {"step": [800], "predictor": ["model", "mixture of all tokens"], "stat": ["order_implied 1"]}
    return xr.Dataset({"error": stack_seeds([[[loss], [1.6]]], *axes, **axes)})


@cache
def supporting_results(study: str) -> Mapping[str, xr.Dataset]:
    """Make results that support every claim of a study."""
    return {
        IN_CONTEXT.name: {
            "balanced": feature_results(cross=-0.02, delay=1.0),
            "imbalanced": feature_results(),
            "half_times": half_time_results(),
            "same_label_attention": attention_results(),
            "error_by_label": decoder_feature_results(100, 800, 800),
            "uniform_error_by_label": decoder_feature_results(400, 400, 400),
            "which_algorithm": similarity_results(),
            "loss_vs_baselines": loss_results(),
            "head_ablation": ablation_results(),
        },
        INDUCTION.name: {
            "toy_model": induction_results(),
            "squared": induction_results(gram=400, bigram=400),
            "plateaus": plateau_results(),
            "error_by_output": decoder_gram_results(),
            "head_ablation": ablation_results(),
        },
        NEXT_TOKEN.name: {"toy_model": next_token_results(), "error_by_label": unseen_results(0.5)},
    }[study]


OPPOSING_RESULTS = {
    IN_CONTEXT.name: {
        "attention converges to the query feature": {"balanced": feature_results(attention=0.8)},
        "own scores grow": {"balanced": feature_results(own=1.2)},
        "half-time is quadratic": {"half_times": half_time_results(0.0)},
        "rare features are learned later": {"imbalanced": feature_results(delay=1.0)},
        "the dominant feature is suppressed first": {"imbalanced": feature_results(cross=0.02)},
        "rare features converge if present": {"imbalanced": feature_results(present=0.1)},
        "decoder: a head attends to the query feature": {"same_label_attention": attention_results(0.8, 0.9)},
        "decoder: rare features are learned later": {"error_by_label": decoder_feature_results(800, 100, 100)},
        "decoder: least squares": {"which_algorithm": similarity_results(0.1)},
        HEAD_EFFECTS: {"head_ablation": ablation_results(-0.1)},
    },
    INDUCTION.name: {
        "the 4-gram is learned first": {"toy_model": induction_results(gram=400, bigram=200)},
        "plateau: initial size": {"plateaus": plateau_results(size_r2=0.9)},
        "plateau: sequence length and weight of the 4-gram": {"plateaus": plateau_results(alpha=1.0)},
        "the target is learned exactly": {"toy_model": induction_results(score=0.6)},
        "the order depends on the squared score": {"squared": induction_results(gram=100, bigram=800)},
        "decoder: the 4-gram is learned first": {"error_by_output": decoder_gram_results(gram=800, bigram=100)},
        HEAD_EFFECTS: {"head_ablation": ablation_results(-0.1)},
    },
    NEXT_TOKEN.name: {
        "linear convergence": {"toy_model": next_token_results(loss_r2=0.9)},
        "max-margin direction": {"toy_model": next_token_results(cosine=0.9)},
        "attention converges to the deciding token": {"toy_model": next_token_results(attention=0.9)},
        "unseen sentences with implied order": {"toy_model": next_token_results(accuracy=0.9)},
        "decoder: unseen sentences with implied order": {"error_by_label": unseen_results(2.4)},
    },
}
# with five models, a rate of 0 does not exclude 0.5
OPPOSITE = {"decoder: a head attends to the query feature": "inconclusive"}
CLAIMS = {study.name: {claim.name: claim for claim in study.claims} for study in (IN_CONTEXT, INDUCTION, NEXT_TOKEN)}


def judge_claim(study: str, name: str, **changes: xr.Dataset) -> str:
    return judge(CLAIMS[study][name], {**supporting_results(study), **changes}, "laptop").status


@pytest.mark.parametrize(("study", "name"), [(study, name) for study, claims in CLAIMS.items() for name in claims])
def test_claims_are_supported_by_agreeing_results_and_not_by_others(study, name):
    is_check = CLAIMS[study][name].kind == "check"
    assert judge_claim(study, name) == ("holds" if is_check else "supported")
    opposite = "fails" if is_check else OPPOSITE.get(name, "contradicted")
    assert judge_claim(study, name, **OPPOSING_RESULTS[study][name]) == opposite


@pytest.mark.parametrize(
    ("study", "changes", "prefix"),
    [
        (IN_CONTEXT.name, {"loss_vs_baselines": loss_results(0.2)}, "decoder: "),
        (INDUCTION.name, {"error_by_output": decoder_gram_results(last=0.6)}, "decoder: "),
        (NEXT_TOKEN.name, {"toy_model": next_token_results(decades=2.0)}, "linear convergence"),
    ],
)
def test_claims_are_not_judged_if_the_task_is_not_learned(study, changes, prefix):
    not_learned = [name for name in CLAIMS[study] if judge_claim(study, name, **changes) == "not learned"]
    assert not_learned == [name for name in CLAIMS[study] if name.startswith(prefix) or name == HEAD_EFFECTS]


def test_small_differences_are_not_supported():
    assert (
        judge_claim(
            NEXT_TOKEN.name, "decoder: unseen sentences with implied order", error_by_label=unseen_results(1.55)
        )
        == "no effect"
    )
    assert judge_claim(IN_CONTEXT.name, HEAD_EFFECTS, head_ablation=ablation_results(0.025)) == "no effect"
