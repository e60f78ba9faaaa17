"""Text corpora: reading documents from Python's manual, files or the Hub, and storing them in a folder."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from mesascope.checksums import hash_bytes, read_record, seal_record
from mesascope.tasks._text.documents import (
    HUB as HUB,
)
from mesascope.tasks._text.documents import (
    PROSE as PROSE,
)
from mesascope.tasks._text.documents import (
    HubUnreachable,
    describe_source,
    first_error_line,
    read_documents,
    read_manual,
)
from mesascope.tasks._text.documents import (
    silence_hub_logs as silence_hub_logs,
)

_RESTORE_HINT = "restore it, or delete the folder to prepare the text again"
_CORPUS_FILE, _TOKENIZER_FILE, _SOURCE_FILE = "corpus.jsonl", "tokenizer.json", "source.json"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents and their source.

    Attributes:
        documents: distinct documents, without surrounding white space.
        source: the source that was read, as the caller named it.
        requested_source: the requested source, if it could not be read and a fallback was used.
        failure_reason: the reason it could not be read, in one line.
    """

    documents: tuple[str, ...]
    source: str
    requested_source: str | None = None
    failure_reason: str | None = None

    @property
    def source_description(self) -> str:
        """A description of the source."""
        return describe_source(self.source)

    @property
    def fallback_notice(self) -> str | None:
        """A one-line notice for users if a fallback source was used, else ``None``."""
        if self.requested_source is None:
            return None
        return (
            f"{describe_source(self.requested_source)} could not be read: {self.failure_reason}; using "
            f"{self.source_description} instead"
        )


def load_prose() -> str:
    """Return Python's reference manual, English prose that every Python installation contains."""
    return "\n\n".join(read_manual())


def load_corpus(source: str, max_characters: int, fallback: str | None = None) -> Corpus:
    """Load the documents of a source.

    Args:
        source: ``"prose"``, one document per topic of Python's manual; a UTF-8 file, split at paragraph ends into
            pieces of at least 2,000 characters (a short one into smaller pieces); a folder, one document per .txt file
            below it; or ``"hub:NAME"`` or ``"hub:NAME:CONFIG"``, a Hub dataset with a "text" column, one document per
            article for Wikitext and per row otherwise.
        max_characters: maximum number of characters; the last document is truncated.
        fallback: fallback source if a Hub dataset cannot be read.

    Returns:
        The documents.

    Raises:
        ValueError: the source cannot be read, or is empty.
    """
    try:
        documents = _limit_characters(max_characters, read_documents(source, max_characters))
    except HubUnreachable as error:
        return _load_fallback(source, max_characters, fallback, error)
    if not documents:
        raise ValueError(f"a text must not be empty, but {describe_source(source)} is; give another source")
    return Corpus(documents=documents, source=source)


def _load_fallback(source: str, max_characters: int, fallback: str | None, error: HubUnreachable) -> Corpus:
    if fallback is None:
        raise ValueError(
            f"{describe_source(source)} must be reachable, but could not be read: {error}; check the name and the "
            f'network, or give a fallback source, such as fallback="{PROSE}"'
        ) from error
    return replace(load_corpus(fallback, max_characters), requested_source=source, failure_reason=str(error))


def save_corpus(folder: Path, corpus: Corpus, tokenizer: str, recipe: Mapping[str, object]) -> None:
    """Save a corpus and its tokenizer to a folder.

    Args:
        folder: destination, created if necessary.
        corpus: the documents.
        tokenizer: the tokenizer as JSON.
        recipe: the settings that produced both; `load_saved_corpus` checks them.

    Raises:
        ValueError: the folder is not writable.
    """
    lines = _to_json_lines(corpus)
    texts = {_CORPUS_FILE: lines, _TOKENIZER_FILE: tokenizer}
    source = _describe_corpus(corpus) | {"recipe": dict(recipe), "digest": _hash_texts(lines, tokenizer)}
    source["files"] = {name: hash_bytes(text.encode()) for name, text in texts.items()}
    texts[_SOURCE_FILE] = json.dumps(seal_record(source, "text"), indent=2) + "\n"
    try:
        _write_files(folder, texts)
    except OSError as error:
        raise ValueError(f"the folder of a prepared text must be writable, but {folder} is not: {error}") from error


