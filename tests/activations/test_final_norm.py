"""The output of the final norm: what the unembedding reads, bit for bit, or a refusal that says why there is none."""

import pytest
import torch
from torch import nn
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

import small
from mesascope import UnsupportedModel, capture
from mesascope.activations import LayerReduction, Reduction
from mesascope.interventions import zero
from recurrent_models import recurrent, some_tokens

TOKENS = torch.randint(1, 20, (3, 7), generator=torch.Generator().manual_seed(0))
SHAPE = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
BOS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=3, n_head=4, n_positions=16, **BOS))


def gemma2():
    config = Gemma2Config(**SHAPE, num_key_value_heads=2, head_dim=4, final_logit_softcapping=0.5, **BOS)
    return Gemma2ForCausalLM(config)


def cohere():
    return CohereForCausalLM(CohereConfig(**SHAPE, num_key_value_heads=2, logit_scale=0.25, **BOS))


MODELS = {
    "llama": (small.llama, lambda model: model.model.norm),
    "gpt2": (gpt2, lambda model: model.transformer.ln_f),
    "gemma2, soft cap": (gemma2, lambda model: model.model.norm),
    "cohere, scale": (cohere, lambda model: model.model.norm),
    "recurrent": (lambda: recurrent("UT without halting"), lambda model: model.final_norm),
    "halting": (lambda: recurrent("UT"), lambda model: model.final_norm),
}


@pytest.fixture(params=MODELS)
def model_and_norm(request):
    torch.manual_seed(0)
    build, find = MODELS[request.param]
    model = build().eval()
    return model, find(model)


def tokens_of(model: nn.Module) -> torch.Tensor:
    return some_tokens() if hasattr(model.config, "max_iterations") else TOKENS


def test_the_unembedding_of_the_final_norm_is_the_logits_bit_for_bit(model_and_norm):
    model, norm = model_and_norm
    tokens, written = tokens_of(model), []
    handle = norm.register_forward_hook(lambda module, args, output: written.append(output.clone()))
    with torch.no_grad():
        expected = model(tokens).logits
    handle.remove()
    acts = capture(model, tokens, ["final_norm", "logits"])
    assert acts["final_norm"].equal(written[0])
    assert acts["logits"].equal(expected)
    head = acts.readout.output_head
    assert head.apply_softcap(head(acts["final_norm"], 1)).equal(expected)
    assert acts.to_xarray("final_norm").dims == ("batch", "pos", "d_model")


def test_a_model_without_scale_or_cap_has_the_logits_of_its_unembedding():
    for model in (small.llama(), gpt2().eval()):
        acts = capture(model, TOKENS, ["final_norm", "logits"])
        assert model.lm_head(acts["final_norm"]).equal(acts["logits"])


def test_micro_batches_reductions_and_gradients_see_the_final_norm():
    model = small.llama()
    whole = capture(model, TOKENS, ["final_norm"])["final_norm"]
    norms = {"norms": Reduction(site="final_norm", fn=lambda x: x.norm(dim=-1), axes=("batch", "pos"))}
    acts = capture(model, TOKENS, ["final_norm", "resid_pre_grad"], batch_size=2, reduce=norms, layers=[1])
    torch.testing.assert_close(acts["final_norm"], whole)
    torch.testing.assert_close(acts["norms"], whole.norm(dim=-1))
    with pytest.raises(ValueError, match="sites of a layer reduction must have layers, but final_norm has none"):
        LayerReduction(sites=("final_norm",), fn=dict, axes={"norms": ("batch", "pos")})


def test_edits_of_layers_reach_the_final_norm_but_none_edits_it():
    model, edit = small.llama(), zero("mlp_out", {"layer": 2})
    acts = capture(model, TOKENS, ["final_norm", "logits"], edits=edit)
    assert model.lm_head(acts["final_norm"]).equal(acts["logits"])
    assert not acts["final_norm"].equal(capture(model, TOKENS, ["final_norm"])["final_norm"])
    with pytest.raises(ValueError, match="must act in a layer, but final_norm is after the last one; edit resid_post"):
        zero("final_norm")


def test_a_norm_that_is_called_again_is_refused():
    class Twice(type(gpt2())):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            self.transformer.ln_f(torch.zeros(1, 1, 16))
            return output

    torch.manual_seed(0)
    model = Twice(gpt2().config).eval()
    message = r"must be called once in a forward pass, for every position, but was called for \[\(3, 7\), \(1, 1\)\]"
    with pytest.raises(UnsupportedModel, match=message):
        capture(model, TOKENS, ["final_norm"])


def test_the_stream_before_layer_0_is_the_sum_of_the_embeddings():
    model = gpt2().eval()
    embedded = model.transformer.wte(TOKENS) + model.transformer.wpe(torch.arange(7))
    assert capture(model, TOKENS, ["resid_pre"], layers=[0])["resid_pre"][0].equal(embedded)
    model = small.llama()
    assert capture(model, TOKENS, ["resid_pre"], layers=[0])["resid_pre"][0].equal(model.model.embed_tokens(TOKENS))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("ln_final.hook_normalized", "write 'final_norm'$"),
        ("hook_embed", r"write 'resid_pre', and select layer 0 with layers=\[0\], which is the sum of all embeddings"),
        ("hook_pos_embed", r"write 'resid_pre', and select layer 0 with layers=\[0\]"),
        ("blocks.3.mlp.hook_post", r"write 'mlp_hidden', and select layer 3 with layers=\[3\]"),
        ("blocks.3.mlp.hook_pre", "write 'mlp_hidden', which has the neurons after the activation function"),
        ("final_nrom", r"did you mean 'final_norm'\?"),
        ("mlp_hiden", r"did you mean 'mlp_hidden'\?"),
    ],
)
def test_names_of_other_tools_are_answered_with_a_site(name, advice):
    with pytest.raises(ValueError, match=advice):
        capture(small.llama(), TOKENS, [name])
