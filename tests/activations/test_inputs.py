"""Inputs in the forms in which tokenizers and users have them: taken as they are meant, or refused in one line."""

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

import small
from mesascope import UnsupportedModel, capture
from mesascope.activations import BatchedEdits, Edit, attention_layers, estimate_capture_bytes
from mesascope.models.transformer import Decoder, DecoderConfig
from small_tokenizers import make_bytelevel, make_sentencepiece

from .ours import VECTORS, decoder

IDS = [[3, 4, 5, 6], [0, 0, 7, 8]]
MASK = [[1, 1, 1, 1], [0, 0, 1, 1]]
TOKENS = torch.tensor(IDS)


@pytest.fixture(scope="module")
def model():
    return small.llama()


@pytest.fixture(scope="module")
def expected(model):
    return capture(model, TOKENS, ["output"], attention_mask=torch.tensor(MASK))["output"]


@pytest.mark.parametrize(
    "inputs",
    [
        BatchEncoding({"input_ids": TOKENS, "attention_mask": torch.tensor(MASK)}),
        {"input_ids": IDS, "attention_mask": MASK},
        {"input_ids": np.array(IDS), "attention_mask": np.array(MASK, dtype=bool), "token_type_ids": TOKENS * 0},
        BatchEncoding({"input_ids": IDS, "attention_mask": MASK, "special_tokens_mask": MASK}),
    ],
)
def test_the_output_of_a_tokenizer_is_taken_with_its_mask(model, expected, inputs):
    acts = capture(model, inputs, ["output"])
    assert torch.equal(acts["output"], expected)
    assert acts.attention_mask.tolist() == MASK


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor, lambda x: torch.tensor(x, dtype=torch.int32)])
@pytest.mark.parametrize("convert_mask", [list, np.array, lambda x: torch.tensor(x).bool()])
def test_lists_arrays_and_short_integers(model, expected, convert, convert_mask):
    acts = capture(model, convert(IDS), ["output"], attention_mask=convert_mask(MASK))
    assert torch.equal(acts["output"], expected)


def test_other_functions_take_them_alike(model):
    assert attention_layers(model, IDS) == [0, 1, 2]
    assert estimate_capture_bytes(model, np.array(IDS)) == estimate_capture_bytes(model, TOKENS)
    edit = Edit(site="z", where={"layer": 0}, fn=torch.zeros_like)
    assert (
        BatchedEdits(model, TOKENS.int(), "z")
        .run_edits([[edit]])
        .equal(BatchedEdits(model, IDS, "z").run_edits([[edit]]))
    )
    assert capture(model, IDS, ["output"], edits=edit)["output"].equal(
        capture(model, IDS, ["output"], edits=[edit])["output"]
    )


