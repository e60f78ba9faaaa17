"""The page in a real browser: it draws, complains of nothing, asks for nothing, and fits a telephone."""

import re
import shutil
import subprocess
from html import escape
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
  setTimeout(() => {
    const drawn = document.querySelectorAll(".main-svg").length;
    top.document.body.dataset.width = `${document.documentElement.scrollWidth}/${innerWidth}/${drawn}`; }, 800);
}, 800));</script></body>"""

pytestmark = [pytest.mark.needs_chromium, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")]


def look(html: str, folder: Path, width: int = 1280, probe: str = PROBE) -> tuple[str, list[str]]:
    """The document after its scripts have run, and what the console said."""
    page = folder / "report.html"
    page.write_text(html.replace("</body>", probe), encoding="utf-8")
    command = [
        str(CHROMIUM),
        *QUIET,
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},900",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


USE = """<script>addEventListener("load", () => setTimeout(() => {
  const said = [], find = selector => document.querySelector(selector);
  const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const curve = find(".legend button");
  curve.click();
  said.push(curve.getAttribute("aria-pressed"));
  const title = find(".browser h4"), large = find(".browser .large canvas");
  find('[aria-label="layer 1, head 2"]').click();
  said.push(title.textContent);
  ["ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft"].forEach(key => press(large, key));
  said.push(title.textContent);
  const range = find(".choice input"), map = range.closest("figure").querySelector(".js-plotly-plot");
  range.value = 0;
  range.dispatchEvent(new Event("input"));
  said.push(range.parentElement.querySelector("output").textContent, String(Math.abs(map.data[0].z[0][0])));
  const step = [...document.querySelectorAll("button")].find(one => one.textContent.startsWith("steps"));
  step.click();
  said.push(step.textContent);
  document.body.dataset.said = said.join("|");
}, 1500));</script></body>"""


def on_a_telephone(html: str, width: int = 390) -> str:
    """The page in a frame of that width, because a window of this browser is never narrower than 500."""
    inner = escape(html.replace("</body>", PROBE), quote=True)
    frame = f'<iframe srcdoc="{inner}" style="width:{width}px;height:4000px;border:0"></iframe>'
    return f'<meta charset="utf-8"><body>{frame}</body>'


def measured(dom: str) -> tuple[int, int, int]:
    """Width of the content, width of the window, plots drawn."""
    found = re.search(r'data-width="(\d+)/(\d+)/(\d+)"', dom)
    assert found, "the probe did not run"
    return int(found[1]), int(found[2]), int(found[3])


def test_a_study_is_drawn(study_run, tmp_path):
    dom, console = look(render(study_run), tmp_path)
    assert console == []
    assert 'aria-label="layer 2, head 3"' in dom
    content, window, plots = measured(dom)
    assert plots > 20
    assert content <= window == 1280


@pytest.mark.parametrize("kind", ["study", "inspection", "hostile"])
def test_it_fits_a_telephone(samples, tmp_path, kind):
    write = {"study": samples.write_study, "inspection": samples.write_inspection, "hostile": samples.hostile}[kind]
    dom, console = look(on_a_telephone(render(write(tmp_path / "run"))), tmp_path, probe="</body>")
    assert console == []
    content, window, plots = measured(dom)
    assert plots > 4
    assert content <= window == 390


def test_its_controls_work(study_run, tmp_path):
    dom, console = look(render(study_run), tmp_path, probe=USE)
    assert console == []
    assert 'data-said="false|Layer 1, head 2|Layer 1, head 2|0|0|steps: linear"' in dom


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
