"""Claims of the meta-learning study on synthetic results: supported where they hold, not where they fail."""

import numpy as np
import pytest
import xarray as xr

from mesascope.analyses.stream.probes import depth_names
from mesascope.studies.meta_learning.claims import LABELS, TESTED_OBJECTIVES, meta_learning_claims
from mesascope.studies.meta_learning.history_claims import HISTORY_RESULT
from mesascope.studies.verdicts import SUPPORTED, judge

SEEDS, LAYERS = 3, 4
DEPTHS = depth_names(range(LAYERS))
READ_DEPTHS = ["0", "1", "2", "3", "output head"]
MAPS = ["attention.q_proj", "mlp.up_proj"]
CLAIMS = {claim.name: claim for claim in meta_learning_claims()}


def stack_steps(untrained, trained, *dims: str, **coords) -> xr.DataArray:
    """Build an array over seeds, with a little noise, and two checkpoints."""
    values = np.stack(
        [np.stack([np.asarray(v, float) * (1 + 0.001 * seed) for v in (untrained, trained)]) for seed in range(SEEDS)]
    )
    return xr.DataArray(values, dims=("seed", "step", *dims), coords={"seed": range(SEEDS), "step": [0, 9], **coords})


def fill_array(value: float, *sizes: int) -> np.ndarray:
    return np.full(sizes, value)


def build_objective(holds: bool) -> xr.Dataset:
    """Build the results of an inner objective and its nulls."""
    dims, names = ("layer", "sublayer"), {"sublayer": ["attention", "mlp"]}
    falling = np.linspace(4, 1, LAYERS)[:, None] * np.ones(2)
    variables = {
        "before": stack_steps(falling[::-1], falling if holds else falling[::-1], *dims, **names),
        "descends": stack_steps(
            fill_array(0.3, LAYERS, 2), fill_array(0.9 if holds else 0.3, LAYERS, 2), *dims, **names
        ),
        "cosine": stack_steps(
            fill_array(0.01, LAYERS, 2), fill_array(0.2 if holds else 0.01, LAYERS, 2), *dims, **names
        ),
        "cosine_null_other_positions": stack_steps(
            fill_array(0.0, LAYERS, 2), fill_array(0.01, LAYERS, 2), *dims, **names
        ),
    }
    shuffled = stack_steps(fill_array(0.5, 2, LAYERS, 2), fill_array(0.5, 2, LAYERS, 2), "draw", *dims, **names)
    return xr.Dataset(variables | {"descends_null": shuffled})


