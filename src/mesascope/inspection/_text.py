"""Text of an inspection: reading, tokenizing and decoding."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesascope.inspection._token_text import TokenDecoder
from mesascope.models.load_errors import convert_load_errors, silence_panics
from mesascope.tasks.corpora import load_prose

MIN_TOKENS = 9  # minimum tokens per sequence: shorter ones leave too few earlier positions to attend to
DEFAULT_TOKENS = 512  # default number of tokens per sequence
MAX_LETTERS_PER_TOKEN = 20  # upper bound on the average number of letters per token


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedText:
    """A tokenized text.

    Attributes:
        token_ids: The tokens.
        token_text: Every token as text, in the same order; the texts of a sequence join to its text.
        source: The origin of the text.
        decode_token: Decodes any token id.
        prefix: The tokens that the tokenizer puts before every text, such as BOS; every sequence begins with them.
    """

    token_ids: Int[Tensor, "batch pos"]
    token_text: list[list[str]]
    source: str
    decode_token: Callable[[int], str]
    prefix: tuple[int, ...] = ()

    @property
    def token_digest(self) -> str:
        """Hash of the token ids."""
        return sha256(self.token_ids.numpy().tobytes()).hexdigest()[:16]


def check_sizes(tokens: int | None, sequences: int) -> None:
    """Check that the requested sizes leave something to analyse.

    Args:
        tokens: Tokens per sequence, or None.
        sequences: Maximum number of sequences.

    Raises:
        ValueError: If there are too few tokens or sequences.
    """
    if tokens is not None and tokens < MIN_TOKENS:
        raise ValueError(f"tokens must be {MIN_TOKENS} or more, but got {tokens}")
    if sequences < 1:
        raise ValueError(f"sequences must be 1 or more, but got {sequences}")


def read_words(text: Path | None) -> tuple[str, str]:
    """Read a text file.

    Args:
        text: The file; by default a story, continued by the English prose that is installed with Python.

    Returns:
        The text and a description of its origin.

    Raises:
        ValueError: If the file cannot be read, is not UTF-8, or is empty.
    """
    if text is None:
        return load_sample_text(), "mesascope's sample text"
    words = read_utf8(text, "a text")
    if not words.strip():
        raise ValueError(f"a text must have words, but {text} is empty; use another file")
    return words, text.name


def load_sample_text() -> str:
    """Return a story of about 2,900 tokens that was written for mesascope, continued by Python's reference manual.

    The story is published nowhere else, so that language models cannot have seen it in training. Like the rest of
    mesascope, it can be used freely.
    """
    return f"{(Path(__file__).parent / 'sample_text.txt').read_text(encoding='utf-8')}\n{load_prose()}"


def read_utf8(file: Path, subject: str) -> str:
    """Read a file.

    Args:
        file: The file.
        subject: What it must be, for the messages: ``a text``.

    Returns:
        Its content.

    Raises:
        ValueError: If it cannot be read or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{subject} must be UTF-8, but {file} is not (byte {error.start} is 0x{error.object[error.start]:02x}); "
            "convert it, with iconv for example"
        ) from error
    except OSError as error:
        raise ValueError(f"{subject} must be a readable file, but {file} is not: {error.strerror}") from error


