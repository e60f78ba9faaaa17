"""Models as people load them: adapted by LoRA, quantised, offloaded, wrapped."""

import accelerate
import pytest
import torch
from torch import nn

import small
from mesascope import UnsupportedModel, capture
from mesascope.activations.linear_inputs import sample_linear_inputs

SITES = ["resid_pre", "attn_out", "z", "output"]
X = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(0))


class Adapted(nn.Module):
    """A map with a low-rank adapter beside it."""

    def __init__(self, base: nn.Linear, up_scale: float) -> None:
        super().__init__()
        self.base, self.down = base, nn.Linear(base.in_features, 4, bias=False)
        self.up = nn.Linear(4, base.out_features, bias=False)
        nn.init.normal_(self.up.weight, std=up_scale)

    def forward(self, x):
        return self.base(x) + 2.0 * self.up(self.down(x))


def factored(base: nn.Linear) -> nn.Sequential:
    """A map through a narrower space."""
    return nn.Sequential(nn.Linear(base.in_features, 6, bias=False), nn.Linear(6, base.out_features))


class Int8(nn.Module):
    """A map whose integers are in a buffer, as in GPTQ, AWQ and HQQ."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("kept", (linear.weight / scale).round().to(torch.int8).detach())
        self.register_buffer("scale", scale.detach())

    def forward(self, x):
        return nn.functional.linear(x, self.kept.to(x.dtype) * self.scale)


def plain_outputs(model) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and what attention writes in the first layer, by a plain hook."""
    seen = []
    handle = model.model.layers[0].self_attn.register_forward_hook(lambda module, args, out: seen.append(out[0]))
    with torch.no_grad():
        logits = model(X).logits
    handle.remove()
    return logits, seen[0]


def check_heads(model) -> None:
    logits, written = plain_outputs(model)
    acts = capture(model, X, SITES)
    assert torch.equal(acts["output"], logits)
    assert torch.equal(acts["attn_out"][0], written)
    total = acts.head_out().sum(2) + acts.readout.output_bias[:, None, None]
    assert torch.allclose(total, acts["attn_out"], atol=1e-5)


@pytest.mark.parametrize("adapt", [lambda base: Adapted(base, 0.3), lambda base: Adapted(base, 0.0), factored])
def test_an_adapted_output_projection_is_seen_through(adapt):
    model = small.llama()
    for layer in model.model.layers:
        layer.self_attn.o_proj = adapt(layer.self_attn.o_proj)
    check_heads(model)


def test_an_adapter_of_zeros_counts_once_it_is_trained(monkeypatch):
    """While it is zero, the base map alone gives the same output; the whole map is meant."""
    monkeypatch.setattr(
        "mesascope.activations.validation.fingerprint._sample_entries", lambda tensor: tensor.new_zeros(1)
    )
    model = small.llama()
    for layer in model.model.layers:
        layer.self_attn.o_proj = Adapted(layer.self_attn.o_proj, 0.0)
    check_heads(model)
    model.model.layers[0].self_attn.o_proj.up.weight.data.fill_(0.3)
    check_heads(model)


def test_quantised_maps_in_buffers():
    model = small.llama()
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, Int8(linear))
    check_heads(model)
    with pytest.raises(UnsupportedModel, match="packed matrix"):
        sample_linear_inputs(model, X)


def test_a_quantised_output_head():
    model = small.llama()
    expected = capture(model, X, ["resid_post", "output"])
    model.lm_head = Int8(model.lm_head)
    acts = capture(model, X, ["resid_post", "output"])
    assert torch.allclose(acts.readout.compute_output(acts["resid_post"][-1]), acts["output"], atol=1e-6)
    rows = acts.readout.get_unembedding_rows(torch.tensor([3]))
    assert torch.allclose(rows, expected.readout.get_unembedding_rows(torch.tensor([3])), atol=0.01)
    assert not torch.equal(rows, expected.readout.get_unembedding_rows(torch.tensor([3])))


@pytest.mark.filterwarnings("ignore")
def test_maps_that_torch_packs():
    model = torch.ao.quantization.quantize_dynamic(small.llama(), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        own = model(X, output_hidden_states=True)
    acts = capture(model, X, ["resid_pre", "z", "output"])
    assert torch.equal(acts["output"], own.logits)
    assert torch.equal(acts["resid_pre"], torch.stack(own.hidden_states[:3]))


def test_weights_in_composed_tensors():
    from torch.testing._internal.two_tensor import TwoTensor

    from mesascope.activations.validation.fingerprint import fingerprint_tensors

    inner = torch.ones(4, 4)
    composed = TwoTensor(inner, torch.ones(4, 4))
    before = fingerprint_tensors([composed])
    assert before == fingerprint_tensors([composed])
    inner.data[1, 2] = 0
    assert before != fingerprint_tensors([composed])


def test_offloaded_weights():
    plain, model = small.llama(), accelerate.cpu_offload(small.llama(), execution_device="cpu")
    assert model.device.type == "meta"
    for _ in range(2):
        acts, expected = (capture(each, X, [*SITES, "resid_post", "resid_mid"]) for each in (model, plain))
        for site in acts.sites:
            assert torch.equal(acts[site], expected[site])
    assert torch.allclose(acts.head_out(), expected.head_out(), atol=1e-6)
    final = acts["resid_post"][-1]
    assert torch.allclose(acts.readout.compute_output(final), expected.readout.compute_output(final), atol=1e-6)
    assert torch.allclose(acts.readout.final_norm.gain, expected.readout.final_norm.gain)
    assert torch.allclose(acts.readout.value_projection, expected.readout.value_projection, atol=1e-6)
    with pytest.raises(UnsupportedModel, match="offloaded"):
        sample_linear_inputs(model, X)


def test_weights_that_were_never_loaded_are_refused():
    with torch.device("meta"):
        model = small.llama()
    with pytest.raises(UnsupportedModel, match="meta device; load them"):
        capture(model, X)


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj", "model.norm", "lm_head"])
def test_one_weight_that_was_never_loaded_is_named(name):
    model = small.llama()
    model.get_submodule(name).to("meta")
    with pytest.raises(UnsupportedModel, match=rf"must have all its weights, but {name}\.weight of .*; load it"):
        capture(model, X)


class Peft(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def get_base_model(self):
        return self.base_model


class Unknown(nn.Module):
    pass


@pytest.mark.parametrize(
    ("wrap", "advice"),
    [
        (Peft, r"pass model\.get_base_model\(\)"),
        (lambda model: torch.compile(model, backend="eager"), r"pass the model inside it, model\._orig_mod"),
        (nn.DataParallel, r"pass the model inside it, model\.module"),
        (lambda model: Unknown(), r"pass mesascope\.wrap\(model\)"),
        (lambda model: "gpt2", "must be a transformers.PreTrainedModel, but got str"),
    ],
)
def test_a_wrapper_is_refused_with_what_to_pass(wrap, advice):
    with pytest.raises(UnsupportedModel, match=advice):
        capture(wrap(small.llama()), X)
