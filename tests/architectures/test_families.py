"""One capture path for every family: what must hold in all of them, on tiny random models."""

import pytest
import torch
from torch.testing import assert_close
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from cases import spread
from mesascope.activations import SITES, Edit, UnsupportedModel, capture
from mesascope.activations.capture import read_structure
from mesascope.activations.forward import eval_no_grad

from .families import FAMILIES, OWN_ATTENTION, make, tokens

NO_PROJECTION = {"gemma2", "gemma3_text", "olmo2", "olmo3", "glm4", "exaone4"}  # a norm follows the projection
NO_SCORE = {"gemma2", "gpt_oss"}  # soft-capped scores; learned sinks
SINKS = {"gpt_oss"}
EXPERTS = {"mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3"}
NO_NEURONS = NO_PROJECTION | EXPERTS  # a norm follows the map from the neurons, or there are several such maps
PARALLEL = {"gpt_neox", "phi", "cohere", "cohere2"}  # attention and MLP read the same stream


def everything(family: str) -> list[str]:
    lacking = {"attn_scores": NO_SCORE, "resid_mid": PARALLEL, "mlp_hidden": NO_NEURONS}
    return [name for name in SITES if family not in lacking.get(name, ())]


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
    assert torch.equal(recorded["output"], untouched)
    assert recorded.attn_implementation == model.config._attn_implementation


@pytest.mark.parametrize(
    "name", spread(["gemma2", "gpt2", "gpt_oss", "qwen3", "cohere2", "mistral", "granite", "opt"], 3)
)
def test_an_eager_capture_is_the_eager_pass_bit_for_bit(name, device):
    model, x = make(name).to(device), tokens().to(device)
    kernel, padding = str(model.config._attn_implementation), torch.ones_like(x)
    padding[0, -2:] = padding[1, -1] = 0
    for mask in (None, padding):
        acts = capture(model, x, everything(name), attention_mask=mask, attn_implementation="eager")
        edit = Edit(site="z", fn=torch.zeros_like, where={"layer": 1})
        edited = capture(model, x, ["pattern", "output"], attention_mask=mask, edits=edit, attn_implementation="eager")
        assert model.config._attn_implementation == kernel
        model.set_attn_implementation("eager")
        with torch.no_grad():
            eager = model(x, attention_mask=mask, use_cache=False, output_attentions=True)
        assert torch.equal(acts["output"], eager.logits)
        assert torch.equal(acts["pattern"], torch.stack([each[..., : x.shape[1]] for each in eager.attentions]))
        assert torch.equal(edited["pattern"][0], acts["pattern"][0])
        assert torch.equal(edited["output"], capture(model, x, attention_mask=mask, edits=edit)["output"])
        model.set_attn_implementation(kernel)