def _write_files(folder: Path, texts: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        temporary = folder / f".tmp-{name}"  # renamed when complete; source.json is last and marks completion
        temporary.write_bytes(text.encode())
        os.replace(temporary, folder / name)


def _describe_corpus(corpus: Corpus) -> dict[str, object]:
    return {
        "source": corpus.source,
        "about": corpus.source_description,
        "documents": len(corpus.documents),
        "characters": sum(map(len, corpus.documents)),
        "instead of": corpus.requested_source,
        "why": corpus.failure_reason,
    }


def corpus_digest(corpus: Corpus, tokenizer: str) -> str:
    """Return a hash of a corpus and its tokenizer.

    Args:
        corpus: the documents.
        tokenizer: the tokenizer as JSON.

    Returns:
        A hexadecimal string.
    """
    return _hash_texts(_to_json_lines(corpus), tokenizer)


def has_saved_corpus(folder: Path) -> bool:
    """Return True if a folder holds a completely saved corpus.

    Args:
        folder: the folder.

    Returns:
        True if saving was completed.
    """
    return (folder / _SOURCE_FILE).is_file()


def load_saved_corpus(folder: Path, recipe: Mapping[str, object]) -> tuple[Corpus, str]:
    """Load a corpus that was saved by `save_corpus`.

    Args:
        folder: the folder.
        recipe: the settings that must have produced the corpus.

    Returns:
        The corpus, and the tokenizer as JSON.

    Raises:
        ValueError: the files are missing, damaged, or from another recipe.
    """
    if not has_saved_corpus(folder):
        raise ValueError(f"a folder must contain a prepared text, but {folder} has none; prepare it again")
    lines, tokenizer, source = _read_saved_files(folder)
    _check_recipe(folder, source["recipe"], recipe)
    documents = tuple(json.loads(line) for line in lines.splitlines())
    origin = {"requested_source": source["instead of"], "failure_reason": source["why"]}
    return Corpus(documents=documents, source=source["source"], **origin), tokenizer


def _read_saved_files(folder: Path) -> tuple[str, str, dict[str, Any]]:
    """Read the documents as JSON lines, the tokenizer and the description of the source; check their digest."""
    try:
        lines, tokenizer = ((folder / name).read_bytes().decode() for name in (_CORPUS_FILE, _TOKENIZER_FILE))
        source = read_record(folder / _SOURCE_FILE, "text", _RESTORE_HINT)
        intact = _hash_texts(lines, tokenizer) == source["digest"]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{_integrity_message(folder)} but cannot be read: {first_error_line(error)}; {_RESTORE_HINT}"
        ) from error
    if not intact:
        raise ValueError(f"{_integrity_message(folder)} but is not; {_RESTORE_HINT}")
    return lines, tokenizer, source


def _check_recipe(folder: Path, saved_recipe: Mapping[str, object], recipe: Mapping[str, object]) -> None:
    if differing := [name for name, value in recipe.items() if saved_recipe.get(name) != value]:
        saved_values, expected_values = (
            ", ".join(f"{name}={each.get(name)!r}" for name in differing) for each in (saved_recipe, recipe)
        )
        raise ValueError(
            f"a prepared text must have the recipe of its task, but {folder} has {saved_values}, not "
            f"{expected_values}; choose another folder, or delete it"
        )


def _limit_characters(max_characters: int, documents: Iterable[str]) -> tuple[str, ...]:
    """Truncate documents to a total number of characters, and drop duplicates."""
    unique_documents: dict[
        str, None
    ] = {}  # duplicates are dropped, because one copy could be trained on and the other held out
    remaining = max_characters
    for document in map(str.strip, documents):
        if document and document not in unique_documents:
            unique_documents[document[:remaining]] = None
            remaining -= len(document)
        if remaining <= 0:
            break
    return tuple(unique_documents)


def _to_json_lines(corpus: Corpus) -> str:
    """Serialise documents as JSON lines."""
    return "".join(json.dumps(document) + "\n" for document in corpus.documents)


def _hash_texts(*texts: str) -> str:
    return sha256("\0".join(texts).encode()).hexdigest()[:16]


def _integrity_message(folder: Path) -> str:
    return f"the text prepared in {folder} must be complete and unchanged,"
