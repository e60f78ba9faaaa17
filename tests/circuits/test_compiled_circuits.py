"""Instruments of circuits on models whose circuit is known edge by edge, among decoys that nothing uses."""

from itertools import product

import pytest
import torch

from cases import spread
from circuits.known_edges import METHODS, REFERENCE_METHODS, evaluate_method
from mesascope.circuits import attribute_edges, patch_edges, select_edges
from mesascope.ground_truth.models.circuits import GAIN, PLANS, KnownCircuit, build_known_circuit
from mesascope.interventions import Metric, logit_difference

ATTENTION_CIRCUITS = ("induction", "two conditions", "query")  # an edge changes what is attended to
CLOSED_CIRCUITS = (*ATTENTION_CIRCUITS, "suppression")  # the gradient in the clean run is 0


def make_metric(known: KnownCircuit) -> Metric:
    return logit_difference(known.answer, known.wrong_answer)


@pytest.mark.parametrize("name", PLANS)
def test_the_model_computes_what_its_plan_says(name: str):
    known = build_known_circuit(name, seed=3, num_pairs=6)
    with torch.no_grad():
        clean, other = (known.model(one).logits[:, -1] for one in (known.clean, known.counterfactual))
    rows = torch.arange(6)
    assert clean.argmax(-1).equal(known.answer)
    assert torch.allclose(clean[rows, known.answer], torch.tensor(GAIN), atol=0.1)
    assert torch.allclose(other[rows, known.answer], torch.tensor(0.0), atol=0.1)
    assert not known.clean.equal(known.counterfactual)


@pytest.mark.parametrize(("name", "seed"), spread(product(PLANS, (0, 1)), 7))
def test_integrated_gradients_find_the_circuit_and_nothing_else(name: str, seed: int):
    known = build_known_circuit(name, seed)
    score = attribute_edges(known.model, known.clean, known.counterfactual, make_metric(known))["score"]
    assert set(select_edges(score)) == known.edges
    outside = [
        abs(float(score.sel(sender=sender, receiver=receiver)))
        for sender in score["sender"].values
        for receiver in score["receiver"].values
        if (sender, receiver) not in known.edges
    ]
    assert max(value for value in outside if value == value) < 1e-3 * GAIN  # no decoy has a score


@pytest.mark.parametrize("name", PLANS)
def test_one_gradient_finds_a_circuit_only_where_nothing_is_saturated(name: str):
    """The gradient by queries and keys is 0 where the softmax is saturated, and by an MLP whose units are inactive."""
    known = build_known_circuit(name)
    score = attribute_edges(known.model, known.clean, known.counterfactual, make_metric(known), steps=0)["score"]
    found = set(select_edges(score))
    if name in CLOSED_CIRCUITS:
        assert found == {edge for edge in known.edges if edge[1] == "output"}
    else:
        assert found == known.edges


def test_patching_measures_the_gain_on_every_edge_of_a_path():
    known = build_known_circuit("three hops", num_pairs=2)
    effect = patch_edges(known.model, known.clean, known.counterfactual, make_metric(known), sorted(known.edges))
    for sender, receiver in known.edges:  # the answer loses the gain, and the wrong answer has it
        assert float(effect["effect"].sel(sender=sender, receiver=receiver)) == pytest.approx(-2 * GAIN, rel=0.01)


def test_patching_measures_both_inputs_of_an_and():
    """Either mark alone removes the gain; each is missing in one of the two pairs."""
    known = build_known_circuit("both marks", num_pairs=2)
    arguments = (known.model, known.clean, known.counterfactual, make_metric(known), sorted(known.edges))
    effect = patch_edges(*arguments)["effect_by_sequence"]
    into_mlp = sorted(edge for edge in known.edges if edge[1] == "L1.MLP")
    found = [effect.sel(sender=sender, receiver="L1.MLP").values.tolist() for sender, _ in into_mlp]
    expected = [[-GAIN, 0.0], [0.0, -GAIN]]
    assert found == [pytest.approx(row, abs=0.01) for row in expected] or found == [
        pytest.approx(row, abs=0.01) for row in expected[::-1]
    ]


@pytest.mark.parametrize(("name", "ablation"), spread(product(PLANS, ("mean", "resample")), 6))
def test_patching_by_references_finds_the_edges_that_differ_from_them(name: str, ablation: str):
    known = build_known_circuit(name, seed=2, num_pairs=2)
    layers, decoys = range(known.model.config.num_hidden_layers), []
    heads = {edge.split(".")[1] for pair in known.edges for edge in pair if ".H" in edge}
    for head in [f"H{number}" for number in range(13) if f"H{number}" not in heads][:2]:
        decoys += [(f"L{layer}.{head}", "output") for layer in layers]
        decoys += [("embedding", f"L{layer}.{head}.{letter}") for layer in layers for letter in "qkv"]
    edges = sorted(known.reference_edges)
    arguments = (known.model, known.clean, known.references, make_metric(known), [*edges, *decoys])
    effect = patch_edges(*arguments, ablation=ablation)["effect"]
    assert set(select_edges(effect)) == known.reference_edges
    for sender, receiver in decoys:
        assert abs(float(effect.sel(sender=sender, receiver=receiver))) < 1e-3 * GAIN


@pytest.mark.parametrize(("name", "ablation"), spread(product(PLANS, ("mean", "resample")), 6))
def test_integrated_gradients_by_references_find_no_other_edge(name: str, ablation: str):
    """Few steps miss edges into queries and keys, which change together on the path to a reference."""
    known = build_known_circuit(name, seed=2, num_pairs=2)
    arguments = (known.model, known.clean, known.references, make_metric(known))
    found = set(select_edges(attribute_edges(*arguments, ablation=ablation)["score"]))
    assert found <= known.reference_edges
    if name not in ATTENTION_CIRCUITS:
        assert found == known.reference_edges


def test_many_steps_find_queries_and_keys_that_change_together():
    known = build_known_circuit("induction", seed=3, num_pairs=2)
    arguments = (known.model, known.clean, known.references, make_metric(known))
    few, many = (
        set(select_edges(attribute_edges(*arguments, ablation="mean", steps=steps)["score"])) for steps in (5, 20)
    )
    assert few < many == known.reference_edges


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(one, marks=[pytest.mark.slow] if "patching" in one else [])
        for one in (*METHODS, *REFERENCE_METHODS)
    ],
)
def test_the_table_counts_edges(method: str):
    row = evaluate_method(method, "copy", draws=1)
    assert (row.precision, row.recall, row.auroc) == (1.0, 1.0, 1.0)


def test_an_unknown_circuit_is_refused():
    with pytest.raises(ValueError, match="a circuit must be one of copy, two paths"):
        build_known_circuit("none")
