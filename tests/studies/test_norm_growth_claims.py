"""Each claim on parameter norm growth is supported by results that agree with it, and not by others."""

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
import xarray as xr

from mesascope.analyses.training.parameter_norms import (
    ALL_PARAMETERS,
    WITHOUT_EMBEDDINGS,
    fit_curves,
    fit_norm_exponent,
)
from mesascope.studies.norm_growth.conditions import (
    ADAFACTOR,
    ADAMW_SHUFFLED,
    INVERSE_SQRT,
    LARGE_DECAY,
    LINEAR_DECAY,
    MULTIPLICATIVE,
    OUTPUT_NORM,
    OUTPUT_NORM_LARGE_DECAY,
    OUTPUT_NORM_MULTIPLICATIVE,
)
from mesascope.studies.norm_growth.study import STUDY
from mesascope.studies.verdicts import judge

SEEDS, STEPS = 5, np.arange(0, 401, 40)
T = STEPS.astype(float)
CLAIMS = {claim.name: claim for claim in STUDY.claims}
HEADS = np.arange(48).reshape(4, 12)


def stack_seeds(values, *dims, **coords) -> xr.DataArray:
    """Stack five seeds that differ slightly."""
    noisy = np.stack([np.asarray(values, float) * (1 + 1e-4 * seed) for seed in range(SEEDS)])
    return xr.DataArray(noisy, dims=("seed", *dims), coords={"seed": range(SEEDS)} | coords)


def norm_results(norm, cosine=(0.9, 0.99), alignment=(0.14, 0.01), log_growth_std=0.02, log_growth=0.2) -> xr.Dataset:
    """Make results of `parameter_norms` with these norms."""
    fits = fit_curves(T[1:], norm[1:])
    curves = [np.concatenate([[np.nan], np.linspace(*ends, len(STEPS) - 1)]) for ends in (cosine, alignment)]
    return xr.Dataset(
        {
            "norm": stack_seeds(
                np.stack([2 * norm, norm], -1), "step", "stat", step=STEPS, stat=[ALL_PARAMETERS, WITHOUT_EMBEDDINGS]
            ),
            "r_squared": stack_seeds(list(fits.values()), "_curve", _curve=list(fits)),
            "exponent": stack_seeds(fit_norm_exponent(T[1:], norm[1:])),
            "cosine": stack_seeds(curves[0], "step", step=STEPS),
            "alignment": stack_seeds(curves[1], "step", step=STEPS),
            "log_growth_std": stack_seeds(log_growth_std),
            "log_growth": stack_seeds(np.full((4, 6), log_growth), "layer", "map"),
        }
    )


def saturation_results(cosine, num_wide_heads=0, later=0.0, later_of_others=0.0) -> xr.Dataset:
    """Make results of `saturation` with some heads that attend to half of all positions, partly to later ones."""
    is_wide, ends = num_wide_heads > HEADS, {"step": [0, 400]}
    variables = {
        "cosine": stack_seeds([np.full(4, 0.2), np.full(4, cosine)], "step", "layer", **ends),
        "attended": stack_seeds([np.ones((4, 12)), np.where(is_wide, 24.0, 1.0)], "step", "layer", "head", **ends),
        "later_attention": stack_seeds(
            [np.zeros((4, 12)), np.where(is_wide, later, later_of_others)], "step", "layer", "head", **ends
        ),
    }
    return xr.Dataset(variables)


def loss_results(loss) -> xr.Dataset:
    """Make results of `loss_vs_baselines`."""
    predictors = {"step": [0, 400], "predictor": ["model", "bigram"]}
    return xr.Dataset({"scored": stack_seeds([[6.0, 3.0], [loss, 3.0]], "step", "predictor", **predictors)})


def lookahead_results(loss_increase) -> xr.Dataset:
    """Make results of `lookahead_ablation`."""
    return xr.Dataset({"loss_increase": stack_seeds([loss_increase], "step", step=[400])})


def toy_model_results(exponents=(0.25, 0.5, 1.0)) -> xr.Dataset:
    """Make results of the toy model."""
    return xr.Dataset({"exponent_by_constant": stack_seeds(exponents, "_constant", _constant=[0.5, 1.0, 2.0])})


