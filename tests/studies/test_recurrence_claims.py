"""Claims of the recurrence studies on synthetic results: supported where they hold, not where they fail."""

import numpy as np
import pytest
import torch
import xarray as xr

from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION
from mesascope.analyses.nulls import NUM_UNTRAINED_DRAWS
from mesascope.studies.affine.claims import affine_claims, transferred_claims
from mesascope.studies.registry import load_study
from mesascope.studies.verdicts import judge

SEEDS, LAYERS, HEADS, POSITIONS = 5, 3, 4, 20
CLAIMS = {claim.name: claim for claim in affine_claims(first=3, layers=LAYERS)}
CHECK = "learns in context"
FALLING, SUBTRACTING = "negative similarity: attention score", "negative similarity: subtraction"
REFINING = "negative similarity: refinement"
ADDED, COSTLY = "training adds negative-similarity heads to layer 2", "negative-similarity heads have larger effects"
COPIED = "the copy is what is subtracted"
COMPONENTS = ["embedding", "attention 0", "attention 1", "all"]
NO_HEADS = np.zeros((LAYERS, HEADS))
COPY_ERROR = np.full(POSITIONS, 0.5)
MODEL_ERROR = np.where(np.arange(POSITIONS) < 2, 0.4, 0.001)
PERTURBED = np.full((LAYERS, HEADS), 0.01)


def set_heads(array, **layers):
    """Return a copy of an array by layer and head in which some layers (such as l2) have other values."""
    changed = array.copy()
    for name, values in layers.items():
        changed[int(name[1:])] = values
    return changed


PATHS = np.array([[0.1] * HEADS, [1, 0, 1, 0], [0.1] * HEADS, [2.0] * HEADS])  # by component and head
EFFECT = set_heads(np.full((LAYERS, HEADS), 0.1), l2=[9.0, 0.1, 9.0, 0.1])


def stack_steps(untrained, trained, *dims, **coords):
    """Build an array over seeds, with a little noise, and two checkpoints."""
    values = np.stack(
        [np.stack([np.asarray(v, float) * (1 + 0.01 * seed) for v in (untrained, trained)]) for seed in range(SEEDS)]
    )
    all_coords = {"seed": range(SEEDS), "step": [0, 100]} | coords
    return xr.DataArray(np.asarray(values, float), dims=("seed", "step", *dims), coords=all_coords)


def build_results(**changes):
    """Build results in which every claim holds, except for changes: name -> (untrained, trained)."""
    arrays = {
        "error": (np.stack([COPY_ERROR] * 2), np.stack([MODEL_ERROR, COPY_ERROR])),
        "last": ([-0.2] * 3, [-2.0] * 3),
        "depth": ([1.0, 1.1, 1.0, 1.2], [1.0, 1.0, 0.5, 0.05]),
        "similar": (NO_HEADS, set_heads(NO_HEADS, l2=[1, -1, 1, 0])),
        "copies": (NO_HEADS, set_heads(NO_HEADS, l1=1, l2=[-1, 0, -1, 0])),
        "refines": (NO_HEADS, set_heads(NO_HEADS, l2=[0, 0, 0, 1])),
        "paths": (PATHS, PATHS),
        "effect": (EFFECT, EFFECT),
        "perturbed": (PERTURBED, PERTURBED),
        "shifted": ([0.1, 0.1], [0.5, 0.9]),
    } | changes
    flat = {"layer": range(LAYERS)}
    last = [np.stack([np.asarray(each), np.zeros(LAYERS)], axis=-1) for each in arrays["last"]]
    return {
        "loss_vs_baselines": xr.Dataset(
            {"error": stack_steps(*arrays["error"], "predictor", "pos", predictor=["model", "copy"])}
        ),
        "attn_out_probe": xr.Dataset(
            {"log_error": stack_steps(*last, "layer", "stat", stat=["last term", "previous term"], **flat)}
        ),
        "probe_and_logit_lens": xr.Dataset({"affine_error": stack_steps(*arrays["depth"], "layer")}),
        "similarity": build_roles(*arrays["similar"]),
        "value_copying": build_roles(*arrays["copies"]),
        "refinement_heads": build_roles(*arrays["refines"]).expand_dims(stat=["total"]),
        "value_paths": xr.Dataset(
            {"effect": stack_steps(*arrays["paths"], "component", "head", component=COMPONENTS, head=range(HEADS))}
        ),
        "which_algorithm": build_similarities(*arrays["shifted"]),
        "head_ablation": build_ablation(arrays["effect"], arrays["perturbed"]),
    }


def build_roles(untrained, trained):
    """Build the roles of heads: further untrained models have those of step 0."""
    role = stack_steps(untrained, trained, "layer", "head", layer=range(LAYERS))
    draws = role.sel(step=0, drop=True).expand_dims(draw=NUM_UNTRAINED_DRAWS)
    return xr.Dataset({"role": role, "role_null_untrained": draws})


