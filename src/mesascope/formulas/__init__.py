"""Text with formulas: LaTeX between dollar signs, as MathML, plain text, Markdown and LaTeX.

In the descriptive texts of studies, tasks and analyses, ``$x' = a x + b$`` is a formula and ``\\$`` is a dollar sign.
As in Pandoc, no space follows the first dollar sign or precedes the second one, and no digit follows the second one.
"""

from mesascope.formulas._convert import FormulaError
from mesascope.formulas._text import (
    FORMULA_PATTERN,
    Segment,
    escape_dollars,
    list_formula_problems,
    render_html,
    render_latex,
    render_markdown,
    render_plain,
    split_formulas,
    validate_formulas,
)

__all__ = [
    "FORMULA_PATTERN",
    "FormulaError",
    "Segment",
    "escape_dollars",
    "list_formula_problems",
    "render_html",
    "render_latex",
    "render_markdown",
    "render_plain",
    "split_formulas",
    "validate_formulas",
]
