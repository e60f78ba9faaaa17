"""A hook of MkDocs: formulas between dollar signs become MathML when the site is built, without a script."""
# pyright: reportMissingImports=false
# Python-Markdown is installed by `make site`

import re
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

from mesascope.formulas import FORMULA_PATTERN, render_html, validate_formulas

PRIORITY = 185  # after code, before escaped characters


class FormulaProcessor(InlineProcessor):
    """Replaces a formula by MathML, and an escaped dollar sign by a dollar sign."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # noqa: N802  Python-Markdown's name
        """Return a placeholder for the HTML; a formula that cannot be typeset ends the build.

        Args:
            m: the match.
            data: the text of the paragraph.
        """
        validate_formulas(m[0])
        return self.md.htmlStash.store(render_html(m[0])), m.start(), m.end()


class FormulaExtension(Extension):
    """Formulas in Markdown, as in the texts of studies."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  Python-Markdown's name
        """Add the processor.

        Args:
            md: the converter of a page or a docstring.
        """
        md.inlinePatterns.register(FormulaProcessor(FORMULA_PATTERN, md), "formulas", PRIORITY)


def on_config(config: Any) -> Any:
    """Let pages and docstrings have formulas."""
    config.markdown_extensions.append(FormulaExtension())
    return config
