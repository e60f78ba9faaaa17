"""Start labels of registers and the paths that they hold are those of a model that is built to have them."""

import pytest
import torch

from mesascope.activations import UnsupportedModel
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.studies.backward_chaining.registers import (
    compute_label_weights,
    find_climbed_nodes,
    register_paths,
    start_labels,
)
from mesascope.studies.backward_chaining.tree_positions import list_registers, locate_trees

from .chaining_model import NUM_LAYERS, TASK, make_chaining_model

BATCH = TASK.sample(1_000, torch.Generator().manual_seed(0))
REGISTER_MODEL = {"registers": True, "growth": 2.0}


def test_start_labels_are_read_from_weights():
    results = start_labels(make_chaining_model(**REGISTER_MODEL), TASK, BATCH)
    registers = list_registers(TASK)
    assert results["start_label"].sel(pos=registers).values.tolist() == list(range(len(registers)))
    assert results["peak"].item() == pytest.approx(1)
    assert results["peak_null"].item() == pytest.approx(1 / TASK.vocab_size)  # uniform over all tokens
    assert results["attention"].item() > 0.99
    assert results["attention_null"].item() < 0.3  # the register itself may have the next label


def test_positions_without_start_labels_have_uniform_weights():
    results = start_labels(make_chaining_model(), TASK, BATCH)
    assert results["peak"].item() == results["peak_null"].item() == pytest.approx(1 / TASK.vocab_size)
    assert results["attention"].item() < 0.5


def test_registers_hold_what_they_climb_to():
    results = register_paths(make_chaining_model(**REGISTER_MODEL), TASK, BATCH)["subpath"]
    assert results.sel(_depth=NUM_LAYERS - 1) > 0.9
    assert results.sel(_depth=1) < 0.5
    stays = register_paths(make_chaining_model(registers=True, chains=False), TASK, BATCH)
    assert stays["subpath"].max() < 0.5
    assert stays["subpath_null"].max() < 0.5


def test_climbed_nodes_are_ancestors_over_edges_that_stand_before():
    trees = locate_trees(BATCH)
    for position in (6, 14, TASK.goal_position):
        for label in range(TASK.num_nodes):
            found = find_climbed_nodes(trees, label, position, 2)[:50]
            for row, members in enumerate(found):
                parents, targets = trees.trees.parents[row].tolist(), trees.edge_targets[row].tolist()
                node, expected = label, set()
                for _ in range(2):
                    if parents[node] < 0 or 3 * targets.index(node) + 1 >= position:
                        break
                    node = parents[node]
                    expected.add(node)
                assert set(members.nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize("changed", [{"positions": "none"}, {"num_attention_heads": 2}])
def test_models_without_learned_positions_or_with_several_heads_are_refused(changed):
    config = DecoderConfig(
        **{
            "vocab_size": TASK.vocab_size,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "hidden_size": 16,
            "max_position_embeddings": TASK.length,
        }
        | changed
    )
    with pytest.raises(UnsupportedModel, match="learned positions and one head"):
        compute_label_weights(Decoder(config), locate_trees(BATCH))
