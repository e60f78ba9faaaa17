"""The page in a real browser: it draws, complains of nothing, asks for nothing, and fits a telephone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mesascope.report import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=5000 --dump-dom"
).split()
PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  document.querySelectorAll("details").forEach(one => { one.open = true; });
  setTimeout(() => { document.body.dataset.width = `${document.documentElement.scrollWidth}/${innerWidth}`; }, 800);
}, 800));</script></body>"""

pytestmark = [pytest.mark.needs_chromium, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")]


def look(html: str, folder: Path, width: int = 1280) -> tuple[str, list[str]]:
    """The document after its scripts have run, and what the console said."""
    page = folder / "report.html"
    page.write_text(html.replace("</body>", PROBE), encoding="utf-8")
    command = [
        str(CHROMIUM),
        *QUIET,
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},900",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def width_of(dom: str) -> tuple[int, int]:
    found = re.search(r'data-width="(\d+)/(\d+)"', dom)
    assert found, "the probe did not run"
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("width", [1280, 500])
def test_a_study_is_drawn(study_run, tmp_path, width):
    dom, console = look(render(study_run), tmp_path, width)
    assert console == []
    assert dom.count('class="main-svg"') > 20
    assert 'aria-label="layer 2, head 3"' in dom
    content, window = width_of(dom)
    assert content <= window


def test_a_model_is_drawn(inspect_run, tmp_path):
    dom, console = look(render(inspect_run), tmp_path)
    assert console == []
    assert 'class="main-svg"' in dom
    assert re.search(r'<span class="t" style="background: rgb', dom)


def test_hostile_text_runs_nowhere(tmp_path, samples):
    dom, console = look(render(samples.hostile(tmp_path / "run")), tmp_path)
    assert console == []
    assert 'class="main-svg"' in dom
    body = re.sub(r"<script.*?</script>", "", dom, flags=re.S)
    assert "<img" not in body


def test_strange_tokens_are_shown_as_they_are(tmp_path, samples):
    tokens = ["<b>", "</span>", "&amp;", "\u202e", "𝔘", "\n", "", " "] * 6
    dom, console = look(render(samples.write_inspection(tmp_path / "run", tokens)), tmp_path)
    assert console == []
    assert "&lt;b&gt;" in dom
