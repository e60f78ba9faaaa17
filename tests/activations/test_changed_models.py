"""A model that is changed in any way between two captures: what is known of it is found anew, or the old is refused."""

import pytest
import torch
from torch import nn

import small
from mesascope import capture

SITES = ["z", "attn_out", "resid_post", "output"]
X = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """A map times a number that is neither a parameter nor a buffer, as the scale of an adapter."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.scaling = base, {"default": 1.0}
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) * self.scaling["default"] + self.offset


class GainedBlock(nn.Module):
    """An MLP whose output is multiplied outside of any module, as ReZero does, by a scalar parameter."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.alpha = base, nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) * self.alpha


def model_with_scale() -> nn.Module:
    model = small.llama()
    for layer in model.model.layers:
        layer.self_attn.o_proj = Scaled(layer.self_attn.o_proj)
    return model


def multiply_data(model):
    for layer in model.model.layers:
        layer.self_attn.o_proj.base.weight.data *= 3.0
    model.model.norm.weight.data *= 5.0


def replace_data(model):
    for layer in model.model.layers:
        layer.self_attn.o_proj.base.weight.data = layer.self_attn.o_proj.base.weight.data.flip(0)


def write_one_column(model):
    model.model.layers[1].self_attn.o_proj.base.weight.data[:, 5] = 4.0


def write_one_entry(model):
    model.model.layers[1].self_attn.o_proj.base.weight.data[3, 7] += 4.0


def write_buffer(model):
    model.model.layers[0].self_attn.o_proj.offset.data += 1.0


def change_scale(model):
    model.model.layers[0].self_attn.o_proj.scaling["default"] = 0.25


CHANGES = [multiply_data, replace_data, write_one_column, write_one_entry, write_buffer, change_scale]


def relative_miss(acts) -> float:
    bias = acts.readout.output_bias[:, None, None]
    return float((acts.head_out().sum(2) + bias - acts["attn_out"]).abs().max() / acts["attn_out"].abs().max())


@pytest.mark.parametrize("change", CHANGES)
def test_the_outputs_of_heads_are_those_of_the_present_weights(change):
    model = model_with_scale()
    before = capture(model, X, SITES)
    assert relative_miss(before) < 1e-5
    change(model)
    after = capture(model, X, SITES)
    assert not torch.equal(after["attn_out"], before["attn_out"])
    assert relative_miss(after) < 1e-5
    assert torch.equal(after["output"], model(X).logits)


def test_an_entry_that_no_fingerprint_compares_is_seen_by_a_new_capture(monkeypatch):
    monkeypatch.setattr(
        "mesascope.activations.validation.fingerprint._sample_entries", lambda tensor: tensor.new_zeros(1)
    )
    model = small.llama()
    capture(model, X, SITES).head_out()
    model.model.layers[1].self_attn.o_proj.weight.data[3, 7] += 4.0
    model.model.norm.weight.data[2] = 7.0
    model.lm_head.weight.data[4] = 1.0
    acts = capture(model, X, SITES)
    assert relative_miss(acts) < 1e-5
    assert float(acts.readout.final_norm.gain[2]) == pytest.approx(7.0, rel=1e-4)
    assert torch.equal(acts.readout.get_unembedding_rows(torch.tensor([4])), torch.ones(1, 16))
    norm = acts.readout.final_norm
    scale = norm.scale(acts["resid_post"][-1], model.model.norm(acts["resid_post"][-1]))
    total = acts.readout.attribute_logits(acts["resid_post"][-1], acts["resid_post"][-1]) + acts.readout.readout_bias
    assert torch.allclose(total, acts["output"], atol=1e-5)
    assert scale.shape == (2, 12, 1)


def test_values_and_attention_norms_are_those_of_the_present_weights(monkeypatch):
    monkeypatch.setattr(
        "mesascope.activations.validation.fingerprint._sample_entries", lambda tensor: tensor.new_zeros(1)
    )
    model = small.llama()
    first = capture(model, X, ["value", "resid_pre"]).readout
    _ = first.value_projection, first.attention_norms, first.embed_tokens(torch.tensor([1]))
    model.model.layers[1].self_attn.v_proj.weight.data[3, 7] += 4.0
    model.model.layers[1].input_layernorm.weight.data[2] = 7.0
    model.model.embed_tokens.weight.data[1] = 2.0
    acts = capture(model, X, ["value", "resid_pre"])
    normed = acts.readout.apply_attention_norm(1, acts["resid_pre"][1])
    value = torch.einsum("bpm,kmd->bkpd", normed, acts.readout.value_projection[1])
    assert torch.allclose(value, acts["value"][1], atol=1e-5)
    assert float(acts.readout.attention_norms[1].gain[2]) == pytest.approx(7.0, rel=1e-4)
    assert torch.equal(acts.readout.embed_tokens(torch.tensor([1])), torch.full((1, 16), 2.0))


def test_a_scalar_gain_that_is_written_through_data_is_fitted_anew():
    model = small.llama()
    for layer in model.model.layers:
        layer.mlp = GainedBlock(layer.mlp)
    capture(model, X, ["mlp_out"])
    for layer in model.model.layers:
        layer.mlp.alpha.data.fill_(0.5)
    acts = capture(model, X, ["resid_mid", "mlp_out", "resid_post"])
    assert torch.allclose(acts["resid_mid"] + acts["mlp_out"], acts["resid_post"], atol=1e-6)


@pytest.mark.parametrize("change", [multiply_data, replace_data, write_one_column])
def test_a_readout_of_earlier_weights_is_refused(change):
    model = model_with_scale()
    acts = capture(model, X, SITES)
    change(model)
    with pytest.raises(RuntimeError, match="capture again"):
        acts.head_out()


def test_the_output_head_of_earlier_weights_is_refused():
    model = small.llama()
    acts = capture(model, X, SITES)
    acts.readout.compute_output(acts["resid_post"][-1])
    model.lm_head.weight.data *= 2
    with pytest.raises(RuntimeError, match="capture again"):
        acts.readout.compute_output(acts["resid_post"][-1])


def test_a_capture_under_autocast_does_not_spoil_later_ones():
    model = small.llama()
    with torch.autocast("cpu", torch.bfloat16):
        assert capture(model, X, ["z", "output"])["z"].dtype == torch.bfloat16
    acts = capture(model, X, SITES)
    assert relative_miss(acts) < 1e-5
    assert torch.equal(acts["output"], model(X).logits)


def test_a_configuration_that_is_changed_is_read_anew():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "attn_implementation": "eager"}
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=20, **shape, **heads)).eval()
    capture(model, X, ["resid_post", "output"])
    model.config.final_logit_softcapping = 0.05
    acts = capture(model, X, ["resid_post", "output"])
    assert float(acts["output"].abs().max()) <= 0.05
    assert torch.allclose(acts.readout.compute_output(acts["resid_post"][-1]), acts["output"], atol=1e-6)


def test_the_first_position_id_is_found_anew():
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    }
    model = OPTForCausalLM(OPTConfig(vocab_size=20, max_position_embeddings=32, **shape)).eval()
    mask = torch.ones_like(X)
    mask[0, :4] = 0
    capture(model, X, ["output"], attention_mask=mask)
    model.model.decoder.embed_positions.offset = 0
    acts = capture(model, X, ["output"], attention_mask=mask)
    assert torch.allclose(acts["output"][0, 4:], capture(model, X[:1, 4:], ["output"])["output"][0], atol=1e-5)
