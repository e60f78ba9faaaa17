"""Text corpora: reading documents from Python's manual, files or the Hub, and storing them in a folder."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from logging import ERROR, getLogger
from pathlib import Path

PROSE = "prose"
HUB = "hub:"

_MIN_PIECE_CHARACTERS = 2_000  # minimum characters of a piece of a long file; the maximum is twice as many
_SHORT_FILE_PIECES = 20  # number of pieces of a short file
_TITLE = re.compile(r"\s*= [^=\s](.*[^=\s])? =\s*")  # Wikitext's article heading; section headings have more signs
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
        return _describe_source(self.source)

    @property
    def fallback_notice(self) -> str | None:
        """A one-line notice for users if a fallback source was used, else ``None``."""
        if self.requested_source is None:
            return None
        return (
            f"{_describe_source(self.requested_source)} could not be read: {self.failure_reason}; using "
            f"{self.source_description} instead"
        )


def load_prose() -> str:
    """Return Python's reference manual, English prose that every Python installation contains."""
    return "\n\n".join(_read_manual())


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
        documents = _limit_characters(max_characters, _read_documents(source, max_characters))
    except _HubUnreachable as error:
        if fallback is None:
            raise ValueError(
                f"{_describe_source(source)} must be reachable, but could not be read: {error}; check the name and the "
                f'network, or give a fallback source, such as fallback="{PROSE}"'
            ) from error
        substitute = load_corpus(fallback, max_characters)
        return Corpus(
            documents=substitute.documents, source=substitute.source, requested_source=source, failure_reason=str(error)
        )
    if not documents:
        raise ValueError(f"a text must not be empty, but {_describe_source(source)} is; give another source")
    return Corpus(documents=documents, source=source)


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
    source = {
        "source": corpus.source,
        "about": corpus.source_description,
        "documents": len(corpus.documents),
        "characters": sum(map(len, corpus.documents)),
        "instead of": corpus.requested_source,
        "why": corpus.failure_reason,
        "recipe": dict(recipe),
        "digest": _hash_texts(lines, tokenizer),
    }
    texts = {_CORPUS_FILE: lines, _TOKENIZER_FILE: tokenizer, _SOURCE_FILE: json.dumps(source, indent=2) + "\n"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            temporary = folder / f".tmp-{name}"  # renamed when complete; source.json is last and marks completion
            temporary.write_bytes(text.encode())
            os.replace(temporary, folder / name)
    except OSError as error:
        raise ValueError(f"the folder of a prepared text must be writable, but {folder} is not: {error}") from error


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
    try:
        lines, tokenizer, metadata = (
            (folder / name).read_bytes().decode() for name in (_CORPUS_FILE, _TOKENIZER_FILE, _SOURCE_FILE)
        )
        source = json.loads(metadata)
        intact = _hash_texts(lines, tokenizer) == source["digest"]
        saved_recipe = source["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{_integrity_message(folder)} but cannot be read: {first_error_line(error)}; {_RESTORE_HINT}"
        ) from error
    if not intact:
        raise ValueError(f"{_integrity_message(folder)} but is not; {_RESTORE_HINT}")
    if differing := [name for name, value in recipe.items() if saved_recipe.get(name) != value]:
        saved_values, expected_values = (
            ", ".join(f"{name}={each.get(name)!r}" for name in differing) for each in (saved_recipe, recipe)
        )
        raise ValueError(
            f"a prepared text must have the recipe of its task, but {folder} has {saved_values}, not "
            f"{expected_values}; choose another "
            "folder, or delete it"
        )
    documents = tuple(json.loads(line) for line in lines.splitlines())
    corpus = Corpus(
        documents=documents,
        source=source["source"],
        requested_source=source["instead of"],
        failure_reason=source["why"],
    )
    return corpus, tokenizer


def first_error_line(error: Exception) -> str:
    """Return the first line of an error message, without a final period.

    Args:
        error: the exception.

    Returns:
        The line, or the name of the exception's class if the message is empty.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def silence_hub_logs() -> Iterator[None]:
    """Silence warnings of the Hub's libraries; failures are reported in one line by the caller."""
    loggers = [getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _HubUnreachable(Exception):  # noqa: N818  named for the condition
    """A Hub dataset cannot be read now; the message is the reason in one line."""


class _NoTextColumn(Exception):  # noqa: N818  named for the condition
    """A dataset has no text column; the message lists its columns."""


def _describe_source(source: str) -> str:
    if source == PROSE:
        return "Python's reference manual"
    if not source.startswith(HUB):
        return source
    name, config = _split_hub_name(source)
    return f"the Hub's {name} ({config})" if config else f"the Hub's {name}"


def _split_hub_name(source: str) -> tuple[str, str]:
    """Return the name of the dataset and its configuration, which may be empty."""
    name, _, config = source.removeprefix(HUB).partition(":")
    return name, config


def _read_documents(source: str, max_characters: int) -> Iterable[str]:
    """Read the documents of a source, at least ``characters`` characters if there are as many."""
    if source == PROSE:
        return _read_manual()
    if source.startswith(HUB):
        return _join_articles(_stream_hub_rows(*_split_hub_name(source), max_characters))
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, max_characters)
    if path.exists():
        return _split_text(_read_file(path, max_characters))
    raise ValueError(
        f'a text\'s source must be "{PROSE}", a UTF-8 file, a folder of .txt files or "{HUB}NAME", but {source} does '
        "not exist; check the path"
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


def _read_manual() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[key] for key in sorted(topics)]


def _read_folder(folder: Path, max_characters: int) -> Iterator[str]:
    """Yield the contents of the .txt files below a folder, sorted by path."""
    files = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    if not files:
        raise ValueError(f"a folder of texts must contain .txt files, but {folder} has none; give another folder")
    yield from (_read_file(file, max_characters) for file in files)


def _read_file(file: Path, max_characters: int) -> str:
    """Read the beginning of a file without newline conversion."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return stream.read(max_characters)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a text must be UTF-8, but {file} is not ({error.reason}); convert it, for example with iconv"
        ) from error
    except OSError as error:
        raise ValueError(f"a text must be a readable file, but {file} is not: {error.strerror}") from error


def _split_text(text: str) -> list[str]:
    """Split a text at paragraph ends, else at line ends, else between words, else anywhere."""
    min_characters = min(_MIN_PIECE_CHARACTERS, len(text) // _SHORT_FILE_PIECES + 1)
    bounded, anything = f".{{{min_characters},{2 * min_characters}}}?", f".{{1,{2 * min_characters}}}"
    pieces = re.findall(rf"{bounded}\n\s*\n|{bounded}\n|{bounded}\s|{anything}", text, re.DOTALL)
    if len(pieces) > 1 and len(pieces[-1]) < min_characters:
        pieces[-2:] = [pieces[-2] + pieces[-1]]
    return pieces


def _stream_hub_rows(name: str, config: str, max_characters: int) -> list[str]:
    """Stream the first rows of a dataset until they have the requested number of characters."""
    try:
        import datasets
    except ImportError as error:
        raise _HubUnreachable("datasets is not installed (pip install mesascope[datasets])") from error
    texts: list[str] = []
    remaining = max_characters
    with silence_hub_logs():
        try:
            for row in datasets.load_dataset(name, config or None, split="train", streaming=True):
                if not isinstance(row.get("text"), str):
                    raise _NoTextColumn(", ".join(sorted(row)))
                texts.append(row["text"])
                remaining -= len(row["text"])
                if remaining <= 0:
                    break
        except _NoTextColumn as error:
            raise ValueError(
                f'a dataset must have a column "text", but {name} has {error}; give another dataset'
            ) from error
        except Exception as error:  # datasets raises many types on network failures
            raise _HubUnreachable(first_error_line(error)) from error
    return texts


def _join_articles(rows: list[str]) -> list[str]:
    """Join the rows of each article if there are headings; otherwise return the rows."""
    titles = [_TITLE.fullmatch(row) is not None for row in rows]
    if not any(titles):
        return rows
    articles: dict[int, list[str]] = {}
    for row, number in zip(rows, accumulate(titles), strict=True):
        articles.setdefault(number, []).append(row)
    return ["".join(article) for article in articles.values()]


def _to_json_lines(corpus: Corpus) -> str:
    """Serialise documents as JSON lines."""
    return "".join(json.dumps(document) + "\n" for document in corpus.documents)


def _hash_texts(*texts: str) -> str:
    return sha256("\0".join(texts).encode()).hexdigest()[:16]


def _integrity_message(folder: Path) -> str:
    return f"the text prepared in {folder} must be complete and unchanged,"
