"""The page of the explorer: one HTML document without other resources."""

import secrets
from typing import Any

from markupsafe import Markup

from mesascope.explorer.subject import ExploredModel, Prompts
from mesascope.explorer.views import ABLATION_METHODS, PATCHED_SITES
from mesascope.report.explorers.colored_text import DIVERGING_TINTS, SEQUENTIAL_TINTS
from mesascope.report.page import load_template, read_asset
from mesascope.report.plotting.dark_mode import DARK_COLOURS
from mesascope.report.plotting.figure import DIVERGING_COLOURS, SEQUENTIAL_COLOURS

PACKAGE = "mesascope.explorer"
REPORT_SCRIPTS = ("figures.js", "theme.js", "square.js")  # `mesascope.make`, colours, tokens as text, attention map
SCRIPTS = ("core.js", "tokens.js", "heads.js", "edits.js", "start.js")


def render_explorer(subject: ExploredModel, nonce: str | None = None) -> str:
    """Render the page; everything that comes from the model is escaped.

    Args:
        subject: the explored model.
        nonce: the random word by which the browser knows the scripts of the page.

    Returns:
        The HTML text.
    """
    return load_template("explorer.html.j2", PACKAGE).render(
        name=subject.name,
        nonce=nonce or secrets.token_urlsafe(16),
        data=_describe_subject(subject),
        dark_colours=dict(DARK_COLOURS),
        is_language_model=isinstance(subject.source, Prompts),
        styles=[Markup(read_asset("page.css")), Markup(read_asset("live.css", PACKAGE))],
        scripts=[
            *(Markup(read_asset(name)) for name in REPORT_SCRIPTS),
            *(Markup(read_asset(name, PACKAGE)) for name in SCRIPTS),
        ],
    )


def _describe_subject(subject: ExploredModel) -> dict[str, Any]:
    return {
        "layers": subject.layers,
        "heads": subject.heads,
        "attention_layers": list(subject.attention_layers),
        "example": subject.example,
        "methods": list(ABLATION_METHODS),
        "sites": list(PATCHED_SITES),
        "tints": list(SEQUENTIAL_TINTS),
        "diverging_tints": list(DIVERGING_TINTS),
        "colours": list(SEQUENTIAL_COLOURS),
        "diverging": list(DIVERGING_COLOURS),
    }
