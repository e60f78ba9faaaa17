"""Files of prompt pairs: one JSON object per line, checked before the model runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesascope.inspection._text import check_token_ids, convert_tokenizer_errors, find_text_prefix, read_utf8

KEYS = ("clean", "counterfactual", "answer", "wrong_answer")
MIN_PAIRS = 4  # two to find a circuit, whose bootstrap needs two, and two to test it
EXAMPLE = '{"clean": "A B A", "counterfactual": "A C A", "answer": " B", "wrong_answer": " C"}'


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """Two prompts, and two possible next tokens.

    Attributes:
        line: the number of its line in the file, counted from 1.
        clean: a prompt that shows the behaviour.
        counterfactual: a prompt of the same number of tokens without it; ``None`` where a file has none.
        answer: text of the token that continues the clean prompt.
        wrong_answer: text of a token that does not.
    """

    line: int
    clean: str
    counterfactual: str | None = None
    answer: str
    wrong_answer: str


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedPairs:
    """Pairs of prompts as tokens; shorter ones are padded on the right.

    Attributes:
        clean: tokens of the clean prompts.
        counterfactual: tokens of the counterfactual prompts; ``None`` where a file has none.
        mask: 1 where a token is not padding.
        answer: the token that continues each clean prompt.
        wrong_answer: the token that does not.
    """

    clean: Int[Tensor, "batch pos"]
    counterfactual: Int[Tensor, "batch pos"] | None
    mask: Int[Tensor, "batch pos"]
    answer: Int[Tensor, " batch"]
    wrong_answer: Int[Tensor, " batch"]


def read_pairs(file: Path, *, needs_counterfactual: bool = True) -> list[PromptPair]:
    """Read a file of prompt pairs.

    Args:
        file: JSON lines with the keys ``clean``, ``counterfactual``, ``answer`` and ``wrong_answer``; blank lines are
            skipped.
        needs_counterfactual: whether lines must have the key ``counterfactual``; otherwise, all or none must.

    Returns:
        The pairs.

    Raises:
        ValueError: If the file cannot be read, a line is no such object, or there are fewer than four pairs; the
            message names the line.
    """
    lines = read_utf8(file, "pairs").split("\n")
    pairs = [
        _parse_line(text, f"line {number} of {file}", number, needs_counterfactual)
        for number, text in enumerate(lines, 1)
        if text.strip()
    ]
    if len(pairs) < MIN_PAIRS:
        raise ValueError(
            f"a circuit needs {MIN_PAIRS} pairs or more, half to find it and half to test it, but {file} has "
            f"{len(pairs)}; add lines such as {EXAMPLE}"
        )
    lacking = [pair.line for pair in pairs if pair.counterfactual is None]
    if 0 < len(lacking) < len(pairs):
        raise ValueError(
            f"counterfactual must be in all lines of {file} or in none, but line {lacking[0]} has none; add it"
        )
    return pairs


def _parse_line(text: str, where: str, number: int, needs_counterfactual: bool) -> PromptPair:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} must be a JSON object, but cannot be read ({error}); write {EXAMPLE}") from error
    optional = set() if needs_counterfactual else {"counterfactual"}
    if not isinstance(value, dict) or not set(KEYS) - optional <= set(value) <= set(KEYS):
        given = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        lacks_one = isinstance(value, dict) and set(KEYS) - set(value) == {"counterfactual"}
        advice = ", or ablate by mean or resample" if lacks_one else ""
        raise ValueError(
            f"{where} must have the keys {', '.join(KEYS)}, but got {given or 'none'}; write {EXAMPLE}{advice}"
        )
    wrong = next((key for key in value if not isinstance(value[key], str) or not value[key]), None)
    if wrong is not None:
        raise ValueError(f"{wrong} in {where} must be text that is not empty, but got {value[wrong]!r}")
    return PromptPair(line=number, **value)


def tokenize_pairs(
    pairs: Sequence[PromptPair], file: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str
) -> TokenizedPairs:
    """Tokenize pairs; every prompt begins with the tokens that the tokenizer puts before a text.

    Args:
        pairs: the pairs.
        file: their file, for messages.
        tokenizer: the tokenizer of the model.
        model: the model, whose context limits the length.
        name: its name, for messages.

    Returns:
        The tokens.

    Raises:
        ValueError: If the two prompts of a pair differ in length or are the same, a prompt is longer than the context,
            or an answer is no single token or both are the same; the message names the line.
    """
    with convert_tokenizer_errors(name):
        prefix = list(find_text_prefix(tokenizer))
        rows = [_tokenize_pair(pair, file, tokenizer, prefix) for pair in pairs]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for pair, (clean, counterfactual, answer, wrong_answer) in zip(pairs, rows, strict=True):
        check_token_ids([*clean, *(counterfactual or []), answer, wrong_answer], model, name)
        if context is not None and len(clean) > context:
            raise ValueError(
                f"prompts must fit into the model's context of {context} tokens, but those in line {pair.line} of "
                f"{file} have {len(clean)}; shorten them"
            )
    length = max(len(clean) for clean, _, _, _ in rows)
    answers = [torch.tensor([row[index] for row in rows]) for index in (2, 3)]
    others = [counterfactual for _, counterfactual, _, _ in rows if counterfactual is not None]
    return TokenizedPairs(
        clean=_pad([clean for clean, _, _, _ in rows], length),
        counterfactual=_pad(others, length) if others else None,
        mask=_pad([[1] * len(clean) for clean, _, _, _ in rows], length),
        answer=answers[0],
        wrong_answer=answers[1],
    )


def _pad(rows: Sequence[Sequence[int]], length: int) -> Int[Tensor, "batch pos"]:
    """Return rows of numbers, with zeros after the shorter ones."""
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])


def _tokenize_pair(
    pair: PromptPair, file: Path, tokenizer: PreTrainedTokenizerBase, prefix: list[int]
) -> tuple[list[int], list[int] | None, int, int]:
    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    where = f"line {pair.line} of {file}"
    clean = encode(pair.clean)
    counterfactual = None if pair.counterfactual is None else encode(pair.counterfactual)
    if counterfactual is not None and len(clean) != len(counterfactual):
        raise ValueError(
            f"both prompts must have as many tokens, but those in {where} have {len(clean)} and {len(counterfactual)}; "
            "use words of as many tokens"
        )
    if clean == counterfactual:
        raise ValueError(f"the two prompts must differ, but those in {where} are the same tokens")
    tokens = []
    for key in ("answer", "wrong_answer"):
        text = getattr(pair, key)
        continued = encode(pair.clean + text)
        if continued[: len(clean)] != clean or len(continued) != len(clean) + 1:
            raise ValueError(
                f"{key} must be one token after the clean prompt, but {text!r} in {where} is not; it may lack a space "
                "before it, or be a longer word"
            )
        tokens.append(continued[-1])
    if tokens[0] == tokens[1]:
        raise ValueError(f"answer and wrong_answer must differ, but those in {where} are the same token")
    other = None if counterfactual is None else [*prefix, *counterfactual]
    return [*prefix, *clean], other, tokens[0], tokens[1]
