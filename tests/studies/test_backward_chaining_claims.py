"""Each claim on backward chaining is supported by results that agree with it, and not by others."""

import numpy as np
import pytest
import torch
import xarray as xr

from mesascope.activations import capture
from mesascope.analyses import run_analyses
from mesascope.models.transformer import Decoder
from mesascope.studies.backward_chaining.chaining_attention import chaining_attention
from mesascope.studies.backward_chaining.edge_ablation import edge_ablation
from mesascope.studies.backward_chaining.path_accuracy import MODEL, path_accuracy
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


def probe_results(target=0.99, source=0.2, goal=0.98, ancestors=CHAINED, children=(0.1, 0.5, 0.95)) -> xr.Dataset:
    """Make F1 of probes; those of untrained models are low."""
    by_depth, by_distance = {"_depth": list(DEPTHS)}, {"_distance": list(DISTANCES)}
    ancestors = np.array(ancestors)
    ancestors[1:, 0] = goal
    lookahead = np.zeros((len(DEPTHS), 2))
    lookahead[-3:, 0] = children
    return xr.Dataset(
        {
            "edge_at_target": stack_steps([UNTRAINED] * 5, [0.1, *[target] * 4], "_depth", **by_depth),
            "edge_at_source": stack_steps([UNTRAINED] * 5, [0.1, *[source] * 4], "_depth", **by_depth),
            "ancestor": stack_steps(
                np.full_like(ancestors, UNTRAINED), ancestors, "_depth", "_distance", **by_depth, **by_distance
            ),
            "lookahead": stack_steps(
                np.full_like(lookahead, UNTRAINED), lookahead, "_depth", "stat", **by_depth, stat=[CHILDREN, LEAVES]
            ),
        }
    )


def attention_results(within=0.95, along=0.9, other=0.02) -> xr.Dataset:
    """Make attention of one head per layer, along the chain or elsewhere."""
    chain = np.zeros((LAPTOP_LAYERS, 1, len(DISTANCES)))
    for distance in range(LAPTOP_LAYERS - 1):
        chain[distance + 1, 0, distance] = along
    coords = {"layer": list(DISTANCES), "head": [0]}
    return xr.Dataset(
        {
            "within_edge": stack_steps(
                np.full((LAPTOP_LAYERS, 1), 0.1), np.full((LAPTOP_LAYERS, 1), within), "layer", "head", **coords
            ),
            **{
                name: stack_steps(
                    np.full_like(chain, 0.03), values, *coords, "_distance", **coords, _distance=list(DISTANCES)
                )
                for name, values in (("chain", chain), ("chain_null", np.full_like(chain, other)))
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


def make_results(*, accuracy=None, probes=None, attention=None, ablation=None) -> dict[str, xr.Dataset]:
    """Make results of models that chain backward, except for what is given."""
    return {
        "path_accuracy": accuracy_results(**accuracy or {}),
        "tree_probes": probe_results(**probes or {}),
        "chaining_attention": attention_results(**attention or {}),
        "edge_ablation": ablation_results(**ablation or {}),
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
    return results | {edge_ablation.name: edge_ablation(model, TASK, batch)}


def test_quantities_of_a_model_that_chains_by_construction():
    """From its weights to the values of the claims; step 0 is a model that stores edges but does not chain."""
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
    value, control = read_values("the right child is chosen where paths branch")
    assert 0.5 < control < value < 1


def test_the_decoders_fit_their_tasks():
    for name in STUDY.main.scales:
        task, config = STUDY.main.task_at(name), STUDY.main.model_at(name)
        batch = task.sample(2, torch.Generator().manual_seed(0))
        assert capture(Decoder(config), batch, ["output"])["output"].shape[-1] == task.vocab_size
        assert task.num_nodes - 1 > config.num_hidden_layers == task.reach + 1
