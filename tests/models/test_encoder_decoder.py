"""The encoder-decoder: what it honours and refuses, what source, target and padding change, and files."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.masking_utils import create_causal_mask

import mesascope
from mesascope.models.encoder_decoder import model as encoder_decoder_model
from mesascope.models.encoder_decoder.config import EncoderDecoderConfig
from mesascope.models.encoder_decoder.layers import SummedEmbedding
from mesascope.models.encoder_decoder.model import EncoderDecoder

SOURCE, PAD = 5, 0
SMALL: dict[str, Any] = {
    "vocab_size": 9,
    "source_length": SOURCE,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 12,
    "pad_token_id": PAD,
}
KINDS = [
    {},
    {"norm": "rms", "positions": "sinusoidal", "num_encoder_layers": 1, "num_hidden_layers": 3},
    {"norm": "none", "positions": "rotary", "intermediate_size": 0},
    {"positions": "none", "num_key_value_heads": 1, "token_parts": [[n % 4, 4 + n // 4] for n in range(9)]},
]


def build(**options) -> EncoderDecoder:
    torch.manual_seed(0)
    model = EncoderDecoder(EncoderDecoderConfig(**SMALL | options)).eval().requires_grad_(False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def some_tokens(batch: int = 3, pos: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 9, (batch, pos), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_is_causal_and_reads_all_of_the_source(kind):
    model, tokens = build(**kind), some_tokens()
    logits = model(tokens).logits
    assert not logits[:, :SOURCE].any()
    later = tokens.clone()
    later[:, 9:] = some_tokens(seed=2)[:, 9:]
    assert torch.equal(model(later).logits[:, :9], logits[:, :9])
    assert not torch.equal(model(later).logits[:, 9:], logits[:, 9:])
    for position in range(SOURCE):
        changed = tokens.clone()
        changed[:, position] = changed[:, position] % 8 + 1
        difference = (model(changed).logits - logits)[:, SOURCE:].abs().amax((1, 2))
        assert float(difference.min()) > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_padding_of_the_source_changes_nothing(kind):
    """A source with padding gives the logits of a shorter one, whatever stands in the padding."""
    model, tokens = build(**kind), some_tokens()
    tokens[:, 3:SOURCE] = PAD
    logits = model(tokens).logits[:, SOURCE:]
    short = build(**kind | {"source_length": 3})
    assert torch.allclose(short(torch.cat([tokens[:, :3], tokens[:, SOURCE:]], dim=1)).logits[:, 3:], logits, atol=1e-5)
    mask = (tokens != PAD).long()
    tokens[:, 3:SOURCE] = 7
    assert torch.equal(model(tokens, attention_mask=mask).logits[:, SOURCE:], logits)


def test_the_encoder_sees_later_positions_of_the_source():
    model, tokens = build(), some_tokens()
    streams = []
    model.encoder_layers[-1].register_forward_hook(lambda module, args, output: streams.append(output))
    model(tokens)
    tokens[:, SOURCE - 1] = tokens[:, SOURCE - 1] % 8 + 1
    model(tokens)
    assert float((streams[0] - streams[1])[:, 0].detach().abs().min()) > 0


def test_a_prefix_takes_the_place_of_embeddings():
    model, tokens = build(), some_tokens()
    own = model.embed(tokens[:1, :2])[0]
    expected = model(torch.cat([tokens[:1, :2].expand(3, -1), tokens[:, 2:]], dim=1)).logits
    tokens[:, :2] = PAD
    assert torch.allclose(model(tokens, prefix=own).logits, expected, atol=1e-6)
    prefix = own.detach().clone().requires_grad_()
    model(tokens, prefix=prefix).logits.square().sum().backward()
    assert prefix.grad is not None
    assert float(prefix.grad.abs().min()) > 0


def test_embeddings_are_sums_of_parts():
    embed = SummedEmbedding([[0], [1, 2], [2, 2]], width=3)
    vectors = embed.parts.weight
    expected = torch.stack([vectors[0], vectors[1] + vectors[2], 2 * vectors[2]])
    assert torch.allclose(embed(torch.tensor([[0, 1, 2]]))[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_files(tmp_path, kind):
    model, tokens = build(**kind), some_tokens()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, EncoderDecoder)
    assert loaded.config.token_parts == model.config.token_parts
    assert torch.equal(loaded.eval()(tokens).logits, model(tokens).logits)


def test_initialisation_is_that_of_the_seed():
    first, second = ([p.clone() for p in EncoderDecoder(EncoderDecoderConfig(**SMALL)).parameters()] for _ in range(2))
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.manual_seed(3)
    first = EncoderDecoder(EncoderDecoderConfig(**SMALL))
    torch.manual_seed(3)
    second = EncoderDecoder(EncoderDecoderConfig(**SMALL))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_capture_opens_every_kind(kind):
    model, tokens = build(**kind), some_tokens()
    tokens[0, 2:SOURCE] = PAD
    tokens[1, 10:] = PAD
    acts = mesascope.capture(model, tokens, ["pattern", "cross_attn_out", "attn_out", "resid_post", "logits"])
    assert torch.equal(acts["logits"], model(tokens).logits[:, SOURCE:])
    assert acts.encoder["pattern"].shape == (kind.get("num_encoder_layers", 2), 3, 2, SOURCE, SOURCE)
    assert not acts.encoder["pattern"][:, 0][..., 2:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": None, "d_in": 1, "d_out": 1}, "an encoder-decoder needs vocab_size"),
        ({"source_length": 13}, "source_length must be from 1 to max_position_embeddings=12, but got 13"),
        ({"num_encoder_layers": 0}, "num_encoder_layers must be at least 1, but got 0"),
        ({"pad_token_id": 9}, "pad_token_id must be a token below 9, but got 9"),
        ({"mask": "full"}, "mask must be 'causal' in an encoder-decoder, but got 'full'"),
        ({"share_layers": True}, "share_layers must be False in an encoder-decoder, but got True"),
        ({"token_parts": [[0]]}, r"token_parts must have one entry per token \(9\), but has 1"),
        ({"token_parts": [[0]] * 8 + [[]]}, "every token must have at least one part"),
        ({"token_parts": [[0]] * 9, "tie_word_embeddings": True}, "token_parts must be None with tie_word_embeddings"),
    ],
)
def test_bad_configurations_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        EncoderDecoderConfig(**SMALL | options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "an encoder-decoder needs inputs or input_ids, but got neither"),
        ({"inputs": some_tokens(pos=5)}, "must have a source of 5 and a target of 1 to 12 positions, but got 5"),
        ({"inputs": some_tokens(pos=18)}, "must have a source of 5 and a target of 1 to 12 positions, but got 18"),
        (
            {"inputs": some_tokens(), "attention_mask": torch.ones(3, 5, dtype=torch.long)},
            r"attention_mask must have the shape of the inputs, \(3, 12\), but got \(3, 5\)",
        ),
        ({"inputs": some_tokens(), "prefix": torch.ones(6, 16)}, "prefix must be at most 5 vectors"),
        ({"inputs": torch.zeros(1, 8, dtype=torch.long)}, "every source must have an input that is not padding"),
    ],
)
def test_bad_inputs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build()(**arguments)


def test_the_causal_mask_is_built_whatever_transformers_calls_its_cache(monkeypatch):
    model = build()
    expected = model(some_tokens()).logits

    def renamed(config, inputs_embeds, attention_mask, another_name, **options):
        return create_causal_mask(config, inputs_embeds, attention_mask, another_name, **options)

    monkeypatch.setattr(encoder_decoder_model, "create_causal_mask", renamed)
    assert torch.equal(model(some_tokens()).logits, expected)
