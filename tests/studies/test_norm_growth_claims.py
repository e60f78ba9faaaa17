"""Each claim of the study of parameter norms is supported by results that show it, and not by others."""

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
import xarray as xr

from mesascope.analyses.training.parameter_norms import INSIDE, WHOLE, exponent, fits
from mesascope.studies.norm_growth.study import (
    ADAPTED,
    BOTH,
    DECAYED,
    INVERSE,
    LINEAR,
    OUTPUT,
    RANDOM,
    SHUFFLED,
    STUDY,
    ZEROED,
)
from mesascope.studies.norm_growth.toy_model import PAPERS, PROPORTION, WALK
from mesascope.studies.verdicts import judge

SEEDS, STEPS = 3, np.arange(0, 401, 40)
T = STEPS.astype(float)
CLAIMS = {claim.name: claim for claim in STUDY.claims}
HEADS = np.arange(48).reshape(4, 12)


def per_seed(values, *dims, **coords) -> xr.DataArray:
    """Three seeds with a little noise."""
    noisy = np.stack([np.asarray(values, float) * (1 + 1e-4 * seed) for seed in range(SEEDS)])
    return xr.DataArray(noisy, dims=("seed", *dims), coords={"seed": range(SEEDS)} | coords)


def grown(norm, cosine=(0.9, 0.99), alignment=(0.14, 0.01), spread=0.02, rate=0.2) -> xr.Dataset:
    """What `growth` would have found of such norms."""
    curve = fits(T[1:], norm[1:])
    along = [np.concatenate([[np.nan], np.linspace(*ends, len(STEPS) - 1)]) for ends in (cosine, alignment)]
    return xr.Dataset(
        {
            "norm": per_seed(np.stack([2 * norm, norm], -1), "step", "stat", step=STEPS, stat=[WHOLE, INSIDE]),
            "straight": per_seed(list(curve.values()), "_curve", _curve=list(curve)),
            "exponent": per_seed(exponent(T[1:], norm[1:])),
            "cosine": per_seed(along[0], "step", step=STEPS),
            "alignment": per_seed(along[1], "step", step=STEPS),
            "spread": per_seed(spread),
            "rate": per_seed(np.full((4, 6), rate), "layer", "map"),
        }
    )


def saturated(cosine, spread_out=0, later=0.0) -> xr.Dataset:
    """What `saturation` would have found: so many heads attend to half of all positions, and this share is later."""
    attended, on_later = np.where(spread_out > HEADS, 24.0, 1.0), np.where(spread_out > HEADS, later, 0.0)
    ends = {"step": [0, 400]}
    both = {
        "cosine": per_seed([np.full(4, 0.2), np.full(4, cosine)], "step", "layer", **ends),
        "attended": per_seed([np.ones((4, 12)), attended], "step", "layer", "head", **ends),
        "later": per_seed([np.zeros((4, 12)), on_later], "step", "layer", "head", **ends),
    }
    return xr.Dataset(both)


def told(loss, rise) -> dict[str, xr.Dataset]:
    """What `behaviour` and `future` would have found."""
    ends = {"step": [0, 400]}
    return {
        "behaviour": xr.Dataset(
            {"scored": per_seed([[6.0], [loss]], "step", "predictor", predictor=["model"], **ends)}
        ),
        "future": xr.Dataset({"rise": per_seed([rise], "step", step=[400])}),
    }


def moved(powers=(0.25, 0.5, 1.0), walk=0.05, constant=1.6) -> xr.Dataset:
    """What the reduced model would have given."""
    return xr.Dataset(
        {
            "power_by_constant": per_seed(powers, "_constant", _constant=[0.5, 1.0, 2.0]),
            "power_by_size": per_seed([0.5, walk], "_size", _size=[PROPORTION, WALK]),
            "power_by_schedule": per_seed([constant, 0.5], "_schedule", _schedule=["constant", PAPERS]),
        }
    )


@cache
def claimed() -> Mapping[str, xr.Dataset]:
    """Results in which everything is as claimed."""
    return {
        "growth": grown(50 + 0.05 * T),
        f"{INVERSE.name}_growth": grown(50 + T**0.55),
        f"{ADAPTED.name}_growth": grown(50 + T**0.5),
        f"{LINEAR.name}_growth": grown(50 + 4 * T**0.2),
        f"{DECAYED.name}_growth": grown(50 - 0.05 * T),
        f"{OUTPUT.name}_growth": grown(50 + 0.08 * T),
        f"{RANDOM.name}_growth": grown(50 + 0.0001 * T),
        f"{SHUFFLED.name}_growth": grown(50 - 0.001 * T),
        "saturation": saturated(0.95, 10, 0.0),
        f"{OUTPUT.name}_saturation": saturated(0.9, 10, 0.0),
        f"{ZEROED.name}_saturation": saturated(0.95, 30, 0.97),
        f"{BOTH.name}_saturation": saturated(0.95, 30, 0.97),
        "moved_vector": moved(),
        **told(3.0, 0.0),
        **{f"{ZEROED.name}_{name}": each for name, each in told(2.0, 2.5).items()},
    }


