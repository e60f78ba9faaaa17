"""Text of an inspection: reading, tokenizing and decoding."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesascope.tasks.corpora import load_prose

MIN_TOKENS = 9  # minimum tokens per sequence: shorter ones leave too few earlier positions to attend to
DEFAULT_TOKENS = 512  # default number of tokens per sequence
MAX_LETTERS_PER_TOKEN = 20  # upper bound on the average number of letters per token


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedText:
    """A tokenized text.

    Attributes:
        token_ids: The tokens.
        token_text: Every token as text, in the same order.
        source: The origin of the text.
        decode_token: Decodes any token id.
    """

    token_ids: Int[Tensor, "batch pos"]
    token_text: list[list[str]]
    source: str
    decode_token: Callable[[int], str]

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
        text: The file; by default the English prose that is installed with Python.

    Returns:
        The text and a description of its origin.

    Raises:
        ValueError: If the file cannot be read, is not UTF-8, or is empty.
    """
    if text is None:
        return load_prose(), "Python's reference manual (pydoc_data.topics)"
    words = _read_utf8(text)
    if not words.strip():
        raise ValueError(f"a text must have words, but {text} is empty; use another file")
    return words, text.name


def _read_utf8(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a text must be UTF-8, but {file} is not (byte {error.start} is 0x{error.object[error.start]:02x}); "
            "convert it, with iconv for example"
        ) from error
    except OSError as error:
        raise ValueError(f"a text must be a readable file, but {file} is not: {error.strerror}") from error


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
        ValueError: If the text or the context is too short.
    """
    max_context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if tokens is not None and max_context is not None and tokens > max_context:
        raise ValueError(
            f"tokens must fit into the model's context of {max_context}, but got {tokens}; give --tokens "
            f"{max_context} or "
            "less and more --sequences"
        )
    length = tokens or min(DEFAULT_TOKENS, max_context or DEFAULT_TOKENS)
    if length < MIN_TOKENS:
        raise ValueError(f"a model must have a context of {MIN_TOKENS} tokens or more, but {name} has one of {length}")
    ids = _encode_words(tokenizer, words[: length * sequences * MAX_LETTERS_PER_TOKEN])
    if tokens is None:
        length = min(length, len(ids))
    if len(ids) < max(length, MIN_TOKENS):
        raise ValueError(
            f"the text must have {max(length, MIN_TOKENS)} tokens or more, but has {len(ids)}; use a longer text"
            + (", or fewer --tokens" if tokens and len(ids) >= MIN_TOKENS else "")
        )
    count = min(sequences, len(ids) // length)
    token_ids = ids[: count * length].view(count, length)

    def decode_token(token: int) -> str:
        return str(tokenizer.decode([token])).replace("\0", "\N{SYMBOL FOR NULL}")  # netCDF text cannot contain NUL

    return TokenizedText(
        token_ids=token_ids,
        token_text=[[decode_token(int(i)) for i in row] for row in token_ids],
        source=source,
        decode_token=decode_token,
    )


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


def _encode_words(tokenizer: PreTrainedTokenizerBase, words: str) -> Int[Tensor, " token"]:
    """Tokenize a text that may be longer than the context, which would otherwise cause a warning."""
    longest = tokenizer.model_max_length
    tokenizer.model_max_length = 10**12
    try:
        return torch.tensor(tokenizer(words)["input_ids"], dtype=torch.long)
    finally:
        tokenizer.model_max_length = longest
