"""Each claim on backward chaining is supported by results that agree with it, and not by others."""

import warnings

import numpy as np
import pytest
import torch
import xarray as xr

from mesascope.activations import EditHadNoEffect, capture
from mesascope.analyses import run_analyses
from mesascope.models.transformer import Decoder
from mesascope.studies.backward_chaining.chain_scrubbing import (
    COLON,
    NOTHING,
    REGISTERS,
    REGISTERS_AND_TARGETS,
    chain_scrubbing,
)
from mesascope.studies.backward_chaining.chaining_attention import chaining_attention
from mesascope.studies.backward_chaining.edge_ablation import edge_ablation
from mesascope.studies.backward_chaining.path_accuracy import MODEL, path_accuracy
from mesascope.studies.backward_chaining.register_patching import register_patching
from mesascope.studies.backward_chaining.registers import register_paths, start_labels
from mesascope.studies.backward_chaining.study import LAPTOP_LAYERS, STUDY
from mesascope.studies.backward_chaining.tree_probes import CHILDREN, LEAVES, tree_probes
from mesascope.studies.verdicts import judge
from mesascope.tasks.trees.baselines import NO_WRONG_LEAF, name_limited_chaining

from .chaining_model import TASK, make_chaining_model
from .seed_results import stack_steps

CLAIMS = {claim.name: claim for claim in STUDY.claims}
LENGTHS, DISTANCES, DEPTHS = range(1, 8), range(LAPTOP_LAYERS), range(LAPTOP_LAYERS + 1)
PREDICTORS = [MODEL, NO_WRONG_LEAF, name_limited_chaining(LAPTOP_LAYERS - 1)]
CHAINED = [[float(depth > distance) for distance in DISTANCES] for depth in DEPTHS]
UNTRAINED = 0.3


def accuracy_results(exact=0.99, branching=0.99, longer=0.97) -> xr.Dataset:
    """Make accuracies; limited chaining is right for paths of up to as many edges as layers, and in 0.6 of others."""
    reached = [1.0] * LAPTOP_LAYERS
    num_longer = len(LENGTHS) - LAPTOP_LAYERS
    by_length = [[*reached, *[value] * num_longer] for value in (longer, 0.6, 0.6)]
    by_predictor, lengths = {"predictor": PREDICTORS}, {"_length": list(LENGTHS)}
    return xr.Dataset(
        {
            "exact_match": stack_steps([0.0] * 3, [exact, 0.67, 0.8], "predictor", **by_predictor),
            "branching_accuracy": stack_steps([0.1] * 3, [branching, 0.6, 0.8], "predictor", **by_predictor),
            "exact_match_by_length": stack_steps(
                np.zeros_like(by_length), by_length, "predictor", "_length", **by_predictor, **lengths
            ),
            "length_fraction": stack_steps([1 / 7] * 7, [1 / 7] * 7, "_length", **lengths),
        }
    )


def probe_results(
    target=0.99,
    source=0.2,
    goal=0.98,
    ancestors=CHAINED,
    colon=CHAINED,
    at_goal=CHAINED,
    later=CHAINED,
    answer=0.97,
    children=(0.1, 0.5, 0.95),
) -> xr.Dataset:
    """Make F1 of probes; those of untrained models are low."""
    by_depth, by_distance = {"_depth": list(DEPTHS)}, {"_distance": list(DISTANCES)}
    at_root = np.array(ancestors)
    at_root[1:, 0] = goal
    by_location = {
        "": at_root,
        "_at_colon": np.array(colon),
        "_at_goal": np.array(at_goal),
        "_at_later_nodes": np.array(later),
    }
    lookahead = np.zeros((len(DEPTHS), 2))
    lookahead[-3:, 0] = children
    return xr.Dataset(
        {
            "edge_at_target": stack_steps([UNTRAINED] * 5, [0.1, *[target] * 4], "_depth", **by_depth),
            "edge_at_source": stack_steps([UNTRAINED] * 5, [0.1, *[source] * 4], "_depth", **by_depth),
            **{
                f"ancestor{location}": stack_steps(
                    np.full_like(at_root, UNTRAINED), values, "_depth", "_distance", **by_depth, **by_distance
                )
                for location, values in by_location.items()
            },
            "answer_at_goal": stack_steps([UNTRAINED] * 5, [0.1] * 5, "_depth", **by_depth),
            "answer_at_colon": stack_steps([UNTRAINED] * 5, [0.1, 0.1, 0.1, answer, 0.99], "_depth", **by_depth),
            "lookahead": stack_steps(
                np.full_like(lookahead, UNTRAINED), lookahead, "_depth", "stat", **by_depth, stat=[CHILDREN, LEAVES]
            ),
        }
    )