@cache
def supporting_results() -> Mapping[str, xr.Dataset]:
    """Make results that support every claim."""
    return {
        "parameter_norms": norm_results(50 + 0.05 * T),
        f"{INVERSE_SQRT}_parameter_norms": norm_results(50 + T**0.55),
        f"{ADAFACTOR}_parameter_norms": norm_results(50 + T**0.5),
        f"{LINEAR_DECAY}_parameter_norms": norm_results(50 + 4 * T**0.2),
        f"{LARGE_DECAY}_parameter_norms": norm_results(50 - 0.05 * T),
        f"{OUTPUT_NORM}_parameter_norms": norm_results(50 + 0.08 * T),
        f"{OUTPUT_NORM_LARGE_DECAY}_parameter_norms": norm_results(50 - 0.04 * T),
        f"{ADAMW_SHUFFLED}_parameter_norms": norm_results(50 - 0.001 * T),
        "saturation": saturation_results(0.95, 10),
        f"{OUTPUT_NORM}_saturation": saturation_results(0.9, 10),
        f"{MULTIPLICATIVE}_saturation": saturation_results(0.95, 30, 0.97),
        f"{OUTPUT_NORM_MULTIPLICATIVE}_saturation": saturation_results(0.95, 30, 0.97),
        "toy_model": toy_model_results(),
        "lookahead_ablation": lookahead_results(0.0),
        f"{MULTIPLICATIVE}_lookahead_ablation": lookahead_results(2.5),
        "loss_vs_baselines": loss_results(3.0),
        **{
            f"{condition}_loss_vs_baselines": loss_results(3.0)
            for condition in (
                INVERSE_SQRT,
                ADAFACTOR,
                LINEAR_DECAY,
                LARGE_DECAY,
                OUTPUT_NORM,
                OUTPUT_NORM_LARGE_DECAY,
                MULTIPLICATIVE,
            )
        },
    }


def replace_results(**changes) -> Mapping[str, xr.Dataset]:
    """Replace some of the supporting results."""
    return {**supporting_results(), **changes}


def judge_claim(name: str, results: Mapping[str, xr.Dataset]) -> str:
    return judge(CLAIMS[name], results, "laptop").status


MULTIPLICATIVE_SATURATION = f"{MULTIPLICATIVE}_saturation"
WIDE_HEADS = "heads that attend to many positions"
OPPOSING_RESULTS = {
    "norm grows as √t under a 1/√t learning rate, AdaFactor": {
        f"{ADAFACTOR}_parameter_norms": norm_results(50 + 1e-4 * T**2)
    },
    "norm grows as √t under a 1/√t learning rate, AdamW": {
        f"{INVERSE_SQRT}_parameter_norms": norm_results(50 + 1e-4 * T**2)
    },
    "constant learning rate gives a larger exponent": {"parameter_norms": norm_results(50 + 4 * T**0.2)},
    "norm grows throughout training": {"parameter_norms": norm_results(50 + 0.05 * T - 9 * (T == 240))},
    "norm grows throughout training, x + norm(f(x))": {
        f"{OUTPUT_NORM}_parameter_norms": norm_results(50 + 0.08 * T - 12 * (T == 240))
    },
    "norm decreases with a large weight decay": {f"{LARGE_DECAY}_parameter_norms": norm_results(50 + 0.09 * T)},
    "norm decreases with a large weight decay, x + norm(f(x))": {
        f"{OUTPUT_NORM_LARGE_DECAY}_parameter_norms": norm_results(50 + 0.01 * T)
    },
    "norm growth exceeds AdamW on shuffled targets": {f"{ADAMW_SHUFFLED}_parameter_norms": norm_results(50 + 0.2 * T)},
    "parameter direction converges after warm-up": {"parameter_norms": norm_results(50 + T, cosine=(0.99, 0.97))},
    "updates are nearly orthogonal to the parameters": {"parameter_norms": norm_results(50 + T, alignment=(-0.5, 0))},
    "all matrices grow by the same factor": {"parameter_norms": norm_results(50 + T, log_growth_std=0.3)},
    "training increases saturation, norm(x + f(x))": {"saturation": saturation_results(0.1)},
    "training increases saturation, x + norm(f(x))": {f"{OUTPUT_NORM}_saturation": saturation_results(0.1)},
    "two types of heads": {"saturation": saturation_results(0.9, 0)},
    f"{WIDE_HEADS} require the multiplicative mask": {
        f"{OUTPUT_NORM_MULTIPLICATIVE}_saturation": saturation_results(0.9, 0)
    },
    f"{WIDE_HEADS} attend to later positions": {MULTIPLICATIVE_SATURATION: saturation_results(0.9, 30, 0.4, 0.3)},
    "multiplicative mask: the model uses later positions": {
        f"{MULTIPLICATIVE}_lookahead_ablation": lookahead_results(-0.1)
    },
    "toy model: the exponent is c / 2": {"toy_model": toy_model_results(exponents=(0.5, 0.5, 0.5))},
}
# with five models, a rate of 0 does not exclude 0.5
OPPOSITE = {"two types of heads": "inconclusive"}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_supported_by_agreeing_results_and_not_by_others(name):
    is_check = CLAIMS[name].kind == "check"
    assert judge_claim(name, replace_results()) == ("holds" if is_check else "supported")
    opposite = "fails" if is_check else OPPOSITE.get(name, "contradicted")
    assert judge_claim(name, replace_results(**OPPOSING_RESULTS[name])) == opposite


