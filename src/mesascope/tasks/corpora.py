"""Where real text comes from, as documents: Python's own manual, files, and the Hub; and a folder that keeps it."""

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

_PIECE = 2_000  # characters: a long file is cut into pieces of this size to twice as much,
_PIECES = 20  # a short one into so many
_TITLE = re.compile(r"\s*= [^=\s](.*[^=\s])? =\s*")  # Wikitext's heading of an article; a section's has more signs
_ANEW = "restore it, or delete the folder to have the text prepared anew"
_CORPUS, _TOKENIZER, _SOURCE = "corpus.jsonl", "tokenizer.json", "source.json"


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents, and where they come from.

    Attributes:
        documents: each without the white space around it; none is there twice.
        source: what was read, as it was asked for.
        instead_of: the source that could not be read, where this one stands in for it.
        why: why it could not be read, in one line.
    """

    documents: tuple[str, ...]
    source: str
    instead_of: str | None = None
    why: str | None = None

    @property
    def about(self) -> str:
        """The source in words."""
        return _called(self.source)

    @property
    def notice(self) -> str | None:
        """One line that a reader must see where the text is not the one that was asked for."""
        if self.instead_of is None:
            return None
        return f"{_called(self.instead_of)} could not be read: {self.why}; {self.about} stands in for it"


def prose() -> str:
    """English prose that is on every machine with Python: its own reference manual."""
    return "\n\n".join(_topics())


def gather(source: str, characters: int, instead: str | None = None) -> Corpus:
    """The documents of a source.

    Args:
        source: ``"prose"``, each topic of Python's manual a document; a UTF-8 file, cut at ends of paragraphs into
            pieces of 2,000 characters or more (a short one into smaller pieces); a folder, each .txt file below it a
            document; or ``"hub:NAME"`` or ``"hub:NAME:CONFIG"``, a dataset of the Hub whose rows have a "text": in
            Wikitext an article is a document, elsewhere a row.
        characters: reading stops after so many; the last document is cut there.
        instead: the source to be read where the Hub's cannot be.

    Raises:
        ValueError: the source cannot be read, or has no words.
    """
    try:
        documents = _up_to(characters, _documents(source, characters))
    except _Unreachable as error:
        if instead is None:
            raise ValueError(
                f"{_called(source)} must be within reach, but could not be read: {error}; check the name and the "
                f'network, or say what stands in for it, such as instead="{PROSE}"'
            ) from error
        there = gather(instead, characters)
        return Corpus(documents=there.documents, source=there.source, instead_of=source, why=str(error))
    if not documents:
        raise ValueError(f"a text must have words, but {_called(source)} is empty; give another source")
    return Corpus(documents=documents, source=source)


def keep(folder: Path, corpus: Corpus, tokenizer: str, recipe: Mapping[str, object]) -> None:
    """Write a corpus and its tokenizer (as JSON) into a folder; source.json comes last and says that all is there.

    Raises:
        ValueError: the folder cannot be written.
    """
    lines = _lines(corpus)
    source = {
        "source": corpus.source,
        "about": corpus.about,
        "documents": len(corpus.documents),
        "characters": sum(map(len, corpus.documents)),
        "instead of": corpus.instead_of,
        "why": corpus.why,
        "recipe": dict(recipe),
        "digest": _digest(lines, tokenizer),
    }
    texts = {_CORPUS: lines, _TOKENIZER: tokenizer, _SOURCE: json.dumps(source, indent=2) + "\n"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            draft = folder / f".tmp-{name}"
            draft.write_bytes(text.encode())
            os.replace(draft, folder / name)
    except OSError as error:
        raise ValueError(f"text must be kept in a folder that can be written, but {folder} cannot: {error}") from error


def digest(corpus: Corpus, tokenizer: str) -> str:
    """What differs where the documents or the tokenizer (as JSON) differ."""
    return _digest(_lines(corpus), tokenizer)


def is_kept(folder: Path) -> bool:
    """Whether a corpus was written into the folder, to the end."""
    return (folder / _SOURCE).is_file()


def kept(folder: Path, recipe: Mapping[str, object]) -> tuple[Corpus, str]:
    """The corpus and the tokenizer (as JSON) that `keep` has written.

    Raises:
        ValueError: they are not there, not whole, or were made by another recipe.
    """
    if not is_kept(folder):
        raise ValueError(f"a prepared text must be in its folder, but {folder} has none; prepare it again")
    try:
        lines, tokenizer, told = ((folder / name).read_bytes().decode() for name in (_CORPUS, _TOKENIZER, _SOURCE))
        source = json.loads(told)
        whole = _digest(lines, tokenizer) == source["digest"]
        before = source["recipe"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{_whole(folder)} but cannot be read: {first_line(error)}; {_ANEW}") from error
    if not whole:
        raise ValueError(f"{_whole(folder)} but is not; {_ANEW}")
    if differing := [name for name, value in recipe.items() if before.get(name) != value]:
        was, now = (", ".join(f"{name}={each.get(name)!r}" for name in differing) for each in (before, recipe))
        raise ValueError(
            f"a prepared text must be of one recipe, but {folder} holds that of {was}, not {now}; choose another "
            "folder, or delete that one"
        )
    documents = tuple(json.loads(line) for line in lines.splitlines())
    corpus = Corpus(documents=documents, source=source["source"], instead_of=source["instead of"], why=source["why"])
    return corpus, tokenizer


def first_line(error: Exception) -> str:
    """The first line of an error, to be gone on with."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def hushed() -> Iterator[None]:
    """Without the Hub's notes on each attempt: what became of them is said in one line."""
    loggers = [getLogger(name) for name in ("huggingface_hub", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Unreachable(Exception):  # noqa: N818  it says what happened
    """A source of the Hub cannot be read now; one line says why."""


class _NoText(Exception):  # noqa: N818  it says what happened
    """The rows of a dataset are no text; names their columns."""


def _called(source: str) -> str:
    """A source in words."""
    if source == PROSE:
        return "Python's reference manual"
    if not source.startswith(HUB):
        return source
    name, config = _hub_name(source)
    return f"the Hub's {name} ({config})" if config else f"the Hub's {name}"


def _hub_name(source: str) -> tuple[str, str]:
    """The dataset and its configuration, or an empty text."""
    name, _, config = source.removeprefix(HUB).partition(":")
    return name, config


def _documents(source: str, characters: int) -> Iterable[str]:
    """The documents of a source, not all of it if it is longer than so many characters."""
    if source == PROSE:
        return _topics()
    if source.startswith(HUB):
        return _articles(_hub_rows(*_hub_name(source), characters))
    path = Path(source).expanduser()
    if path.is_dir():
        return _files(path, characters)
    if path.exists():
        return _pieces(_read(path, characters))
    raise ValueError(
        f'a text\'s source must be "{PROSE}", a UTF-8 file, a folder of .txt files or "{HUB}NAME", but {source} is '
        "neither and does not exist; check the path"
    )


def _up_to(characters: int, documents: Iterable[str]) -> tuple[str, ...]:
    """So many characters of them; a document that comes again is left out, lest it be learnt and held out."""
    found: dict[str, None] = {}
    left = characters
    for document in map(str.strip, documents):
        if document and document not in found:
            found[document[:left]] = None
            left -= len(document)
        if left <= 0:
            break
    return tuple(found)


def _topics() -> list[str]:
    """The topics of Python's reference manual."""
    from pydoc_data.topics import topics

    return [topics[key] for key in sorted(topics)]


def _files(folder: Path, characters: int) -> Iterator[str]:
    """What the .txt files below a folder hold, in the order of their names."""
    files = sorted(path for path in folder.rglob("*.txt") if path.is_file())
    if not files:
        raise ValueError(f"a folder of texts must have .txt files, but {folder} has none; give another folder")
    yield from (_read(file, characters) for file in files)


def _read(file: Path, characters: int) -> str:
    """The beginning of a file, its line ends as they are."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return stream.read(characters)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a text must be UTF-8, but {file} is not ({error.reason}); convert it, with iconv for example"
        ) from error
    except OSError as error:
        raise ValueError(f"a text must be a file that can be read, but {file} is not: {error.strerror}") from error


def _pieces(text: str) -> list[str]:
    """A long text cut at the end of a paragraph, of a line where there is none, or of a word, or anywhere."""
    least = min(_PIECE, len(text) // _PIECES + 1)
    some, most = f".{{{least},{2 * least}}}?", f".{{1,{2 * least}}}"
    pieces = re.findall(rf"{some}\n\s*\n|{some}\n|{some}\s|{most}", text, re.DOTALL)
    if len(pieces) > 1 and len(pieces[-1]) < least:
        pieces[-2:] = [pieces[-2] + pieces[-1]]
    return pieces


def _hub_rows(name: str, config: str, characters: int) -> list[str]:
    """The first texts of a dataset, streamed until there are so many characters."""
    try:
        import datasets
    except ImportError as error:
        raise _Unreachable("datasets is not installed (pip install mesascope[datasets])") from error
    texts: list[str] = []
    left = characters
    with hushed():
        try:
            for row in datasets.load_dataset(name, config or None, split="train", streaming=True):
                if not isinstance(row.get("text"), str):
                    raise _NoText(", ".join(sorted(row)))
                texts.append(row["text"])
                left -= len(row["text"])
                if left <= 0:
                    break
        except _NoText as error:
            raise ValueError(f'a dataset must have a column "text", but {name} has {error}; give another') from error
        except Exception as error:  # whatever can go wrong on the way to another machine
            raise _Unreachable(first_line(error)) from error
    return texts


def _articles(rows: list[str]) -> list[str]:
    """Rows between headings joined, where there are headings; else every row by itself."""
    titles = [_TITLE.fullmatch(row) is not None for row in rows]
    if not any(titles):
        return rows
    articles: dict[int, list[str]] = {}
    for row, number in zip(rows, accumulate(titles), strict=True):
        articles.setdefault(number, []).append(row)
    return ["".join(article) for article in articles.values()]


def _lines(corpus: Corpus) -> str:
    """The documents as they are kept, one on each line."""
    return "".join(json.dumps(document) + "\n" for document in corpus.documents)


def _digest(*texts: str) -> str:
    """What differs where a text differs."""
    return sha256("\0".join(texts).encode()).hexdigest()[:16]


def _whole(folder: Path) -> str:
    """The beginning of a complaint."""
    return f"the text prepared in {folder} must be whole and unchanged,"