def attention_results(within=0.95, along=0.9, other=0.02, colon=0.9, goal=0.9, later=0.9) -> xr.Dataset:
    """Make attention of one head per layer, along the chain or elsewhere."""
    unit = np.zeros((LAPTOP_LAYERS, 1, len(DISTANCES)))
    for distance in range(LAPTOP_LAYERS - 1):
        unit[distance + 1, 0, distance] = 1
    chains = {"chain": along, "chain_at_colon": colon, "chain_at_goal": goal, "chain_at_later_nodes": later}
    values = {name: attention * unit for name, attention in chains.items()}
    values |= {f"{name}_null": np.full_like(unit, other) for name in chains}
    coords = {"layer": list(DISTANCES), "head": [0]}
    return xr.Dataset(
        {
            "within_edge": stack_steps(
                np.full((LAPTOP_LAYERS, 1), 0.1), np.full((LAPTOP_LAYERS, 1), within), "layer", "head", **coords
            ),
            **{
                name: stack_steps(
                    np.full_like(unit, 0.03), each, *coords, "_distance", **coords, _distance=list(DISTANCES)
                )
                for name, each in values.items()
            },
        }
    )


def ablation_results(effect=0.8, other=0.02) -> xr.Dataset:
    coords = {"_distance": list(DISTANCES)}
    return xr.Dataset(
        {
            name: stack_steps([0.0] * len(DISTANCES), [value] * len(DISTANCES), "_distance", **coords)
            for name, value in (("effect", effect), ("effect_null", other))
        }
    )


def scrubbing_results(within=0.97, last=-1.2, registers=-0.9, rescued=0.9, other=-0.5) -> xr.Dataset:
    """Make recovered loss; beyond the reach of the layers, the last layer recovers as given."""
    by_variant = {NOTHING: last, REGISTERS: registers, REGISTERS_AND_TARGETS: rescued, COLON: last}
    coords = {"layer": list(DISTANCES), "_length": list(LENGTHS), "_preserved": list(by_variant)}
    recovered = np.full([len(each) for each in coords.values()], within)
    recovered[-1, LAPTOP_LAYERS - 1 :] = list(by_variant.values())
    null = np.full_like(recovered, other)
    for values in (recovered, null):
        values[:, -1] = np.nan
    return xr.Dataset(
        {
            name: stack_steps(values, values, *coords, **coords).isel(step=[1])
            for name, values in (("recovered", recovered), ("recovered_null", null))
        }
    )


def start_results(peak=0.9, elsewhere=0.1, attention=0.8, other=0.1) -> xr.Dataset:
    values = {"peak": peak, "peak_null": elsewhere, "attention": attention, "attention_null": other}
    return xr.Dataset({name: stack_steps(0.1, value) for name, value in values.items()})


def path_results(before=0.9, first=0.1) -> xr.Dataset:
    scores = [0.0, first, 0.5, before, before]
    return xr.Dataset({"subpath": stack_steps([0.0] * 5, scores, "_depth", _depth=list(DEPTHS))})


