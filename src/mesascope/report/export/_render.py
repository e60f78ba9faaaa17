"""Rendering of plotly figures as SVG, PDF and PNG with kaleido, which draws them in an installed Chrome or Chromium."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from mesascope.store import RunError

FORMATS = ("svg", "pdf", "png")
PNG_SCALE = 3.125  # 300 dots per inch
INSTALL_HINT = "pip install 'mesascope[figures]'"


def render_figures(specs: Sequence[dict[str, Any]], form: str) -> list[bytes]:
    """Render figures with the plotly.js of the report, without a network.

    Args:
        specs: figures as ``data`` and ``layout``; the layout has width and height.
        form: svg, pdf or png.

    Returns:
        The content of one file per figure.

    Raises:
        RunError: if kaleido or a browser is missing, or the browser fails.
    """
    try:
        import kaleido  # noqa: F401  an optional dependency
    except ImportError as error:
        raise RunError(f"figures as files need kaleido, which is not installed; run {INSTALL_HINT}") from error
    bundle = files("mesascope.report").joinpath("assets", "plotly", "plotly-cartesian.min.js")
    # in a thread, because a notebook already runs an event loop in this one
    with as_file(bundle) as script, ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(_render(specs, form, script))).result()


async def _render(specs: Sequence[dict[str, Any]], form: str, script: Path) -> list[bytes]:
    from kaleido import Kaleido, PageGenerator
    from kaleido.errors import ChromeNotFoundError

    page = PageGenerator(plotly=script, mathjax=False)
    scale = PNG_SCALE if form == "png" else 1
    sizes = [{"width": spec["layout"]["width"], "height": spec["layout"]["height"]} for spec in specs]
    options: list[Any] = [{"format": form, "scale": scale, **size} for size in sizes]
    try:
        async with Kaleido(page_generator=page) as browser:
            return [await browser.calc_fig(spec, opts=each) for spec, each in zip(specs, options, strict=True)]
    except ChromeNotFoundError as error:
        raise RunError(
            "figures as files need Chrome or Chromium, but neither was found; install one, or set BROWSER_PATH to it"
        ) from error
    except Exception as error:  # of the browser, of its driver, or of a machine without memory or threads for it
        line = " ".join(str(error).split()) or type(error).__name__
        raise RunError(
            f"figures as files need Chrome or Chromium, but it failed: {line}; run the command again, or set "
            "BROWSER_PATH to another browser"
        ) from error
