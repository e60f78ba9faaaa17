"""Dependency trees from files in CoNLL-U format."""

from collections.abc import Iterator
from pathlib import Path

from mesascope.tasks.syntax.dependency_trees import ROOT, DependencyTree, is_on_cycle

NUM_COLUMNS = 10
ID, FORM, LEMMA, HEAD, LABEL = 0, 1, 2, 6, 7  # of the columns
Line = tuple[int, list[str]]  # its number in the file, and its columns


def load_treebank(path: str | Path) -> list[DependencyTree]:
    """Read the sentences of a CoNLL-U file.

    Comments, multiword tokens (1-2) and empty nodes (1.1) are left out. A lemma of ``_`` is the word itself.

    Args:
        path: the file, in UTF-8.

    Returns:
        The trees, in the order of the file.

    Raises:
        ValueError: the file cannot be read or has no sentences, or a sentence is no tree; file and line are named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a readable file in UTF-8, but {error}") from None
    trees = [_parse_sentence(path, lines) for lines in _split_sentences(path, text)]
    if not trees:
        raise ValueError(f"{path} must have at least one sentence, but has none")
    return trees


def _split_sentences(path: str | Path, text: str) -> Iterator[list[Line]]:
    """Yield the lines of the words of every sentence."""
    words: list[Line] = []
    for number, line in enumerate([*text.splitlines(), ""], start=1):
        columns = line.split("\t")
        if not line.strip():
            if words:
                yield words
            words = []
        elif line.startswith("#") or (len(columns) == NUM_COLUMNS and set("-.") & set(columns[ID])):
            continue
        elif len(columns) != NUM_COLUMNS:
            raise ValueError(
                f"{path}, line {number}: a word must have {NUM_COLUMNS} columns between tabs, but it has {len(columns)}"
            )
        else:
            words.append((number, columns))


def _parse_sentence(path: str | Path, lines: list[Line]) -> DependencyTree:
    heads = []
    for index, (number, columns) in enumerate(lines, start=1):
        if columns[ID] != str(index):
            raise ValueError(
                f"{path}, line {number}: words must be numbered 1, 2, ..., but this one is {columns[ID]!r}"
            )
        if not columns[HEAD].isdecimal() or int(columns[HEAD]) > len(lines):
            raise ValueError(
                f"{path}, line {number}: the head must be 0 or a word from 1 to {len(lines)}, but it is "
                f"{columns[HEAD]!r}"
            )
        heads.append(int(columns[HEAD]) - 1)
    try:
        return DependencyTree(
            words=tuple(columns[FORM] for _, columns in lines),
            lemmas=tuple(columns[FORM] if columns[LEMMA] == "_" else columns[LEMMA] for _, columns in lines),
            heads=tuple(heads),
            labels=tuple(columns[LABEL] for _, columns in lines),
        )
    except ValueError as error:
        number = _find_fault(lines, heads)
        raise ValueError(f"{path}, line {number}: {error}") from None


def _find_fault(lines: list[Line], heads: list[int]) -> int:
    """Return the line of a second root, of a word on a cycle, or of the first word if there is no root."""
    roots = [number for (number, _), head in zip(lines, heads, strict=True) if head == ROOT]
    if len(roots) > 1:
        return roots[1]
    for index, (number, _) in enumerate(lines):
        if roots and is_on_cycle(heads, index):
            return number
    return lines[0][0]
