"""Tables as CSV, Markdown and LaTeX."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("csv", "markdown", "latex")
_MARKDOWN_CHARACTERS = re.compile(r"([\\`*_\[\]<>#|~$&])")
_SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_LATEX_CHARACTERS = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"}) | str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "|": r"\textbar{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "−": "$-$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "≤": r"$\leq$",
        "≥": r"$\geq$",
        "→": r"$\rightarrow$",
        "–": "--",
        "…": r"\ldots{}",
    }
)


def format_table(table: "pd.DataFrame", form: str) -> str:
    """Return a table as text; numbers have four significant digits except in CSV.

    Args:
        table: the table.
        form: one of `FORMATS`. LaTeX needs the package booktabs.

    Raises:
        ValueError: there is no such format.
    """
    if form not in FORMATS:
        raise ValueError(f"a format must be one of {', '.join(FORMATS)}, but got {form!r}")
    if form == "csv":
        return table.to_csv(index=False)
    names = [str(name) for name in table.columns]
    rows = [[_format_cell(value) for value in row] for row in table.itertuples(index=False)]
    if form == "markdown":
        escaped = [[escape_markdown(cell) for cell in line] for line in (names, *rows)]
        lines = [escaped[0], ["---"] * len(names), *escaped[1:]]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)
    head, *body = (" & ".join(map(escape_latex, row)) + r" \\" for row in (names, *rows))
    # after the end of a row, LaTeX would read a bracket as an optional argument
    body = [f"{{[}}{line[1:]}" if line.startswith("[") else line for line in body]
    lines = [rf"\begin{{tabular}}{{{'l' * len(names)}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escape_markdown(text: str) -> str:
    """Escape text for Markdown, also for the cells of a table; line breaks become spaces.

    Args:
        text: plain text.

    Returns:
        Markdown that is shown as the text.

    >>> print(escape_markdown("a_b | <i>"))
    a\\_b \\| \\<i\\>
    """
    return _MARKDOWN_CHARACTERS.sub(r"\\\1", " ".join(text.split()))


def escape_latex(text: str) -> str:
    """Escape text for LaTeX, and write the mathematical signs of reports in math mode.

    Args:
        text: plain text. Other letters than Latin ones need XeLaTeX or LuaLaTeX.

    Returns:
        LaTeX that is typeset as the text.

    >>> print(escape_latex("50 % of a_b, 3 × 10⁻⁴"))
    50 \\% of a\\_b, 3 $\\times$ 10$^{-4}$
    """
    parts = re.split("([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text)
    return "".join(
        f"$^{{{part.translate(_SUPERSCRIPTS)}}}$" if k % 2 else part.translate(_LATEX_CHARACTERS)
        for k, part in enumerate(parts)
    )


def _format_cell(value: Any) -> str:
    if value is None or value != value:  # NaN stands for a missing number
        return ""
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
