"""One panel of a report as an HTML document of its own."""

from markupsafe import Markup

from mesascope.report.page import load_template, read_asset
from mesascope.report.plotting.dark_mode import DARK_COLOURS
from mesascope.report.plotting.figure import Panel

SCRIPTS = ("figures.js", "theme.js", "square.js", "attention.js")
KINDS = ("attention", "tokens")  # their scripts need no plotly


def render_panel(panel: Panel) -> str:
    """Render a panel as one self-contained HTML document, in which all external text is escaped.

    Args:
        panel: a panel of one of `KINDS`.

    Returns:
        The HTML text.

    Raises:
        ValueError: the panel is of another kind.
    """
    if panel.kind not in KINDS:
        raise ValueError(f"a panel must be of the kind {' or '.join(KINDS)}, but got {panel.kind!r}")
    return load_template("single_panel.html.j2").render(
        panel=panel,
        dark_colours=dict(DARK_COLOURS),
        style=Markup(read_asset("page.css")),
        scripts=[Markup(read_asset(name)) for name in SCRIPTS],
    )
