"""Text with formulas: where they begin and end, and the text for each kind of output."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby

from markupsafe import Markup

from mesascope.formulas._convert import FormulaError, convert_formula
from mesascope.formulas._mathml import write_mathml
from mesascope.formulas._plain import write_plain

FORMULA_PATTERN = r"\\\$|\$(?=\S)((?:\\.|[^\\$])+)(?<=\S)\$(?!\d)"  # an escaped dollar sign, or a formula in group 1
_PATTERN = re.compile(FORMULA_PATTERN, re.DOTALL)


@dataclass(frozen=True)
class Segment:
    """A part of a text.

    Attributes:
        text: the LaTeX source of a formula, without dollar signs; the characters of other text.
        is_formula: whether it is a formula.
    """

    text: str
    is_formula: bool = False


def split_formulas(text: str) -> list[Segment]:
    """Split a text into formulas and other text.

    What cannot be typeset remains text, with its dollar signs: `validate_formulas` says why.

    Args:
        text: text with formulas.

    Returns:
        The parts in their order; none of them is empty.

    >>> split_formulas(r"A price of \\$5, and $x^2$.")
    [Segment(text='A price of $5, and ', is_formula=False), Segment(text='x^2', is_formula=True), \
Segment(text='.', is_formula=False)]
    """
    segments: list[Segment] = []
    for is_formula, group in groupby(map(_to_segment, _scan(text)), key=lambda one: one.is_formula):
        parts = list(group)
        segments += parts if is_formula else [Segment("".join(one.text for one in parts))]
    return segments


def _to_segment(part: tuple[str, bool]) -> Segment:
    source, is_formula = part
    is_valid = is_formula and not _find_problem(source)
    return Segment(f"${source}$" if is_formula and not is_valid else source, is_valid)


def validate_formulas(text: str) -> None:
    """Refuse a text with a formula that cannot be typeset, or with a single dollar sign.

    Args:
        text: text with formulas.

    Raises:
        FormulaError: the message says what must hold, which formula is meant and what to do.
    """
    position = 0
    for match in _PATTERN.finditer(text):
        _refuse_dollar(text[position : match.start()])
        position = match.end()
    _refuse_dollar(text[position:])
    for problem in list_formula_problems(text):
        raise FormulaError(problem)


def list_formula_problems(text: str) -> list[str]:
    """Return why formulas of a text cannot be typeset.

    Args:
        text: text with formulas. A single dollar sign is no problem here: it is shown as it is.

    Returns:
        One line for each such formula.
    """
    return [_find_problem(source) for source, is_formula in _scan(text) if is_formula and _find_problem(source)]


def escape_dollars(text: str) -> str:
    """Write the dollar signs of a name or file such that they begin no formula.

    Args:
        text: text without formulas.

    Returns:
        text that can stand in a text with formulas.

    >>> print(escape_dollars("$HOME/text.txt"))
    \\$HOME/text.txt
    """
    return text.replace("$", r"\$")


def render_html(text: str) -> Markup:
    """Write a text as HTML: formulas as MathML, everything else escaped.

    Args:
        text: text with formulas.

    Returns:
        The HTML, which contains no elements but those of MathML.

    >>> print(render_html("where $a < b$ & c"))
    where <math alttext="a &lt; b"><mi>a</mi><mo>&lt;</mo><mi>b</mi></math> &amp; c
    """
    return Markup(_join(text, lambda source: write_mathml(convert_formula(source)), escape))


def render_plain(text: str) -> str:
    """Write a text for a terminal, an axis of a figure or a screen reader: formulas in Unicode.

    Args:
        text: text with formulas.

    Returns:
        The text without markup.

    >>> print(render_plain(r"$x' = a x + b$ with $\\lVert a \\rVert^2 \\leq 1$"))
    x′ = ax + b with ‖a‖² ≤ 1
    """
    return _join(text, lambda source: write_plain(convert_formula(source)), str)


def render_latex(text: str, escape_text: Callable[[str], str]) -> str:
    """Write a text for LaTeX with the packages amsmath and amssymb: formulas remain as they are.

    Args:
        text: text with formulas.
        escape_text: escapes what is no formula.

    Returns:
        The LaTeX source.
    """
    return _join(text, lambda source: f"${source}$", escape_text)


def render_markdown(text: str, escape_text: Callable[[str], str]) -> str:
    """Write a text for Markdown that understands formulas between dollar signs; in tables too.

    Args:
        text: text with formulas.
        escape_text: escapes what is no formula, its dollar signs too.

    Returns:
        The Markdown source.
    """
    return _join(text, lambda source: "$" + source.replace("|", r"\vert ") + "$", escape_text)


def _join(text: str, write_formula: Callable[[str], str], write_text: Callable[[str], str]) -> str:
    if "$" not in text:  # most texts
        return write_text(text)
    return "".join((write_formula if one.is_formula else write_text)(one.text) for one in split_formulas(text))


def _scan(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a text, and whether each is a formula, valid or not; escaped dollar signs become signs."""
    position = 0
    for match in _PATTERN.finditer(text):
        if match.start() > position:
            yield text[position : match.start()], False
        yield ("$", False) if match[1] is None else (" ".join(match[1].split()), True)
        position = match.end()
    if position < len(text):
        yield text[position:], False


def _find_problem(source: str) -> str:
    """Return why a formula cannot be typeset; empty if it can."""
    try:
        convert_formula(source)
    except FormulaError as error:
        return str(error)
    return ""


def _refuse_dollar(text: str) -> None:
    if "$" in text:
        excerpt = text[max(0, text.index("$") - 20) : text.index("$") + 20].strip()
        raise FormulaError(
            f"dollar signs must enclose a formula without spaces at its ends, as in $x + 1$, but one in {excerpt!r} "
            r"does not; write \$ for a dollar sign"
        )
