"""Each claim of the meta-learning study is supported by results that show it, and not by results that do not."""

import numpy as np
import pytest
import xarray as xr

from mesascope.analyses.stream.probes import depth_names
from mesascope.studies.meta_learning.claims import DESCENDED, HISTORY, LABELS, claims
from mesascope.studies.verdicts import SUPPORTED, judge

SEEDS, LAYERS = 3, 4
DEPTHS = depth_names(range(LAYERS))
PLACES = ["0", "1", "2", "3", "read-out"]
MAPS = ["attention.q_proj", "mlp.up_proj"]
CLAIMS = {claim.name: claim for claim in claims()}


def over_steps(untrained, trained, *dims: str, **coords) -> xr.DataArray:
    """Two checkpoints, three seeds with a little noise."""
    values = np.stack(
        [np.stack([np.asarray(v, float) * (1 + 0.001 * seed) for v in (untrained, trained)]) for seed in range(SEEDS)]
    )
    return xr.DataArray(values, dims=("seed", "step", *dims), coords={"seed": range(SEEDS), "step": [0, 9], **coords})


def alike(value: float, *sizes: int) -> np.ndarray:
    return np.full(sizes, value)


def inner(shown: bool) -> xr.Dataset:
    """An inner objective: before, descends, cosine, with keys shuffled and from elsewhere."""
    dims, names = ("layer", "sublayer"), {"sublayer": ["attention", "mlp"]}
    falling = np.linspace(4, 1, LAYERS)[:, None] * np.ones(2)
    found = {
        "before": over_steps(falling[::-1], falling if shown else falling[::-1], *dims, **names),
        "descends": over_steps(alike(0.3, LAYERS, 2), alike(0.9 if shown else 0.3, LAYERS, 2), *dims, **names),
        "cosine": over_steps(alike(0.01, LAYERS, 2), alike(0.2 if shown else 0.01, LAYERS, 2), *dims, **names),
        "cosine_elsewhere": over_steps(alike(0.0, LAYERS, 2), alike(0.01, LAYERS, 2), *dims, **names),
    }
    shuffled = over_steps(alike(0.5, 2, LAYERS, 2), alike(0.5, 2, LAYERS, 2), "draw", *dims, **names)
    return xr.Dataset(found | {"descends_keys_shuffled": shuffled})


def results(shown: bool) -> dict[str, xr.Dataset]:
    """What a run would give in which every claim holds, or in which there is nothing to find."""
    who, stats = {"predictor": ["model", "bigram", "Bayes", "generator known"]}, {"stat": list(LABELS)}
    low, rising = alike(0.2, 5, 3), np.linspace(0.3, 0.9, 5)[:, None] * np.ones(3)
    permuted = alike(0.21, 2, 5, 3)
    scores = {
        "pairwise_f1": over_steps(low, rising if shown else low, "layer", "stat", layer=DEPTHS, **stats),
        "pairwise_f1_permuted": over_steps(permuted, permuted, "draw", "layer", "stat", layer=DEPTHS, **stats),
    }
    share = np.linspace(0.9, 0.5, 5)[:, None] * np.ones(3) if shown else low
    history = {
        f"{name}_by_layer": over_steps(low, value, "layer", "stat", layer=PLACES, **stats)
        for name, value in {"top": share, "last": low - 0.1, "top_untrained": low, "top_permuted": low}.items()
    }
    whole, half = (1e-7, 0.3) if shown else (0.05, 0.05)
    for name, value in (("top", share), ("top_untrained", low)):
        each = np.repeat(value[:, None], 2, axis=1)
        history[name] = over_steps(each * 0.5, each, "layer", "map", "stat", layer=PLACES, map=MAPS, **stats)
    for name, value in (("dual_error", whole), ("dual_error_half", half)):
        history[name] = over_steps(alike(0, 5, 2), alike(value, 5, 2), "layer", "map", layer=PLACES, map=MAPS)
    variation = {"variation": over_steps(alike(0.3, 5), np.linspace(0.3, 0.1, 5) if shown else alike(0.3, 5), "layer")}
    loss = {"loss": over_steps(np.linspace(1, 2, 5), np.linspace(2, 1, 5) if shown else np.linspace(1, 2, 5), "layer")}
    gains = {
        "gain": 3.0 if shown else 1.0,
        "gain_high": 1.2,
        "observed_norm": 2.0,
        "predicted_norm": 2.0 if shown else 3,
    }
    lenses = {f"{prefix}{lens}_lens": xr.Dataset(loss) for prefix in ("", "text_") for lens in ("logit", "affine")}
    return {
        "behaviour": xr.Dataset(
            {"scored": over_steps([3.0, 2.0, 0.3, 0.3], [0.31 if shown else 2.1, 2.0, 0.3, 0.3], "predictor", **who)}
        ),
        "clusters": xr.Dataset(scores),
        HISTORY: xr.Dataset(history),
        "norms": xr.Dataset(variation),
        "text_norms": xr.Dataset(variation),
        "gram": xr.Dataset(
            {name: over_steps(alike(1, 4, 2), alike(value, 4, 2), "layer", "map") for name, value in gains.items()}
        ),
        **{f"inner_{name}": inner(shown) for name in (*DESCENDED, "outer")},
        "text_inner_outer": inner(shown),
        **{f"{prefix}causes": causes(shown) for prefix in ("", "text_")},
        **lenses,
    }


def causes(shown: bool) -> xr.Dataset:
    """What heads are worth: one with a role, most of all where there is something to find."""
    worth = np.array([[0.9, 0.1] if shown else [0.1, 0.1]] * LAYERS)
    effect = over_steps(*[np.stack([worth, worth], axis=-1)] * 2, "layer", "head", "stat", stat=["mean", "resample"])
    words = np.broadcast_to(np.array(["self", ""]), (SEEDS, 2, LAYERS, 2)).copy()
    turned = over_steps(worth * 0.1, worth * 0.1 if shown else worth, "layer", "head")
    return xr.Dataset({"effect": effect, "effect_turned": turned, "role": (("seed", "step", "layer", "head"), words)})


@pytest.mark.parametrize("name", CLAIMS)
def test_results_that_show_it_support_a_claim(name: str) -> None:
    verdict = judge(CLAIMS[name], results(shown=True), "laptop")
    assert verdict.word == SUPPORTED, verdict.reason
    assert judge(CLAIMS[name], results(shown=True), "smoke").word == "not tested at this scale"


@pytest.mark.parametrize("name", CLAIMS)
def test_where_there_is_nothing_to_find_no_claim_is_supported(name: str) -> None:
    assert judge(CLAIMS[name], results(shown=False), "laptop").word != SUPPORTED


def test_no_claim_rests_on_an_objective_that_cannot_fail() -> None:
    assert not any("linear" in name for name in CLAIMS)


def test_what_an_untrained_model_has_too_supports_no_claim_about_training() -> None:
    found = results(shown=True)
    for dataset in found.values():
        for array in dataset.values():
            array[:, 0] = array[:, 1].values
    history = found[HISTORY]
    for name in ("top", "top_by_layer"):
        history[name.replace("top", "top_untrained")] = history[name]
    words = {name: judge(claim, found, "laptop").word for name, claim in CLAIMS.items()}
    about_training = [name for name, claim in CLAIMS.items() if "untrained" in claim.control_about]
    assert len(about_training) > 15
    assert not [name for name in about_training if words[name] == SUPPORTED]
