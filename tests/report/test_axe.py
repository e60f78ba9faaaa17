"""axe-core finds no violation in any kind of page, on a wide screen in light mode and on a narrow one in dark mode.

test_accessibility.py checks a few rules in every run of the tests; this file needs minutes and checks all that axe has.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from mesascope.report import render_report
from mesascope.report.index_page import render_index
from report.test_accessibility import DARK, allow_scripts
from report.test_browser import CHROMIUM, look, on_a_telephone, read_probe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs_chromium,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here"),
]
SCREENS = {"wide light": (1280, ()), "narrow dark": (400, DARK)}
CHECK = """addEventListener("load", () => setTimeout(() => {
  document.querySelectorAll("details").forEach(one => { one.open = true; });
  const describe = rule => `${rule.id}: ${rule.nodes.map(node => node.html.slice(0, 150)).slice(0, 5).join(" ")}`;
  setTimeout(async () => {
    const found = await axe.run(document, { resultTypes: ["violations"] });
    const said = { violations: found.violations.map(describe), passes: found.passes.length, width: innerWidth };
    top.document.body.dataset.said = JSON.stringify(said);
  }, 1000);
}, WAIT));"""


def axe_script(wait: int = 1500) -> str:
    """Return a script that opens everything that can be opened and runs axe after a number of milliseconds."""
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    return f"{axe}\n{CHECK.replace('WAIT', str(wait))}"


def run_axe(html: str, folder: Path, screen: str = "wide light") -> dict[str, Any]:
    """Return the violations of a page and the number of rules that it passes."""
    width, flags = SCREENS[screen]
    html = html.replace("</body>", f"<script>{axe_script()}</script></body>")
    page = on_a_telephone(html, width) if width < 1280 else html
    dom, _ = look(page, folder, probe="</body>", flags=flags)
    found = read_probe(dom)
    assert found["width"] == width
    return found


def write_long_study(samples, run: Path) -> None:
    samples.write_study(run)
    (run / "verdicts.json").write_text(json.dumps(samples.verdicts() * 5))


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("kind", ["study", "long study", "comparison", "formulas", "inspection", "circuit", "hostile"])
def test_a_page_has_no_violations(samples, inspected, tmp_path, kind, screen):
    run = tmp_path / "run"
    write = {
        "study": samples.write_study,
        "long study": lambda path: write_long_study(samples, path),
        "comparison": samples.write_comparison,  # with a ranking of algorithms
        "formulas": samples.write_formulas,
        "inspection": lambda path: inspected.write(path, sequences=2, length=96),
        "circuit": samples.write_circuit,
        "hostile": samples.hostile,
    }
    write[kind](run)
    found = run_axe(render_report(run), tmp_path, screen)
    assert found["violations"] == []
    assert found["passes"] > 30


@pytest.mark.parametrize("screen", SCREENS)
def test_the_index_of_runs_has_no_violations(runs, tmp_path, screen):
    found = run_axe(allow_scripts(render_index(runs)), tmp_path, screen)
    assert found["violations"] == []
    assert found["passes"] > 15


def test_axe_finds_violations(tmp_path):
    html = (
        '<html><body><h1>a</h1><p style="color: #999">some words</p><button></button><img src="data:,"></body></html>'
    )
    found = run_axe(html, tmp_path)["violations"]
    assert {"html-has-lang", "color-contrast", "button-name", "image-alt"} <= {one.partition(":")[0] for one in found}
