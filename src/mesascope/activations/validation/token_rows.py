"""Tokens from text, and from lists of unequal length."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, TypeGuard

import torch
from jaxtyping import Int
from torch import Tensor

PADDING_TOKEN = 0  # never read: it is masked
PaddedTokens = dict[str, Int[Tensor, "batch pos"]]


def is_text(inputs: Any) -> TypeGuard[str | Sequence[str]]:
    """Return whether inputs are a text or a sequence of texts.

    Args:
        inputs: any inputs.
    """
    return isinstance(inputs, str) or (
        isinstance(inputs, list | tuple) and bool(inputs) and all(isinstance(one, str) for one in inputs)
    )


def is_ragged(inputs: Any) -> TypeGuard[Sequence[Sequence[int]]]:
    """Return whether inputs are lists of tokens of unequal length.

    Args:
        inputs: any inputs.
    """
    if not isinstance(inputs, list | tuple) or not all(isinstance(row, list | tuple) for row in inputs):
        return False
    integers = all(isinstance(token, Integral) for row in inputs for token in row)
    return integers and len({len(row) for row in inputs}) > 1


def tokenize_texts(texts: str | Sequence[str], tokenizer: Any) -> PaddedTokens:
    """Return the tokens of texts, as the tokenizer begins and ends a text, padded on the right.

    Args:
        texts: a text, or several.
        tokenizer: the tokenizer of the model.

    Returns:
        ``input_ids`` and ``attention_mask``.

    Raises:
        ValueError: there is no tokenizer, or a text has no tokens.
    """
    if tokenizer is None:
        raise ValueError(
            "inputs are text, which needs the tokenizer of the model, but got none; pass tokenizer=... or a tensor of "
            "tokens"
        )
    if not callable(tokenizer):
        raise ValueError(f"tokenizer must be a tokenizer of transformers, but got a {type(tokenizer).__name__}")
    texts = [texts] if isinstance(texts, str) else list(texts)
    encoded = tokenizer(texts, padding=False, truncation=False)
    if not isinstance(encoded, Mapping) or "input_ids" not in encoded:
        raise ValueError(
            f"tokenizer must return input_ids, but {type(tokenizer).__name__} returned a {type(encoded).__name__}"
        )
    rows = [list(row) for row in encoded["input_ids"]]
    empty = next((number for number, row in enumerate(rows) if not row), None)
    if empty is not None:
        raise ValueError(f"every text must have tokens, but text {empty} ({texts[empty]!r}) has none; omit it")
    return pad_rows(rows)


def pad_rows(rows: Sequence[Sequence[int]]) -> PaddedTokens:
    """Return lists of tokens as one tensor, padded on the right.

    Args:
        rows: the tokens of every sequence.

    Returns:
        ``input_ids`` and ``attention_mask``.

    Raises:
        ValueError: a sequence has no tokens.

    >>> pad_rows([[5, 6], [7]])["attention_mask"].tolist()
    [[1, 1], [1, 0]]
    """
    lengths = [len(row) for row in rows]
    if 0 in lengths:
        raise ValueError(f"every sequence must have tokens, but sequence {lengths.index(0)} has none; omit it")
    width = max(lengths)
    tokens = [[*row, *(width - len(row)) * [PADDING_TOKEN]] for row in rows]
    mask = [[1] * length + [0] * (width - length) for length in lengths]
    return {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
