"""Documents of a source: Python's manual, a file, a folder or a dataset of the Hub."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from logging import ERROR, getLogger
from pathlib import Path

PROSE = "prose"
HUB = "hub:"
_MIN_PIECE_CHARACTERS = 2_000  # minimum characters of a piece of a long file; the maximum is twice as many
_SHORT_FILE_PIECES = 20  # number of pieces of a short file
_TITLE = re.compile(r"\s*= [^=\s](.*[^=\s])? =\s*")  # Wikitext's article heading; section headings have more signs


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


class HubUnreachable(Exception):  # noqa: N818  named for the condition
    """A Hub dataset cannot be read now; the message is the reason in one line."""


class _NoTextColumn(Exception):  # noqa: N818  named for the condition
    """A dataset has no text column; the message lists its columns."""


def describe_source(source: str) -> str:
    """Describe a source for users.

    Args:
        source: the source, as in `load_corpus`.

    Returns:
        A noun phrase.
    """
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


def read_documents(source: str, max_characters: int) -> Iterable[str]:
    """Read the documents of a source, at least ``max_characters`` characters if there are as many.

    Args:
        source: the source, as in `load_corpus`.
        max_characters: number of characters after which reading may stop.

    Returns:
        The documents.

    Raises:
        ValueError: the source does not exist.
    """
    if source == PROSE:
        return read_manual()
    if source.startswith(HUB):
        return _join_articles(_stream_hub_rows(*_split_hub_name(source), max_characters))
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, max_characters)
    if path.exists():
        return split_text(_read_file(path, max_characters))
    raise ValueError(
        f'a text\'s source must be "{PROSE}", a UTF-8 file, a folder of .txt files or "{HUB}NAME", but {source} does '
        "not exist; check the path"
    )


def read_manual() -> list[str]:
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


def split_text(text: str) -> list[str]:
    """Split a text at paragraph ends, else at line ends, else between words, else anywhere.

    Args:
        text: the text of a file.

    Returns:
        The pieces, which join to the text.
    """
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
        raise HubUnreachable("datasets is not installed (pip install mesascope[datasets])") from error
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
            raise HubUnreachable(first_error_line(error)) from error
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
