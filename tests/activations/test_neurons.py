"""The hidden activations of MLPs: identity with plain hooks, edits, and refusals where neurons have no linear map."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from mesascope import Edit, UnsupportedModel, capture, interventions, wrap
from mesascope.activations import EditHadNoEffect
from mesascope.activations.sites import get_site
from mesascope.interventions import apply_edits, attribution_patch, patch, path_patch, replace, sweep, zero
from mesascope.models.transformer import Decoder, DecoderConfig
from small import llama

TOKENS = torch.randint(20, (2, 7), generator=torch.Generator().manual_seed(0))
SHAPE = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
BOS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
GPT2 = GPT2Config(vocab_size=20, n_embd=16, n_layer=3, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0)
MODELS = {
    "llama": (llama, "model.layers.{}.mlp.down_proj"),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2), "transformer.h.{}.mlp.c_proj"),
    "opt": (
        lambda: OPTForCausalLM(OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=16, **BOS)),
        "model.decoder.layers.{}.fc2",
    ),
    "gpt_neox": (
        lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, intermediate_size=24, **BOS)),
        "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    ),
    "ours": (lambda: Decoder(DecoderConfig(**SHAPE, intermediate_size=24)), None),
}


@pytest.fixture(params=MODELS)
def model_and_paths(request):
    torch.manual_seed(0)
    build, path = MODELS[request.param]
    model = build().eval()
    if path is None:
        names = [name for name, module in model.named_modules() if getattr(module, "in_features", 0) == 24]
        return model, names
    return model, [path.format(layer) for layer in range(3)]


def test_neurons_are_what_the_last_map_reads_and_give_mlp_out(model_and_paths):
    model, paths = model_and_paths
    read, handles = [], []
    for path in paths:
        hook = lambda _, args: read.append(args[0].detach().clone().reshape(2, 7, -1))  # noqa: E731
        handles.append(model.get_submodule(path).register_forward_pre_hook(hook))
    with torch.no_grad():
        expected = model(input_ids=TOKENS).logits
    for handle in handles:
        handle.remove()
    acts = capture(model, TOKENS, ["mlp_hidden", "mlp_out", "logits"])
    assert acts["mlp_hidden"].equal(torch.stack(read))
    assert acts["logits"].equal(expected)
    assert acts.axes["mlp_hidden"] == get_site("mlp_hidden").axes
    for layer, path in enumerate(paths):
        with torch.no_grad():
            mapped = model.get_submodule(path)(acts["mlp_hidden"][layer])
        torch.testing.assert_close(mapped, acts["mlp_out"][layer])


def test_removing_a_neuron_is_removing_its_column(model_and_paths):
    model, paths = model_and_paths
    edited = capture(model, TOKENS, ["logits"], edits=[zero("mlp_hidden", {"layer": 1, "d_mlp": [3, 5]})])["logits"]
    weight = model.get_submodule(paths[1]).weight
    columns = weight.data if weight.shape[1] != 16 else weight.data.T
    assert columns.shape[0] == 16
    columns[:, [3, 5]] = 0
    torch.testing.assert_close(edited, capture(model, TOKENS, ["logits"])["logits"])


def test_neurons_replaced_by_themselves_change_no_bit(model_and_paths):
    model, _ = model_and_paths
    acts = capture(model, TOKENS, ["mlp_hidden", "mlp_out", "logits"])
    with pytest.warns(EditHadNoEffect, match="an edit of mlp_hidden at {'layer': 1} had no effect"):
        edited = capture(model, TOKENS, ["mlp_out", "logits"], edits=replace("mlp_hidden", acts, {"layer": 1}))
    assert edited["mlp_out"].equal(acts["mlp_out"])
    assert edited["logits"].equal(acts["logits"])


def test_neurons_of_another_run_give_its_mlp_out(model_and_paths):
    model, _ = model_and_paths
    other = capture(model, TOKENS.flip(1), ["mlp_hidden", "mlp_out"])
    acts = [
        capture(model, TOKENS, ["mlp_out", "logits"], edits=replace(site, other, {"layer": 1}))
        for site in ("mlp_hidden", "mlp_out")
    ]
    assert acts[0]["mlp_out"][1].equal(other["mlp_out"][1])
    assert acts[0]["logits"].equal(acts[1]["logits"])
    assert not acts[0]["logits"].equal(capture(model, TOKENS, ["logits"])["logits"])


def test_an_mlp_without_neurons_writes_its_bias(model_and_paths):
    model, paths = model_and_paths
    bias = getattr(model.get_submodule(paths[1]), "bias", None)
    bias = torch.zeros(16) if bias is None else bias.data.normal_(generator=torch.Generator().manual_seed(0))
    remove_mlp = Edit(site="mlp_out", where={"layer": 1}, fn=lambda old: bias.expand_as(old))
    acts = [
        capture(model, TOKENS, ["mlp_out", "logits"], edits=edit)
        for edit in (zero("mlp_hidden", {"layer": 1}), remove_mlp)
    ]
    assert acts[0]["mlp_out"][1].equal(bias.expand(2, 7, 16))
    assert acts[0]["logits"].equal(acts[1]["logits"])
    assert not acts[0]["logits"].equal(capture(model, TOKENS, ["logits"])["logits"])


def test_text_is_generated_without_neurons():
    model, where, options = llama(), {"layer": 1, "d_mlp": [3, 5, 7]}, {"max_new_tokens": 6, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
    prompt = TOKENS.clamp(min=1)  # without padding
    plain = model.generate(prompt, **options)
    with apply_edits(model, zero("mlp_hidden", where)):
        edited = model.generate(prompt, **options)
    model.model.layers[1].mlp.down_proj.weight.data[:, where["d_mlp"]] = 0
    expected = model.generate(prompt, **options)
    assert edited.sequences.equal(expected.sequences)
    torch.testing.assert_close(edited.logits, expected.logits)
    assert not edited.logits[0].equal(plain.logits[0])


def test_neurons_are_patched_from_another_run():
    metric, source, axes, tolerance = interventions.logit_difference(1, 2), TOKENS.flip(1), ("layer", "pos"), 1e-6
    neurons, outputs = (
        patch(llama(), TOKENS, source, metric, site, axes=axes)["value"] for site in ("mlp_hidden", "mlp_out")
    )
    torch.testing.assert_close(torch.tensor(neurons.values), torch.tensor(outputs.values), atol=tolerance, rtol=0)
    assert outputs.std() > 100 * tolerance


def test_neurons_have_no_gradient():
    with pytest.raises(ValueError, match=r"at a site with a gradient \(.*\), but is at mlp_hidden"):
        attribution_patch(llama(), TOKENS, zero("mlp_hidden"), axes=("layer", "d_mlp"))


def test_neurons_are_swept_and_patched_one_by_one():
    model = llama()
    effects = sweep(model, TOKENS, zero("mlp_hidden"), axes=("layer", "d_mlp"), metric="loss")["effect"]
    assert effects.sizes == {"layer": 3, "d_mlp": 24}
    one = capture(model, TOKENS, ["logits"], edits=[zero("mlp_hidden", {"layer": 2, "d_mlp": 7})])["logits"]
    losses = [
        torch.nn.functional.cross_entropy(each[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).item()
        for each in (one, capture(model, TOKENS, ["logits"])["logits"])
    ]
    assert float(effects.sel(layer=2, d_mlp=7)) == pytest.approx(losses[0] - losses[1], abs=1e-6)


@pytest.mark.parametrize("through", ["residual", "mlp", "all"])
def test_all_neurons_together_are_the_output_of_their_mlp(through):
    metric, source = interventions.logit_difference(1, 2), TOKENS.flip(1)
    options = {"axes": ("layer",), "where": {"layer": [0, 1]}, "through": through}
    neurons, outputs = (
        path_patch(llama(), TOKENS, source, metric, site, **options)["effect"] for site in ("mlp_hidden", "mlp_out")
    )
    torch.testing.assert_close(torch.tensor(neurons.values), torch.tensor(outputs.values), atol=1e-5, rtol=1e-4)
    assert abs(outputs).max() > 1e-3


def test_padding_is_not_edited():
    model, mask = llama(), torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    options = {"attention_mask": mask, "edits": [zero("mlp_hidden", {"layer": 0})]}
    edited = capture(model, TOKENS, ["mlp_hidden"], **options)["mlp_hidden"][0]
    assert edited[0, 3:].count_nonzero() == 0
    assert edited[0, :3].count_nonzero() > 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: MixtralForCausalLM(
                MixtralConfig(**SHAPE, intermediate_size=24, num_key_value_heads=2, num_local_experts=2)
            ),
            "experts computes the output of the MLP, but it holds gate_up_proj",
        ),
        (
            lambda: Gemma2ForCausalLM(
                Gemma2Config(**SHAPE, intermediate_size=24, num_key_value_heads=2, head_dim=4, **BOS)
            ),
            "a norm, a gate or experts follow its neurons",
        ),
        (lambda: Decoder(DecoderConfig(**SHAPE)), "the layer has no MLP"),
    ],
)
def test_layers_without_one_map_after_their_neurons_are_refused(model, message):
    torch.manual_seed(0)
    with pytest.raises(UnsupportedModel, match=f"mlp_hidden must exist in every requested layer.*{message}"):
        capture(model().eval(), TOKENS, ["mlp_hidden"])


def test_hook_names_of_transformerlens_are_recognised():
    with pytest.raises(ValueError, match="write 'mlp_hidden', and select layer 1"):
        capture(llama(), TOKENS, ["blocks.1.mlp.hook_post"])


def test_neurons_of_a_wrapped_module():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        encoder = wrap(torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
        assert capture(encoder, torch.randn(1, 5, 8), ["mlp_hidden"])["mlp_hidden"].shape == (2, 1, 5, 16)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
