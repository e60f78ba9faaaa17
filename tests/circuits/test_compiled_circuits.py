"""Instruments of circuits on models whose circuit is known edge by edge, among decoys that nothing uses."""

import pytest
import torch

from circuits.known_edges import METHODS, evaluate_method
from mesascope.circuits import attribute_edges, patch_edges, select_edges
from mesascope.ground_truth.models.circuits import GAIN, PLANS, KnownCircuit, build_known_circuit
from mesascope.interventions import Metric, logit_difference

ATTENTION_CIRCUITS = ("induction", "two conditions", "query")  # an edge changes what is attended to


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


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("seed", [0, 1])
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
def test_one_gradient_finds_a_circuit_only_where_attention_stays(name: str):
    """The gradient by queries and keys is 0 where the softmax is saturated."""
    known = build_known_circuit(name)
    score = attribute_edges(known.model, known.clean, known.counterfactual, make_metric(known), steps=0)["score"]
    found = set(select_edges(score))
    if name in ATTENTION_CIRCUITS:
        assert found == {edge for edge in known.edges if edge[1] == "output"}
    else:
        assert found == known.edges


def test_patching_measures_the_gain_on_every_edge_of_a_path():
    known = build_known_circuit("three hops", num_pairs=2)
    effect = patch_edges(known.model, known.clean, known.counterfactual, make_metric(known), sorted(known.edges))
    for sender, receiver in known.edges:  # the answer loses the gain, and the wrong answer has it
        assert float(effect["effect"].sel(sender=sender, receiver=receiver)) == pytest.approx(-2 * GAIN, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_the_table_counts_edges(method: str):
    row = evaluate_method(method, "copy", draws=1)
    assert (row.precision, row.recall, row.auroc) == (1.0, 1.0, 1.0)


def test_an_unknown_circuit_is_refused():
    with pytest.raises(ValueError, match="a circuit must be one of copy, two paths"):
        build_known_circuit("none")
