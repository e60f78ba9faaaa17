"""Claims about multi-concept prompts are supported by results that agree with them, and not by others."""

from collections.abc import Mapping

import numpy as np
import pytest
import xarray as xr

from mesascope.studies.multi_concept.claims import COEFFICIENTS, ORTHOGONAL, RANDOM_LABELS, TOY, UNIFORM_TOY
from mesascope.studies.multi_concept.decoder_claims import DRAWN
from mesascope.studies.multi_concept.error_curves import EXPONENTIAL, POWER_LAW
from mesascope.studies.multi_concept.shifted_accuracy import PREDICTORS
from mesascope.studies.multi_concept.study import STUDY
from mesascope.studies.multi_concept.task import NEAREST, SHIFTS, SWAPPED_LABELS, SWITCHED, TRAINING_PROMPTS, UNSEEN
from mesascope.studies.multi_concept.toy_model import ERRORS, MODEL, NOISE, SHARED, SIGN, ZERO_ONE
from mesascope.studies.verdicts import judge

SEEDS, STEPS = 5, [0, 20, 40, 400]
CLAIMS = {claim.name: claim for claim in STUDY.claims}
HEAD_EFFECTS = "head outputs have specific effects"


def stack_seeds(values, *dims, **coords) -> xr.DataArray:
    """Stack five seeds that differ slightly."""
    noisy = np.stack([np.asarray(values, float) * (1 + 1e-4 * seed) for seed in range(SEEDS)])
    return xr.DataArray(noisy, dims=("seed", *dims), coords={"seed": range(SEEDS)} | coords)


def toy_results(
    exponential=0.999,
    smoothed=0.999,
    decades=1.8,
    error=0.001,
    attention=(0.6, 0.7, 0.9, 0.98),
    sign=10.0,
    noise=0.5,
    lowest=0.99,
    unseen=0.99,
) -> xr.Dataset:
    """Make results of the toy model."""
    accuracy = {TRAINING_PROMPTS: 0.999, **dict.fromkeys(SHIFTS, 0.99), SWITCHED: lowest, UNSEEN: unseen}
    projections = [[1.0, 1.0, 1.0]] * 3 + [[0.5, sign, noise]]
    directions = {"step": STEPS, "stat": [SHARED, SIGN, NOISE]}
    return xr.Dataset(
        {
            ZERO_ONE: stack_seeds([0.5, 0.2, 0.1, error], "step", step=STEPS),
            "attention": stack_seeds(attention, "step", step=STEPS),
            "score": stack_seeds(projections, "step", "stat", **directions),
            "mlp_weight": stack_seeds(projections, "step", "stat", **directions),
            "decay_r2": stack_seeds(
                [[exponential, 0.97], [smoothed, 0.97]],
                "_error",
                "_decay",
                _error=ERRORS,
                _decay=[EXPONENTIAL, POWER_LAW],
            ),
            "fitted_decades": stack_seeds([decades, decades], "_error", _error=ERRORS),
            "accuracy": stack_seeds(
                [[value, 0.9] for value in accuracy.values()],
                "distribution",
                "predictor",
                distribution=list(accuracy),
                predictor=[MODEL, NEAREST],
            ),
        }
    )


def attention_curve(*values: float) -> xr.Dataset:
    return xr.Dataset({"attention": stack_seeds(values, "step", step=STEPS)})


def decoder_results(training=0.999, uniform=0.6, shifted=0.98, swapped=0.97) -> xr.Dataset:
    """Make results of `shifted_accuracy`."""
    accuracy = {TRAINING_PROMPTS: training, **dict.fromkeys(SHIFTS, shifted), SWAPPED_LABELS: swapped}
    values = [[[0.5, 0.5, 0.9]] * len(accuracy), [[value, uniform, 0.9] for value in accuracy.values()]]
    coords = {"step": [0, 400], "distribution": list(accuracy), "predictor": PREDICTORS}
    return xr.Dataset({"accuracy": stack_seeds(values, *coords, **coords)})


def head_results(trained=0.9, null=0.5) -> xr.Dataset:
    """Make results of `same_label_attention` of one head."""
    values = {"attention": (0.5, trained), "attention_null": (0.5, null)}
    axes = ("step", "layer", "head", "stat")
    shaped = {name: np.array(each)[:, None, None, None] for name, each in values.items()}
    return xr.Dataset({name: stack_seeds(each, *axes, step=[0, 400]) for name, each in shaped.items()})


def ablation_results(effect=0.1) -> xr.Dataset:
    axes, steps = ("step", "layer", "head"), {"step": [0, 400]}
    logs = {"log_effect": np.full((2, 1, 4, 1), effect), "log_effect_null": np.full((2, 1, 4), 0.01)}
    return xr.Dataset(
        {
            "log_effect": stack_seeds(logs["log_effect"], *axes, "stat", **steps, stat=["mean"]),
            "log_effect_null": stack_seeds(logs["log_effect_null"], *axes, **steps),
        }
    )