def test_vectors_in_double_precision_arrays():
    model = decoder(**VECTORS)
    x = np.random.default_rng(0).normal(size=(2, 5, 2))
    assert torch.equal(capture(model, x)["output"], capture(model, torch.tensor(x).float())["output"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("The class", "needs the tokenizer of the model, but got none; pass tokenizer="),
        (["The class", "name"], "needs the tokenizer of the model, but got none; pass tokenizer="),
        ([[1, 2], []], "every sequence must have tokens, but sequence 1 has none"),
        ([[1, 2], [0.5]], "must be a tensor, but got a list"),
        ({"attention_mask": MASK}, "must have input_ids, but have only attention_mask"),
        ({"input_ids": IDS, "position_ids": IDS}, "position_ids would not be read"),
        ({"input_ids": IDS, "token_type_ids": MASK}, "token_type_ids would not be read"),
        (None, "must be a tensor, but got a NoneType"),
        ([1, 2, 3], r"must be \(batch, pos\)"),
        ([[1, 2, 20]], "tokens must be from 0 to 19, but got 20"),
        ([[1, -100]], "tokens must be from 0 to 19, but got -100"),
    ],
)
def test_what_cannot_be_meant_is_refused(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        capture(model, inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sites": "resid_pre"}, r"got the text 'resid_pre'; pass \['resid_pre'\]"),
        ({"layers": 1}, "layers must be a list of integers, but got 1"),
        ({"layers": [0.5]}, "layers must be a list of integers"),
        ({"layers": [True, False]}, "got the booleans"),
        ({"queries": 2}, "queries must be a list of integers, but got 2"),
        ({"attention_mask": [[1, 1]]}, "attention_mask must be"),
        ({"attention_mask": "left"}, "attention_mask must be a tensor, but got a str"),
        ({"attention_mask": torch.tensor(MASK).float().log()}, "an additive mask is not supported"),
    ],
)
def test_arguments_that_are_no_lists(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        capture(model, TOKENS, **arguments)


def test_lists_of_unequal_length_are_padded(model):
    acts = capture(model, [[3, 4, 5], [7]], ["output", "resid_post"])
    assert acts.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    for row, tokens in enumerate(([3, 4, 5], [7])):
        alone = capture(model, [tokens], ["output"])["output"][0]
        torch.testing.assert_close(acts["output"][row, : len(tokens)], alone)


def test_text_is_tokenized_as_the_tokenizer_does():
    tokenizer = make_sentencepiece()
    model, texts = small.llama(), ["The class", "a name of a function"]
    model.resize_token_embeddings(len(tokenizer))
    rows = tokenizer(texts)["input_ids"]
    assert rows[0][0] == tokenizer.bos_token_id
    acts = capture(model, texts, ["output"], tokenizer=tokenizer)
    assert acts.inputs[0, : len(rows[0])].tolist() == rows[0]
    assert torch.equal(acts["output"], capture(model, rows, ["output"])["output"])
    one = capture(model, texts[0], ["output"], tokenizer=tokenizer)
    assert one.inputs.tolist() == rows[:1]
    with pytest.raises(ValueError, match=r"every text must have tokens, but text 1 \(''\) has none"):
        capture(model, ["a", ""], tokenizer=make_bytelevel())
    with pytest.raises(ValueError, match="tokenizer must be"):
        capture(model, "a", tokenizer="gpt2")
    with pytest.raises(ValueError, match=r"inputs must be tokens, but got text; pass a tensor of tokens"):
        attention_layers(model, texts)
    with pytest.raises(ValueError, match="given once"):
        capture(model, texts, tokenizer=tokenizer, attention_mask=MASK)


def test_a_mask_is_given_once(model):
    with pytest.raises(ValueError, match="given once"):
        capture(model, {"input_ids": IDS, "attention_mask": MASK}, attention_mask=MASK)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("blocks.1.hook_resid_pre", r"write 'resid_pre', and select layer 1 with layers=\[1\]"),
        ("blocks.0.attn.hook_q", r"write 'query', and select layer 0"),
        ("hook_mlp_out", "write 'mlp_out'$"),
        ("blocks.2.attn.hook_result", r"record 'z', and call head_out\(\)"),
        ("Patern", r"did you mean 'pattern'\?"),
        ("blocks.2.attn.hook_something", "but got 'blocks.2.attn.hook_something'$"),
    ],
)
def test_a_name_that_is_no_site_is_answered_with_one(model, name, advice):
    with pytest.raises(ValueError, match=advice):
        capture(model, TOKENS, [name])


def test_layers_and_queries_from_arrays_and_tensors(model):
    chosen = capture(model, TOKENS, ["pattern"], layers=[2, 0], queries=[1, 3])["pattern"]
    for convert in (np.array, torch.tensor, tuple):
        acts = capture(model, TOKENS, ["pattern"], layers=convert([2, 0]), queries=convert([1, 3]))
        assert acts.layers == (2, 0)
        assert torch.equal(acts["pattern"], chosen)


def test_the_model_is_still_checked_first():
    with pytest.raises(UnsupportedModel, match=r"must be a transformers\.PreTrainedModel"):
        capture(torch.nn.Linear(2, 2), "The class")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused_with_their_place(value: float):
    model = Decoder(DecoderConfig(d_in=1, d_out=1, hidden_size=8, num_attention_heads=2))
    inputs = torch.zeros(2, 6, 1)
    capture(model, inputs, ["pattern"])  # also once the model is known
    inputs[1, 4] = value
    with pytest.raises(ValueError, match="must be finite numbers, but sequence 1 has NaN or infinity at position 4"):
        capture(model, inputs, ["pattern"])


def test_a_stream_that_overflows_is_refused_while_the_model_is_traced():
    model = Decoder(DecoderConfig(d_in=1, d_out=1, hidden_size=8, num_attention_heads=2))
    with pytest.raises(UnsupportedModel, match=r"stream must be finite, but that before or after layers\.0"):
        capture(model, torch.full((2, 6, 1), 1e30), ["pattern"])
