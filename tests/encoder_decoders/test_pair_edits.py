"""Edits of the three attentions and of both stacks do what plain hooks of PyTorch do."""

from contextlib import ExitStack

import pytest
import torch
from torch.testing import assert_close

from mesascope.activations import Edit, EditHadNoEffect, UnsupportedModel, capture
from mesascope.interventions import knock_out_attention, mean, replace, resample, scale, steer, zero

from .pairs import SOURCE, build, pair, run

D_HEAD, LAYER, HEAD = 8, 1, 2
COLUMNS = slice(HEAD * D_HEAD, (HEAD + 1) * D_HEAD)


def parts(name, model):
    """The modules of layer 1 by what an edit changes: output projections and MLPs."""
    if name == "own":
        encoder, decoder = model.encoder_layers[LAYER], model.layers[LAYER]
        return {
            "encoder.z": encoder.attention.o_proj,
            "decoder.z": decoder.attention.o_proj,
            "cross_z": decoder.cross_attention.o_proj,
            "encoder.mlp_hidden": encoder.mlp.down_proj,
            "decoder.mlp_hidden": decoder.mlp.down_proj,
            "encoder.mlp_out": encoder.mlp,
            "decoder.mlp_out": decoder.mlp,
            "encoder.attn_out": encoder.attention,
            "decoder.attn_out": decoder.attention,
            "cross_attn_out": decoder.cross_attention,
        }
    if name == "t5":
        encoder, decoder = model.encoder.block[LAYER].layer, model.decoder.block[LAYER].layer
        return {
            "encoder.z": encoder[0].SelfAttention.o,
            "decoder.z": decoder[0].SelfAttention.o,
            "cross_z": decoder[1].EncDecAttention.o,
            "encoder.mlp_hidden": encoder[-1].DenseReluDense.wo,
            "decoder.mlp_hidden": decoder[-1].DenseReluDense.wo,
            "encoder.mlp_out": encoder[-1].DenseReluDense,
            "decoder.mlp_out": decoder[-1].DenseReluDense,
            "encoder.attn_out": encoder[0].SelfAttention.o,
            "decoder.attn_out": decoder[0].SelfAttention.o,
            "cross_attn_out": decoder[1].EncDecAttention.o,
        }
    encoder, decoder = model.model.encoder.layers[LAYER], model.model.decoder.layers[LAYER]
    return {
        "encoder.z": encoder.self_attn.out_proj,
        "decoder.z": decoder.self_attn.out_proj,
        "cross_z": decoder.encoder_attn.out_proj,
    }


def run_with(model, inputs, module, *, before=None, after=None):
    """What the model computes with plain hooks."""
    with ExitStack() as hooks:
        if before is not None:
            hooks.callback(module.register_forward_pre_hook(lambda _, args: (before(args[0].clone()),)).remove)
        if after is not None:
            hooks.callback(module.register_forward_hook(lambda _, args, out: after(out.clone())).remove)
        return run(model, inputs).logits


def put(value):
    def change(z):
        z[..., COLUMNS] = value(z[..., COLUMNS])
        return z

    return change


@pytest.mark.parametrize("site", ["encoder.z", "decoder.z", "cross_z"])
@pytest.mark.parametrize("name", ["own", "t5", "bart"])
def test_edits_of_a_head_are_those_of_a_hook(name, site):
    model, inputs, where = build(name), pair(), {"layer": LAYER, "head": HEAD}
    module = parts(name, model)[site]
    for edit, change in (
        (zero(site, where), put(torch.zeros_like)),
        (scale(site, 3.0, where), put(lambda z: 3.0 * z)),
        (steer(site, torch.arange(8.0), 0.5, where), put(lambda z: z + 0.5 * torch.arange(8.0))),
    ):
        edited = capture(model, inputs, ["logits"], edits=edit)["logits"]
        assert torch.equal(edited, run_with(model, inputs, module, before=change))
        assert not torch.equal(edited, run(model, inputs).logits)


