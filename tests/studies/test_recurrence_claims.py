"""Each claim of the recurrence studies is supported by results that show it, and not by results that do not."""

import numpy as np
import pytest
import xarray as xr

from mesascope.analyses.algorithms.identify import TRAINED
from mesascope.studies.affine.claims import claims
from mesascope.studies.verdicts import judge

SEEDS, LAYERS, HEADS, POSITIONS = 3, 3, 4, 20
NAMED = [("interaction", 0), ("fixed_position", 0), ("role", 0), ("spread", 0)]
COPIES, EFFECT = np.zeros((2, LAYERS, HEADS))
COPIES[0, 1], EFFECT[0, 1], EFFECT[1] = 1.0, 0.9, 0.1
CLAIMS = {claim.name: claim for claim in claims(first=3, layers=LAYERS)}


def array(values, *dims, **coords):
    return xr.DataArray(np.asarray(values, float), dims=dims, coords=coords)


def over_steps(untrained, trained, *dims, **coords):
    """Two checkpoints, three seeds with a little noise."""
    values = np.stack(
        [np.stack([np.asarray(v, float) * (1 + 0.01 * seed) for v in (untrained, trained)]) for seed in range(SEEDS)]
    )
    return array(values, "seed", "step", *dims, seed=range(SEEDS), step=[0, 100], **coords)


def results(**changes):
    """What a run would show in which every claim holds, but for changes: name -> (untrained, trained)."""
    copy = np.full(POSITIONS, 0.5)
    model = np.where(np.arange(POSITIONS) < 2, 0.4, 0.001)
    low, high = np.full((LAYERS, HEADS), -0.05), np.full((LAYERS, HEADS), 0.05)
    interaction = np.zeros((LAYERS, HEADS))
    interaction[2] = [-0.5, 0.0, 0.4, 0.0]
    role = np.sign(interaction)
    gain = np.zeros((LAYERS, HEADS))
    gain[2, 2] = -0.6
    cost = np.zeros((LAYERS, HEADS, 2))
    cost[2, :, 0] = [0.9, 0.1, 0.2, 0.05]
    shown = {
        "error": (np.stack([copy, copy]), np.stack([model, copy])),
        "last": ([0.3] * 3, [0.98] * 3),
        "next": ([0.3] * 3, [0.4] * 3),
        "depth": ([1.0, 1.1, 1.0, 1.2], [1.0, 0.3, 0.05, 0.001]),
        "interaction": (interaction * 0, interaction),
        "fixed_position": (interaction * 0, interaction),
        "role": (role * 0, role),
        "spread": (np.ones((LAYERS, HEADS)), np.ones((LAYERS, HEADS))),
        "gain": (gain * 0, gain),
        "cost": (cost, cost),
        "copies": (role * 0, COPIES),
        "effect": (EFFECT, EFFECT),
        "turned": (EFFECT / 9, EFFECT / 9),
        "read": ([0.1, 0.1], [0.9, 0.5]),
        "predicted": ([0.1, 0.1], [0.8, 0.99]),
        "elsewhere": ([0.1, 0.1], [0.5, 0.9]),
    } | changes
    estimate = np.stack([shown["last"], shown["next"]], axis=-1)
    terms = {"stat": ["last term", "next term"]}
    named = {"stat": ["mean", "resample"]}
    flat, who, groups = {"layer": range(LAYERS)}, {"predictor": ["model", "copy"]}, {"component": list("0123")}
    return {
        "behaviour": xr.Dataset({"error": over_steps(*shown["error"], "predictor", "pos", **who)}),
        "estimate": xr.Dataset(
            {name: over_steps(*estimate, "layer", "stat", **terms, **flat) for name in ("explained", "step_explained")}
        ),
        "lens": xr.Dataset({"affine_error": over_steps(*shown["depth"], "layer")}),
        "similarity": xr.Dataset(
            {
                name: over_steps(*shown.get(name, (edge, edge)), "layer", "head", **flat)
                for name, edge in [*NAMED, ("null_low", low), ("null_high", high), ("fixed_low", low)]
            }
        ),
        "copying": xr.Dataset(
            {
                "gain": over_steps(*shown["gain"], "layer", "head", **flat),
                "gain_null": over_steps(gain * 0, gain * 0, "layer", "head", **flat),
                "role": over_steps(*shown["copies"], "layer", "head", **flat),
            }
        ),
        "ablation": xr.Dataset(
            {
                "cost": over_steps(*shown["cost"], "layer", "head", "stat", **named, **flat),
                "group_cost": over_steps(*shown["cost"], "layer", "component", "stat", **groups, **named, **flat),
            }
        ),
        "which_algorithm": algorithms(*(shown[name] for name in ("read", "predicted", "elsewhere"))),
        "causes": causes(*shown["effect"], *shown["turned"], shown.get("named", COPIES > 0)),
    }  # fmt: skip


