"""The page of the explorer: one HTML document without other resources."""

import secrets
from typing import Any

from markupsafe import Markup

from mesascope.explorer.requests import find_views
from mesascope.explorer.sources import Prompts
from mesascope.explorer.subject import ExploredModel
from mesascope.explorer.vector_sequences import VectorSequences
from mesascope.explorer.vector_views import OBJECTIVES
from mesascope.explorer.view_parts import ABLATION_METHODS, PATCHED_SITES
from mesascope.formulas import render_plain
from mesascope.report.explorers.colored_text import DIVERGING_TINTS, SEQUENTIAL_TINTS
from mesascope.report.page import load_template, read_asset
from mesascope.report.plotting.dark_mode import DARK_COLOURS
from mesascope.report.plotting.figure import DIVERGING_COLOURS, SEQUENTIAL_COLOURS

PACKAGE = "mesascope.explorer"
REPORT_SCRIPTS = ("figures.js", "theme.js", "square.js")  # `mesascope.make`, colours, tokens as text, attention map
FIRST_SCRIPTS, LAST_SCRIPTS = ("core.js", "sequence.js", "heads.js", "edits.js"), ("start.js",)
TOKEN_SCRIPTS, VECTOR_SCRIPTS = ("tokens.js",), ("chart.js", "vectors.js")
TOKEN_QUANTITIES = (  # that colour the input: key, name and units
    ("loss", "loss of the token", "nat"),
    ("probability", "probability of the next token", ""),
    ("attention", "attention of the clicked token by the head", ""),
    ("norm", "norm of the residual stream", ""),
)
VECTOR_QUANTITIES = (
    ("loss", "loss of the prediction", ""),
    ("attention", "attention of the clicked position by the head", ""),
    ("norm", "norm of the residual stream", ""),
)


def render_explorer(subject: ExploredModel, nonce: str | None = None) -> str:
    """Render the page; everything that comes from the model is escaped.

    Args:
        subject: the explored model.
        nonce: the random word by which the browser knows the scripts of the page.

    Returns:
        The HTML text.
    """
    is_vector = isinstance(subject.source, VectorSequences)
    return load_template("explorer.html.j2", PACKAGE).render(
        name=subject.name,
        nonce=nonce or secrets.token_urlsafe(16),
        data=_describe_subject(subject),
        dark_colours=dict(DARK_COLOURS),
        is_language_model=isinstance(subject.source, Prompts),
        is_vector=is_vector,
        styles=[Markup(read_asset("page.css")), Markup(read_asset("live.css", PACKAGE))],
        scripts=[
            *(Markup(read_asset(name)) for name in REPORT_SCRIPTS),
            *(
                Markup(read_asset(name, PACKAGE))
                for name in (*FIRST_SCRIPTS, *(VECTOR_SCRIPTS if is_vector else TOKEN_SCRIPTS), *LAST_SCRIPTS)
            ),
        ],
    )


def _describe_subject(subject: ExploredModel) -> dict[str, Any]:
    is_vector = isinstance(subject.source, VectorSequences)
    return {
        "views": list(find_views(subject)),
        "quantities": [list(one) for one in (VECTOR_QUANTITIES if is_vector else TOKEN_QUANTITIES)],
        "objectives": {name: render_plain(one.title) for name, one in OBJECTIVES.items()},
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