def patching_results(beyond=0.8, short=0.05, earlier=0.02) -> xr.Dataset:
    """Make lost fractions of the logit difference, none for length 7, whose root has one child."""
    lost = np.array([short] * (LAPTOP_LAYERS - 1) + [beyond] * (len(LENGTHS) - LAPTOP_LAYERS) + [np.nan])
    coords = {"_length": list(LENGTHS)}
    return xr.Dataset(
        {
            name: stack_steps(values, values, "_length", **coords).isel(step=[1])
            for name, values in (("lost", lost), ("lost_null", np.where(np.isnan(lost), np.nan, earlier)))
        }
    )


def make_results(
    *, accuracy=None, probes=None, attention=None, ablation=None, scrubbing=None, starts=None, paths=None, patching=None
) -> dict[str, xr.Dataset]:
    """Make results of models that chain backward, except for what is given."""
    return {
        "path_accuracy": accuracy_results(**accuracy or {}),
        "tree_probes": probe_results(**probes or {}),
        "chaining_attention": attention_results(**attention or {}),
        "edge_ablation": ablation_results(**ablation or {}),
        "chain_scrubbing": scrubbing_results(**scrubbing or {}),
        "start_labels": start_results(**starts or {}),
        "register_paths": path_results(**paths or {}),
        "register_patching": patching_results(**patching or {}),
    }


def judge_claim(name: str, results: dict[str, xr.Dataset]) -> str:
    return judge(CLAIMS[name], results, "laptop").status


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_is_supported_by_models_that_chain_backward(name):
    assert judge_claim(name, make_results()) == "supported"


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("whole paths are predicted", {"accuracy": {"exact": 0.8}}),
        ("the right child is chosen where paths branch", {"accuracy": {"branching": 0.85}}),
        ("paths longer than the number of layers are predicted", {"accuracy": {"longer": 0.6}}),
        ("edges are stored at their targets", {"probes": {"source": 0.95}}),
        ("training stores edges at their targets", {"probes": {"target": 0.35}}),
        ("layer 1 attends from targets to sources", {"attention": {"within": 0.3}}),
        ("layer 1 copies the goal to the path", {"probes": {"goal": 0.4}}),
        ("one edge per layer", {"probes": {"ancestors": np.full((5, 4), 0.95)}}),
        ("one edge per layer", {"probes": {"ancestors": np.full((5, 4), 0.2)}}),
        ("training makes ancestors of the goal decodable", {"probes": {"ancestors": np.full((5, 4), 0.3)}}),
        ("deduction heads attend along the chain", {"attention": {"along": 0.05}}),
        ("deduction heads attend along the chain", {"attention": {"other": 0.8}}),
        ("edges of the path are needed", {"ablation": {"effect": 0.03}}),
        ("edges of the path are needed", {"ablation": {"other": 0.8}}),
        ("one-step look-ahead in the last layers", {"probes": {"children": (0.95, 0.95, 0.95)}}),
        ("one-step look-ahead in the last layers", {"probes": {"children": (0.1, 0.1, 0.2)}}),
        ("one edge per layer at the colon", {"probes": {"colon": np.full((5, 4), 0.2)}}),
        ("one edge per layer at later nodes", {"probes": {"later": np.full((5, 4), 0.95)}}),
        ("positions before the root hold the first node of the path", {"probes": {"answer": 0.4}}),
        ("attention along the chain from the colon", {"attention": {"colon": 0.1}}),
        ("one edge per layer at the goal", {"probes": {"at_goal": np.full((5, 4), 0.2)}}),
        ("attention along the chain from the goal", {"attention": {"goal": 0.1}}),
        ("attention along the chain from later nodes", {"attention": {"later": 0.1}}),
        ("layers depend on one ancestor within their reach", {"scrubbing": {"within": 0.3}}),
        ("layers depend on one ancestor within their reach", {"scrubbing": {"other": 0.95}}),
        ("the last layer does more beyond the reach", {"scrubbing": {"last": 0.9}}),
        ("registers alone do not rescue", {"scrubbing": {"registers": 0.9}}),
        ("registers and edge targets rescue", {"scrubbing": {"rescued": 0.3}}),
        ("registers and edge targets rescue", {"scrubbing": {"registers": 0.85}}),
        ("registers start from a label that their position fixes", {"starts": {"peak": 0.3}}),
        ("registers start from a label that their position fixes", {"starts": {"elsewhere": 0.85}}),
        ("registers attend to their start label", {"starts": {"attention": 0.2}}),
        ("registers hold a part of the path", {"paths": {"before": 0.4}}),
        ("registers hold a part of the path", {"paths": {"first": 0.85}}),
        ("registers are needed beyond the reach alone", {"patching": {"beyond": 0.1}}),
        ("registers are needed beyond the reach alone", {"patching": {"short": 0.5}}),
        ("registers are needed more than other positions", {"patching": {"earlier": 0.75}}),
    ],
)
def test_no_claim_is_supported_by_other_models(name, changed):
    assert judge_claim(name, make_results(**changed)) not in ("supported", "not learned")


