"""One panel of a report as an HTML document of its own."""

from markupsafe import Markup

from mesascope.report.page import load_template, read_asset
from mesascope.report.plotting.dark_mode import DARK_COLOURS
from mesascope.report.plotting.figure import Panel

SHARED_SCRIPTS = ("figures.js", "theme.js", "square.js")
SCRIPTS = {  # by kind of panel: a script without plotly, and its function
    "attention": ("attention.js", "drawAttention"),
    "tokens": ("attention.js", "drawTokens"),
    "explorer": ("explorer.js", "drawHeadExplorer"),
}


def render_panel(panel: Panel) -> str:
    """Render a panel as one self-contained HTML document, in which all external text is escaped.

    Args:
        panel: a panel of a kind in `SCRIPTS`.

    Returns:
        The HTML text.

    Raises:
        ValueError: the panel is of another kind.
    """
    if panel.kind not in SCRIPTS:
        raise ValueError(f"a panel must be of the kind {', '.join(SCRIPTS)}, but got {panel.kind!r}")
    script, function = SCRIPTS[panel.kind]
    return load_template("single_panel.html.j2").render(
        panel=panel,
        dark_colours=dict(DARK_COLOURS),
        style=Markup(read_asset("page.css")),
        scripts=[Markup(read_asset(name)) for name in (*SHARED_SCRIPTS, script)],
        function=function,
    )