def tokenize_text(
    words: str,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    name: str,
    tokens: int | None,
    sequences: int,
) -> TokenizedText:
    """Tokenize a text and split it into consecutive sequences of equal length.

    Every sequence begins with the tokens that the tokenizer puts before a text, because the model was trained with
    them. Tokens that it puts after a text, such as EOS, are left out.

    Args:
        words: The text, from `read_words`.
        source: The origin of the text, from `read_words`.
        tokenizer: The tokenizer of the model.
        model: The model, whose context limits the length.
        name: The name of the model, for error messages.
        tokens: Tokens per sequence; 512 by default, or fewer if the text or the model's context is shorter.
        sequences: Maximum number of sequences.

    Returns:
        The tokenized text.

    Raises:
        ValueError: If the text or the context is too short, or the tokenizer does not fit the model.
    """
    length = _choose_length(model, name, tokens)
    with convert_tokenizer_errors(name):
        prefix, decoder = find_text_prefix(tokenizer), TokenDecoder(tokenizer)
        ids = _encode_text(tokenizer, words[: length * sequences * MAX_LETTERS_PER_TOKEN])
    check_token_ids([*prefix, *ids], model, name)
    if tokens is None:
        length = min(length, len(prefix) + len(ids))
    if len(prefix) + len(ids) < max(length, MIN_TOKENS):
        raise ValueError(
            f"the text must have {max(length, MIN_TOKENS)} tokens or more, but has {len(prefix) + len(ids)}; use a "
            "longer text" + (", or fewer --tokens" if tokens and len(prefix) + len(ids) >= MIN_TOKENS else "")
        )
    text_length = length - len(prefix)
    count = min(sequences, len(ids) // text_length)
    rows = [[*prefix, *ids[row * text_length : (row + 1) * text_length]] for row in range(count)]
    with convert_tokenizer_errors(name):
        token_text = [decoder.decode_row(row) for row in rows]
    return TokenizedText(
        token_ids=torch.tensor(rows, dtype=torch.long),
        token_text=token_text,
        source=source,
        decode_token=decoder.decode_token,
        prefix=prefix,
    )


def check_token_ids(ids: Sequence[int], model: PreTrainedModel, name: str) -> None:
    """Check that a model has an embedding of every token.

    Args:
        ids: Token ids.
        model: The model.
        name: Its name, for the message.

    Raises:
        ValueError: If an id is negative or too large.
    """
    count = len(model.get_input_embeddings().state_dict()["weight"])
    wrong = [token for token in ids if not 0 <= token < count]
    if wrong:
        raise ValueError(
            f"the tokenizer of {name} must give token ids from 0 to {count - 1}, the rows of the embedding, but gives "
            f"{wrong[0]}; use the tokenizer with which the model was trained"
        )


def _choose_length(model: PreTrainedModel, name: str, tokens: int | None) -> int:
    max_context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if tokens is not None and max_context is not None and tokens > max_context:
        raise ValueError(
            f"tokens must fit into the model's context of {max_context}, but got {tokens}; give --tokens "
            f"{max_context} or less and more --sequences"
        )
    length = tokens or min(DEFAULT_TOKENS, max_context or DEFAULT_TOKENS)
    if length < MIN_TOKENS:
        raise ValueError(f"a model must have a context of {MIN_TOKENS} tokens or more, but {name} has one of {length}")
    return length


def non_special_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Int[Tensor, " token"]:
    """Return the tokens that represent text: all of the vocabulary except special tokens.

    Args:
        tokenizer: The tokenizer.
        model: The model, whose vocabulary may be smaller.

    Returns:
        Token ids.
    """
    count = min(len(tokenizer), model.config.get_text_config().vocab_size)
    special = set(tokenizer.all_special_ids)
    return torch.tensor([token for token in range(count) if token not in special])


def find_text_prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that a tokenizer puts before every text, such as BOS; most tokenizers put none.

    Args:
        tokenizer: The tokenizer.
    """
    whole, plain = (list(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (True, False))
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    special_ids = set(tokenizer.all_special_ids)
    return tuple(takewhile(special_ids.__contains__, whole))


def encode_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> list[int]:
    """Return the tokens of a prompt, after the tokens that the tokenizer puts before every text.

    Tokens that it puts after a text, such as EOS, are left out.

    Args:
        prompt: the text.
        tokenizer: the tokenizer of the model.
        model: the model.
        name: its name, for error messages.

    Raises:
        ValueError: If the tokenizer fails or does not fit the model.
    """
    with convert_tokenizer_errors(name):
        ids = [*find_text_prefix(tokenizer), *_encode_text(tokenizer, prompt)]
    check_token_ids(ids, model, name)
    return ids


def _encode_text(tokenizer: PreTrainedTokenizerBase, words: str) -> list[int]:
    """Return the tokens of a text that may be longer than the context, which would otherwise cause a warning."""
    longest = tokenizer.model_max_length
    tokenizer.model_max_length = 10**12
    try:
        return list(tokenizer(words, add_special_tokens=False)["input_ids"])
    finally:
        tokenizer.model_max_length = longest


@contextmanager
def convert_tokenizer_errors(name: str) -> Iterator[None]:
    """Raise errors of a tokenizer as one line.

    Args:
        name: The name of the model.

    Yields:
        Nothing.

    Raises:
        ValueError: If the tokenizer fails.
    """
    explain = f"the tokenizer of {name} must encode and decode text, but fails: {{}}; use that of the model".format
    with convert_load_errors(explain), silence_panics():
        yield