def build_results(holds: bool) -> dict[str, xr.Dataset]:
    """Build results in which every claim holds, or in which none does."""
    who, stats = {"predictor": ["model", "bigram", "Bayes", "known generator"]}, {"stat": list(LABELS)}
    low, rising = fill_array(0.2, 5, 3), np.linspace(0.3, 0.9, 5)[:, None] * np.ones(3)
    permuted = fill_array(0.21, 2, 5, 3)
    scores = {
        "pairwise_f1": stack_steps(low, rising if holds else low, "layer", "stat", layer=DEPTHS, **stats),
        "pairwise_f1_null": stack_steps(permuted, permuted, "draw", "layer", "stat", layer=DEPTHS, **stats),
    }
    share = np.linspace(0.9, 0.5, 5)[:, None] * np.ones(3) if holds else low
    history = {
        f"top_by_layer{null}": stack_steps(low, value, "layer", "stat", layer=READ_DEPTHS, **stats)
        for null, value in {"": share, "_null_least_attended": low - 0.1, "_null_untrained": low, "_null": low}.items()
    }
    whole, half = (1e-7, 0.3) if holds else (0.05, 0.05)
    for name, value in (("top", share), ("top_null_untrained", low)):
        each = np.repeat(value[:, None], 2, axis=1)
        history[name] = stack_steps(each * 0.5, each, "layer", "map", "stat", layer=READ_DEPTHS, map=MAPS, **stats)
    for name, value in (("dual_error", whole), ("dual_error_half", half)):
        history[name] = stack_steps(
            fill_array(0, 5, 2), fill_array(value, 5, 2), "layer", "map", layer=READ_DEPTHS, map=MAPS
        )
    variation = {
        "variation": stack_steps(fill_array(0.3, 5), np.linspace(0.3, 0.1, 5) if holds else fill_array(0.3, 5), "layer")
    }
    loss = {"loss": stack_steps(np.linspace(1, 2, 5), np.linspace(2, 1, 5) if holds else np.linspace(1, 2, 5), "layer")}
    gains = {
        "gain": 3.0 if holds else 1.0,
        "gain_null_high": 1.2,
        "observed_norm": 2.0,
        "predicted_norm": 2.0 if holds else 3,
    }
    lenses = {f"{prefix}{lens}_lens": xr.Dataset(loss) for prefix in ("", "text_") for lens in ("logit", "affine")}
    return {
        "loss_vs_baselines": xr.Dataset(
            {"scored": stack_steps([3.0, 2.0, 0.3, 0.3], [0.31 if holds else 2.1, 2.0, 0.3, 0.3], "predictor", **who)}
        ),
        "clusters": xr.Dataset(scores),
        HISTORY_RESULT: xr.Dataset(history),
        "norms": xr.Dataset(variation),
        "text_norms": xr.Dataset(variation),
        "input_spectra": xr.Dataset(
            {
                name: stack_steps(fill_array(1, 4, 2), fill_array(value, 4, 2), "layer", "map")
                for name, value in gains.items()
            }
        ),
        **{f"inner_{name}": build_objective(holds) for name in (*TESTED_OBJECTIVES, "outer")},
        "text_inner_outer": build_objective(holds),
        **{f"{prefix}head_ablation": build_ablation(holds) for prefix in ("", "text_")},
        **lenses,
    }


def build_ablation(holds: bool) -> xr.Dataset:
    """Build the results of head ablation: one head of each layer has a role, and an effect if `holds`."""
    head_effect = np.array([[0.9, 0.1] if holds else [0.1, 0.1]] * LAYERS)
    effect = stack_steps(
        *[np.stack([head_effect, head_effect], axis=-1)] * 2, "layer", "head", "stat", stat=["mean", "resample"]
    )
    words = np.broadcast_to(np.array(["self", ""]), (SEEDS, 2, LAYERS, 2)).copy()
    null_effect = stack_steps(head_effect * 0.1, head_effect * 0.1 if holds else head_effect, "layer", "head")
    return xr.Dataset(
        {"effect": effect, "effect_null": null_effect, "role": (("seed", "step", "layer", "head"), words)}
    )


@pytest.mark.parametrize("name", CLAIMS)
def test_claim_is_supported_where_it_holds(name: str) -> None:
    verdict = judge(CLAIMS[name], build_results(holds=True), "laptop")
    assert verdict.status == SUPPORTED, verdict.reason
    assert judge(CLAIMS[name], build_results(holds=True), "smoke").status == "not tested at this scale"


@pytest.mark.parametrize("name", CLAIMS)
def test_claim_is_not_supported_where_it_fails(name: str) -> None:
    assert judge(CLAIMS[name], build_results(holds=False), "laptop").status != SUPPORTED


def test_no_claim_uses_the_linear_objective() -> None:
    assert not any("linear" in name for name in CLAIMS)


def test_claims_about_training_fail_if_the_untrained_model_is_equal() -> None:
    datasets = build_results(holds=True)
    for dataset in datasets.values():
        for array in dataset.values():
            array[:, 0] = array[:, 1].values
    history = datasets[HISTORY_RESULT]
    for name in ("top", "top_by_layer"):
        history[f"{name}_null_untrained"] = history[name]
    statuses = {name: judge(claim, datasets, "laptop").status for name, claim in CLAIMS.items()}
    about_training = [name for name, claim in CLAIMS.items() if "untrained" in claim.control.description]
    assert len(about_training) > 15
    assert not [name for name in about_training if statuses[name] == SUPPORTED]
