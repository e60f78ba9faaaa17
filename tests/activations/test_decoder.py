"""Our own decoder, in all its variants, takes the same path as any other model."""

import pytest
import torch
from torch.testing import assert_close

from mesascope.activations import FORWARD_SITES, SITES, Edit, UnsupportedModel, capture

from .ours import TOKENS, VECTORS, decoder, inputs

VARIANTS = {
    "plain": VECTORS,
    "tokens": TOKENS,
    "tied": TOKENS | {"tie_word_embeddings": True, "norm": "rms"},
    "mlp": VECTORS | {"intermediate_size": 24},
    "layer norm": VECTORS | {"intermediate_size": 24, "norm": "layer"},
    "rms norm": TOKENS | {"intermediate_size": 24, "norm": "rms", "activation": "silu"},
    "post norm": VECTORS | {"intermediate_size": 24, "norm": "layer", "norm_position": "post"},
    "output norm": VECTORS | {"intermediate_size": 24, "norm": "layer", "norm_position": "output"},
    "output norm of attention alone": TOKENS | {"norm": "rms", "norm_position": "output"},
    "multiplicative mask": VECTORS | {"mask": "multiplicative"},
    "multiplicative mask, grouped, rotary": TOKENS
    | {"mask": "multiplicative", "num_key_value_heads": 2, "positions": "rotary"},
    "multiplicative mask, output norm": TOKENS
    | {"mask": "multiplicative", "intermediate_size": 24, "norm": "layer", "norm_position": "output"},
    "rotary": TOKENS | {"positions": "rotary", "norm": "rms"},
    "sinusoidal": VECTORS | {"positions": "sinusoidal"},
    "no positions": VECTORS | {"positions": "none"},
    "shared": VECTORS | {"share_layers": True, "intermediate_size": 24, "norm": "layer"},
    "grouped": TOKENS | {"num_key_value_heads": 2},
    "linear": VECTORS | {"attention": "linear"},
    "linear grouped": VECTORS | {"attention": "linear", "num_key_value_heads": 1, "norm": "layer"},
    "one layer": VECTORS | {"num_hidden_layers": 1},
}


def missing(settings: dict) -> set[str]:
    found = set() if settings.get("intermediate_size") else {"resid_mid", "mlp_hidden", "mlp_out"}
    found |= (
        {"attn_scores"} if settings.get("attention") == "linear" or settings.get("mask") == "multiplicative" else set()
    )
    found |= {"mlp_hidden"} if settings.get("norm_position") == "output" else set()
    updates = {"attn_out", "resid_mid", "mlp_hidden", "mlp_out"}
    return found | (updates if settings.get("norm_position") == "post" else set())


def has_final_norm(settings: dict) -> bool:
    return settings.get("norm", "none") != "none" and settings.get("norm_position", "pre") == "pre"


@pytest.fixture(params=VARIANTS)
def settings(request):
    return VARIANTS[request.param]


def test_all_sites_are_right_in_every_variant(settings, device):
    model = decoder(**settings).to(device)
    x = inputs(model)
    without_norm = set() if has_final_norm(settings) else {"final_norm"}
    sites = [name for name in FORWARD_SITES if name not in missing(settings) | without_norm]
    recorded = capture(model, x, sites)
    with torch.no_grad():
        assert torch.equal(recorded["output"], model.eval()(x).logits)
    assert torch.equal(recorded.readout.compute_output(recorded["resid_post"][-1]), recorded["output"])
    linear = settings.get("attention") == "linear"
    assert recorded.readout.rows_sum_to_one == (not linear,) * model.config.num_hidden_layers
    assert (recorded["pattern"].triu(1) != 0).any() == (settings.get("mask") == "multiplicative")
    for name in sites:
        assert recorded.to_xarray(name).dims == SITES[name].axes


def test_what_a_variant_lacks_is_refused_by_name(settings):
    model = decoder(**settings)
    for site in missing(settings):
        with pytest.raises(UnsupportedModel, match=f"{site} must exist in every requested layer, but Decoder lacks"):
            capture(model, inputs(model), [site])


def test_the_unembedding_reads_the_final_norm_if_there_is_one(settings):
    model = decoder(**settings)
    if has_final_norm(settings):
        recorded = capture(model, inputs(model), ["final_norm", "output"])
        assert torch.equal(model.readout(recorded["final_norm"]), recorded["output"])
        return
    message = (
        r"final_norm must be the output of a norm .* Decoder has none \(the unembedding reads the residual stream\)"
    )
    with pytest.raises(UnsupportedModel, match=message):
        capture(model, inputs(model), ["final_norm"])


