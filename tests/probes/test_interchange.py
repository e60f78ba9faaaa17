"""Interchange interventions: identities, variables of a planted model, and a decoy that contains what is not used."""

import pytest
import torch
from torch import Tensor

import small
from mesascope.activations import capture
from mesascope.ground_truth.models._token_heads import LOGIT_DIMS, PREVIOUS_DIMS, TWO_BACK_DIMS
from mesascope.ground_truth.models.tokens import build_planted_language_model
from mesascope.interventions import replace
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.probes import draw_random_basis, find_orthonormal_basis, measure_interchange, probe, replace_subspace
from mesascope.tasks.affine import Affine
from probes.planted_sequences import (
    INDUCTION_HEAD,
    PREVIOUS_HEAD,
    PlantedSequences,
    build_induction_model,
    two_back,
    untouched,
)

COUNT = 24


def tokens(seed: int, rows: int = 4, length: int = 6) -> Tensor:
    return torch.randint(0, 20, (rows, length), generator=torch.Generator().manual_seed(seed))


def basis_of(dims: slice) -> Tensor:
    return torch.eye(572)[dims]


class Pairs:
    """Base and source sequences whose counterfactual answers exist and differ from those of the base."""

    def __init__(self, seed: int = 0) -> None:
        base, source = PlantedSequences(8 * COUNT, seed), PlantedSequences(8 * COUNT, seed + 1)
        expected, exists = base.find_answer_by(source)
        chosen = (exists & (expected != base.answer)).nonzero()[:COUNT, 0]
        assert len(chosen) == COUNT
        self.base, self.source, self.expected = base.tokens[chosen], source.tokens[chosen], expected[chosen]
        self.base_answer, self.source_answer = base.answer[chosen], source.answer[chosen]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Pairs()


@pytest.fixture(scope="module")
def model() -> Decoder:
    return build_induction_model()


def test_interchange_of_a_run_with_itself_changes_nothing():
    llama = small.llama(initializer_range=0.5)
    x = tokens(0)
    acts = capture(llama, x, ["resid_post", "z"])
    plain = capture(llama, x, ["output"])["output"]
    for site, size in (("resid_post", 16), ("z", 4)):
        edits = replace_subspace(site, acts, draw_random_basis(2, size, torch.Generator()), {"layer": 1})
        with pytest.warns(match="no effect"):
            assert capture(llama, x, ["output"], edits=edits)["output"].equal(plain)


def test_the_whole_space_is_the_whole_activation_and_two_halves_too():
    llama = small.llama(initializer_range=0.5).double()
    x, other = tokens(0), tokens(1)
    acts = capture(llama, other, ["resid_pre"])
    whole = draw_random_basis(16, 16, torch.Generator().manual_seed(0))
    where = {"layer": 1, "pos": [2, 3]}
    edits = {
        "replaced": [replace("resid_pre", acts, where)],
        "whole": [replace_subspace("resid_pre", acts, whole, where)],
        "halves": [replace_subspace("resid_pre", acts, half, where) for half in (whole[:7], whole[7:])],
    }
    outputs = {name: capture(llama, x, ["output"], edits=one)["output"] for name, one in edits.items()}
    torch.testing.assert_close(outputs["whole"], outputs["replaced"])
    torch.testing.assert_close(outputs["halves"], outputs["replaced"])


def test_the_whole_stream_makes_the_model_answer_as_for_the_source():
    llama = small.llama(initializer_range=0.5)
    x, other = tokens(0, 8), tokens(1, 8)
    with torch.no_grad():
        expected = llama(other).logits[:, -1].argmax(-1)
        own = llama(x).logits[:, -1].argmax(-1)
    found = measure_interchange(llama, x, other, expected, where={"pos": -1}, layers=[2])
    assert found["accuracy"].item() == 1
    assert float(found["unedited"]) == float((own == expected).double().mean())
    assert found["random_source"].max() < 1
    layers = measure_interchange(llama, x, other, expected, "resid_pre", draws=1)
    assert layers["accuracy"].sel(layer=0).item() == 1


