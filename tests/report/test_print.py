"""The printed page: few pages in light colours, without controls, and no plot that is cut or divided."""

import json

import pytest

from mesascope.report import render_report

MAX_PAGES = 19
PAPER_WIDTH, PAPER_HEIGHT = 920, 1280  # of the printable area in CSS pixels, at the zoom of 0.75

pytestmark = pytest.mark.needs_chromium

# the rules for print apply to the screen, and the events of printing are sent
PRINT = """
  const find = selector => [...document.querySelectorAll(selector)], said = [];
  const media = [...document.styleSheets[0].cssRules].filter(rule => rule.media?.mediaText === "print");
  const note = () => said.push({ paper: getComputedStyle(document.body).color,
    sizes: find(".js-plotly-plot").map(one => [one.offsetWidth, one.offsetHeight,
      one.querySelector(".main-svg").clientWidth]),
    whole: find(".plots > div").every(one => getComputedStyle(one).breakInside === "avoid"),
    controls: find("nav, input, .controls button, .copy button, .heads").filter(one => one.checkVisibility()).length,
    legends: find(".legend button").filter(one => one.checkVisibility()).length,
    verdicts: find("article.card").filter(one => one.checkVisibility()).length,
    folded: find("details.more").filter(one => one.open).length,
    gridlines: [...new Set(find(".xgrid, .ygrid").map(one => getComputedStyle(one).stroke))] });
  note();
  dispatchEvent(new Event("beforeprint"));
  media.forEach(rule => { rule.media.mediaText = "screen"; });
  await wait(300);
  note();
  media.forEach(rule => { rule.media.mediaText = "print"; });
  dispatchEvent(new Event("afterprint"));
  await wait(300);
  note();
  return said;
"""


@pytest.fixture
def long_run(samples, tmp_path):
    """Return a study with more verdicts than are shown at once."""
    run = samples.write_study(tmp_path / "run")
    (run / "verdicts.json").write_text(json.dumps(samples.verdicts() * 6))
    return run


def test_a_printed_study_is_short_complete_and_light(long_run, browser):
    with browser.open(browser.save(render_report(long_run)), dark=True) as page:
        before, printed, after = page.run(PRINT)
        assert page.read_console() == []
        assert 3 < page.count_sheets() <= MAX_PAGES
    assert printed["paper"] == "rgb(34, 39, 46)"
    assert before["paper"] == after["paper"] == "rgb(230, 227, 220)"
    assert printed["gridlines"] == ["rgb(233, 230, 223)"]
    assert len(before["sizes"]) < len(printed["sizes"]) > 10  # figures that nobody saw are drawn for the printer
    for width, height, drawn in printed["sizes"]:
        assert drawn <= width <= PAPER_WIDTH
        assert height < PAPER_HEIGHT / 2
    assert printed["whole"]
    assert printed["controls"] == 0 < before["controls"]
    assert printed["legends"] > 5
    assert [before["verdicts"], printed["verdicts"], after["verdicts"]] == [0, 24, 0]
    assert printed["folded"] == 0
    assert after["sizes"][: len(before["sizes"])] == before["sizes"]
    assert len(after["sizes"]) == len(printed["sizes"])
    assert after["folded"] == before["folded"]


@pytest.mark.slow
def test_a_printed_inspection_is_short(inspected, tmp_path, browser):
    """Maps of 30 layers of 9 heads, and the token view."""
    run = inspected.write(tmp_path / "run", sequences=2, length=96)
    with browser.open(browser.save(render_report(run))) as page:
        before, printed, _ = page.run(PRINT)
        assert page.read_console() == []
        assert 3 < page.count_sheets() <= MAX_PAGES
    assert before["controls"] > 0 == printed["controls"]
    for width, height, drawn in printed["sizes"]:
        assert drawn <= width <= PAPER_WIDTH
        assert height < PAPER_HEIGHT / 2