@pytest.mark.parametrize("name", spread(["llama", "gpt2", "gemma2", "mixtral", "opt", "gpt_neox", "gpt_oss"], 1))
def test_the_identities_hold_with_the_kernel_of_the_device(name, device):
    model = make(name).to(device)
    sites = everything(name)
    acts = capture(model, tokens(), sites)
    with torch.no_grad():
        assert torch.equal(acts["output"], model(tokens().to(device), use_cache=False).logits)
    assert torch.equal(acts["resid_post"][:-1], acts["resid_pre"][1:])
    assert_close(acts["resid_pre"] + acts["attn_out"] + acts["mlp_out"], acts["resid_post"], rtol=1e-5, atol=1e-5)
    value = acts["value"].repeat_interleave(acts["pattern"].shape[2] // acts["value"].shape[2], dim=2)
    if name not in SINKS:
        assert_close((acts["pattern"] @ value).transpose(2, 3), acts["z"], rtol=1e-4, atol=1e-5)
    assert torch.equal(acts.readout.compute_output(acts["resid_post"][-1]), acts["output"])
    eager = capture(model, tokens(), sites, attn_implementation="eager")
    for site in sites:
        assert_close(eager[site], acts[site], rtol=1e-3, atol=1e-4)


def test_writes_sum_to_the_residual_difference(recorded):
    total = recorded["resid_pre"] + recorded["attn_out"] + recorded["mlp_out"]
    assert_close(total, recorded["resid_post"], rtol=1e-5, atol=1e-5)
    assert_close(recorded["resid_post"][:-1], recorded["resid_pre"][1:], rtol=0, atol=0)


def test_neurons_are_mapped_to_the_output_of_the_mlp_or_refused(family, model, recorded):
    if family in NO_NEURONS:
        with pytest.raises(UnsupportedModel, match=r"mlp_hidden must exist in every requested layer.*experts"):
            capture(model, tokens(), ["mlp_hidden"])
        return
    with eval_no_grad(model):
        layers = read_structure(model, tokens()).layers
    for layer, neurons, written in zip(layers, recorded["mlp_hidden"], recorded["mlp_out"], strict=True):
        with torch.no_grad():
            mapped = model.get_submodule(layer.mlp_hidden.input.module)(neurons)
        assert_close(layer.mlp_out.gain * mapped, written, rtol=1e-5, atol=1e-6)
        assert neurons.shape[-1] == layer.mlp_hidden.width


def test_the_unembedding_of_the_final_norm_is_the_prediction_bit_for_bit(recorded):
    head = recorded.readout.output_head
    assert torch.equal(head.apply_softcap(head(recorded["final_norm"], 1)), recorded["output"])


def test_the_pattern_is_causal_and_mixes_the_values(family, recorded):
    pattern, value = recorded["pattern"], recorded["value"]
    assert (pattern.triu(1) == 0).all()
    assert recorded.readout.rows_sum_to_one == (family not in SINKS,) * 2
    if family not in SINKS:
        assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
    value = value.repeat_interleave(pattern.shape[2] // value.shape[2], dim=2)
    assert_close((pattern @ value).transpose(2, 3), recorded["z"], rtol=1e-4, atol=1e-5)


def test_scores_give_the_pattern_or_are_refused(family, model, recorded):
    if family in NO_SCORE:
        with pytest.raises(UnsupportedModel, match="softmax of the scaled scores differs from the attention weights"):
            capture(model, tokens(), ["attn_scores"])
    else:
        assert_close(recorded["attn_scores"].softmax(-1), recorded["pattern"], rtol=1e-4, atol=1e-6)


def test_heads_sum_to_what_attention_writes_or_the_projection_is_refused(family, recorded):
    readout = recorded.readout
    if family in NO_PROJECTION:
        with pytest.raises(UnsupportedModel, match="a norm or a gate separates"):
            _ = readout.output_projection
        return
    parts = torch.einsum("lbphd,lhdm->lbpm", recorded["z"], readout.output_projection)
    assert_close(parts + readout.output_bias[:, None, None], recorded["attn_out"], rtol=1e-4, atol=1e-5)


def test_the_readout_of_the_last_layer_is_the_prediction(recorded):
    assert torch.equal(recorded.readout.compute_output(recorded["resid_post"][-1]), recorded["output"])


def test_attributions_sum_to_the_prediction(recorded):
    readout = recorded.readout
    parts = torch.cat([recorded["resid_pre"][:1], recorded["attn_out"], recorded["mlp_out"]])
    total = readout.attribute_logits(parts, recorded["resid_post"][-1]).sum(0) + readout.readout_bias
    assert_close(readout.output_head.apply_softcap(total), recorded["output"], rtol=1e-4, atol=1e-4)


def test_an_edit_of_every_pattern_reaches_the_prediction(model, recorded):
    uniform = Edit(site="pattern", fn=lambda p: torch.ones_like(p).tril() / torch.arange(1, 12)[:, None])
    edited = capture(model, tokens(), ["pattern", "z", "output"], edits=[uniform])
    assert not torch.allclose(edited["output"], recorded["output"])
    value = capture(model, tokens(), ["value"], edits=[uniform])["value"]
    mean = value[0].cumsum(2) / torch.arange(1, 12)[:, None]
    heads = edited["z"][0].transpose(1, 2)
    assert_close(heads, mean.repeat_interleave(heads.shape[1] // mean.shape[1], dim=1), rtol=1e-4, atol=1e-5)


def registered(interface) -> set[str]:
    """The names of an interface, without ours: they are dropped later, since another thread may have read one."""
    return {name for name in interface._global_mapping if not name.startswith("mesascope")}


def test_everything_is_restored_also_after_an_error(model):
    before = model.config._attn_implementation, registered(AttentionInterface)
    masks, before_hooks = registered(AttentionMaskInterface), hooks(model)

    def fail(value):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        capture(model, tokens(), edits=[Edit(site="value", fn=fail)])
    assert (model.config._attn_implementation, registered(AttentionInterface)) == before
    assert registered(AttentionMaskInterface) == masks
    assert hooks(model) == before_hooks


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_at_real_positions(model, recorded, side):
    x = torch.zeros(3, 14, dtype=torch.long)
    mask = torch.zeros(3, 14, dtype=torch.long)
    real = slice(3, None) if side == "left" else slice(None, 11)
    x[:, real], mask[:, real] = tokens(), 1
    x[0], mask[0] = tokens(1, 14), 1
    padded = capture(model, x, ["resid_post", "output"], attention_mask=mask)
    assert_close(padded["output"][1:, real], recorded["output"][1:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", OWN_ATTENTION, indirect=False)
def test_own_attention_is_refused_by_name(family):
    model = make(family)
    with pytest.raises(UnsupportedModel, match=f"{type(model).__name__} implements its own attention"):
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
    with eval_no_grad(model):
        structure = read_structure(model, tokens())
    assert [layer.parallel for layer in structure.layers] == [parallel] * 2