@pytest.mark.parametrize("name", [name for name, claim in CLAIMS.items() if claim.requirements])
def test_the_mechanism_of_models_that_have_not_learned_is_not_judged(name):
    assert judge_claim(name, make_results(accuracy={"exact": 0.9})) == "not learned"


def test_accuracy_of_the_model_is_judged_in_any_case():
    assert [name for name, claim in CLAIMS.items() if not claim.requirements] == list(CLAIMS)[:2]


def analyse_model(model: Decoder) -> dict[str, xr.Dataset]:
    batch = TASK.sample(500, torch.Generator().manual_seed(0))
    analyses = (path_accuracy, tree_probes, chaining_attention)
    results = run_analyses(model, batch, analyses, baselines=TASK.baselines(batch))
    of_models = (edge_ablation, chain_scrubbing, start_labels, register_paths, register_patching)
    return results | {one.name: one(model, TASK, batch) for one in of_models}


def test_quantities_of_a_model_that_chains_by_construction():
    """From its weights to the values of the claims; step 0 is a model that stores edges but does not chain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EditHadNoEffect)  # registers are not read
        ends = {0: analyse_model(make_chaining_model(chains=False)), 1: analyse_model(make_chaining_model())}
    results = {
        name: xr.concat([ends[step][name] for step in ends], xr.IndexVariable("step", list(ends))).expand_dims("seed")
        for name in ends[0]
    }

    def read_values(name: str) -> tuple[float, float]:
        claim = CLAIMS[name]
        return float(claim.value.per_seed(results)[0]), float(claim.control.per_seed(results)[0])

    known, before = read_values("one edge per layer")
    assert known > 0.99
    assert before < 0.6
    assert read_values("training makes ancestors of the goal decodable")[1] < 0.6
    assert read_values("edges are stored at their targets")[0] == 1
    assert read_values("edges are stored at their targets")[1] < 0.5
    assert read_values("layer 1 attends from targets to sources") == pytest.approx((1, 1))
    assert read_values("deduction heads attend along the chain")[0] == pytest.approx(1, abs=0.02)
    assert read_values("deduction heads attend along the chain")[1] < 0.1
    assert read_values("paths longer than the number of layers are predicted")[0] == 0
    assert read_values("one edge per layer at the colon")[0] < 0.6
    assert read_values("attention along the chain from later nodes")[0] == pytest.approx(1, abs=0.02)
    assert read_values("attention along the chain from the colon")[0] == pytest.approx(0, abs=0.02)
    assert read_values("registers are needed beyond the reach alone") == pytest.approx((0, 0), abs=1e-6)
    assert read_values("registers start from a label that their position fixes")[0] < 0.1
    value, control = read_values("the right child is chosen where paths branch")
    assert 0.5 < control < value < 1


def test_the_decoders_fit_their_tasks():
    for name in STUDY.main.scales:
        task, config = STUDY.main.task_at(name), STUDY.main.model_at(name)
        batch = task.sample(2, torch.Generator().manual_seed(0))
        assert capture(Decoder(config), batch, ["output"])["output"].shape[-1] == task.vocab_size
        assert task.num_nodes - 1 > config.num_hidden_layers == task.reach + 1