def algorithms(read, predicted, elsewhere):
    """How near copying and least squares come: to the reading after layer 0, to predictions, and elsewhere."""
    who = {"predictor": ["copying", "least squares"]}
    settings = [np.stack([np.asarray(each)[None, :, None] for each in pair]) for pair in (predicted, elsewhere)]
    similar = [np.concatenate([settings[0][step], settings[1][step]]) for step in range(2)]
    layers = [np.asarray(each)[None, None] for each in read]
    return xr.Dataset(
        {
            "similarity": over_steps(
                *similar, "setting", "predictor", "stat", setting=[TRAINED, "elsewhere"], stat=["predictions"], **who
            ),
            "layer_similarity": over_steps(
                *layers, "layer", "lens", "predictor", layer=["after 0"], lens=["affine lens"], **who
            ),
        }
    )


def causes(before, after, turned_before, turned_after, named):
    """What heads are worth, and which of them have a role."""
    flat, words = {"layer": range(LAYERS)}, np.where(named, "copying", "")
    effects = [np.stack([each, each * 2], axis=-1) for each in (before, after)]
    return xr.Dataset(
        {
            "effect": over_steps(*effects, "layer", "head", "stat", stat=["mean", "resample"], **flat),
            "effect_turned": over_steps(turned_before, turned_after, "layer", "head", **flat),
            "role": (("seed", "step", "layer", "head"), np.broadcast_to(words, (SEEDS, 2, LAYERS, HEADS)).copy()),
        }
    )


@pytest.mark.parametrize("name", CLAIMS)
def test_a_run_that_shows_it_supports_it(name):
    verdict = judge(CLAIMS[name], results(), "laptop")
    assert verdict.word == "supported", verdict


def opposite():
    """For each claim, the results in which it does not hold, and what shall then be said."""
    _, base = results()["similarity"], np.zeros((LAYERS, HEADS))
    early, none, tall = base.copy(), base.copy(), base.copy()
    early[0, 1], early[2, 0] = -0.9, -0.5
    tall[2, 2] = 0.4
    cheap = np.zeros((LAYERS, HEADS, 2))
    cheap[2, :, 0] = [0.01, 0.5, 0.7, 0.6]
    copied = np.full((2, POSITIONS), 0.5)
    add = base.copy()
    add[2, 2] = 0.6
    return {
        "learns in context": ({"error": (copied, copied)}, "contradicted"),
        "layer 0 copies": ({"last": ([0.3] * 3, [0.2] * 3)}, "contradicted"),
        "layer 0 copies, step by step": ({"last": ([0.98] * 3, [0.3] * 3)}, "contradicted"),
        "layer 0 does not know the answer": ({"next": ([0.3] * 3, [0.99] * 3)}, "contradicted"),
        "refined layer by layer": ({"depth": ([1.0] * 4, [1.0, 0.3, 0.6, 0.1])}, "contradicted"),
        "negative similarity, score": ({"interaction": (none, none)}, "contradicted"),
        "negative similarity, score as it is": ({"fixed_position": (none, none)}, "contradicted"),
        "negative similarity, gain": ({"gain": (add, add)}, "inconclusive"),
        "negative similarity belongs to layer 2": ({"interaction": (base, early)}, "contradicted"),
        "negative heads matter": ({"cost": (cheap, cheap)}, "contradicted"),
        "the head that matters most is negative": (
            {"interaction": (none, tall), "cost": (cheap, cheap)},
            "contradicted",
        ),
        "after layer 0, copying": ({"read": ([0.1, 0.1], [0.5, 0.9])}, "contradicted"),
        "at the end, the rule": ({"predicted": ([0.1, 0.1], [0.99, 0.8])}, "contradicted"),
        "the rule elsewhere": ({"elsewhere": ([0.1, 0.1], [0.9, 0.5])}, "contradicted"),
        "the head of layer 0 that matters most copies": ({"copies": (none, COPIES[:, ::-1])}, "contradicted"),
        "heads matter by what they write": ({"turned": (EFFECT, EFFECT * 2)}, "contradicted"),
        "heads with a role matter more": ({"named": COPIES == 0}, "contradicted"),
    }


@pytest.mark.parametrize("name", CLAIMS)
def test_a_run_that_shows_the_opposite_does_not(name):
    changes, word = opposite()[name]
    verdict = judge(CLAIMS[name], results(**changes), "laptop")
    assert verdict.word == word, verdict


def test_heads_whose_scores_hardly_differ_are_no_negative_heads():
    tiny = np.full((LAYERS, HEADS), 0.01)
    verdict = judge(CLAIMS["negative similarity, score"], results(spread=(tiny, tiny)), "laptop")
    assert verdict.word == "inconclusive"


def test_without_negative_heads_their_worth_has_no_value():
    none = np.zeros((LAYERS, HEADS))
    verdict = judge(CLAIMS["negative heads matter"], results(role=(none, none)), "laptop")
    assert verdict.word == "inconclusive"
    assert verdict.value is None


def test_without_heads_that_have_a_role_or_lack_one_nothing_can_be_compared():
    for named in (COPIES < 0, COPIES >= 0):
        assert judge(CLAIMS["heads with a role matter more"], results(named=named), "laptop").value is None