def test_parts_sum_to_the_prediction(settings, device):
    model = decoder(**settings).to(device)
    sites = ["resid_pre", "resid_post", "z", "output"]
    sites += [site for site in ("attn_out", "mlp_out") if site not in missing(settings)]
    recorded = capture(model, inputs(model), sites)
    frame, last = recorded.readout, recorded["resid_post"][-1]
    if "attn_out" not in recorded:
        with pytest.raises(UnsupportedModel, match="attn_out is not available in layers"):
            frame.attribute_logits(last, last)
        return
    if settings.get("norm_position") == "output":
        with pytest.raises(UnsupportedModel, match="a norm or a gate separates the output projection and the"):
            recorded.head_out()
        parts = [recorded["resid_pre"][0], *recorded["attn_out"]]
    else:
        heads = torch.einsum("lbphd,lhdm->lhbpm", recorded["z"], frame.output_projection)
        parts = [recorded["resid_pre"][0], *heads.flatten(0, 1)]
        parts += frame.output_bias[:, None, None].expand_as(heads[:, 0]).unbind()
    parts += list(recorded["mlp_out"]) if "mlp_out" in recorded else []
    total = frame.attribute_logits(torch.stack(parts), last).sum(0) + frame.readout_bias
    assert_close(total, recorded["output"], rtol=1e-4, atol=1e-4)


def test_the_stream_between_attention_and_mlp_is_what_the_norm_of_the_mlp_reads():
    model, read = decoder(**VARIANTS["rms norm"]), []
    x = inputs(model)
    hooks = [layer.mlp_norm.register_forward_pre_hook(lambda _, given: read.append(given[0])) for layer in model.layers]
    with torch.no_grad():
        plain = model.eval()(x).logits
    for hook in hooks:
        hook.remove()
    recorded = capture(model, x, ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "output"])
    assert torch.equal(recorded["resid_mid"], torch.stack(read))
    assert torch.equal(recorded["resid_mid"], recorded["resid_pre"] + recorded["attn_out"])
    assert torch.equal(recorded["resid_post"], recorded["resid_mid"] + recorded["mlp_out"])
    assert torch.equal(recorded["output"], plain)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_pattern_of_zeroed_scores_is_that_of_queries_and_keys(positions):
    model = decoder(**TOKENS, mask="multiplicative", num_key_value_heads=2, positions=positions)
    recorded = capture(model, inputs(model), ["query", "key", "value", "pattern", "z"])
    key, value = (recorded[name].repeat_interleave(2, dim=2) for name in ("key", "value"))
    scores = (recorded["query"] @ key.mT / 4**0.5).tril()
    assert_close(recorded["pattern"], scores.softmax(-1))
    assert_close(recorded["z"], (scores.softmax(-1) @ value).transpose(2, 3))
    rows = capture(model, inputs(model), ["pattern"], queries=[3, 7])["pattern"]
    assert torch.equal(rows, recorded["pattern"][..., [3, 7], :])


def test_padding_is_no_future():
    """Keys of padding get nothing, on either side, and later keys that are real keep their score of 0."""
    model = decoder(**TOKENS, mask="multiplicative")
    x = inputs(model, rows=2, length=7)
    alone = capture(model, x, ["pattern"])["pattern"]
    for real in (slice(3, None), slice(None, 7)):
        padded, mask = torch.zeros(2, 10, dtype=torch.long), torch.zeros(2, 10, dtype=torch.long)
        padded[:, real], mask[:, real] = x, 1
        found = capture(model, padded, ["pattern", "output"], attention_mask=mask)
        pattern = found["pattern"][..., real, :]
        assert_close(pattern[..., real], alone)
        assert pattern.sum() == pytest.approx(pattern[..., real].sum())
        assert_close(found["output"][:, real], model(x).logits)


def test_a_pattern_of_zeroed_scores_can_be_edited():
    """Without later keys, and normed again, it is that of a causal model."""
    model, causal = (decoder(**TOKENS, mask=mask) for mask in ("multiplicative", "causal"))
    causal.load_state_dict(model.state_dict())
    x = inputs(model)
    past = Edit(site="pattern", fn=lambda pattern: pattern.tril() / pattern.tril().sum(-1, keepdim=True))
    found = capture(model, x, ["output"], edits=[past])["output"]
    assert_close(found, causal(x).logits)
    assert not torch.allclose(capture(model, x, ["output"])["output"], found, atol=1e-3)


def test_the_training_mode_of_every_module_is_restored():
    model = decoder(**VECTORS).train()
    model.layers[1].eval()
    capture(model, inputs(model))
    assert model.training
    assert model.layers[0].training
    assert not model.layers[1].training
    assert not model.layers[1].attention.training


def test_a_model_changed_after_the_capture_is_refused_by_its_frame():
    model = decoder(**VECTORS)
    recorded = capture(model, inputs(model))
    with torch.no_grad():
        model.readout.weight += 1
    with pytest.raises(RuntimeError, match="a readout needs unchanged parameters"):
        recorded.readout.compute_output(recorded["resid_post"][-1])


def test_it_can_be_captured_in_other_precisions():
    for dtype in (torch.float64, torch.bfloat16):
        model = decoder(**VECTORS | {"intermediate_size": 24, "norm": "rms"}).to(dtype)
        recorded = capture(model, inputs(model).to(dtype), list(FORWARD_SITES))
        total = recorded["resid_pre"] + recorded["attn_out"] + recorded["mlp_out"]
        torch.testing.assert_close(total, recorded["resid_post"])
        assert recorded.to_xarray("pattern").shape == (3, 4, 4, 10, 10)