def test_the_variable_of_the_previous_token_is_where_it_was_planted(model: Decoder, pairs: Pairs):
    found = measure_interchange(
        model, pairs.base, pairs.source, pairs.expected, layers=[0], basis=basis_of(PREVIOUS_DIMS), draws=3
    )
    assert found["accuracy"].item() == 1
    assert found["accuracy_low"].item() > 0.85
    assert float(found["unedited"]) == 0
    assert found["random_source"].max() < 0.6
    assert found["random_subspace"].max() < 0.3
    head = {"head": PREVIOUS_HEAD}
    by_head = measure_interchange(model, pairs.base, pairs.source, pairs.expected, "z", layers=[0], where=head)
    assert by_head["accuracy"].item() == 1


def test_the_answer_is_in_the_induction_head(model: Decoder, pairs: Pairs):
    where = {"head": INDUCTION_HEAD, "pos": -1}
    found = measure_interchange(model, pairs.base, pairs.source, pairs.source_answer, "z", layers=[1], where=where)
    assert found["accuracy"].item() == 1
    by_logits = measure_interchange(
        model, pairs.base, pairs.source, pairs.source_answer, layers=[1], where={"pos": -1}, basis=basis_of(LOGIT_DIMS)
    )
    assert by_logits["accuracy"].item() == 1


def test_a_decoy_contains_what_is_not_used(model: Decoder, pairs: Pairs):
    """The token two back is decoded without error, but no answer depends on it."""
    stream = capture(model, pairs.base, ["resid_post"], layers=[0])["resid_post"][0]
    labels, positions = two_back(pairs.base), slice(3, 7)
    decoy = stream[:, positions, TWO_BACK_DIMS]
    decoded = probe(decoy, labels[:, positions], pairs.base[:, positions])
    assert float(decoded["accuracy"]) == 1
    expected, _ = pairs.expected, pairs.source
    found = measure_interchange(
        model, pairs.base, pairs.source, expected, layers=[0], basis=basis_of(TWO_BACK_DIMS), draws=1
    )
    assert found["accuracy"].item() == float(found["unedited"]) == 0


def test_other_planted_heads_are_no_obstacle(pairs: Pairs):
    full = build_planted_language_model()
    found = measure_interchange(
        full,
        pairs.base,
        pairs.source,
        pairs.expected,
        layers=[0],
        basis=basis_of(PREVIOUS_DIMS),
        answers=pairs.base.unique(),
        draws=1,
    )
    assert found["accuracy"].item() > 0.9


def test_labels_of_vectors_are_read_by_a_function():
    torch.manual_seed(0)
    vectors = Decoder(DecoderConfig(d_in=1, d_out=1, hidden_size=8, num_attention_heads=2, num_hidden_layers=2)).eval()
    batch = [Affine(length=6).sample(8, torch.Generator().manual_seed(seed)).inputs for seed in (0, 1)]

    def sign(output: Tensor) -> Tensor:
        return (output[:, -1, 0] > output[:, :, 0].mean(1)).long()

    with torch.no_grad():
        expected = sign(vectors(batch[1]).logits)
    found = measure_interchange(vectors, *batch, expected, "resid_pre", layers=[0], predict=sign)
    assert found["accuracy"].item() == 1
    with pytest.raises(ValueError, match=r"predict must accept outputs of shape .*, but raised RuntimeError: mat1"):
        measure_interchange(vectors, *batch, expected, "resid_pre", layers=[0], predict=torch.nn.Linear(7, 7))
    with pytest.raises(ValueError, match="predict must be given for a model of vectors"):
        measure_interchange(vectors, *batch, expected)


