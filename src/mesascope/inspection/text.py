"""The text that a model is opened on: words, tokens, and what they look like."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesascope.tasks.corpora import prose

FEWEST = 9  # tokens of a sequence: with fewer there is no place to look back from
USUAL = 512  # tokens of a sequence, where nobody says how many
LETTERS = 20  # no tokenizer makes tokens of more letters than this on average


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """A text as a model reads it.

    Attributes:
        ids: the tokens.
        spelled: every token as text.
        source: where the words come from.
        spell: any token as text.
    """

    ids: Int[Tensor, "batch pos"]
    spelled: list[list[str]]
    source: str
    spell: Callable[[int], str]

    @property
    def digest(self) -> str:
        """What differs where the tokens differ."""
        return sha256(self.ids.numpy().tobytes()).hexdigest()[:16]


def check_sizes(tokens: int | None, sequences: int) -> None:
    """Refuse sizes that leave nothing to measure.

    Raises:
        ValueError: too few tokens or sequences.
    """
    if tokens is not None and tokens < FEWEST:
        raise ValueError(f"tokens must be {FEWEST} or more, but got {tokens}")
    if sequences < 1:
        raise ValueError(f"sequences must be 1 or more, but got {sequences}")


def read_words(text: Path | None) -> tuple[str, str]:
    """The words, and where they come from.

    Raises:
        ValueError: the file cannot be read, is not UTF-8, or is empty.
    """
    if text is None:
        return prose(), "Python's reference manual (pydoc_data.topics)"
    try:
        words = text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a text must be UTF-8, but {text} is not (byte {error.start} is 0x{error.object[error.start]:02x}); "
            "convert it, with iconv for example"
        ) from error
    except OSError as error:
        raise ValueError(f"a text must be a file that can be read, but {text} is not: {error.strerror}") from error
    if not words.strip():
        raise ValueError(f"a text must have words, but {text} is empty; give another file")
    return words, text.name


def tokenize(
    words: str,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    name: str,
    tokens: int | None,
    sequences: int,
) -> Text:
    """Pieces of the text, one after the other, all of one length.

    Args:
        words, source: from `read_words`.
        tokenizer: the model's own.
        model: whose context is not exceeded.
        name: of the model, for messages.
        tokens: of each sequence; 512 by default, or fewer where the text or the model's context is shorter.
        sequences: at most so many; as many as the text gives.

    Raises:
        ValueError: the text is too short or the context too small.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if tokens is not None and context is not None and tokens > context:
        raise ValueError(
            f"tokens must fit into the model's context of {context}, but got {tokens}; give --tokens {context} or "
            "less and more --sequences"
        )
    length = tokens or min(USUAL, context or USUAL)
    if length < FEWEST:
        raise ValueError(f"a model must have a context of {FEWEST} tokens or more, but {name} has one of {length}")
    ids = _ids(tokenizer, words[: length * sequences * LETTERS])
    if tokens is None:
        length = min(length, len(ids))
    if len(ids) < max(length, FEWEST):
        raise ValueError(
            f"the text must have {max(length, FEWEST)} tokens or more, but has {len(ids)}; give a longer text"
            + (", or fewer --tokens" if tokens and len(ids) >= FEWEST else "")
        )
    count = min(sequences, len(ids) // length)
    kept = ids[: count * length].view(count, length)

    def spell(token: int) -> str:
        return str(tokenizer.decode([token])).replace("\0", "\N{SYMBOL FOR NULL}")  # which no text in netCDF may hold

    return Text(ids=kept, spelled=[[spell(int(i)) for i in row] for row in kept], source=source, spell=spell)


def ordinary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> Int[Tensor, " token"]:
    """The tokens that are words or pieces of words: none that is special, none that the tokenizer does not know."""
    count = min(len(tokenizer), model.config.get_text_config().vocab_size)
    special = set(tokenizer.all_special_ids)
    return torch.tensor([token for token in range(count) if token not in special])


def _ids(tokenizer: PreTrainedTokenizerBase, words: str) -> Int[Tensor, " token"]:
    """All tokens of the words; that the text is longer than the context is no fault, for it is cut."""
    longest = tokenizer.model_max_length
    tokenizer.model_max_length = 10**12
    try:
        return torch.tensor(tokenizer(words)["input_ids"], dtype=torch.long)
    finally:
        tokenizer.model_max_length = longest
