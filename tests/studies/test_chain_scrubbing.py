"""Causal scrubbing and patching of registers, on models whose layers are known."""

import math
import warnings

import numpy as np
import pytest
import torch

from mesascope.activations import EditHadNoEffect
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.studies.backward_chaining.chain_scrubbing import (
    COLON,
    NOTHING,
    REGISTERS,
    REGISTERS_AND_TARGETS,
    chain_scrubbing,
    draw_sources,
    select_bases,
)
from mesascope.studies.backward_chaining.register_patching import register_patching
from mesascope.studies.backward_chaining.tree_positions import list_earlier_positions, list_registers, locate_trees
from mesascope.tasks.trees.paths import TreePaths

from .chaining_model import NUM_LAYERS, TASK, make_chaining_model

BATCH = TASK.sample(500, torch.Generator().manual_seed(0))
REACHED = slice(1, NUM_LAYERS)


def test_registers_are_those_of_the_paper():
    task = TreePaths(num_nodes=16)
    assert list_registers(task) == [36, 38, 39, 41, 42, 44, 45]
    assert list_earlier_positions(task) == [26, 27, 29, 30, 32, 33, 35]
    assert list_earlier_positions(TreePaths(num_nodes=6)) == [0, 2, 3, 5]


def test_layers_that_depend_on_one_ancestor_recover_all_with_it_and_nothing_with_another():
    results = chain_scrubbing(make_chaining_model(growth=4.0), TASK, BATCH)
    assert float(results["uniform"]) == pytest.approx(math.log(TASK.vocab_size))
    assert results["intact"].sel(_length=REACHED).values == pytest.approx(0, abs=0.01)
    assert results["recovered"].sel(_length=REACHED).values == pytest.approx(1, abs=0.01)
    other = results["recovered_null"].sel(_length=REACHED)
    assert other.sel(_preserved=[NOTHING, COLON]).max() < 0.5
    assert np.isnan(results["recovered"].sel(_length=6)).all()  # no room for a second branch of two edges
    assert results["sequences"].sel(_length=[6, 7]).values.tolist() == [0, 0]


def test_what_is_kept_is_that_of_the_intact_model():
    """Layer 1 attends to the goal, which is a register, and later layers to targets of edges."""
    results = chain_scrubbing(make_chaining_model(growth=4.0), TASK, BATCH)
    other = results["recovered_null"].sel(_length=REACHED)
    assert other.sel(_preserved=REGISTERS, layer=0).values == pytest.approx(1, abs=0.01)
    assert other.sel(_preserved=REGISTERS, layer=slice(1, None)).max() < 0.5
    assert other.sel(_preserved=REGISTERS_AND_TARGETS).values == pytest.approx(1, abs=0.01)


def test_layers_that_do_more_than_the_hypothesis_says_do_not_recover():
    """In a model that overwrites, a layer also depends on the ancestor before."""
    results = chain_scrubbing(make_chaining_model(), TASK, BATCH)
    assert results["recovered"].sel(_preserved=NOTHING, layer=1, _length=4) < 0
    assert results["recovered"].sel(_preserved=NOTHING, layer=0, _length=REACHED).values == pytest.approx(1, abs=0.01)


def test_layers_that_do_nothing_recover_in_any_case():
    results = chain_scrubbing(make_chaining_model(chains=False), TASK, BATCH)
    for name in ("recovered", "recovered_null"):
        assert results[name].sel(layer=slice(1, None), _length=slice(1, 5)).values == pytest.approx(1)


@pytest.mark.parametrize("same", [True, False])
def test_other_trees_agree_in_the_ancestor_or_do_not(same):
    trees = locate_trees(BATCH)
    bases = select_bases(trees)
    for distance in range(NUM_LAYERS):
        sources, exists = draw_sources(trees, bases, distance, same, torch.Generator().manual_seed(0))
        assert exists.all()
        for base, source in zip(bases.tolist(), sources.tolist(), strict=True):
            own, other = (trees.ancestors[row].tolist() for row in (base, source))
            length = int(trees.path_length[base])
            assert (other[distance] == own[min(distance, length - 1)]) == same
            assert trees.path_length[source] > distance
            assert source != base


def test_bases_must_be_searched():
    trees = locate_trees(BATCH)
    chosen = set(select_bases(trees).tolist())
    for row in range(len(BATCH)):
        parents, root = trees.trees.parents[row].tolist(), int(trees.root[row])
        path = set(trees.ancestors[row].tolist())
        other = [node for node, parent in enumerate(parents) if parent == root and node not in path]
        assert (row in chosen) == any(node in parents for node in other)


def make_late_copying_model() -> Decoder:
    """Make a model whose last layer copies the goal to the root, and that does nothing else."""
    model, source = Decoder(make_chaining_model().config), make_chaining_model(chains=False)
    with torch.no_grad():
        model.load_state_dict(source.state_dict())
        model.layers[-1].attention.load_state_dict(source.layers[0].attention.state_dict())
        for parameter in model.layers[0].attention.parameters():
            parameter.zero_()
    return model


def test_patching_of_registers_takes_what_the_root_reads_from_them_later():
    results = register_patching(make_late_copying_model(), TASK, TASK.sample(3_000, torch.Generator().manual_seed(0)))
    assert results["intact"].sel(_length=1).item() == pytest.approx(10)
    assert results["lost"].sel(_length=1).item() == pytest.approx(1, abs=0.1)  # the goal is a register
    assert results["lost_null"].sel(_length=1).item() == 0
    assert np.isnan(results["lost"].sel(_length=7))  # a root with one child


def test_patching_of_registers_does_nothing_where_they_have_been_read_before():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EditHadNoEffect)
        results = register_patching(make_chaining_model(), TASK, BATCH)
    for name in ("lost", "lost_null"):
        assert results[name].sel(_length=REACHED).values == pytest.approx(0, abs=1e-6)


def test_models_of_few_layers_are_refused():
    config = DecoderConfig(vocab_size=TASK.vocab_size, num_hidden_layers=2, num_attention_heads=1)
    with pytest.raises(ValueError, match="the model has 2 layers"):
        register_patching(Decoder(config), TASK, BATCH)