RESULTS: Mapping[str, xr.Dataset] = {
    TOY: toy_results(),
    UNIFORM_TOY: toy_results(error=0.5),
    ORTHOGONAL: attention_curve(0.7, 0.9, 0.92, 0.95),
    RANDOM_LABELS: toy_results(sign=1.0, noise=1.0, attention=(0.6, 0.6, 0.6, 0.6)),
    COEFFICIENTS: attention_curve(0.6, 0.7, 0.9, 0.99),
    "shifted_accuracy": decoder_results(),
    f"{DRAWN}_shifted_accuracy": decoder_results(),
    "same_label_attention": head_results(),
    f"{DRAWN}_same_label_attention": head_results(),
    "head_ablation": ablation_results(),
}
OPPOSING_RESULTS: Mapping[str, Mapping[str, xr.Dataset]] = {
    "exponential fall: 0-1 error": {TOY: toy_results(exponential=0.9)},
    "exponential fall: smoothed error": {TOY: toy_results(smoothed=0.9)},
    "attention is needed": {UNIFORM_TOY: toy_results(error=0.3)},
    "attention concentrates on the sign of the query": {TOY: toy_results(attention=(0.6, 0.6, 0.6, 0.7))},
    "noise is not learned": {TOY: toy_results(noise=20.0)},
    "scores compare the sign parts": {TOY: toy_results(sign=0.5, noise=0.1), RANDOM_LABELS: toy_results(sign=3.0)},
    "shifted prompts": {TOY: toy_results(lowest=0.8)},
    "unseen combinations": {TOY: toy_results(unseen=0.8)},
    "correlation within concepts helps attention": {ORTHOGONAL: attention_curve(0.7, 0.9, 0.95, 0.995)},
    "coefficient dynamics": {COEFFICIENTS: attention_curve(0.6, 0.6, 0.6, 0.9)},
    "decoder: shifted prompts": {"shifted_accuracy": decoder_results(shifted=0.8)},
    "decoder: answers follow the demonstrations": {"shifted_accuracy": decoder_results(swapped=0.05)},
    "decoder: answers depend on attention": {"shifted_accuracy": decoder_results(training=0.96, uniform=1.05)},
    "decoder: a head attends to the sign of the query": {"same_label_attention": head_results(0.8, 0.9)},
    "decoder, label rule drawn for each prompt: a head attends to the sign of the query": {
        f"{DRAWN}_same_label_attention": head_results(0.6)
    },
    HEAD_EFFECTS: {"head_ablation": ablation_results(-0.1)},
}


def judge_claim(name: str, **changes: xr.Dataset) -> str:
    return judge(CLAIMS[name], {**RESULTS, **changes}, "laptop").status


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_supported_by_agreeing_results_and_not_by_others(name):
    claim = CLAIMS[name]
    assert judge_claim(name) == ("holds" if claim.kind == "check" else "supported")
    # with five models, a rate of 0 does not exclude 0.5
    opposite = "fails" if claim.kind == "check" else "inconclusive" if claim.existence else "contradicted"
    assert judge_claim(name, **OPPOSING_RESULTS[name]) == opposite


def test_claims_are_not_judged_if_the_task_is_not_learned():
    mechanism = [name for name, claim in CLAIMS.items() if claim.kind == "simulation" and "exponential" not in name]
    toy = {TOY: toy_results(error=0.1)}
    assert [name for name in CLAIMS if judge_claim(name, **toy) == "not learned"] == mechanism
    untrained = {"shifted_accuracy": decoder_results(training=0.9)}
    decoders = [name for name in CLAIMS if name.startswith("decoder: ")]
    assert [name for name in CLAIMS if judge_claim(name, **untrained) == "not learned"] == [*decoders, HEAD_EFFECTS]
    other = {f"{DRAWN}_shifted_accuracy": decoder_results(training=0.9)}
    found = [name for name in CLAIMS if judge_claim(name, **other) == "not learned"]
    assert found == [name for name in CLAIMS if name.startswith("decoder, label rule")]


def test_a_fit_of_a_short_fall_is_not_judged():
    assert judge_claim("exponential fall: 0-1 error", **{TOY: toy_results(decades=1.0)}) == "not learned"
    assert judge_claim("exponential fall: smoothed error", **{TOY: toy_results(decades=0.2)}) == "not learned"


def test_fits_of_the_same_quality_show_no_effect():
    assert judge_claim("exponential fall: 0-1 error", **{TOY: toy_results(exponential=0.972)}) == "no effect"