def results(**changes) -> Mapping[str, xr.Dataset]:
    """The same, but for some of them."""
    return {**claimed(), **changes}


def word(name: str, found: Mapping[str, xr.Dataset]) -> str:
    return judge(CLAIMS[name], found, "laptop").word


SQUARE = f"{INVERSE.name}_growth"
OTHERWISE = {
    "the square root of time": {SQUARE: grown(50 + 1e-4 * T**2)},
    "its power belongs to that rate": {SQUARE: grown(50 + 1e-4 * T**2)},
    "the square root of time, AdaFactor": {f"{ADAPTED.name}_growth": grown(50 + 1e-4 * T**2)},
    "its power belongs to the optimiser": {f"{ADAPTED.name}_growth": grown(50 + T**0.7)},
    "a constant rate has a larger power": {"growth": grown(50 + 4 * T**0.2)},
    "a rate that goes to 0 has a smaller power": {f"{LINEAR.name}_growth": grown(50 + 1e-4 * T**2)},
    "the norm grows all the time": {"growth": grown(50 + 0.05 * T - 9 * (T == 240))},
    "the norm grows all the time, x + norm(f(x))": {f"{OUTPUT.name}_growth": grown(50 - 0.01 * T)},
    "a large weight decay makes it fall": {f"{DECAYED.name}_growth": grown(50 + 0.01 * T)},
    "it grows because something is learned": {f"{RANDOM.name}_growth": grown(50 + 0.2 * T)},
    "it grows because something is learned, one optimiser": {f"{SHUFFLED.name}_growth": grown(50 + 0.2 * T)},
    "the direction settles": {"growth": grown(50 + T, cosine=(0.99, 0.97))},
    "the direction settles after warm-up": {"growth": grown(50 + T, cosine=(0.99, 0.97))},
    "updates lie across the parameters": {"growth": grown(50 + T, alignment=(0.5, 0.4))},
    "all matrices grow alike": {"growth": grown(50 + T, spread=0.3)},
    "training saturates": {"saturation": saturated(0.1)},
    "training saturates, x + norm(f(x))": {f"{OUTPUT.name}_saturation": saturated(0.1)},
    "nearly to the end": {"saturation": saturated(0.6)},
    "two kinds of heads": {"saturation": saturated(0.9, 0)},
    "the second kind comes of the mask": {"saturation": saturated(0.9, 40)},
    "the second kind comes of the mask, x + norm(f(x))": {f"{BOTH.name}_saturation": saturated(0.9, 0)},
    "it looks at the future": {f"{ZEROED.name}_saturation": saturated(0.9, 30, 0.4)},
    "its loss is lower": {"behaviour": told(1.9, 0.0)["behaviour"]},
    "because it sees what comes": {f"{ZEROED.name}_future": told(2.0, -0.1)["future"]},
    "derived: the power is c / 2": {"moved_vector": moved(powers=(0.5, 0.5, 0.5))},
    "derived: it needs updates that grow": {"moved_vector": moved(walk=0.6)},
    "derived: it follows from the rate": {"moved_vector": moved(constant=0.4)},
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_supported_where_they_hold_and_contradicted_where_not(name):
    assert word(name, results()) == "supported"
    assert word(name, results(**OTHERWISE[name])) == "contradicted"


def test_where_no_head_attends_to_many_positions_nothing_is_said_of_what_they_look_at():
    found = results(**{f"{ZEROED.name}_saturation": saturated(0.95, 0)})
    verdict = judge(CLAIMS["it looks at the future"], found, "laptop")
    assert verdict.word == "inconclusive"
    assert verdict.value is None


def test_all_three_scales_have_one_recipe_but_for_sizes():
    for arm in STUDY.settings:
        smoke, laptop, paper = (arm.setups[scale].training for scale in ("smoke", "laptop", "paper"))
        assert smoke.schedule == laptop.schedule == paper.schedule
        assert laptop.optimizer.lr == 4 * paper.optimizer.lr
        assert {each.spacing for each in (smoke, laptop, paper)} == {"even"}
        shapes = [arm.model_at(scale) for scale in ("smoke", "laptop", "paper")]
        assert len({(one.visible, one.norm_position, one.num_attention_heads) for one in shapes}) == 1
        assert [one.num_hidden_layers for one in shapes] == [2, 4, 12]
    assert (shapes[2].hidden_size, shapes[2].intermediate_size) == (768, 512)
