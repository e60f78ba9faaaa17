"""Tokens shown are pieces of the text, sequences begin like a text of the tokenizer, steps are read by their word."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mesascope import api
from mesascope.inspection._checkpoints import parse_step
from mesascope.inspection._controls import shuffled_text
from mesascope.inspection._passes import InspectionInputs
from mesascope.inspection._text import find_text_prefix, non_special_tokens, tokenize_text
from mesascope.inspection._token_text import TokenDecoder
from small_tokenizers import METASPACE, make_bytelevel, make_sentencepiece, make_wordpiece

TEXT = "The class of objects is the type of the value \u2014 and the \u00e9tat is in the module.\n" * 4


def make_llama(tokenizer: PreTrainedTokenizerFast, rows: int = 0, **settings: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=rows or len(tokenizer), max_position_embeddings=256, **shape, **settings)
    return LlamaForCausalLM(config).eval()


def save_both(folder: Path, tokenizer: PreTrainedTokenizerFast, **settings: object) -> LlamaForCausalLM:
    model = make_llama(tokenizer, **settings)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("make", [make_sentencepiece, make_bytelevel])
def test_tokens_join_to_the_text(make):
    tokenizer = make()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    decoder = TokenDecoder(tokenizer)
    assert "".join(decoder.decode_row(ids)) == TEXT
    prefix = list(find_text_prefix(tokenizer))
    pieces = decoder.decode_row(prefix + ids)
    assert "".join(pieces[len(prefix) :]).strip() == TEXT.strip()
    assert len(pieces) == len(prefix) + len(ids)
    assert "".join(decoder.decode_row(ids[3:])) == tokenizer.decode(ids[3:], clean_up_tokenization_spaces=False)


def test_tokens_of_words_join_to_the_text():
    tokenizer = make_wordpiece()
    words = "The class of objects"
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    assert "".join(TokenDecoder(tokenizer).decode_row(ids)) == words
    assert find_text_prefix(tokenizer) == (1,)


def test_every_token_has_a_text_of_its_own():
    """Of the tokens of Llama 2, `decode([token])` gives the same text to thousands."""
    for make in (make_sentencepiece, make_bytelevel):
        tokenizer = make()
        decoder = TokenDecoder(tokenizer)
        texts = [decoder.decode_token(token) for token in range(len(tokenizer))]
        naive = [tokenizer.decode([token]) for token in range(len(tokenizer))]
        assert "" not in texts
        assert "\ufffd" not in "".join(texts)
        # the byte token of a letter and the letter are one text
        assert len(set(texts)) >= len(texts) - (100 if make is make_sentencepiece else 0)
        assert len(set(texts)) > len(set(naive))
    assert decoder.decode_token(10**6) == "<1000000>"


def test_parts_of_characters_are_escaped_at_the_end_of_a_sequence():
    tokenizer = make_bytelevel()
    ids = tokenizer("a\u2014", add_special_tokens=False)["input_ids"]
    decoder = TokenDecoder(tokenizer)
    assert decoder.decode_row(ids) == ["a", *[""] * (len(ids) - 2), "\u2014"]
    assert "".join(decoder.decode_row(ids[:-1])) == "a\\xe2\\x80"[: len("a") + 4 * 2]
    assert decoder.decode_token(ids[-1]) == "\\x94"


def test_every_sequence_begins_with_bos_and_no_eos_is_text():
    for tokenizer in (make_sentencepiece(), make_sentencepiece(eos=True)):
        model = make_llama(tokenizer)
        text = tokenize_text(TEXT, "here", tokenizer, model, "it", 12, 4)
        assert text.prefix == (1,)
        assert text.token_ids.shape == (4, 12)
        assert text.token_ids[:, 0].tolist() == [1] * 4
        assert [row[0] for row in text.token_text] == ["<s>"] * 4
        plain = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        assert text.token_ids[:, 1:].flatten().tolist() == plain[: 4 * 11]
        whole = tokenize_text("to be or not", "here", tokenizer, model, "it", None, 4)
        assert tokenizer.eos_token_id not in whole.token_ids


def test_a_tokenizer_without_bos_begins_with_the_text():
    tokenizer = make_bytelevel()
    text = tokenize_text(TEXT, "here", tokenizer, make_llama(tokenizer), "it", 12, 4)
    assert text.prefix == ()
    assert text.token_ids.flatten().tolist() == tokenizer(TEXT)["input_ids"][:48]


def test_shuffled_text_leaves_the_prefix_in_place():
    ids = torch.arange(20).view(2, 10)
    inputs = InspectionInputs(token_ids=ids, allowed_tokens=ids[0], prefix=(0, 1))
    shuffled = shuffled_text(inputs, 0)
    assert shuffled.token_ids[0, :2].tolist() == [0, 1]
    assert shuffled.token_ids[0, 2:].sort().values.tolist() == list(range(2, 10))
    assert shuffled.prefix == (0, 1)


def test_inspection_shows_pieces_and_roles_run_with_bos(tmp_path):
    tokenizer = make_sentencepiece()
    model = save_both(tmp_path / "model", tokenizer)
    with torch.no_grad():
        model.model.embed_tokens.weight[1] *= 40  # <s> stands out, as in real models
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "t.txt").write_text(TEXT * 3)
    run = api.inspect(
        str(tmp_path / "model"),
        text=tmp_path / "t.txt",
        tokens=24,
        sequences=2,
        out=tmp_path / "run",
        analyses=["norms", "repeated_token_heads", "top_tokens"],
    )
    token = run.read_results("text")["token"].values
    assert set(token[:, 0]) == {"<s>"}
    assert TEXT.startswith("".join(token[0, 1:]).strip())
    assert METASPACE not in "".join(token.ravel())
    first = float(run.read_results("norms")["first_token"].sel(layer="embedding"))
    assert first == pytest.approx(float(model.model.embed_tokens.weight[1].detach().norm()), rel=1e-4)
    top = {str(text) for text in run.read_results("top_tokens")["top_token"].values.ravel()}
    vocabulary = {TokenDecoder(tokenizer).decode_token(token) for token in range(len(tokenizer))}
    assert top <= vocabulary
    assert "" not in top


def test_repeated_tokens_follow_bos(tmp_path, monkeypatch):
    from mesascope.inspection import _passes

    seen = []
    monkeypatch.setattr(_passes, "_run_shared_capture", lambda model, ids, selected: seen.append(ids) or {})
    tokenizer = make_sentencepiece()
    model = make_llama(tokenizer)
    allowed = non_special_tokens(tokenizer, model)
    for prefix in ((), (1,)):
        inputs = InspectionInputs(token_ids=torch.ones(1, 12).long(), allowed_tokens=allowed, prefix=prefix)
        _passes._run_repeated_tokens(model, inputs, [])
    without, with_bos = seen
    assert with_bos[:, 0].tolist() == [1] * len(with_bos)
    assert torch.equal(with_bos[:, 1:], without)


def test_algorithms_are_compared_after_bos_and_symbols_are_pieces(tmp_path):
    tokenizer = make_sentencepiece()
    model = save_both(tmp_path, tokenizer)
    seen: list[torch.Tensor] = []
    embed = type(model.model.embed_tokens)
    original = embed.forward

    def watch(self, ids):
        seen.append(ids)
        return original(self, ids)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embed, "forward", watch)
        (answer,) = api.rank_algorithms(tmp_path, sequences=32)
    tokens = torch.cat([ids.flatten() for ids in seen if ids.shape[1] > 8])
    assert all((ids[:, 0] == 1).all() and not (ids[:, 1:] == 1).any() for ids in seen if ids.shape[1] > 8)
    decoder = TokenDecoder(tokenizer)
    symbols = {repr(decoder.decode_token(int(token))) for token in tokens.unique() if token != 1}
    assert set(answer.task.removeprefix("Markov chains of ").split(", ")) == symbols


def test_token_ids_without_an_embedding_are_refused():
    tokenizer = make_bytelevel()
    model = make_llama(tokenizer, rows=100)
    with pytest.raises(ValueError, match=r"must give token ids from 0 to 99, the rows of the embedding, but gives \d+"):
        tokenize_text(TEXT, "here", tokenizer, model, "it", 12, 4)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step1000-tokens4B", 1000),
        ("step550-tokens2B", 550),
        ("step-001000-2BT", 1000),
        ("stage1-step150-tokens1B", 150),
        ("checkpoint-500", 500),
        ("checkpoint-500-fp16", 500),
        ("global_step1000", 1000),
        ("step=20", 20),
        ("step10k", 10_000),
        ("1000steps", 1000),
        ("iter_0001000", 1000),
        ("epoch3-step100", 100),
        ("ckpt_v2_300", 300),
        ("epoch_2", 2),
        ("llama-7b-500", 500),
        ("main-v2-77", 77),
        ("a7", 7),
    ],
)
def test_steps_are_read_by_their_word(name, step):
    assert parse_step(name) == step


@pytest.mark.parametrize("name", ["tokens4B", "2BT", "v2", "fp16", "3_4", "step1.5k", "step1_step2", "main"])
def test_names_without_one_step_are_refused(name):
    with pytest.raises(ValueError, match="a step must have a number in its name, beside the word step"):
        parse_step(name)