def build_similarities(*shifted):
    """Build similarities of copying and least squares to the predictions, in and out of distribution."""
    values = [np.stack([np.zeros(2), each])[..., None] for each in shifted]
    coords = {
        "distribution": [TRAINING_DISTRIBUTION, "shifted"],
        "predictor": ["copying", "least squares"],
        "stat": ["predictions"],
    }
    return xr.Dataset({"similarity": stack_steps(*values, "distribution", "predictor", "stat", **coords)})


def stack_logs(untrained, trained, *dims, **coords):
    """Build an array of log10(1 + increase) over seeds and two checkpoints."""
    return np.log10(1 + stack_steps(untrained, trained, *dims, **coords))


def build_ablation(effect, perturbed):
    """Build the log effects of head ablation; the ratio of a pair of heads is 1 plus the sum of their increases."""
    pairs = [(first, second) for first in range(HEADS) for second in range(first + 1, HEADS)]
    groups = [np.concatenate([each, each[:, pairs].sum(-1)], axis=1) for each in effect]
    names = [*map(str, range(HEADS)), *(f"{first}+{second}" for first, second in pairs)]
    flat, kinds = {"layer": range(LAYERS)}, {"stat": ["mean", "resample"]}
    of_heads, of_groups = ([np.stack([each, each * 2], axis=-1) for each in one] for one in (effect, groups))
    return xr.Dataset(
        {
            "log_effect": stack_logs(*of_heads, "layer", "head", "stat", **flat, **kinds),
            "log_group_effect": stack_logs(*of_groups, "layer", "component", "stat", component=names, **flat, **kinds),
            "log_effect_null": stack_logs(*perturbed, "layer", "head", **flat),
        }
    )


@pytest.mark.parametrize("name", CLAIMS)
def test_claim_is_supported_where_it_holds(name):
    verdict = judge(CLAIMS[name], build_results(), "laptop")
    assert verdict.status == ("holds" if name == CHECK else "supported"), verdict


LOST = set_heads(NO_HEADS, l0=[-1, -1, -1, 0])  # heads of the untrained model that training takes from layer 0
COUNTEREXAMPLES = [  # name of the claim, changes under which it fails, and the expected status
    (CHECK, {"error": (np.stack([COPY_ERROR] * 2),) * 2}, "fails"),
    ("layer 0 copies the last term", {"last": ([-2.0] * 3, [-0.2] * 3)}, "contradicted"),
    ("layer 0 copies the last term", {"last": ([0.9] * 3, [0.4] * 3)}, "contradicted"),
    ("layer 0 copies the last term", {"last": ([-0.95] * 3, [-1.0] * 3)}, "no effect"),
    ("layer 2 refines the estimate", {"depth": ([1.0] * 4, [1.0, 0.5, 0.05, 0.4])}, "contradicted"),
    ("layer 2 refines the estimate", {"depth": ([1.0] * 4, [1.0, 0.5, 0.1, 0.09])}, "no effect"),
    (FALLING, {"similar": (NO_HEADS, NO_HEADS)}, "inconclusive"),
    (FALLING, {"similar": (set_heads(NO_HEADS, l2=-1),) * 2}, "inconclusive"),
    (FALLING, {"similar": (NO_HEADS, set_heads(NO_HEADS, l1=-1))}, "inconclusive"),
    (SUBTRACTING, {"copies": (NO_HEADS, NO_HEADS)}, "inconclusive"),
    (SUBTRACTING, {"copies": (NO_HEADS, set_heads(NO_HEADS, l2=[0, -1, 0, -1]))}, "inconclusive"),
    (SUBTRACTING, {"similar": (set_heads(NO_HEADS, l2=1),) * 2, "copies": (-EFFECT,) * 2}, "inconclusive"),
    (REFINING, {"refines": (NO_HEADS, NO_HEADS)}, "inconclusive"),
    (REFINING, {"refines": (set_heads(NO_HEADS, l2=1),) * 2}, "inconclusive"),
    (REFINING, {"refines": (NO_HEADS, set_heads(NO_HEADS, l0=1, l1=1))}, "inconclusive"),
    (ADDED, {"similar": (NO_HEADS, set_heads(NO_HEADS, l0=-1, l1=-1, l2=[-1, 0, 0, 0]))}, "contradicted"),
    (ADDED, {"similar": (LOST, NO_HEADS)}, "inconclusive"),
    (COSTLY, {"effect": (EFFECT, EFFECT[:, ::-1])}, "contradicted"),
    (COSTLY, {"effect": (EFFECT * 0 + 0.1,) * 2}, "no effect"),
    (COPIED, {"paths": (PATHS, PATHS[[1, 0, 2, 3]])}, "contradicted"),
    (COPIED, {"paths": (PATHS, PATHS * 0 + 0.1)}, "no effect"),
    (COPIED, {"copies": (NO_HEADS, NO_HEADS)}, "inconclusive"),
    ("out of distribution: least squares", {"shifted": ([0.1, 0.1], [0.9, 0.5])}, "contradicted"),
    ("out of distribution: least squares", {"shifted": ([0.1, 0.1], [0.9, 0.91])}, "no effect"),
    ("head outputs have specific effects", {"perturbed": (PERTURBED, EFFECT * 2)}, "contradicted"),
    ("head outputs have specific effects", {"perturbed": (PERTURBED, EFFECT)}, "no effect"),
]


