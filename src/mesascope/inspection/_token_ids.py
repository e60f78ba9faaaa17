"""Token ids in place of a text: from a file, an array, or a task; for models without a tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mesascope.argument_types import describe_value
from mesascope.inspection._text import (
    DEFAULT_TOKENS,
    MIN_TOKENS,
    TokenizedText,
    convert_tokenizer_errors,
    find_text_prefix,
    non_special_tokens,
)
from mesascope.inspection._token_text import TokenDecoder
from mesascope.studies.registry import load_study
from mesascope.tasks.base import Task

TokenIds = Int[Tensor, "*batch pos"]
TokenIdsLike = Path | str | Tensor | np.ndarray
TENSOR_NAME = "input_ids"  # of the tensor that is read from a file with several
TASK_SEED = 2**40 + 29  # of the sequences sampled from a task, different from those that studies train on
ADVICE = "save integers (batch, pos) with numpy.save, or as input_ids with safetensors"


def read_token_ids(given: TokenIdsLike) -> tuple[TokenIds, str]:
    """Return token ids and a description of their origin.

    Args:
        given: a ``.npy`` or ``.safetensors`` file, or the ids themselves: rows of tokens (batch, pos), or one long
            sequence (pos).

    Raises:
        ValueError: the file cannot be read, or does not have integers of one or two axes.
    """
    if isinstance(given, Path | str):
        return _validate_ids(_read_file(Path(given).expanduser()), str(given)), Path(given).name
    return _validate_ids(given, "the argument"), "token ids in memory"


def sample_token_ids(task: Task, sequences: int) -> tuple[TokenIds, str]:
    """Return the tokens of sequences that are sampled from a task, and a description of their origin.

    Args:
        task: the task.
        sequences: the number of sequences.

    Raises:
        ValueError: the inputs of the task are vectors.
    """
    inputs = task.sample(sequences, torch.Generator().manual_seed(TASK_SEED)).inputs
    if inputs.is_floating_point():
        raise ValueError(
            f"inspect needs a task of tokens, but the inputs of {type(task).__name__} are vectors; use run_analyses or "
            "rank_algorithms with its batches"
        )
    return inputs.long(), f"sequences of the task {type(task).__name__}"


def find_token_task(study: str) -> Task:
    """Return the task of the first condition of a study whose inputs are tokens.

    Args:
        study: the name of a study, or its file.

    Raises:
        ValueError: the inputs of all its tasks are vectors.
    """
    value = load_study(study)
    for condition in value.conditions:
        if condition.model.vocab_size is not None:
            return condition.task_at("laptop")
    raise ValueError(f"the study must have a task of tokens, but the inputs of {value.name} are vectors; give another")


def split_token_ids(
    ids: TokenIds,
    source: str,
    model: PreTrainedModel,
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    tokens: int | None,
    sequences: int,
) -> TokenizedText:
    """Return the first sequences of token ids, with the text of every token.

    Args:
        ids: rows of tokens, of which the beginnings are used; or one long sequence, which is split.
        source: the origin of the ids.
        model: the model, whose embedding and context limit them.
        name: the name of the model, for error messages.
        tokenizer: its tokenizer, which decodes the tokens; without one, tokens are shown as numbers.
        tokens: tokens per sequence; by default those of a row, or 512 of one long sequence.
        sequences: maximum number of sequences.

    Raises:
        ValueError: the sequences are too short or too long, or an id has no embedding.
    """
    length = _choose_length(ids, source, model, name, tokens)
    rows = ids[:sequences, :length] if ids.ndim == 2 else ids[: sequences * length]
    rows = rows.contiguous() if ids.ndim == 2 else rows[: len(rows) // length * length].unflatten(0, (-1, length))
    count, (low, high) = count_embeddings(model, name), (int(value) for value in torch.aminmax(rows))
    if low < 0 or high >= count:
        raise ValueError(
            f"token ids must be from 0 to {count - 1}, the rows of the embedding of {name}, but {source} has "
            f"{low if low < 0 else high}; use ids of the model's own vocabulary"
        )
    decode, prefix = _choose_decoder(tokenizer, name), _find_prefix(rows, tokenizer)
    with convert_tokenizer_errors(name):
        text = (
            [[f"{token} " for token in row] for row in rows.tolist()]
            if tokenizer is None
            else [TokenDecoder(tokenizer).decode_row(row) for row in rows.tolist()]
        )
    return TokenizedText(token_ids=rows, token_text=text, source=source, decode_token=decode, prefix=prefix)


def select_allowed_tokens(
    ids: Int[Tensor, "batch pos"], tokenizer: PreTrainedTokenizerBase | None, model: PreTrainedModel
) -> Int[Tensor, " token"]:
    """Return the tokens from which random sequences are drawn: those of text, or all that occur without a tokenizer.

    Args:
        ids: the inspected tokens.
        tokenizer: the tokenizer, if there is one.
        model: the model.
    """
    return ids.unique() if tokenizer is None else non_special_tokens(tokenizer, model)


def count_embeddings(model: PreTrainedModel, name: str) -> int:
    """Return the number of tokens that a model embeds.

    Args:
        model: the model.
        name: its name, for the message.

    Raises:
        ValueError: the model embeds no tokens.
    """
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        raise ValueError(
            f"inspect needs a model of tokens, but {name} embeds none; use run_analyses or rank_algorithms with "
            "batches of vectors"
        ) from None
    return len(embedding.state_dict()["weight"])


def _read_file(file: Path) -> Any:
    if file.suffix not in (".npy", ".safetensors"):
        raise ValueError(f"token ids must be in a .npy or .safetensors file, but got {file}; {ADVICE}")
    if not file.is_file():
        raise ValueError(f"token ids must be in a file, but {file} is none; check the path")
    try:
        if file.suffix == ".npy":
            return np.load(file, mmap_mode="r", allow_pickle=False)
        tensors = load_file(file)
    except (ValueError, OSError, EOFError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"token ids must be in a readable file, but {file} is not ({reason}); {ADVICE}") from None
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    if TENSOR_NAME not in tensors:
        raise ValueError(
            f"a file of several tensors must name that of the token ids {TENSOR_NAME}, but {file} has only "
            f"{', '.join(sorted(tensors)) or 'none'}; {ADVICE}"
        )
    return tensors[TENSOR_NAME]


def _validate_ids(ids: Any, source: str) -> TokenIds:
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind not in "iu":
            raise ValueError(f"token ids must be integers, but {source} has {ids.dtype}; {ADVICE}")
        ids = torch.from_numpy(ids.astype(np.int64))
    if not isinstance(ids, Tensor):
        raise ValueError(f"token ids must be a file, a tensor or an array, but got {describe_value(ids)}; {ADVICE}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(
            f"token ids must be integers, but {source} has {str(ids.dtype).removeprefix('torch.')}; {ADVICE}"
        )
    if ids.ndim not in (1, 2) or ids.numel() == 0:
        raise ValueError(
            f"token ids must be (batch, pos) or (pos) and not empty, but {source} has shape "
            f"{tuple(ids.shape)}; {ADVICE}"
        )
    return ids.cpu().long()


def _choose_length(ids: TokenIds, source: str, model: PreTrainedModel, name: str, tokens: int | None) -> int:
    context, available = getattr(model.config.get_text_config(), "max_position_embeddings", None), ids.shape[-1]
    default = available if ids.ndim == 2 else min(available, DEFAULT_TOKENS)
    length = tokens or min(default, context or default)
    if context is not None and length > context:
        raise ValueError(
            f"tokens must fit into the context of {name}, {context}, but got {length}; give fewer tokens per sequence"
        )
    if available < max(length, MIN_TOKENS):
        raise ValueError(
            f"a sequence must have {max(length, MIN_TOKENS)} tokens or more, but those of {source} have {available}; "
            "use longer ones" + (", or fewer tokens per sequence" if tokens and available >= MIN_TOKENS else "")
        )
    if length < MIN_TOKENS:
        raise ValueError(f"a model must have a context of {MIN_TOKENS} tokens or more, but {name} has one of {length}")
    return length


def _choose_decoder(tokenizer: PreTrainedTokenizerBase | None, name: str) -> Callable[[int], str]:
    if tokenizer is None:
        return str
    with convert_tokenizer_errors(name):
        return TokenDecoder(tokenizer).decode_token


def _find_prefix(rows: Int[Tensor, "batch pos"], tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    """Return the tokens before every text that all rows begin with; without a tokenizer, their common first token."""
    if tokenizer is not None:
        prefix = find_text_prefix(tokenizer)
        begins = prefix and len(prefix) < rows.shape[1] and (rows[:, : len(prefix)] == torch.tensor(prefix)).all()
        return prefix if begins else ()
    first = rows[:, 0].unique().tolist()
    return (first[0],) if len(rows) > 1 and len(first) == 1 else ()
