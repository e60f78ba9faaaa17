"""Short summaries of objects: lines of text for a terminal, a table for a notebook."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MAX_ROWS, MAX_HTML_ROWS = 12, 100
MAX_CELL = 60  # characters of a cell
_STYLE = "text-align: left; vertical-align: top"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A title, and a table below it.

    Attributes:
        title: one line.
        header: names of the columns; none without a table.
        rows: the cells of every row, as many as there are columns.
        link: a file that the title links to in a notebook.
    """

    title: str
    header: tuple[str, ...] = ()
    rows: Sequence[Sequence[str]] = ()
    link: Path | None = None

    def to_text(self) -> str:
        """Return the summary as lines of text; long cells and tables are cut."""
        cells = [[_cut(cell) for cell in row] for row in self.rows[:MAX_ROWS]]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        more = [f"... and {len(self.rows) - MAX_ROWS} more"] if len(self.rows) > MAX_ROWS else []
        return "\n  ".join([self.title, *(line.rstrip() for line in lines), *more])

    def to_html(self) -> str:
        """Return the summary as an HTML table with all text escaped."""
        title = escape(self.title)
        if self.link is not None:
            title = f'<a href="{escape(self.link.as_posix(), quote=True)}" target="_blank">{title}</a>'
        if not self.rows:
            return f"<div><strong>{title}</strong></div>"
        header = "".join(f'<th scope="col" style="{_STYLE}">{escape(name)}</th>' for name in self.header)
        body = "".join(
            "<tr>" + "".join(f'<td style="{_STYLE}">{escape(cell)}</td>' for cell in row) + "</tr>"
            for row in self.rows[:MAX_HTML_ROWS]
        )
        more = f"<div>... and {len(self.rows) - MAX_HTML_ROWS} more</div>" if len(self.rows) > MAX_HTML_ROWS else ""
        return (
            f"<div><strong>{title}</strong><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
            f"{more}</div>"
        )


class Summarised(ABC):
    """An object whose representation is a summary. A dataclass needs ``repr=False`` to inherit it."""

    @abstractmethod
    def summarise(self) -> Summary:
        """Return the summary of the object."""

    def __repr__(self) -> str:
        """Return the summary as text."""
        return self.summarise().to_text()

    def _repr_html_(self) -> str:
        """Return the summary for a notebook."""
        return self.summarise().to_html()


def describe_tensor(name: str, tensor: "Tensor", axes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return a row about a tensor: name, axes with sizes, dtype and memory.

    Args:
        name: the name of the tensor.
        tensor: the tensor.
        axes: the names of its axes.

    >>> import torch
    >>> describe_tensor("z", torch.zeros(2, 3), ("layer", "pos"))
    ('z', 'layer 2, pos 3', 'float32', '24 B')
    """
    sizes = [f"{axis} {size}" for axis, size in zip(axes or [""] * tensor.ndim, tensor.shape, strict=True)]
    dtype = str(tensor.dtype).removeprefix("torch.")
    return name, ", ".join(size.strip() for size in sizes), dtype, format_bytes(tensor.numel() * tensor.element_size())


def format_bytes(number: int) -> str:
    """Return a number of bytes with a decimal unit.

    Args:
        number: the number of bytes.

    >>> format_bytes(1_500_000)
    '1.5 MB'
    """
    size, unit = float(number), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CELL else f"{line[: MAX_CELL - 3]}..."
