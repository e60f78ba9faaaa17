"""The decoder: what it honours and what it refuses, what it computes, and that it comes back from a file."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.masking_utils import create_causal_mask

from mesascope.models import transformer
from mesascope.models.config import DecoderConfig
from mesascope.models.layers import DecoderAttention, apply_rotary, sinusoidal_positions
from mesascope.models.load import ModelNotFound, load_checkpoint
from mesascope.models.transformer import Decoder

SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
}
VECTORS: dict[str, Any] = {"d_in": 3, "d_out": 2}
TOKENS: dict[str, Any] = {"vocab_size": 7}


def decoder(**options) -> Any:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(**SMALL | options)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def some_input(model: Any, batch: int = 2, pos: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if model.config.vocab_size is not None:
        return torch.randint(model.config.vocab_size, (batch, pos), generator=generator)
    return torch.randn(batch, pos, model.config.d_in, generator=generator)


COMBINATIONS = list(
    product(
        (VECTORS, TOKENS),
        ("softmax", "linear"),
        (
            ("none", "pre"),
            ("layer", "pre"),
            ("layer", "post"),
            ("layer", "output"),
            ("rms", "pre"),
            ("rms", "post"),
            ("rms", "output"),
        ),
        ("none", "learned", "sinusoidal", "rotary"),
        (0, 16),
        (False, True),
    )
)


def configured(combination: tuple) -> Any:
    kind, attention, (norm, place), positions, width, share = combination
    return decoder(
        **kind,
        attention=attention,
        norm=norm,
        norm_position=place,
        positions=positions,
        intermediate_size=width,
        share_layers=share,
    )


@torch.no_grad()
def test_every_combination_is_causal_and_uses_what_it_was_given() -> None:
    """A later input changes nothing before it, and something at its own place."""
    for combination in COMBINATIONS:
        model = configured(combination)
        x = some_input(model)
        changed = x.clone()
        changed[:, 4] = (x[:, 4] + 1) % 7 if x.dtype == torch.int64 else x[:, 4] + 1
        before, after = model(x).logits, model(changed).logits
        assert before.shape == (2, 6, 7 if model.config.vocab_size else 2), combination
        assert torch.equal(before[:, :4], after[:, :4]), combination
        assert (before[:, 4:] != after[:, 4:]).any(-1).all(), combination


@torch.no_grad()
def test_every_combination_comes_back_from_a_file_bit_for_bit(tmp_path: Path) -> None:
    for number, combination in enumerate(COMBINATIONS[::7]):
        model = configured(combination)
        model.save_pretrained(tmp_path / str(number))
        loaded = load_checkpoint(tmp_path / str(number))
        assert torch.equal(model(some_input(model)).logits, loaded(some_input(model)).logits), combination


@torch.no_grad()
@pytest.mark.parametrize("kind", [VECTORS, TOKENS], ids=["vectors", "tokens"])
@pytest.mark.parametrize("share", [False, True], ids=["plain", "shared"])
def test_transformers_opens_what_it_saved(kind: dict, share: bool, tmp_path: Path) -> None:
    model = decoder(**kind, share_layers=share, positions="rotary", num_key_value_heads=1)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), DecoderConfig)
    for opener in (AutoModel, AutoModelForCausalLM):
        loaded: Any = opener.from_pretrained(tmp_path)
        assert type(loaded) is Decoder
        assert torch.equal(model(some_input(model)).logits, loaded(some_input(model)).logits)


def test_shared_layers_are_one_layer_before_and_after_a_file(tmp_path: Path) -> None:
    model = decoder(**VECTORS, share_layers=True, intermediate_size=16, norm="rms", num_hidden_layers=3)
    single = decoder(**VECTORS, share_layers=True, intermediate_size=16, norm="rms", num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    loaded: Any = load_checkpoint(tmp_path)
    for one in (model, loaded):
        first, *others = (list(layer.parameters()) for layer in one.layers)
        assert all(a is b for other in others for a, b in zip(first, other, strict=True))
        assert sum(p.numel() for p in one.parameters()) == sum(p.numel() for p in single.parameters())


def test_layers_that_are_not_shared_differ() -> None:
    first, second = decoder(**VECTORS).layers
    assert not torch.equal(first.attention.q_proj.weight, second.attention.q_proj.weight)


def test_a_file_without_all_weights_is_refused(tmp_path: Path) -> None:
    decoder(**VECTORS).save_pretrained(tmp_path / "two")
    decoder(**VECTORS, num_hidden_layers=1).save_pretrained(tmp_path / "one")
    for weights, config, kind in (("one", "two", "missing"), ("two", "one", "unexpected")):
        mixed = tmp_path / f"{weights}{config}"
        mixed.mkdir()
        (mixed / "model.safetensors").write_bytes((tmp_path / weights / "model.safetensors").read_bytes())
        (mixed / "config.json").write_text((tmp_path / config / "config.json").read_text())
        with pytest.raises(
            ModelNotFound, match=rf"match the model exactly, but it has 8 {kind} keys, such as layers\.1"
        ):
            load_checkpoint(mixed)


@torch.no_grad()
def test_rotary_scores_depend_on_the_difference_of_positions_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16).double().unbind(0)

    def score(i: int, j: int) -> float:
        return (apply_rotary(q, torch.tensor([[i]])) * apply_rotary(k, torch.tensor([[j]]))).sum().item()

    assert score(7, 3) == pytest.approx(score(14, 10), abs=1e-5)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-3)
    torch.testing.assert_close(apply_rotary(q, torch.tensor([[9]])).norm(), q.norm(), rtol=1e-6, atol=0)
    assert torch.equal(apply_rotary(q, torch.tensor([[0]])), q)


@torch.no_grad()
def test_a_rotary_decoder_is_blind_to_a_shift_and_a_learned_one_is_not() -> None:
    for positions, blind in (("rotary", True), ("none", True), ("learned", False), ("sinusoidal", False)):
        model = decoder(**VECTORS, positions=positions, initializer_range=1.0)
        x, places = some_input(model), torch.arange(6)[None]
        same = torch.allclose(model(x).logits, model(x, position_ids=places + 5).logits, atol=1e-5)
        assert same == blind, positions


def test_sinusoids_turn_by_a_fixed_angle_at_each_step() -> None:
    """sin and cos of each frequency: position p + k is position p, rotated by k, whatever p is."""
    table = sinusoidal_positions(torch.arange(20)[None], 8)[0].double()
    waves = torch.complex(table[:, 4:], table[:, :4])
    torch.testing.assert_close(waves[5:] / waves[:-5], (waves[5] / waves[0]).expand(15, -1), atol=1e-5, rtol=0)
    assert table[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_attention_is_the_sum_that_it_is_said_to_be(kind: str, kv_heads: int) -> None:
    """Linear: sum_j (q_i . k_j) v_j over j <= i. Softmax: the same with normalised exponentials of scaled scores."""
    model = decoder(**VECTORS, attention=kind, num_attention_heads=4, num_key_value_heads=kv_heads)
    attention = model.layers[0].attention
    x = torch.randn(2, 5, 8)
    expected = torch.zeros(2, 5, 8)
    q, k, v = (proj(x) for proj in (attention.q_proj, attention.k_proj, attention.v_proj))
    for b, i, head in product(range(2), range(5), range(4)):
        mine, theirs = slice(2 * head, 2 * head + 2), slice(2 * (head * kv_heads // 4), 2 * (head * kv_heads // 4) + 2)
        scores = k[b, : i + 1, theirs] @ q[b, i, mine]
        weights = scores if kind == "linear" else (scores / 2**0.5).softmax(-1)
        expected[b, i, mine] = weights @ v[b, : i + 1, theirs]
    mask = torch.full((5, 5), torch.finfo(torch.float32).min).triu(1)[None, None]
    found = attention(x, mask, torch.arange(5)[None])
    torch.testing.assert_close(found, attention.o_proj(expected), atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_a_zeroed_score_stays_in_the_softmax(kv_heads: int) -> None:
    """Later keys have a score of 0, whatever they are, and their values are mixed in all the same."""
    model = decoder(**VECTORS, mask="multiplicative", num_attention_heads=4, num_key_value_heads=kv_heads)
    attention = model.layers[0].attention
    x = torch.randn(2, 5, 8)
    expected = torch.zeros(2, 5, 8)
    q, k, v = (proj(x) for proj in (attention.q_proj, attention.k_proj, attention.v_proj))
    for b, i, head in product(range(2), range(5), range(4)):
        mine, theirs = slice(2 * head, 2 * head + 2), slice(2 * (head * kv_heads // 4), 2 * (head * kv_heads // 4) + 2)
        scores = torch.zeros(5)
        scores[: i + 1] = k[b, : i + 1, theirs] @ q[b, i, mine] / 2**0.5
        expected[b, i, mine] = scores.softmax(0) @ v[b, :, theirs]
    found = attention(x, None, torch.arange(5)[None])
    torch.testing.assert_close(found, attention.o_proj(expected), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_zeroed_decoder_sees_the_future() -> None:
    model = decoder(**TOKENS, mask="multiplicative", norm="layer", norm_position="post", intermediate_size=16)
    x = some_input(model)
    changed = x.clone()
    changed[:, 4] = (x[:, 4] + 1) % 7
    before, after = model(x).logits, model(changed).logits
    assert (before != after).any(-1).all()


@torch.no_grad()
def test_padding_on_the_left_changes_nothing() -> None:
    for options in (
        {},
        {"attention": "linear"},
        {"mask": "multiplicative"},
        {"norm": "layer", "norm_position": "output"},
    ):
        model = decoder(**TOKENS, positions="learned", **options)
        x = some_input(model)
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), x], dim=1)
        mask = torch.cat([torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 6, dtype=torch.int64)], dim=1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        found = model(padded, attention_mask=mask, position_ids=places).logits[:, 3:]
        torch.testing.assert_close(found, model(x).logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_norms_stand_where_they_are_said_to_stand() -> None:
    """After a post-norm layer each position has mean 0 and variance 1, and what is added where outputs are normed; in a
    decoder without, norms change nothing.
    """
    model = decoder(**VECTORS, norm="layer", norm_position="post", intermediate_size=16)
    model.layers[0].mlp_norm.reset_parameters()
    stream = model.layers[0](torch.randn(2, 5, 8), None, torch.arange(5)[None])
    torch.testing.assert_close(stream.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(stream.var(-1, correction=0), torch.ones(2, 5), atol=1e-3, rtol=0)
    model = decoder(**VECTORS, norm="layer", norm_position="output", intermediate_size=16)
    x, block = torch.randn(2, 5, 8), model.layers[0]
    for norm in (block.attention_norm, block.mlp_norm):
        norm.reset_parameters()
    first = torch.nn.functional.layer_norm(block.attention(x, None, torch.arange(5)[None]), (8,)) + x
    second = torch.nn.functional.layer_norm(block.mlp(first), (8,)) + first
    torch.testing.assert_close(block(x, None, torch.arange(5)[None]), second)
    assert isinstance(model.final_norm, torch.nn.Identity)
    assert not [name for name, _ in decoder(**VECTORS).named_parameters() if "norm" in name]
    assert isinstance(model.layers[0].attention, DecoderAttention)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs either vocab_size .* or both d_in and d_out"),
        (VECTORS | TOKENS, "needs either vocab_size .* or both d_in and d_out"),
        ({"d_in": 1}, "needs either vocab_size .* or both d_in and d_out"),
        (TOKENS | {"d_in": 1}, "needs either vocab_size .* or both d_in and d_out"),
        (VECTORS | {"num_hidden_layers": 0}, "num_hidden_layers must be at least 1, but got 0"),
        (VECTORS | {"hidden_size": 9}, "hidden_size must be a multiple of num_attention_heads, but got 9 and 2"),
        (VECTORS | {"num_attention_heads": 4, "num_key_value_heads": 3}, "a multiple of num_key_value_heads"),
        (VECTORS | {"norm_position": "post"}, "norm_position='post' needs a norm"),
        (VECTORS | {"norm_position": "output"}, "norm_position='output' needs a norm"),
        (VECTORS | {"norm": "rms", "norm_position": "both"}, "norm_position must be one of pre, post, output, but got"),
        (
            VECTORS | {"mask": "future"},
            "mask must be one of causal, full, context_only, multiplicative, but got 'future'",
        ),
        (
            VECTORS | {"mask": "multiplicative", "attention": "linear"},
            "mask='multiplicative' needs softmax attention",
        ),
        (VECTORS | {"hidden_size": 6, "positions": "rotary"}, "rotary positions need an even head width"),
        (VECTORS | {"hidden_size": 7, "num_attention_heads": 1, "positions": "sinusoidal"}, "an even hidden_size"),
        (VECTORS | {"tie_word_embeddings": True}, "tie_word_embeddings needs tokens"),
        (VECTORS | {"intermediate_size": -1}, "intermediate_size must be at least 0, but got -1"),
        (VECTORS | {"attention": "flash"}, "attention must be one of softmax, linear, but got 'flash'"),
        (VECTORS | {"norm": "batch"}, "norm must be one of none, layer, rms, but got 'batch'"),
        (VECTORS | {"positions": "alibi"}, "positions must be one of none, learned, sinusoidal, rotary"),
        (VECTORS | {"activation": "swish"}, "activation must be one of gelu, relu, silu, tanh"),
    ],
)
def test_what_cannot_be_honoured_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**SMALL | options)


def test_no_input_and_too_long_a_sequence_are_refused() -> None:
    model = decoder(**VECTORS)
    with pytest.raises(ValueError, match="needs inputs or input_ids, but got neither"):
        model()
    with pytest.raises(ValueError, match="at most 12 positions, but got 13"):
        model(torch.zeros(1, 13, 3))


def test_sdpa_is_refused() -> None:
    with pytest.raises(ValueError, match="Decoder does not support an attention implementation through"):
        Decoder._from_config(DecoderConfig(**SMALL | VECTORS), attn_implementation="sdpa")


@pytest.mark.parametrize("width", [0, 64])
def test_maps_that_write_to_the_stream_start_as_small_as_the_configuration_says(width):
    usual, small = (
        decoder(**VECTORS, hidden_size=64, intermediate_size=width, residual_init_scale=each) for each in (1.0, 0.1)
    )
    for (name, one), other in zip(usual.named_parameters(), small.parameters(), strict=True):
        if name.endswith("bias"):
            continue
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        assert torch.allclose(other, one * (0.1 if writes else 1.0)), name


def test_the_causal_mask_is_built_whatever_transformers_calls_its_cache(monkeypatch):
    model = decoder(**TOKENS)
    expected = model(some_input(model)).logits

    def renamed(config, inputs_embeds, attention_mask, another_name, **options):
        return create_causal_mask(config, inputs_embeds, attention_mask, another_name, **options)

    monkeypatch.setattr(transformer, "create_causal_mask", renamed)
    assert torch.equal(model(some_input(model)).logits, expected)
