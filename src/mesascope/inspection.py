"""Opening one language model on one text, and measuring what is found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mesascope import measures
from mesascope.axes import label
from mesascope.measures import Measure, measure_all
from mesascope.models.load import load_pretrained
from mesascope.store import Run

MEASURES: dict[str, Measure] = {one.name: one for one in (measures.norms, measures.logit_lens, measures.position)}
FEWEST_TOKENS = 8


def inspect_model(
    name: str,
    *,
    text: Path | None,
    tokens: int,
    path: Path,
    chosen: Sequence[str] | None = None,
    device: str = "cpu",
) -> Run:
    """Open a causal language model on a text and write what the instruments see.

    Args:
        name: a Hub name, a folder, or a ``.gguf`` file.
        text: a UTF-8 file; the English prose that ships with Python by default.
        tokens: how many tokens of it to read, as one sequence.
        path: the run's directory.
        chosen: names of measures; all of :data:`MEASURES` by default.
        device: where to compute.

    Raises:
        ValueError: a measure, a text or a model that is not there, or a text that is too short.
    """
    instruments = _chosen(chosen)
    words, source = _read(text)
    if tokens < FEWEST_TOKENS:
        raise ValueError(f"tokens must be {FEWEST_TOKENS} or more, but got {tokens}")
    model, tokenizer = load_pretrained(name, device=device)
    ids, spelled = _tokenize(tokenizer, words, tokens, name)
    run = Run.create(path, _describe(name, source, tokens, instruments))
    with run.lock():
        for found, dataset in measure_all(model, ids.to(device), instruments).items():
            shown = label(spelled, "batch", "pos", units="text", about="the tokens of the text")
            per_token = any({"batch", "pos"} <= set(array.dims) for array in dataset.data_vars.values())
            run.write_results(found, dataset.assign(token=shown) if per_token else dataset)
        run.write_json("model", {"class": type(model).__name__, "parameters": model.num_parameters()})
    return run


def prose() -> str:
    """English prose that is on every machine with Python: its own reference manual."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[key] for key in sorted(topics))


def _chosen(names: Sequence[str] | None) -> list[Measure]:
    """The measures of these names."""
    unknown = [name for name in names or () if name not in MEASURES]
    if unknown:
        raise ValueError(f"measures must be from {', '.join(MEASURES)}, but got {', '.join(unknown)}")
    return [MEASURES[name] for name in names] if names else list(MEASURES.values())


def _read(text: Path | None) -> tuple[str, str]:
    """The words, and where they come from."""
    if text is None:
        return prose(), "Python's reference manual (pydoc_data.topics)"
    try:
        return text.read_text(encoding="utf-8"), text.name
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"a text must be a UTF-8 file that can be read, but {text} is not: {error}") from error


def _tokenize(
    tokenizer: PreTrainedTokenizerBase | None, words: str, tokens: int, name: str
) -> tuple[torch.Tensor, list[list[str]]]:
    """The first tokens of the text, as numbers and as pieces of text."""
    if tokenizer is None:
        raise ValueError(f"a model must come with its tokenizer to read text, but {name} has none")
    ids = tokenizer(words[: tokens * 20], return_tensors="pt")["input_ids"][:, :tokens]
    if ids.shape[1] < tokens:
        raise ValueError(f"the text must have {tokens} tokens, but has {ids.shape[1]}; give --tokens or a longer text")
    return ids, [[str(tokenizer.decode([int(i)])) for i in ids[0]]]


def _describe(name: str, source: str, tokens: int, instruments: Sequence[Measure]) -> dict[str, Any]:
    """What was asked for, in JSON's types."""
    return {
        "study": "inspect",
        "title": f"Inside {Path(name).name}",
        "about": "A causal language model, opened on one text.",
        "model": name,
        "text": {"source": source, "tokens": tokens},
        "parameters": {"measures": [one.name for one in instruments]},
    }
