"""The page of the explorer: one HTML document without other resources."""

import secrets
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mesascope.explorer.subject import ExploredModel, Prompts
from mesascope.explorer.views import ABLATION_METHODS, PATCHED_SITES
from mesascope.report.explorers.colored_text import DIVERGING_TINTS, SEQUENTIAL_TINTS
from mesascope.report.plotting.dark_mode import DARK_COLOURS
from mesascope.report.plotting.figure import DIVERGING_COLOURS, SEQUENTIAL_COLOURS
from mesascope.report.text import encode_script_json

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
    return _load_template().render(
        name=subject.name,
        nonce=nonce or secrets.token_urlsafe(16),
        data=_describe_subject(subject),
        dark_colours=dict(DARK_COLOURS),
        is_language_model=isinstance(subject.source, Prompts),
        styles=[_read_asset("report", "page.css"), _read_asset("explorer", "live.css")],
        scripts=[
            *(_read_asset("report", name) for name in REPORT_SCRIPTS),
            *(_read_asset("explorer", name) for name in SCRIPTS),
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


@cache
def _load_template():
    environment = Environment(
        loader=PackageLoader("mesascope.explorer", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_json"] = lambda value: Markup(encode_script_json(value))
    return environment.get_template("explorer.html.j2")


def _read_asset(package: str, name: str) -> Markup:
    text = files(f"mesascope.{package}").joinpath("assets", name).read_text(encoding="utf-8")
    return Markup(text)
