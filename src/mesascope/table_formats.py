"""Tables as CSV, Markdown and LaTeX."""

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from mesascope.formulas import render_latex, render_markdown

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


def format_table(table: "pd.DataFrame", form: str, formula_columns: Collection[str] = ()) -> str:
    """Return a table as text; numbers have four significant digits except in CSV.

    Args:
        table: the table.
        form: one of `FORMATS`. LaTeX needs the package booktabs.
        formula_columns: columns of texts with formulas, which are typeset as such in Markdown and LaTeX. LaTeX then
            needs the packages amsmath and amssymb.

    Raises:
        ValueError: there is no such format.
    """
    if form not in FORMATS:
        raise ValueError(f"a format must be one of {', '.join(FORMATS)}, but got {form!r}")
    if form == "csv":
        return table.to_csv(index=False)
    names = [str(name) for name in table.columns]
    with_formulas = [name in formula_columns for name in names]
    escape = escape_markdown if form == "markdown" else escape_latex
    cells = [list(map(escape, names))]
    for row in table.itertuples(index=False):
        pairs = zip(map(_format_cell, row), with_formulas, strict=True)
        cells.append([escape(cell, formulas=formulas) for cell, formulas in pairs])
    if form == "markdown":
        lines = [cells[0], ["---"] * len(names), *cells[1:]]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)
    head, *body = (" & ".join(row) + r" \\" for row in cells)
    # after the end of a row, LaTeX would read a bracket as an optional argument
    body = [f"{{[}}{line[1:]}" if line.startswith("[") else line for line in body]
    lines = [rf"\begin{{tabular}}{{{'l' * len(names)}}}", r"\toprule", head, r"\midrule", *body]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escape_markdown(text: str, *, formulas: bool = False) -> str:
    """Escape text for Markdown, also for the cells of a table; line breaks become spaces.

    Args:
        text: the text.
        formulas: whether the text may have formulas, which remain between dollar signs.

    Returns:
        Markdown that is shown as the text.

    >>> print(escape_markdown("a_b | <i>"))
    a\\_b \\| \\<i\\>
    """
    line = " ".join(text.split())
    return render_markdown(line, _escape_markdown_characters) if formulas else _escape_markdown_characters(line)


def _escape_markdown_characters(text: str) -> str:
    return _MARKDOWN_CHARACTERS.sub(r"\\\1", text)


def escape_latex(text: str, *, formulas: bool = False) -> str:
    """Escape text for LaTeX, and write the mathematical signs of reports in math mode.

    Args:
        text: the text. Other letters than Latin ones need XeLaTeX or LuaLaTeX.
        formulas: whether the text may have formulas, which remain as they are.

    Returns:
        LaTeX that is typeset as the text.

    >>> print(escape_latex("50 % of a_b, 3 × 10⁻⁴"))
    50 \\% of a\\_b, 3 $\\times$ 10$^{-4}$
    >>> print(escape_latex("50 % of $a_b$", formulas=True))
    50 \\% of $a_b$
    """
    return render_latex(text, _escape_latex_characters) if formulas else _escape_latex_characters(text)


def _escape_latex_characters(text: str) -> str:
    parts = re.split("([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text)
    return "".join(
        f"$^{{{part.translate(_SUPERSCRIPTS)}}}$" if k % 2 else part.translate(_LATEX_CHARACTERS)
        for k, part in enumerate(parts)
    )


def _format_cell(value: Any) -> str:
    if value is None or value != value:  # NaN stands for a missing number
        return ""
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