@pytest.mark.parametrize(
    "site", ["encoder.attn_out", "decoder.attn_out", "cross_attn_out", "encoder.mlp_out", "decoder.mlp_out"]
)
@pytest.mark.parametrize("name", ["own", "t5"])
def test_edits_of_updates_are_those_of_a_hook(name, site):
    model, inputs = build(name), pair()
    other = pair() | {"input_ids": pair()["input_ids"].flip(0)}
    acts = capture(model, other, [site])
    local = acts[site][LAYER]
    module = parts(name, model)[site]
    for edit, change in (
        (scale(site, -2.0, {"layer": LAYER}), lambda out: -2.0 * out),
        (replace(site, acts, {"layer": LAYER}), lambda out: local),
        (mean(site, acts, {"layer": LAYER}), lambda out: local.mean(0, keepdim=True).expand_as(out)),
    ):
        edited = capture(model, inputs, ["logits"], edits=edit)["logits"]
        assert torch.equal(edited, run_with(model, inputs, module, after=change))


@pytest.mark.parametrize("site", ["encoder.mlp_hidden", "decoder.mlp_hidden"])
@pytest.mark.parametrize("name", ["own", "t5"])
def test_edits_of_neurons_are_those_of_a_hook(name, site):
    model, inputs, neurons = build(name), pair(), [0, 5]

    def change(hidden):
        hidden[..., neurons] = 0
        return hidden

    edited = capture(model, inputs, ["logits"], edits=zero(site, {"layer": LAYER, "d_mlp": neurons}))["logits"]
    assert torch.equal(edited, run_with(model, inputs, parts(name, model)[site], before=change))
    assert not torch.equal(edited, run(model, inputs).logits)


@pytest.mark.parametrize("name", ["own", "t5", "bart"])
@pytest.mark.parametrize(
    ("site", "keys"), [("encoder.attn_scores", [0, 1, 2]), ("decoder.attn_scores", [0]), ("cross_attn_scores", [4])]
)
def test_attention_knocked_out_is_the_softmax_over_the_other_keys(name, site, keys):
    model, inputs = build(name), pair()
    stack, local = ("decoder", "cross_") if site.startswith("cross") else (site.split(".")[0], "")
    sites = [f"{stack}.{local}{each}" for each in ("attn_scores", "value", "z")]
    where = {"layer": LAYER, "head": HEAD}
    if site == "decoder.attn_scores":
        where["query"] = list(range(1, 6))  # the first position of the target attends to itself alone
    acts = capture(model, inputs, sites)
    scores, value, z = (acts[each][LAYER] for each in sites)
    hidden = scores[:, HEAD].clone()
    hidden[:, where.get("query", slice(None))][..., keys] = -torch.inf
    rows = where.get("query", list(range(hidden.shape[1])))
    for row in rows:
        hidden[:, row, keys] = -torch.inf
    mixed = hidden.softmax(-1) @ value[:, HEAD]

    def change(given):
        given[..., COLUMNS] = mixed
        return given

    edit = knock_out_attention(site, keys, where)
    edited = capture(model, inputs, [*sites, "logits"], edits=edit)
    assert_close(edited[sites[2]][LAYER][:, :, HEAD], mixed, rtol=1e-4, atol=1e-5)
    expected = run_with(model, inputs, parts(name, model)[f"{stack}.z" if not local else "cross_z"], before=change)
    assert_close(edited["logits"], expected, rtol=1e-4, atol=1e-4)
    other = [head for head in range(4) if head != HEAD]
    if name != "own" or stack == "encoder":
        assert_close(edited[sites[2]][LAYER][:, :, other], z[:, :, other], rtol=1e-4, atol=1e-5)


def test_knocked_out_attention_must_leave_a_key():
    model = build("t5")
    with pytest.raises(ValueError, match="every query must attend to a key that is not hidden"):
        capture(model, pair(), ["logits"], edits=knock_out_attention("decoder.attn_scores", [0]))
    with pytest.raises(ValueError, match="every query must attend to a key that is not hidden"):
        capture(model, pair(), ["logits"], edits=knock_out_attention("cross_attn_scores", range(SOURCE)))
    with pytest.raises(ValueError, match="keys must be below 9, the number of keys, but got 9"):
        capture(model, pair(), ["logits"], edits=knock_out_attention("cross_attn_scores", [SOURCE]))
    with pytest.raises(ValueError, match="attention is knocked out at attn_scores, but got z"):
        knock_out_attention("z", [0])
    with pytest.raises(ValueError, match="keys must be positions counted from 0, at least one"):
        knock_out_attention("attn_scores", [])
    with pytest.raises(ValueError, match="keys must be given once, but where has source, too"):
        knock_out_attention("cross_attn_scores", [0], {"source": [1]})


