"""Formulas in a real browser: drawn as such, in the colours of the text around them, on a telephone and on paper."""

import pytest

from mesascope.report import render_report

pytestmark = pytest.mark.needs_chromium

LOOK = """
  const formulas = [...document.querySelectorAll("main math")].filter(one => one.checkVisibility());
  const fraction = document.querySelector("main mfrac"), [above, below] = fraction.children;
  const media = [...document.styleSheets[0].cssRules].filter(rule => rule.media?.mediaText === "print");
  const colour = one => getComputedStyle(one).color;
  const colours = () => formulas.map(one => [colour(one.firstElementChild), colour(one.parentElement)]);
  const drawn = colours();
  media.forEach(rule => { rule.media.mediaText = "screen"; });
  return { drawn, printed: colours(),
    sizes: formulas.map(one => one.getBoundingClientRect()).map(box => [box.width, box.height]),
    stacked: above.getBoundingClientRect().bottom <= below.getBoundingClientRect().top + 1,
    alternatives: formulas.every(one => one.getAttribute("alttext")) };
"""


@pytest.fixture(scope="module")
def formula_html(samples, tmp_path_factory) -> str:
    """Return the page of a study with formulas in its texts."""
    return render_report(samples.write_formulas(tmp_path_factory.mktemp("formulas") / "run"))


@pytest.mark.parametrize("dark", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["light", "dark"])
def test_formulas_are_drawn_in_the_colour_of_the_text(formula_html, browser, dark):
    found, console = browser.look(formula_html, LOOK, dark=dark)
    assert console == []
    assert len(found["drawn"]) > 20
    assert all(inside == around for inside, around in (*found["drawn"], *found["printed"]))
    assert all(width > 3 and height > 3 for width, height in found["sizes"])
    assert found["stacked"]  # a browser that does not know MathML would write numerator and denominator in one line
    assert found["alternatives"]


def test_a_long_formula_fits_a_telephone(formula_html, browser):
    (content, window, _), console = browser.look(formula_html, width=390)
    assert console == []
    assert content <= window == 390
