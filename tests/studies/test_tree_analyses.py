"""Analyses of path finding find backward chaining in a model that is built to do it, and not in decoys."""

import warnings

import numpy as np
import pytest
import torch

from mesascope.activations import EditHadNoEffect, capture
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.studies.backward_chaining.chaining_attention import chaining_attention
from mesascope.studies.backward_chaining.edge_ablation import edge_ablation
from mesascope.studies.backward_chaining.path_accuracy import MODEL, path_accuracy
from mesascope.studies.backward_chaining.probe_scores import score_node_probe, score_set_probe
from mesascope.studies.backward_chaining.tree_positions import locate_trees
from mesascope.studies.backward_chaining.tree_probes import CHILDREN, tree_probes
from mesascope.tasks.trees.baselines import EXACT, RANDOM_CHILD, name_limited_chaining
from mesascope.testing import check_analysis

from .chaining_model import NUM_LAYERS, TASK, capture_trees, make_chaining_model

COLON, GOAL = (TASK.path_positions.start - 1,), (TASK.goal_position,)
LIMITED = name_limited_chaining(NUM_LAYERS - 1)


@pytest.mark.parametrize("analysis", [path_accuracy, tree_probes, chaining_attention], ids=lambda one: one.name)
def test_analyses_are_sound(analysis):
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=TASK.vocab_size, num_hidden_layers=2, hidden_size=16, num_attention_heads=1)
    check_analysis(analysis, Decoder(config), TASK.sample(200, torch.Generator().manual_seed(0)))


def test_the_chaining_model_walks_as_far_as_its_layers_reach():
    results = path_accuracy(capture_trees(make_chaining_model(), ["output"]))
    by_length = results["exact_match_by_length"]
    assert by_length.sel(predictor=MODEL, _length=slice(1, NUM_LAYERS)).values.tolist() == [1.0] * NUM_LAYERS
    assert by_length.sel(predictor=LIMITED, _length=slice(1, NUM_LAYERS)).values == pytest.approx(1.0)
    assert by_length.sel(predictor=MODEL, _length=slice(NUM_LAYERS + 1, None)).max() == 0  # it names a later node
    assert results["exact_match"].sel(predictor=EXACT) == pytest.approx(1.0)
    decoy = path_accuracy(capture_trees(make_chaining_model(chains=False), ["output"]))
    assert decoy["exact_match_by_length"].sel(predictor=MODEL).values.tolist() == [1.0, *[0.0] * 6]


def test_exact_match_is_that_of_greedy_generation():
    """Also of a model that goes astray, whose predictions after its first error have another context."""
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=TASK.vocab_size, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=TASK.length
    )
    for model in (make_chaining_model(), Decoder(config)):
        batch = TASK.sample(100, torch.Generator().manual_seed(0))
        tokens, first = batch.inputs.clone(), TASK.path_positions.start
        tokens[:, first + 1 :] = 2 * TASK.num_nodes
        correct = torch.ones(len(batch), dtype=torch.bool)
        with torch.no_grad():
            for position in TASK.path_positions:
                generated = model(tokens).logits[:, position].argmax(-1)
                correct &= (generated == batch.targets[:, position]) | (batch.weight[:, position] == 0)
                if position + 1 < TASK.length:
                    tokens[:, position + 1] = generated
        acts = capture(model, batch, ["output"])
        assert float(path_accuracy(acts)["exact_match"].sel(predictor=MODEL)) == pytest.approx(
            float(correct.float().mean())
        )


def test_a_random_child_is_right_in_half_of_the_branching_steps():
    results = path_accuracy(capture_trees(make_chaining_model(), ["output"]))
    assert results["branching_accuracy"].sel(predictor=RANDOM_CHILD) == pytest.approx(0.5)
    assert results["length_fraction"].values == pytest.approx(np.full(7, 1 / 7), abs=0.05)


def test_probes_find_stored_edges_and_one_ancestor_per_layer():
    results = tree_probes(capture_trees(make_chaining_model(), ["resid_pre", "resid_post"]))
    assert results["edge_at_target"].sel(_depth=0) < 0.5
    assert results["edge_at_target"].sel(_depth=1) == 1
    assert results["edge_at_source"].max() < 0.5
    ancestor = results["ancestor"].sel(_distance=slice(0, 2))
    for distance in range(3):
        known = ancestor.sel(_distance=distance).values
        assert known[distance + 1] > 0.99
        assert known[: distance + 1].max() < 0.6
    for name in ("edge_at_target", "ancestor"):
        assert results[f"{name}_null"].sel(_depth=1).max() < 0.4


def test_the_chain_is_found_at_the_positions_that_chain():
    sites = ["resid_pre", "resid_post"]
    root_only = tree_probes(capture_trees(make_chaining_model(), sites, sequences=4_000))
    with_colon = tree_probes(capture_trees(make_chaining_model(further=COLON), sites))
    goal_row = tree_probes(capture_trees(make_chaining_model(further=GOAL), sites))["ancestor_at_goal"]
    for distance in range(3):
        later = root_only["ancestor_at_later_nodes"].sel(_distance=distance).values
        assert later[distance + 1] > 0.99
        assert later[distance] < 0.6
        colon = with_colon["ancestor_at_colon"].sel(_distance=distance).values
        assert colon[distance + 1] > 0.99
        assert colon[distance] < 0.6
    assert goal_row.sel(_distance=1).values[2] > 0.99 > 0.6 > goal_row.sel(_distance=1).values[1]
    assert root_only["ancestor_at_colon"].max() < 0.6
    assert root_only["ancestor_at_goal"].sel(_distance=[1, 2]).max() < 0.6
    known = root_only["answer_at_root"].values  # for paths of up to as many edges as layers
    assert (np.diff(known[1:]) > 0.1).all()
    assert known[-1] > 0.6
    assert root_only["answer_at_colon"].max() < 0.4


