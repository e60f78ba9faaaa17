"""Instruments find the heads that were set by hand in an encoder-decoder, and none of the decoys."""

import pytest
import torch

from mesascope.activations import capture
from mesascope.analyses import (
    attention_patterns,
    cross_copying,
    lookup_heads,
    norms,
    positional_attention,
    run_analyses,
)
from mesascope.interventions import knock_out_attention, zero

from .hand_set import (
    AVERAGING,
    COPYING,
    FIRST_SLOT,
    LOOKUP,
    NEXT_LABEL,
    SHIFTED,
    SILENT,
    SLOTS,
    UNIFORM,
    build_hand_set,
    sequences,
)
from .pairs import build, pair

SITES = ["encoder.pattern", "cross_pattern", "cross_z", "resid_post", "logits"]


@pytest.fixture(scope="module")
def model():
    return build_hand_set()


@pytest.fixture(scope="module")
def inputs():
    source, target, _ = sequences()
    return {"input_ids": source, "decoder_input_ids": target}


@pytest.fixture(scope="module")
def acts(model, inputs):
    return capture(model, inputs, SITES)


def test_the_model_copies_words(acts, inputs):
    predicted = acts["logits"].argmax(-1)
    assert torch.equal(predicted, inputs["input_ids"][:, SLOTS:])


def test_the_look_up_head_is_found_and_no_decoy(acts):
    found = lookup_heads(acts.encoder, sequences()[2])
    assert found["role"].values.tolist() == [[int(head == LOOKUP) for head in range(4)]]
    assert float(found["score"][0, LOOKUP]) == 1.0
    for decoy in (NEXT_LABEL, FIRST_SLOT, UNIFORM):
        assert float(found["score"][0, decoy]) <= float(found["score_null_high"][0, decoy])
    assert 0.2 < float(found["score_null"][0, LOOKUP]) < 0.5


def test_the_copying_head_is_found_and_no_decoy(acts):
    found = cross_copying(acts.decoder, acts.encoder.inputs)
    assert found["role"].values.tolist() == [[int(head == COPYING) for head in range(4)]]
    attention, contribution = found["attention"][0], found["contribution"][0]
    assert min(float(attention[head]) for head in (COPYING, SILENT, SHIFTED)) > 0.99  # decoys attend alike
    assert float(attention[AVERAGING]) < 0.5
    assert float(contribution[SILENT]) == 0.0
    assert float(contribution[SHIFTED]) < 0.0


def test_attention_knocked_out_from_slots_removes_the_look_up_alone(model, inputs, acts):
    where = {"layer": 0, "head": LOOKUP}
    edited = capture(model, inputs, SITES, edits=knock_out_attention("encoder.attn_scores", range(SLOTS), where))
    before, after = acts.encoder["pattern"][0], edited.encoder["pattern"][0]
    assert not after[:, LOOKUP, :, :SLOTS].any()
    torch.testing.assert_close(after.sum(-1), torch.ones_like(after.sum(-1)))
    others = [NEXT_LABEL, FIRST_SLOT, UNIFORM]
    assert torch.equal(before[:, others], after[:, others])
    assert not torch.equal(acts.encoder["resid_post"], edited.encoder["resid_post"])
    decoy = knock_out_attention("encoder.attn_scores", range(SLOTS), where | {"head": FIRST_SLOT})
    unchanged = capture(model, inputs, SITES, edits=decoy)
    assert torch.equal(acts.encoder["resid_post"], unchanged.encoder["resid_post"])


def test_zeros_at_the_copying_head_alone_end_the_copying(model, inputs, acts):
    accuracy = {}
    for head in (COPYING, SILENT):
        edited = capture(model, inputs, ["logits"], edits=zero("cross_z", {"layer": 0, "head": head}))
        accuracy[head] = (edited["logits"].argmax(-1) == inputs["input_ids"][:, SLOTS:]).double().mean()
    assert accuracy[SILENT] == 1.0
    assert accuracy[COPYING] < 0.5


def test_analyses_of_heads_take_each_stack(model, inputs, acts):
    found = run_analyses(model, inputs, [positional_attention], stack="encoder")["positional_attention"]
    assert float(found["score"].sel(stat="first")[0, FIRST_SLOT]) > 0.99
    assert float(found["score"].sel(stat="entropy")[0, UNIFORM]) == pytest.approx(1.0, abs=1e-5)
    assert attention_patterns(acts.encoder)["pattern"].sizes["key"] == inputs["input_ids"].shape[1]
    decoder = run_analyses(model, inputs, [positional_attention], stack="decoder")["positional_attention"]
    assert float(decoder["score"].sel(stat="entropy")[0, 0]) == pytest.approx(1.0, abs=1e-5)


def test_analyses_refuse_stacks_for_which_they_are_not_defined(model, inputs, acts):
    with pytest.raises(ValueError, match="positional_attention needs the capture of one stack"):
        positional_attention(acts)
    with pytest.raises(ValueError, match="norms is defined for models with one stack"):
        norms(acts.decoder)
    with pytest.raises(ValueError, match="lookup_heads is defined for captures of the encoder"):
        lookup_heads(acts.decoder, sequences()[2])
    with pytest.raises(ValueError, match="has two stacks, but got none to analyse"):
        run_analyses(model, inputs, [attention_patterns])
    with pytest.raises(ValueError, match=r"slots must be \(batch, pos\) = .* but got shape \(0, 6\)$"):
        lookup_heads(acts.encoder, torch.zeros(0, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="every sequence has one at most"):
        lookup_heads(acts.encoder, torch.where(sequences()[2] < 0, -1, 0))


def test_random_models_have_neither_role():
    acts = capture(build("t5"), pair(rows=8), ["encoder.pattern", "cross_pattern", "cross_z", "decoder.resid_post"])
    slots = torch.full((8, 9), -1)
    slots[:, 3:] = torch.arange(3).repeat(2)
    assert not lookup_heads(acts.encoder, slots)["role"].any()
    source = acts.encoder.inputs.clone()
    source[:, 0] = acts.decoder.inputs[:, 1]  # a next token that occurs in the source
    assert not cross_copying(acts.decoder, source)["role"].any()
