"""Edits: the same mechanism as recording, exact where nothing or everything is replaced."""

import pytest
import torch
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from mesascope.activations import FORWARD_SITES, Edit, EditHadNoEffect, capture
from mesascope.models.transformer import Decoder

from .ours import TOKENS, decoder, inputs

EDITABLE = [name for name in FORWARD_SITES if name not in ("resid_mid", "final_norm", "output")]
MLP = TOKENS | {"intermediate_size": 24, "norm": "rms", "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def model(device: str) -> Decoder:
    return decoder(**MLP).to(device)


@pytest.mark.parametrize("site", EDITABLE)
def test_an_identity_edit_changes_no_bit_and_says_so(model, site):
    x = inputs(model)
    plain = capture(model, x, list(FORWARD_SITES))
    with pytest.warns(EditHadNoEffect, match=f"an edit of {site} had no effect"):
        edited = capture(model, x, list(FORWARD_SITES), edits=[Edit(site=site, fn=torch.clone)])
    for name in FORWARD_SITES:
        assert torch.equal(edited[name], plain[name])


@pytest.mark.parametrize(
    "site", ["query", "key", "value", "attn_scores", "pattern", "z", "attn_out", "mlp_hidden", "mlp_out"]
)
def test_replacing_a_site_by_another_run_s_gives_the_other_s(model, site):
    x, y = inputs(model), inputs(model).flip(0)
    other = capture(model, y, [site])[site]
    replace = [Edit(site=site, where={"layer": n}, fn=lambda _, n=n: other[n]) for n in range(3)]
    assert torch.equal(capture(model, x, [site], edits=replace)[site], other)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
@pytest.mark.parametrize("layer", [0, 2])
def test_replacing_the_whole_stream_makes_it_the_other_run(model, site, layer):
    x, y = inputs(model), inputs(model).flip(0)
    other = capture(model, y, [site, "output"])
    replace = Edit(site=site, where={"layer": layer}, fn=lambda _: other[site][layer])
    edited = capture(model, x, [site, "output"], edits=[replace])
    assert torch.equal(edited[site][layer:], other[site][layer:])
    assert torch.equal(edited["output"], other["output"])


def test_replacing_queries_keys_and_values_replaces_what_attention_writes(model):
    x, y = inputs(model), inputs(model).flip(0)
    other = capture(model, y, list(FORWARD_SITES))
    edits = [
        Edit(site=site, where={"layer": 1}, fn=lambda _, s=site: other[s][1]) for site in ("query", "key", "value")
    ]
    edited = capture(model, x, ["pattern", "attn_out"], edits=edits)
    assert torch.equal(edited["pattern"][1], other["pattern"][1])
    assert torch.equal(edited["attn_out"][1], other["attn_out"][1])


def test_a_zeroed_head_is_one_whose_rows_of_the_output_projection_are_zero(device):
    x = inputs(decoder(**MLP))
    model, cut = decoder(**MLP).to(device), decoder(**MLP).to(device)
    with torch.no_grad():
        cut.layers[1].attention.o_proj.weight[:, 8:12] = 0
    zero = Edit(site="z", where={"layer": 1, "head": 2}, fn=torch.zeros_like)
    assert torch.equal(capture(model, x, edits=[zero])["output"], capture(cut, x)["output"])


def test_a_zeroed_head_of_gpt2_is_one_whose_rows_are_zero():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=4, n_positions=16))
    x = torch.randint(0, 20, (3, 8))
    zero = Edit(site="z", where={"layer": 0, "head": 1}, fn=torch.zeros_like)
    edited = capture(model, x, edits=[zero])["output"]
    with torch.no_grad():
        model.transformer.h[0].attn.c_proj.weight[4:8] = 0
    assert torch.equal(edited, capture(model, x)["output"])


def test_where_picks_layers_sequences_positions_and_heads(model):
    x = inputs(model)
    plain = capture(model, x, ["value"], batch_size=3)["value"]
    where = {"layer": [0, 2], "batch": slice(1, None), "kv_head": 1, "pos": [0, -1]}
    edited = capture(model, x, ["value"], edits=[Edit(site="value", where=where, fn=torch.zeros_like)], batch_size=3)
    assert (edited["value"][0, 1:, 1][:, [0, -1]] == 0).all()
    assert torch.equal(edited["value"][0, 0], plain[0, 0])
    assert torch.equal(edited["value"][0, :, 0], plain[0, :, 0])
    assert torch.equal(edited["value"][0, :, :, 1:-1], plain[0, :, :, 1:-1])
    assert (edited["value"][1] != 0).all()
    assert (edited["value"][2, 1:, 1][:, [0, -1]] == 0).all()


def test_a_change_at_the_last_position_does_not_reach_earlier_ones(model):
    x = inputs(model)
    plain = capture(model, x)["output"]
    edit = Edit(site="resid_pre", where={"layer": 0, "pos": -1}, fn=lambda v: v + 1)
    edited = capture(model, x, edits=[edit])["output"]
    assert torch.equal(edited[:, :-1], plain[:, :-1])
    assert not torch.allclose(edited[:, -1], plain[:, -1])


def test_writes_are_edited_as_they_are_added(model):
    x = inputs(model)
    edits = [
        Edit(site="attn_out", where={"layer": 1}, fn=torch.zeros_like),
        Edit(site="mlp_out", fn=lambda v: 2 * v),
    ]
    edited = capture(model, x, list(FORWARD_SITES), edits=edits)
    assert_close(edited["resid_pre"] + edited["attn_out"] + edited["mlp_out"], edited["resid_post"])
    assert (edited["attn_out"][1] == 0).all()


def test_scores_are_edited_before_the_softmax(model):
    x = inputs(model)
    first = Edit(site="attn_scores", where={"key": slice(1, None)}, fn=lambda s: torch.full_like(s, -torch.inf))
    edited = capture(model, x, ["attn_scores", "pattern", "z", "value"], edits=[first])
    assert (edited["pattern"][..., 0] == 1).all()
    heads = edited["value"][:, :, :, :1].repeat_interleave(2, dim=2).transpose(2, 3).expand_as(edited["z"])
    assert torch.equal(edited["z"], heads)


def test_edits_apply_in_order(model):
    x = inputs(model)
    edits = [Edit(site="value", fn=lambda v: v * 0), Edit(site="value", fn=lambda v: v + 3)]
    assert (capture(model, x, ["value"], edits=edits)["value"] == 3).all()


def test_what_makes_no_sense_is_refused(model):
    x = inputs(model)
    with pytest.raises(ValueError, match="an edit must act in a layer, but output is after"):
        Edit(site="output", fn=torch.zeros_like)
    with pytest.raises(ValueError, match=r"where must name axes of value .* but got head"):
        Edit(site="value", where={"head": 0}, fn=torch.zeros_like)
    with pytest.raises(ValueError, match=r"must return a tensor that broadcasts to .* values for the whole batch"):
        capture(model, x, edits=[Edit(site="value", fn=lambda v: v.new_zeros(7, 1, 1, 1))])
    with pytest.raises(IndexError, match="must lie within 4 entries, but got 9"):
        capture(model, x, edits=[Edit(site="z", where={"head": 9}, fn=torch.zeros_like)])
    with pytest.raises(IndexError, match="must lie within 3 entries, but got 3"):
        capture(model, x, edits=[Edit(site="z", where={"layer": 3}, fn=torch.zeros_like)])