def test_positions_of_the_chain_are_branching_nodes_before_the_ancestor():
    trees = locate_trees(TASK.sample(100, torch.Generator().manual_seed(0)))
    rows, positions = trees.select_positions("later", 1)
    found = set(zip(rows.tolist(), positions.tolist(), strict=True))
    for row in range(100):
        parents, goal = trees.trees.parents[row].tolist(), int(trees.trees.goal[row])
        path = [goal]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        for step, node in enumerate(reversed(path)):
            expected = step > 0 and parents.count(node) == 2 and len(path) - 1 - step >= 3
            assert ((row, TASK.path_positions.start + step) in found) == expected
    assert len(found) >= 10


def test_probes_find_neither_edges_nor_ancestors_in_decoys():
    sites = ["resid_pre", "resid_post"]
    stays = tree_probes(capture_trees(make_chaining_model(chains=False), sites))
    assert stays["ancestor"].sel(_distance=0, _depth=1) == 1
    assert stays["ancestor"].sel(_distance=[1, 2]).max() < 0.6
    forgets = tree_probes(capture_trees(make_chaining_model(stores_edges=False), sites))
    assert forgets["edge_at_target"].max() < 0.5
    assert forgets["lookahead"].sel(stat=CHILDREN).max() < 0.7


def test_attention_is_within_edges_and_along_the_chain():
    results = chaining_attention(capture_trees(make_chaining_model(), ["pattern"]))
    within, chain = results["within_edge"].squeeze("head"), results["chain"].squeeze("head")
    assert within.sel(layer=0) == pytest.approx(1)
    assert results["within_edge_null"].sel(layer=0).max() < 0.01
    assert results["to_goal"].sel(layer=0) == pytest.approx(1)
    for distance in range(NUM_LAYERS - 1):
        expected = np.zeros(NUM_LAYERS)
        expected[distance + 1] = 1
        assert chain.sel(_distance=distance).values == pytest.approx(expected, abs=0.01)
        later = results["chain_at_later_nodes"].squeeze("head").sel(_distance=distance).values
        assert later == pytest.approx(expected, abs=0.01)
    for name in ("chain_null", "chain_at_later_nodes_null", "chain_at_colon"):
        assert results[name].max() < 0.01, name
    colon = chaining_attention(capture_trees(make_chaining_model(further=COLON), ["pattern"]))["chain_at_colon"]
    assert colon.sel(layer=2, _distance=1).item() == pytest.approx(1, abs=0.01)
    assert colon.sel(layer=1, _distance=1).item() == pytest.approx(0, abs=0.01)
    goal = chaining_attention(capture_trees(make_chaining_model(further=GOAL), ["pattern"]))["chain_at_goal"]
    assert goal.sel(layer=1, _distance=0).item() == pytest.approx(1, abs=0.01)
    assert goal.sel(layer=2, _distance=0).item() == pytest.approx(0, abs=0.01)


def test_attention_of_decoys_is_elsewhere():
    results = chaining_attention(capture_trees(make_chaining_model(chains=False, stores_edges=False), ["pattern"]))
    assert results["within_edge"].sel(layer=0).max() < 0.01
    assert results["chain"].sel(layer=slice(1, None)).max() < 0.1  # uniform


def test_ablation_of_edges_matters_along_the_path_only():
    batch = TASK.sample(500, torch.Generator().manual_seed(0))
    results = edge_ablation(make_chaining_model(), TASK, batch)
    assert (results["sequences"] > 0).all()
    assert results["effect"].sel(_distance=slice(0, 2)).min() > 1
    assert results["effect"].sel(_distance=3).item() == pytest.approx(0, abs=0.05)  # beyond the last layer
    assert abs(results["effect_null"]).max() < 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EditHadNoEffect)
        decoy = edge_ablation(make_chaining_model(chains=False), TASK, batch)
    assert abs(decoy["effect"]).max() < 1e-6


def test_other_edges_are_neither_on_the_path_nor_at_the_root():
    trees = locate_trees(TASK.sample(50, torch.Generator().manual_seed(0)))
    other = trees.mask_other_edges()
    for row in range(50):
        parents, goal = trees.trees.parents[row].tolist(), int(trees.trees.goal[row])
        path = [goal]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        for edge, target in enumerate(trees.edge_targets[row].tolist()):
            assert bool(other[row, edge]) == (target not in path and parents[target] != path[-1])


def test_probes_score_what_is_there_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randint(0, 5, (2_000,), generator=generator)
    x = torch.nn.functional.one_hot(nodes, 5).float() @ torch.randn(5, 12, generator=generator)
    assert score_node_probe(x, nodes, 5, 0)[0] == 1
    assert score_node_probe(x, nodes, 5, 0)[1] < 0.4
    assert score_node_probe(torch.randn(2_000, 12, generator=generator), nodes, 5, 0)[0] < 0.3
    members = torch.rand(2_000, 5, generator=generator) < 0.3
    assert score_set_probe(members.float(), members, 0)[0] == 1
    assert np.isnan(score_node_probe(x[:20], nodes[:20], 5, 0)).all()


def test_other_batches_are_refused():
    batch = TASK.sample(4, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="capture a Batch of TreePaths"):
        path_accuracy(capture(make_chaining_model(), batch.inputs, ["output"]))
    batch.latents.pop("parents")
    with pytest.raises(ValueError, match="lacks the latents parents"):
        locate_trees(batch)
