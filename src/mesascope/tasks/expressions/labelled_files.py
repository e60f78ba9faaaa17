"""Files of labelled expressions, one per line with columns between tabs."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

HEADINGS = {"source\ttarget"}  # in lower case; of the Long Range Arena
LabelledLine = Sequence[str]
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledLines:
    """The lines of a file.

    Attributes:
        path: the file.
        numbers: number of each line in the file, from 1.
        lines: the columns of each line.
        digest: SHA-256 of the file.
    """

    path: str
    numbers: tuple[int, ...]
    lines: tuple[tuple[str, ...], ...]
    digest: str

    def parse(self, parse_line: Callable[[LabelledLine], Parsed]) -> list[Parsed]:
        """Parse every line.

        Args:
            parse_line: parses the columns of one line, and raises a ValueError if it cannot.

        Returns:
            One result per line.

        Raises:
            ValueError: a line cannot be parsed.
        """
        parsed = []
        for number, line in zip(self.numbers, self.lines, strict=True):
            try:
                parsed.append(parse_line(line))
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number}: {error}") from None
        return parsed


def load_lines(path: str) -> LabelledLines:
    """Read a file of labelled expressions. Empty lines and a heading are left out.

    Args:
        path: the file, in UTF-8.

    Returns:
        Its lines.

    Raises:
        ValueError: the file cannot be read, or has no lines.
    """
    file = Path(path)
    try:
        state = file.stat()
    except OSError as error:
        raise ValueError(f"{path} must be a readable file, but {error.strerror or error}") from None
    return _load_lines(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _load_lines(path: str, modified: int, size: int) -> LabelledLines:
    """Read a file that has not changed since the given state."""
    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a readable file in UTF-8, but {error}") from None
    numbered = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if numbered and numbered[0][1].strip().lower() in HEADINGS:
        numbered = numbered[1:]
    if not numbered:
        raise ValueError(f"{path} must have a label and an expression per line, but has no lines")
    return LabelledLines(
        path=path,
        numbers=tuple(number for number, _ in numbered),
        lines=tuple(tuple(line.split("\t")) for _, line in numbered),
        digest=hashlib.sha256(content).hexdigest(),
    )