def test_two_types_of_heads_are_contradicted_by_eight_models_without_them():
    results = replace_results(saturation=saturation_results(0.9, 0))
    eight = {name: xr.concat([data, data.isel(seed=slice(3))], "seed") for name, data in results.items()}
    assert judge_claim("two types of heads", eight) == "contradicted"


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ("adapted", ["norm grows as √t under a 1/√t learning rate, AdaFactor"]),
        (
            "output",
            [
                "norm grows throughout training, x + norm(f(x))",
                "norm decreases with a large weight decay, x + norm(f(x))",
                "training increases saturation, x + norm(f(x))",
                f"{WIDE_HEADS} require the multiplicative mask",
            ],
        ),
        ("decayed", ["norm decreases with a large weight decay"]),
        ("output_decayed", ["norm decreases with a large weight decay, x + norm(f(x))"]),
        ("zeroed", [f"{WIDE_HEADS} attend to later positions"]),
        ("linear", ["constant learning rate gives a larger exponent"]),
    ],
)
def test_claims_are_not_judged_if_a_model_predicts_worse_than_a_bigram_model(condition, names):
    results = replace_results(**{f"{condition}_loss_vs_baselines": loss_results(3.4)})
    assert [name for name in CLAIMS if judge_claim(name, results) == "not learned"] == names


def test_small_differences_have_no_effect():
    results = replace_results(
        saturation=saturation_results(0.21), **{f"{ADAMW_SHUFFLED}_parameter_norms": norm_results(50 + 0.0501 * T)}
    )
    for name in ("training increases saturation, norm(x + f(x))", "norm growth exceeds AdamW on shuffled targets"):
        assert judge_claim(name, results) == "no effect"


def test_later_attention_is_inconclusive_without_heads_that_attend_to_many_positions():
    results = replace_results(**{MULTIPLICATIVE_SATURATION: saturation_results(0.95, 0)})
    verdict = judge(CLAIMS["heads that attend to many positions attend to later positions"], results, "laptop")
    assert verdict.status == "inconclusive"
    assert verdict.value is None


def test_scales_differ_in_sizes_and_learning_rate_only():
    for condition in STUDY.conditions:
        smoke, laptop, paper = (condition.scales[scale].training for scale in ("smoke", "laptop", "paper"))
        assert smoke.schedule == laptop.schedule == paper.schedule
        assert laptop.optimizer.lr == 4 * paper.optimizer.lr
        assert {training.spacing for training in (smoke, laptop, paper)} == {"even"}
        shapes = [condition.model_at(scale) for scale in ("smoke", "laptop", "paper")]
        assert len({(shape.mask, shape.norm_position, shape.num_attention_heads) for shape in shapes}) == 1
        assert [shape.num_hidden_layers for shape in shapes] == [2, 4, 12]
    assert (shapes[2].hidden_size, shapes[2].intermediate_size) == (768, 512)
