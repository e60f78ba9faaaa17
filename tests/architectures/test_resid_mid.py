"""The residual stream between attention and MLP: the very tensor that the module before the MLP reads, or refused."""

from contextlib import ExitStack

import pytest
import torch
from torch.testing import assert_close

from mesascope.activations import Edit, LayerReduction, UnsupportedModel, capture
from mesascope.activations.structure._traced_model import TracedModel

from .families import FAMILIES, make, tokens

PARALLEL = {"gpt_neox", "phi", "cohere", "cohere2"}
OTHERS = {  # families with settings that change how attention and MLP follow each other
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
}
READERS = {  # the module that reads the stream, by family
    "gpt2": "transformer.h.{}.ln_2",
    "llama": "model.layers.{}.post_attention_layernorm",
    "gemma2": "model.layers.{}.pre_feedforward_layernorm",
    "olmo2": "model.layers.{}.mlp",
    "granite": "model.layers.{}.post_attention_layernorm",
    "opt": "model.decoder.layers.{}.final_layer_norm",
    "gpt_neox, sequential": "gpt_neox.layers.{}.post_attention_layernorm",
}


def build(name):
    family, changes = OTHERS.get(name, (name, {}))
    return make(family, **changes)


def inputs_of(model, names):
    """Return the inputs of the named modules in a run without mesascope."""
    read = []
    with ExitStack() as hooks, torch.no_grad():
        for name in names:
            module = model.get_submodule(name)
            hooks.callback(module.register_forward_pre_hook(lambda _, given: read.append(given[0].clone())).remove)
        logits = model(tokens(), use_cache=False).logits
    return torch.stack(read).view(len(names), *tokens().shape, -1), logits


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_what_the_module_before_the_mlp_reads_bit_for_bit(name, dtype):
    model = build(name).to(dtype)
    expected, logits = inputs_of(model, [READERS[name].format(layer) for layer in range(2)])
    recorded = capture(model, tokens(), ["resid_mid", "output"])
    assert torch.equal(recorded["resid_mid"], expected)
    assert torch.equal(recorded["output"], logits)


@pytest.mark.parametrize("name", [*sorted(FAMILIES.keys() - PARALLEL), "gpt_neox, sequential"])
def test_it_lies_between_the_update_of_attention_and_that_of_the_mlp(name):
    recorded = capture(build(name), tokens(), ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"])
    assert_close(recorded["resid_pre"] + recorded["attn_out"], recorded["resid_mid"], rtol=1e-5, atol=1e-5)
    assert_close(recorded["resid_mid"] + recorded["mlp_out"], recorded["resid_post"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*sorted(PARALLEL), "stablelm, parallel"])
def test_a_parallel_block_has_none(name):
    refusal = r"resid_mid must exist in every requested layer, but .* attention and MLP may run in parallel\); omit the"
    with pytest.raises(UnsupportedModel, match=refusal):
        capture(build(name), tokens(), ["resid_mid"])


def test_opt_is_sequential_though_its_mlp_reads_flat_vectors():
    traced = TracedModel(make("opt"), tokens())
    assert [traced.is_parallel(layer) for layer in range(2)] == [False, False]


def test_it_cannot_be_edited():
    with pytest.raises(ValueError, match="bypasses the module that reads resid_mid; edit attn_out or resid_post"):
        Edit(site="resid_mid", fn=torch.zeros_like)


def test_it_follows_edits_of_attention_and_is_reduced_in_either_pass():
    model, cut = make("llama"), Edit(site="attn_out", fn=torch.zeros_like)
    edited = capture(model, tokens(), ["resid_pre", "resid_mid"], edits=[cut], batch_size=2)
    assert torch.equal(edited["resid_mid"], edited["resid_pre"])
    whole = capture(model, tokens(), ["resid_mid"])["resid_mid"]
    for more in ((), ("resid_pre_grad",)):
        how = LayerReduction(
            sites=("resid_mid", *more),
            fn=lambda view: {"mid": view["resid_mid"]},
            axes={"mid": ("batch", "pos", "width")},
        )
        assert torch.equal(capture(model, tokens(), [], reduce={"mid": how})["mid"], whole)


def test_a_stream_that_is_not_the_sum_is_refused_when_it_is_recorded():
    model = make("llama")
    capture(model, tokens(), ["resid_mid"])
    mlp_norm = model.model.layers[1].post_attention_layernorm
    twice = mlp_norm.register_forward_pre_hook(lambda _, given: (2 * given[0],) if given[0].shape[1] > 8 else None)
    with (
        twice,
        pytest.raises(UnsupportedModel, match=r"resid_pre and attn_out must sum to resid_mid, but in model\.la"),
    ):
        capture(model, tokens(), ["resid_mid"])
