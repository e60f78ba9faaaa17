"""Claims of the recurrence studies on synthetic results: supported where they hold, not where they fail."""

import numpy as np
import pytest
import xarray as xr

from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION
from mesascope.studies.affine.claims import affine_claims
from mesascope.studies.verdicts import judge

SEEDS, LAYERS, HEADS, POSITIONS = 3, 3, 4, 20
NAMED = [("interaction", 0), ("fixed_position", 0), ("role", 0), ("score_std", 0)]
COPIES, EFFECT = np.zeros((2, LAYERS, HEADS))
COPIES[0, 1], EFFECT[0, 1], EFFECT[1], EFFECT[2] = 1.0, 0.9, 0.1, [0.9, 0.1, 0.2, 0.05]
CLAIMS = {claim.name: claim for claim in affine_claims(first=3, layers=LAYERS)}


def stack_steps(untrained, trained, *dims, **coords):
    """Build an array over seeds, with a little noise, and two checkpoints."""
    values = np.stack(
        [np.stack([np.asarray(v, float) * (1 + 0.01 * seed) for v in (untrained, trained)]) for seed in range(SEEDS)]
    )
    all_coords = {"seed": range(SEEDS), "step": [0, 100]} | coords
    return xr.DataArray(np.asarray(values, float), dims=("seed", "step", *dims), coords=all_coords)


def build_results(**changes):
    """Build results in which every claim holds, except for changes: name -> (untrained, trained)."""
    copy = np.full(POSITIONS, 0.5)
    model = np.where(np.arange(POSITIONS) < 2, 0.4, 0.001)
    low, high = np.full((LAYERS, HEADS), -0.05), np.full((LAYERS, HEADS), 0.05)
    interaction = np.zeros((LAYERS, HEADS))
    interaction[2] = [-0.5, 0.0, 0.4, 0.0]
    role = np.sign(interaction)
    gain = np.zeros((LAYERS, HEADS))
    gain[2, 2] = -0.6
    arrays = {
        "error": (np.stack([copy, copy]), np.stack([model, copy])),
        "last": ([0.3] * 3, [0.98] * 3),
        "next": ([0.3] * 3, [0.4] * 3),
        "depth": ([1.0, 1.1, 1.0, 1.2], [1.0, 0.3, 0.05, 0.001]),
        "interaction": (interaction * 0, interaction),
        "fixed_position": (interaction * 0, interaction),
        "role": (role * 0, role),
        "score_std": (np.ones((LAYERS, HEADS)), np.ones((LAYERS, HEADS))),
        "gain": (gain * 0, gain),
        "copies": (role * 0, COPIES),
        "effect": (EFFECT, EFFECT),
        "null_effect": (EFFECT / 9, EFFECT / 9),
        "lens": ([0.1, 0.1], [0.9, 0.5]),
        "predicted": ([0.1, 0.1], [0.8, 0.99]),
        "shifted": ([0.1, 0.1], [0.5, 0.9]),
    } | changes
    estimate = np.stack([arrays["last"], arrays["next"]], axis=-1)
    terms = {"stat": ["last term", "next term"]}
    flat, who = {"layer": range(LAYERS)}, {"predictor": ["model", "copy"]}
    return {
        "loss_vs_baselines": xr.Dataset({"error": stack_steps(*arrays["error"], "predictor", "pos", **who)}),
        "attn_out_probe": xr.Dataset(
            {name: stack_steps(*estimate, "layer", "stat", **terms, **flat) for name in ("explained", "step_explained")}
        ),
        "probe_and_logit_lens": xr.Dataset({"affine_error": stack_steps(*arrays["depth"], "layer")}),
        "similarity": xr.Dataset(
            {
                name: stack_steps(*arrays.get(name, (edge, edge)), "layer", "head", **flat)
                for name, edge in [
                    *NAMED,
                    ("interaction_null_low", low),
                    ("interaction_null_high", high),
                    ("fixed_position_null_low", low),
                ]
            }
        ),
        "value_copying": xr.Dataset(
            {
                "gain": stack_steps(*arrays["gain"], "layer", "head", **flat),
                "gain_null": stack_steps(gain * 0, gain * 0, "layer", "head", **flat),
                "role": stack_steps(*arrays["copies"], "layer", "head", **flat),
            }
        ),
        "which_algorithm": build_similarities(*(arrays[name] for name in ("lens", "predicted", "shifted"))),
        "head_ablation": build_ablation(*arrays["effect"], *arrays["null_effect"], arrays.get("named", COPIES > 0)),
    }


def build_similarities(lens, predicted, shifted):
    """Build similarities of copying and least squares: to the affine lens, in and out of distribution."""
    who = {"predictor": ["copying", "least squares"]}
    distributions = [np.stack([np.asarray(each)[None, :, None] for each in pair]) for pair in (predicted, shifted)]
    similar = [np.concatenate([distributions[0][step], distributions[1][step]]) for step in range(2)]
    layers = [np.asarray(each)[None, None] for each in lens]
    return xr.Dataset(
        {
            "similarity": stack_steps(
                *similar,
                "distribution",
                "predictor",
                "stat",
                distribution=[TRAINING_DISTRIBUTION, "shifted"],
                stat=["predictions"],
                **who,
            ),
            "layer_similarity": stack_steps(
                *layers, "layer", "lens", "predictor", layer=["after 0"], lens=["affine lens"], **who
            ),
        }
    )