@pytest.mark.parametrize(("name", "changes", "expected"), COUNTEREXAMPLES)
def test_claim_is_not_supported_where_it_fails(name, changes, expected):
    verdict = judge(CLAIMS[name], build_results(**changes), "laptop")
    assert verdict.status == expected, verdict


@pytest.mark.parametrize("name", [FALLING, SUBTRACTING, REFINING])
def test_absence_of_negative_heads_is_a_contradiction_only_with_more_than_five_seeds(name):
    absent = build_results(similar=(NO_HEADS, NO_HEADS), refines=(NO_HEADS, NO_HEADS))
    twice = {result: xr.concat([values, values], "seed") for result, values in absent.items()}
    assert [judge(CLAIMS[name], results, "laptop").status for results in (absent, twice)] == [
        "inconclusive",
        "contradicted",
    ]


def test_every_claim_has_a_counterexample():
    assert {name for name, *_ in COUNTEREXAMPLES} == set(CLAIMS)


@pytest.mark.parametrize("name", CLAIMS)
def test_no_mechanism_is_judged_before_the_task_is_learned(name):
    error = np.stack([COPY_ERROR * 0.06, COPY_ERROR])
    verdict = judge(CLAIMS[name], build_results(error=(error, error)), "laptop")
    assert verdict.status == ("fails" if name == CHECK else "not learned")


def test_effect_of_negative_heads_is_undefined_without_such_heads_or_without_others():
    for layer in ([0, 0, 0, 0], [1, 1, 1, 0]):
        similar, copies = ((NO_HEADS, set_heads(NO_HEADS, l2=np.array(layer) * sign)) for sign in (1, -1))
        verdict = judge(CLAIMS[COSTLY], build_results(similar=similar, copies=copies), "laptop")
        assert (verdict.status, verdict.value) == ("inconclusive", None)


def test_effects_of_groups_are_compared_with_those_of_groups_of_the_same_size():
    verdict = judge(CLAIMS[COSTLY], build_results(), "laptop")
    assert verdict.per_seed[0] == pytest.approx(np.log10(1 + 18))
    assert verdict.control_per_seed[0] == pytest.approx(np.log10(1 + 0.2))


def test_the_paper_makes_no_claim_about_other_recurrences():
    transferred = transferred_claims(first=3, layers=LAYERS)
    assert [claim.name for claim in transferred] == list(CLAIMS)
    assert any(claim.by_paper for claim in CLAIMS.values())
    assert not any(claim.by_paper for claim in transferred)
    assert all(claim.source.startswith("ours") for claim in transferred)


def test_existence_is_compared_with_several_untrained_models_per_seed():
    """One of the five untrained models of a seed has such a head: a rate of .2, not 0 or 1."""
    results = build_results()
    draws = results["similarity"]["role_null_untrained"].copy()
    draws[{"draw": 0, "layer": 2, "head": 0}] = -1
    results["similarity"] = results["similarity"].assign(role_null_untrained=draws)
    verdict = judge(CLAIMS[FALLING], results, "laptop")
    assert verdict.reason == "trained 5 of 5, untrained 5 of 25"
    assert verdict.control == pytest.approx(0.2)
    assert verdict.status == "supported"


@pytest.mark.parametrize("name", ["affine-2d", "affine-4d"])
def test_points_have_unit_root_mean_square_in_every_cell(name):
    study = load_study(name)
    cells = [study.at_cell(cell) for cell in study.list_cells("paper")]
    assert len(cells) == 8
    for cell in cells:
        terms = cell.main.task.sample(16, torch.Generator().manual_seed(0)).inputs
        assert 0.5 < terms.square().mean().sqrt() < 1.5


def test_models_with_layer_norm_have_a_lower_learning_rate_in_four_dimensions_only():
    rates = {
        name: [
            load_study(name).at_cell({"block": block}).main.scales["laptop"].training.optimizer.lr
            for block in ("bare", "prenorm")
        ]
        for name in ("affine", "affine-2d", "affine-4d")
    }
    assert {name: after / before for name, (before, after) in rates.items()} == {
        "affine": 1,
        "affine-2d": 1,
        "affine-4d": 0.25,
    }
