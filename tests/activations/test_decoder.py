"""Our own decoder, in all its variants, takes the same path as any other model."""

import pytest
import torch
from torch.testing import assert_close

from mesascope.activations import FORWARD, SITES, Edit, UnsupportedModel, capture

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
    "zeroed": VECTORS | {"visible": "zeroed"},
    "zeroed, grouped, rotary": TOKENS | {"visible": "zeroed", "num_key_value_heads": 2, "positions": "rotary"},
    "zeroed, output norm": TOKENS
    | {"visible": "zeroed", "intermediate_size": 24, "norm": "layer", "norm_position": "output"},
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
    found = set() if settings.get("intermediate_size") else {"mlp_write"}
    found |= {"score"} if settings.get("attention") == "linear" or settings.get("visible") == "zeroed" else set()
    return found | ({"attn_write", "mlp_write"} if settings.get("norm_position") == "post" else set())


@pytest.fixture(params=VARIANTS)
def settings(request):
    return VARIANTS[request.param]


def test_all_sites_are_right_in_every_variant(settings):
    model = decoder(**settings)
    x = inputs(model)
    sites = [name for name in FORWARD if name not in missing(settings)]
    recorded = capture(model, x, sites)
    with torch.no_grad():
        assert torch.equal(recorded["prediction"], model.eval()(x).logits)
    assert torch.equal(recorded.frame.readout(recorded["resid_post"][-1]), recorded["prediction"])
    linear = settings.get("attention") == "linear"
    assert recorded.frame.softmax == (not linear,) * model.config.num_hidden_layers
    assert (recorded["pattern"].triu(1) != 0).any() == (settings.get("visible") == "zeroed")
    for name in sites:
        assert recorded.xarray(name).dims == SITES[name].axes


def test_what_a_variant_lacks_is_refused_by_name(settings):
    model = decoder(**settings)
    for site in missing(settings):
        with pytest.raises(UnsupportedModel, match=f"{site} must be there in every layer asked for, but Decoder lacks"):
            capture(model, inputs(model), [site])


def test_parts_sum_to_the_prediction(settings):
    model = decoder(**settings)
    sites = ["resid_pre", "resid_post", "head_out", "prediction"]
    sites += [site for site in ("attn_write", "mlp_write") if site not in missing(settings)]
    recorded = capture(model, inputs(model), sites)
    frame, last = recorded.frame, recorded["resid_post"][-1]
    if "attn_write" not in recorded:
        with pytest.raises(UnsupportedModel, match=r"what layers .* write to the stream is not known"):
            frame.attribute(last, last)
        return
    if settings.get("norm_position") == "output":
        with pytest.raises(UnsupportedModel, match="a norm or a gate stands between the output projection and the"):
            recorded.head_writes()
        parts = [recorded["resid_pre"][0], *recorded["attn_write"]]
    else:
        heads = torch.einsum("lbphd,lhdm->lhbpm", recorded["head_out"], frame.output_projection)
        parts = [recorded["resid_pre"][0], *heads.flatten(0, 1)]
        parts += frame.output_bias[:, None, None].expand_as(heads[:, 0]).unbind()
    parts += list(recorded["mlp_write"]) if "mlp_write" in recorded else []
    total = frame.attribute(torch.stack(parts), last).sum(0) + frame.readout_bias
    assert_close(total, recorded["prediction"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_pattern_of_zeroed_scores_is_that_of_queries_and_keys(positions):
    model = decoder(**TOKENS, visible="zeroed", num_key_value_heads=2, positions=positions)
    recorded = capture(model, inputs(model), ["query", "key", "value", "pattern", "head_out"])
    key, value = (recorded[name].repeat_interleave(2, dim=2) for name in ("key", "value"))
    scores = (recorded["query"] @ key.mT / 4**0.5).tril()
    assert_close(recorded["pattern"], scores.softmax(-1))
    assert_close(recorded["head_out"], (scores.softmax(-1) @ value).transpose(2, 3))
    rows = capture(model, inputs(model), ["pattern"], queries=[3, 7])["pattern"]
    assert torch.equal(rows, recorded["pattern"][..., [3, 7], :])


def test_padding_is_no_future():
    """Keys of padding get nothing, on either side, and later keys that are real keep their score of 0."""
    model = decoder(**TOKENS, visible="zeroed")
    x = inputs(model, rows=2, length=7)
    alone = capture(model, x, ["pattern"])["pattern"]
    for real in (slice(3, None), slice(None, 7)):
        padded, mask = torch.zeros(2, 10, dtype=torch.long), torch.zeros(2, 10, dtype=torch.long)
        padded[:, real], mask[:, real] = x, 1
        found = capture(model, padded, ["pattern", "prediction"], attention_mask=mask)
        pattern = found["pattern"][..., real, :]
        assert_close(pattern[..., real], alone)
        assert pattern.sum() == pytest.approx(pattern[..., real].sum())
        assert_close(found["prediction"][:, real], model(x).logits)


def test_a_pattern_of_zeroed_scores_can_be_edited():
    """Without later keys, and normed again, it is that of a causal model."""
    model, causal = (decoder(**TOKENS, visible=visible) for visible in ("zeroed", "past"))
    causal.load_state_dict(model.state_dict())
    x = inputs(model)
    past = Edit(site="pattern", fn=lambda pattern: pattern.tril() / pattern.tril().sum(-1, keepdim=True))
    found = capture(model, x, ["prediction"], edits=[past])["prediction"]
    assert_close(found, causal(x).logits)
    assert not torch.allclose(capture(model, x, ["prediction"])["prediction"], found, atol=1e-3)


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
    with pytest.raises(RuntimeError, match="before its model is changed"):
        recorded.frame.readout(recorded["resid_post"][-1])


def test_it_can_be_captured_in_other_precisions():
    for dtype in (torch.float64, torch.bfloat16):
        model = decoder(**VECTORS | {"intermediate_size": 24, "norm": "rms"}).to(dtype)
        recorded = capture(model, inputs(model).to(dtype), list(FORWARD))
        total = recorded["resid_pre"] + recorded["attn_write"] + recorded["mlp_write"]
        torch.testing.assert_close(total, recorded["resid_post"])
        assert recorded.xarray("pattern").shape == (3, 4, 4, 10, 10)
