"""One capture path for every family: what must hold in all of them, on tiny random models."""

import pytest
import torch
from torch.testing import assert_close
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from mesascope.activations import SITES, Edit, UnsupportedModel, capture
from mesascope.activations.capture import examine
from mesascope.activations.forward import quiet

from .families import FAMILIES, OWN_ATTENTION, make, tokens

NO_PROJECTION = {"gemma2", "gemma3_text", "olmo2", "olmo3", "glm4", "exaone4"}  # a norm follows the projection
NO_SCORE = {"gemma2", "gpt_oss"}  # soft-capped scores; learned sinks
SINKS = {"gpt_oss"}


def everything(family: str) -> list[str]:
    return [name for name in SITES if not (name == "score" and family in NO_SCORE)]


def hooks(model) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return make(family)


@pytest.fixture(scope="module")
def recorded(family, model):
    return capture(model, tokens(), everything(family))


def test_the_prediction_is_the_untouched_model_s_bit_for_bit(model, recorded):
    with torch.no_grad():
        untouched = model(tokens(), use_cache=False).logits
    assert torch.equal(recorded["prediction"], untouched)
    assert recorded.kernel == model.config._attn_implementation


def test_writes_sum_to_the_residual_difference(recorded):
    total = recorded["resid_pre"] + recorded["attn_write"] + recorded["mlp_write"]
    assert_close(total, recorded["resid_post"], rtol=1e-5, atol=1e-5)
    assert_close(recorded["resid_post"][:-1], recorded["resid_pre"][1:], rtol=0, atol=0)


def test_the_pattern_is_causal_and_mixes_the_values(family, recorded):
    pattern, value = recorded["pattern"], recorded["value"]
    assert (pattern.triu(1) == 0).all()
    assert recorded.frame.softmax == (family not in SINKS,) * 2
    if family not in SINKS:
        assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
    value = value.repeat_interleave(pattern.shape[2] // value.shape[2], dim=2)
    assert_close((pattern @ value).transpose(2, 3), recorded["head_out"], rtol=1e-4, atol=1e-5)


def test_scores_give_the_pattern_or_are_refused(family, model, recorded):
    if family in NO_SCORE:
        with pytest.raises(UnsupportedModel, match="softmax of the scaled scores misses the attention weights"):
            capture(model, tokens(), ["score"])
    else:
        assert_close(recorded["score"].softmax(-1), recorded["pattern"], rtol=1e-4, atol=1e-6)


def test_heads_sum_to_what_attention_writes_or_the_projection_is_refused(family, recorded):
    frame = recorded.frame
    if family in NO_PROJECTION:
        with pytest.raises(UnsupportedModel, match="a norm or a gate stands between"):
            _ = frame.output_projection
        return
    parts = torch.einsum("lbphd,lhdm->lbpm", recorded["head_out"], frame.output_projection)
    assert_close(parts + frame.output_bias[:, None, None], recorded["attn_write"], rtol=1e-4, atol=1e-5)


def test_the_readout_of_the_last_layer_is_the_prediction(recorded):
    assert torch.equal(recorded.frame.readout(recorded["resid_post"][-1]), recorded["prediction"])


def test_attributions_sum_to_the_prediction(recorded):
    frame = recorded.frame
    parts = torch.cat([recorded["resid_pre"][:1], recorded["attn_write"], recorded["mlp_write"]])
    total = frame.attribute(parts, recorded["resid_post"][-1]).sum(0) + frame.readout_bias
    assert_close(frame.tail.capped(total), recorded["prediction"], rtol=1e-4, atol=1e-4)


def test_an_edit_of_every_pattern_reaches_the_prediction(model, recorded):
    uniform = Edit(site="pattern", fn=lambda p: torch.ones_like(p).tril() / torch.arange(1, 12)[:, None])
    edited = capture(model, tokens(), ["pattern", "head_out", "prediction"], edits=[uniform])
    assert not torch.allclose(edited["prediction"], recorded["prediction"])
    value = capture(model, tokens(), ["value"], edits=[uniform])["value"]
    mean = value[0].cumsum(2) / torch.arange(1, 12)[:, None]
    heads = edited["head_out"][0].transpose(1, 2)
    assert_close(heads, mean.repeat_interleave(heads.shape[1] // mean.shape[1], dim=1), rtol=1e-4, atol=1e-5)


def test_everything_is_restored_also_after_an_error(model):
    before = model.config._attn_implementation, set(AttentionInterface._global_mapping)
    masks, before_hooks = set(AttentionMaskInterface._global_mapping), hooks(model)

    def fail(value):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        capture(model, tokens(), edits=[Edit(site="value", fn=fail)])
    assert (model.config._attn_implementation, set(AttentionInterface._global_mapping)) == before
    assert set(AttentionMaskInterface._global_mapping) == masks
    assert hooks(model) == before_hooks


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_at_real_positions(model, recorded, side):
    x = torch.zeros(3, 14, dtype=torch.long)
    mask = torch.zeros(3, 14, dtype=torch.long)
    real = slice(3, None) if side == "left" else slice(None, 11)
    x[:, real], mask[:, real] = tokens(), 1
    x[0], mask[0] = tokens(1, 14), 1
    padded = capture(model, x, ["resid_post", "prediction"], attention_mask=mask)
    assert_close(padded["prediction"][1:, real], recorded["prediction"][1:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", OWN_ATTENTION, indirect=False)
def test_own_attention_is_refused_by_name(family):
    model = make(family)
    with pytest.raises(UnsupportedModel, match=f"{type(model).__name__} does its own attention"):
        capture(model, tokens())


@pytest.mark.parametrize(
    ("family", "parallel"),
    {
        "llama": False,
        "gpt2": False,
        "gemma2": False,
        "granite": False,
        "gpt_neox": True,
        "phi": True,
        "cohere": True,
    }.items(),
)
def test_blocks_whose_mlp_reads_beside_attention_are_told_from_the_others(family, parallel):
    model = make(family)
    with quiet(model):
        _, layers = examine(model, tokens())
    assert [layer.parallel for layer in layers] == [parallel] * 2