def test_weights_of_zero_are_not_renormalised():
    model, edit = build("t5"), zero("encoder.pattern", {"layer": LAYER, "head": HEAD, "key": [0, 1]})
    before = capture(model, pair(), ["pattern"]).encoder["pattern"][LAYER, :, HEAD]
    after = capture(model, pair(), ["pattern"], edits=edit).encoder["pattern"][LAYER, :, HEAD]
    assert not after[..., :2].any()
    assert torch.equal(after[..., 2:], before[..., 2:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_edits_leave_padding_as_it_is(side):
    model, inputs = build("t5"), pair(side, side)
    sites = ["encoder.z", "decoder.z", "cross_z", "cross_value", "cross_pattern"]
    before = capture(model, inputs, sites)
    real = inputs["attention_mask"].bool(), inputs["decoder_attention_mask"].bool()
    for site in sites:
        after = capture(model, inputs, sites, edits=scale(site, 2.0, {"layer": 0}))
        old, new = before[site][0], after[site][0]
        of_source = site in ("encoder.z", "cross_value")
        positions = {"cross_value": 2}.get(site, 1) if site != "cross_pattern" else 2
        changed = (old != new).movedim(positions, 1).flatten(2).any(-1)
        assert torch.equal(changed, real[0] if of_source else real[1])
    pattern = capture(model, inputs, sites, edits=scale("cross_pattern", 2.0, {"layer": 0}))["cross_pattern"][0]
    assert not pattern.movedim(-1, 1)[~real[0]].any()


def test_edits_name_their_stack():
    model = build("t5")
    with pytest.raises(
        ValueError, match=r"an edit in an encoder-decoder must name its stack, but got z; write encoder\.z"
    ):
        capture(model, pair(), ["logits"], edits=zero("z"))
    acts = capture(model, pair(), ["z"])
    with pytest.raises(
        ValueError, match=r"encoder\.z must be a site of the captured stack, but the capture is of the dec"
    ):
        replace("encoder.z", acts.decoder)
    with pytest.raises(ValueError, match="must name its stack, but got z"):
        replace("z", acts)
    for edit in (replace("encoder.z", acts.encoder), resample("encoder.z", acts), mean("decoder.z", acts)):
        assert isinstance(edit, Edit)
    with pytest.raises(ValueError, match="residual connection bypasses the module that reads cross_resid_mid"):
        zero("cross_resid_mid")
    with pytest.raises(ValueError, match="attn_scores must stay -inf"):
        zero("cross_attn_scores")


def test_sources_of_edits_have_the_padding_of_the_run():
    model = build("t5")
    acts = capture(model, pair(), ["cross_pattern", "cross_value", "cross_z"])
    for edit in (replace("cross_pattern", acts), replace("cross_value", acts), mean("cross_value", acts)):
        with pytest.raises(ValueError, match="must have the padding of the run on the side of the encoder"):
            capture(model, pair("right"), ["logits"], edits=edit)
    same = capture(model, pair("right"), ["cross_pattern", "cross_value"])
    assert torch.equal(
        capture(model, pair("right"), ["logits"], edits=scale("cross_value", 1.5))["logits"],
        capture(model, pair("right"), ["logits"], edits=scale("cross_value", 1.5), batch_size=3)["logits"],
    )
    with pytest.warns(EditHadNoEffect):
        capture(model, pair("right"), ["logits"], edits=replace("cross_value", same))


def test_edits_of_what_a_model_lacks_are_refused():
    with pytest.raises(UnsupportedModel, match="cross_attn_out must exist in every requested layer"):
        capture(build("bart"), pair(), ["logits"], edits=zero("cross_attn_out"))
