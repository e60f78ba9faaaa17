"""What a query can see is what the mask of the model shows it: windows, later positions, and weights that underflow."""

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, MistralConfig, MistralForCausalLM

from mesascope import analyses
from mesascope.activations import LayerReduction, capture
from mesascope.analyses.inner_objectives.sublayer import Sublayer
from mesascope.models.transformer import Decoder, DecoderConfig

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def uniform_heads(model):
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    return model.eval()


def mistral():
    torch.manual_seed(0)
    return uniform_heads(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8, initializer_range=0.2)))


def gemma():
    torch.manual_seed(0)
    kinds = {"layer_types": ["sliding_attention", "full_attention"]}
    return uniform_heads(Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, **kinds, sliding_window=8)))


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(0))


def expected_uniform(window: int, length: int) -> list[float]:
    """Attention to the first position, and to the query itself, of a head that averages over a window."""
    seen = [min(query + 1, window) for query in range(2, length)]
    first = [1 / n if query < window else 0 for query, n in zip(range(2, length), seen, strict=True)]
    return [sum(first) / len(first), sum(1 / n for n in seen) / len(seen)]


@pytest.mark.parametrize("make_model", [mistral, gemma])
def test_uniform_heads_score_as_their_null_in_a_window(make_model):
    found = analyses.run_analyses(make_model(), tokens(2, 48), [analyses.positional_attention])["positional_attention"]
    assert float(abs(found.score - found.score_null).max()) < 1e-5
    for layer, window in enumerate((8, 8 if make_model is mistral else 48)):
        head = found.score.isel(layer=layer, head=0)
        assert head.sel(stat=["first", "self"]).values.tolist() == pytest.approx(expected_uniform(window, 48), rel=1e-5)
        assert head.sel(stat=["entropy", "non-uniform"]).values.tolist() == pytest.approx([1.0, 0.0], abs=1e-5)


@pytest.mark.parametrize("make_model", [mistral, gemma])
def test_roles_in_a_window(make_model):
    x = analyses.sample_repeated_tokens(torch.arange(64), 16, 4, torch.Generator().manual_seed(0))
    found = analyses.run_analyses(make_model(), x, [analyses.repeated_token_heads])["repeated_token_heads"]
    assert (found["role"] == "uniform").all()
    assert found.score.sel(stat="uniform").values.flatten().tolist() == pytest.approx([1.0] * 8, rel=1e-5)
    null = found.score_null.sel(stat=["previous token", "self"])
    expected = expected_uniform(8, 32)[1]
    assert null.isel(layer=0).values.flatten().tolist() == pytest.approx([expected] * 8, rel=1e-4)


def test_the_overlap_null_of_a_window_is_that_of_rows_of_its_width():
    x = analyses.sample_repeated_tokens(torch.arange(64), 16, 4, torch.Generator().manual_seed(0))
    found = analyses.run_analyses(gemma(), x, [analyses.repeated_token_heads])["repeated_token_heads"]
    null = found.score_null.sel(stat="uniform").isel(head=0).values
    for layer, window in enumerate((8, 32)):
        seen = [min(query + 1, window) for query in range(2, 32)]
        assert float(null[layer]) == pytest.approx(sum(1 - (1 - 1 / n) ** n for n in seen) / len(seen), rel=0.02)


def test_a_window_of_two_has_no_position_to_compare():
    torch.manual_seed(0)
    model = uniform_heads(MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=2)))
    with pytest.raises(ValueError, match="needs queries with 3 keys or more, but the captured ones see 2 at most"):
        analyses.run_analyses(model, tokens(2, 12), [analyses.positional_attention])


@pytest.mark.parametrize("mask", ["full", "multiplicative"])
def test_later_positions_that_have_weight_are_visible(mask):
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(d_in=2, d_out=2, hidden_size=16, num_attention_heads=2, mask=mask)).eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.q_proj.weight.zero_()
            layer.attention.q_proj.bias.zero_()
    x = torch.randn(2, 10, 2)
    found = analyses.run_analyses(model, x, [analyses.positional_attention])["positional_attention"]
    assert float(abs(found.score - found.score_null).max()) < 1e-5
    assert float(found.score.sel(stat="self").max()) == pytest.approx(0.1, rel=1e-5)


def test_a_visible_key_whose_weight_underflows_stays_visible():
    torch.manual_seed(0)
    model = mistral()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.copy_(1e4 * torch.randn(32, 32))
    seen = []

    def read(view):
        seen.append((view["pattern"], Sublayer(view=view, name="attention").visible_keys))
        return {}

    capture(model, tokens(2, 20), [], reduce={"any": LayerReduction(sites=("pattern",), fn=read, axes={})})
    window = torch.ones(20, 20).tril().triu(-7).bool()
    for pattern, visible in seen:
        assert torch.equal(visible, window.expand(2, -1, -1))
        assert ((pattern != 0).any(1) != visible).any()


def test_similarity_needs_all_earlier_keys():
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(d_in=2, d_out=2, hidden_size=16, num_attention_heads=2)).eval()
    acts = capture(model, torch.randn(8, 6, 2), ["attn_scores", "resid_pre"])
    acts.sites["attn_scores"][..., 5, 0] = -torch.inf
    with pytest.raises(ValueError, match="see all earlier keys"):
        analyses.similarity(acts)
