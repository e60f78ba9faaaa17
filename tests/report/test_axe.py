"""axe-core finds no violation in any kind of page, on a wide screen in light mode and on a narrow one in dark mode.

test_accessibility.py checks a few rules in every run of the tests; this file needs minutes and checks all that axe has.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from browser import UNFOLD, Browser
from mesascope.report import render_report
from mesascope.report.comparison_page import render_comparison
from mesascope.report.index_page import render_index

pytestmark = [pytest.mark.slow, pytest.mark.needs_chromium]
SCREENS = {"wide light": {"width": 1280, "dark": False}, "narrow dark": {"width": 400, "dark": True}}
CHECK = f"""{UNFOLD}
const describe = rule => `${{rule.id}}: ${{rule.nodes.map(node => node.html.slice(0, 150)).slice(0, 5).join(" ")}}`;
const found = await axe.run(document, {{ resultTypes: ["violations"] }});
return {{ violations: found.violations.map(describe), passes: found.passes.length, width: innerWidth }};"""


def axe_script() -> str:
    """Return a probe that opens everything that can be opened and runs axe."""
    axe = files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    return f"{axe}\n{CHECK}"


def run_axe(browser: Browser, html: str, screen: str = "wide light") -> dict[str, Any]:
    """Return the violations of a page and the number of rules that it passes."""
    found, _ = browser.look(html, axe_script(), **SCREENS[screen])
    assert found["width"] == SCREENS[screen]["width"]
    return found


def write_long_study(samples, run: Path) -> None:
    samples.write_study(run)
    (run / "verdicts.json").write_text(json.dumps(samples.verdicts() * 5))


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("kind", ["study", "long study", "comparison", "formulas", "inspection", "circuit", "hostile"])
def test_a_page_has_no_violations(samples, inspected, browser, tmp_path, kind, screen):
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
    found = run_axe(browser, render_report(run), screen)
    assert found["violations"] == []
    assert found["passes"] > 30


@pytest.mark.parametrize("screen", SCREENS)
def test_the_index_of_runs_has_no_violations(runs, browser, screen):
    found = run_axe(browser, render_index(runs), screen)
    assert found["violations"] == []
    assert found["passes"] > 15


@pytest.mark.parametrize("screen", SCREENS)
def test_the_comparison_of_runs_has_no_violations(samples, browser, tmp_path, screen):
    pair = samples.write_comparison(tmp_path / "cells"), samples.write_study(tmp_path / "study")
    found = run_axe(browser, render_comparison(*pair, tmp_path), screen)
    assert found["violations"] == []
    assert found["passes"] > 15


def test_axe_finds_violations(browser):
    html = (
        '<html><body><h1>a</h1><p style="color: #999">some words</p><button></button><img src="data:,"></body></html>'
    )
    found = run_axe(browser, html)["violations"]
    assert {"html-has-lang", "color-contrast", "button-name", "image-alt"} <= {one.partition(":")[0] for one in found}