def test_nothing_is_changed(model: Decoder, pairs: Pairs):
    arguments = (model, pairs.base[:4], pairs.source[:4], pairs.expected[:4])
    assert untouched(model, lambda: measure_interchange(*arguments, basis=basis_of(PREVIOUS_DIMS), draws=1))


def test_a_basis_spans_its_directions():
    directions = torch.tensor([[3.0, 0.0, 0.0], [3.0, 4.0, 0.0], [0.0, 1.0, 0.0]])
    basis = find_orthonormal_basis(directions)
    assert basis.shape == (2, 3)
    torch.testing.assert_close(directions @ basis.T @ basis, directions)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2))
    with pytest.raises(ValueError, match="directions must be finite and not all 0"):
        find_orthonormal_basis(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="rank must be from 1 to the dimension of the space, 3, but got 4"):
        draw_random_basis(4, 3, torch.Generator())


X, OTHER, EXPECTED = tokens(0), tokens(1), torch.tensor([1, 2, 3, 4])
REFUSED = {
    "unknown site": ({"site": "head_out"}, "a site must be one of"),
    "output": ({"site": "output"}, "an edit must act in a layer|within layers|site"),
    "no subspace": ({"site": "pattern", "basis": torch.eye(6)}, "a subspace needs a site that ends in d_model"),
    "another size": ({"basis": torch.eye(4)}, r"a basis at resid_post must be \(rank, 16\)"),
    "no orthonormal basis": ({"basis": 2 * torch.eye(16)}, "a basis must have orthonormal rows"),
    "labels of wrong length": ({"expected": [1, 2]}, "expected must be one per row"),
    "labels outside of the vocabulary": ({"expected": [1, 2, 3, 20]}, "expected must be tokens from 0 to 19"),
    "labels that are no answers": ({"answers": [1, 2]}, "expected must be among the answers"),
    "one answer": ({"answers": torch.tensor(1)}, "answers must be a list of integers"),
    "two readings": ({"answers": [1, 2, 3, 4], "predict": len}, "answers and predict exclude each other"),
    "layers in where": ({"where": {"layer": 0}}, "where must not name layers or sequences"),
    "no draws": ({"draws": 0}, "interchange needs two pairs and one draw or more, but got 4 pairs and 0 draws"),
    "no such layer": ({"layers": [7]}, "layers|layer"),
    "one pair": (
        {"inputs": X[:1], "source": OTHER[:1], "expected": [1]},
        "interchange needs two pairs and one draw or more, but got 1 pairs",
    ),
    "other lengths": ({"source": OTHER[:, 1:]}, "both runs must have the same number of sequences"),
    "padding": (
        {"inputs": {"input_ids": X, "attention_mask": [[0] + [1] * 5] * 4}}
        | {"source": {"input_ids": OTHER, "attention_mask": [[0] + [1] * 5] * 4}},
        "interchange needs pairs of one length without padding",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_by_name(name: str):
    options, message = REFUSED[name]
    with pytest.raises((ValueError, IndexError), match=message) as caught:
        measure_interchange(**{"model": small.llama(), "inputs": X, "source": OTHER, "expected": EXPECTED} | options)
    assert len(str(caught.value).splitlines()) == 1


def test_pairs_whose_answers_do_not_differ_are_refused():
    llama = small.llama()
    with torch.no_grad():
        own = llama(X).logits[:, -1].argmax(-1)
    with pytest.raises(ValueError, match="expected must differ from the output of the unedited base"):
        measure_interchange(llama, X, OTHER, own)


@pytest.mark.parametrize("order", ["", [0, 1, 2], [0, 2], [-1, 0]])
def test_an_order_that_is_none_is_refused(order):
    model = small.llama()
    acts = capture(model, torch.tensor([[1, 2, 3], [4, 5, 6]]), ["resid_pre"])
    basis = draw_random_basis(2, 16, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="order must be"):
        replace_subspace("resid_pre", acts, basis, {"layer": 1}, order=order)