def build_ablation(before, after, null_before, null_after, named):
    """Build the results of head ablation: effects of heads and of groups of one head, null effects and roles."""
    flat, words = {"layer": range(LAYERS), "stat": ["mean", "resample"]}, np.where(named, "copying", "")
    effects = [np.stack([each, each * 2], axis=-1) for each in (before, after)]
    return xr.Dataset(
        {
            "effect": stack_steps(*effects, "layer", "head", "stat", **flat),
            "group_effect": stack_steps(*effects, "layer", "component", "stat", component=list("0123"), **flat),
            "effect_null": stack_steps(null_before, null_after, "layer", "head", layer=range(LAYERS)),
            "role": (("seed", "step", "layer", "head"), np.broadcast_to(words, (SEEDS, 2, LAYERS, HEADS)).copy()),
        }
    )


@pytest.mark.parametrize("name", CLAIMS)
def test_claim_is_supported_where_it_holds(name):
    verdict = judge(CLAIMS[name], build_results(), "laptop")
    assert verdict.status == "supported", verdict


def list_counterexamples():
    """Return for each claim the changes under which it fails, and the expected status."""
    _, base = build_results()["similarity"], np.zeros((LAYERS, HEADS))
    early, none, tall = base.copy(), base.copy(), base.copy()
    early[0, 1], early[2, 0] = -0.9, -0.5
    tall[2, 2] = 0.4
    cheap = np.zeros((LAYERS, HEADS))
    cheap[2] = [0.01, 0.5, 0.7, 0.6]
    copied = np.full((2, POSITIONS), 0.5)
    add = base.copy()
    add[2, 2] = 0.6
    return {
        "learns in context": ({"error": (copied, copied)}, "contradicted"),
        "layer 0 copies the last term: R²": ({"last": ([0.3] * 3, [0.2] * 3)}, "contradicted"),
        "layer 0 copies the last term: R² relative to the step": ({"last": ([0.98] * 3, [0.3] * 3)}, "contradicted"),
        "layer 0 does not predict the next term": ({"next": ([0.3] * 3, [0.99] * 3)}, "contradicted"),
        "the estimate is refined layer by layer": ({"depth": ([1.0] * 4, [1.0, 0.3, 0.6, 0.1])}, "contradicted"),
        "negative similarity: attention score": ({"interaction": (none, none)}, "contradicted"),
        "negative similarity: attention score with main effects": ({"fixed_position": (none, none)}, "contradicted"),
        "negative similarity: gain": ({"gain": (add, add)}, "inconclusive"),
        "negative similarity is strongest in layer 2": ({"interaction": (base, early)}, "contradicted"),
        "negative-similarity heads have larger effects": ({"effect": (cheap, cheap)}, "contradicted"),
        "the most important head has negative similarity": (
            {"interaction": (none, tall), "effect": (cheap, cheap)},
            "contradicted",
        ),
        "after layer 0: copying": ({"lens": ([0.1, 0.1], [0.5, 0.9])}, "contradicted"),
        "predictions: least squares": ({"predicted": ([0.1, 0.1], [0.99, 0.8])}, "contradicted"),
        "out of distribution: least squares": ({"shifted": ([0.1, 0.1], [0.9, 0.5])}, "contradicted"),
        "the most important head of layer 0 copies": ({"copies": (none, COPIES[:, ::-1])}, "contradicted"),
        "head outputs have specific effects": ({"null_effect": (EFFECT, EFFECT * 2)}, "contradicted"),
        "heads with a role have larger effects": ({"named": COPIES == 0}, "contradicted"),
    }


@pytest.mark.parametrize("name", CLAIMS)
def test_claim_is_not_supported_where_it_fails(name):
    changes, expected = list_counterexamples()[name]
    verdict = judge(CLAIMS[name], build_results(**changes), "laptop")
    assert verdict.status == expected, verdict


def test_heads_with_constant_scores_are_not_negative_heads():
    tiny = np.full((LAYERS, HEADS), 0.01)
    verdict = judge(CLAIMS["negative similarity: attention score"], build_results(score_std=(tiny, tiny)), "laptop")
    assert verdict.status == "inconclusive"


def test_without_negative_heads_their_effect_is_undefined():
    none = np.zeros((LAYERS, HEADS))
    verdict = judge(CLAIMS["negative-similarity heads have larger effects"], build_results(role=(none, none)), "laptop")
    assert verdict.status == "inconclusive"
    assert verdict.value is None


def test_role_comparison_is_undefined_without_heads_of_both_kinds():
    for named in (COPIES < 0, COPIES >= 0):
        assert (
            judge(CLAIMS["heads with a role have larger effects"], build_results(named=named), "laptop").value is None
        )
