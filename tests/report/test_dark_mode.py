"""Dark mode: figures and text are readable on both backgrounds, and the mode can be changed and is remembered."""

import re
from collections.abc import Iterator
from importlib.resources import files
from itertools import pairwise
from typing import Any

import pytest

from cases import spread
from mesascope.report import render_report
from mesascope.report.explorers.colored_text import DIVERGING_TINTS, SEQUENTIAL_TINTS
from mesascope.report.panels.head_ablation import KIND_COLOURS
from mesascope.report.plotting.controls import CONTROL_COLOURS, FALLBACK_COLOURS
from mesascope.report.plotting.dark_mode import DARK_BACKGROUND, DARK_COLOURS, LIGHT_BACKGROUND
from mesascope.report.plotting.figure import (
    BAR_COLOUR,
    BASELINE_COLOURS,
    DIVERGING_COLOURS,
    GREY,
    SEQUENTIAL_COLOURS,
    SERIES_COLOURS,
    TEXT_COLOUR,
)
from mesascope.report.plotting.scatter import PALETTE
from report.test_page import figures

CURVES = sorted(
    {*SERIES_COLOURS, *BASELINE_COLOURS, *CONTROL_COLOURS.values(), *FALLBACK_COLOURS, *PALETTE, GREY, BAR_COLOUR}
)
BEHIND_TEXT = (*SEQUENTIAL_TINTS, *DIVERGING_TINTS, *KIND_COLOURS.values())

# every stroke of curves, the text of axes, and the background; after that the same in the other mode
LOOK = """
  await whole();
  const said = [], colours = (selector, property) => [...new Set([...document.querySelectorAll(selector)]
    .map(one => getComputedStyle(one)[property]))].filter(one => one !== "none");
  const note = () => said.push({ paper: getComputedStyle(document.body).backgroundColor,
    curves: colours(".scatterlayer path.js-line", "stroke"), text: colours(".xtick text, .ytick text, .xtitle", "fill"),
    legend: colours(".legend button", "color"), pressed: document.querySelector(".theme").getAttribute("aria-pressed"),
    chosen: document.querySelector(".choice output").textContent });
  const range = document.querySelector(".choice input");
  range.value = 0;
  range.dispatchEvent(new Event("input"));
  note();
  document.querySelector(".theme").click();
  const dark = mesascope.isDark();
  await until(() => [...document.querySelectorAll(".js-plotly-plot")].every(plot => plot.isDark === dark));
  await wait(50);
  note();
  return said;
"""
CLICK = """
  document.querySelector(".theme").click();
  return [window.localStorage === null, getComputedStyle(document.body).backgroundColor];
"""
NO_STORAGE = "Object.defineProperty(window, 'localStorage', { value: null });"


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as WCAG defines it."""
    parts = [int(one) for one in re.findall(r"\d+", colour)[:3]]
    parts = [int(colour[k : k + 2], 16) for k in (1, 3, 5)] if colour.startswith("#") else parts
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (one / 255 for one in parts)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Return the contrast of two colours, from 1 to 21."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "rgb(255, 255, 255)") == pytest.approx(4.54, abs=0.01)


def test_the_backgrounds_are_those_of_the_page():
    style = files("mesascope.report").joinpath("assets/page.css").read_text(encoding="utf-8")
    assert f"--paper: light-dark({LIGHT_BACKGROUND}, {DARK_BACKGROUND})" in style


@pytest.mark.parametrize("colour", CURVES)
def test_curves_have_contrast_on_both_backgrounds(colour):
    assert contrast(colour, LIGHT_BACKGROUND) >= 3
    assert contrast(DARK_COLOURS[colour], DARK_BACKGROUND) >= 3


@pytest.mark.parametrize("colour", BEHIND_TEXT)
def test_text_has_contrast_on_coloured_cells(colour):
    assert contrast(colour, TEXT_COLOUR) >= 4.5
    assert contrast(DARK_COLOURS[colour], DARK_COLOURS[TEXT_COLOUR]) >= 4.5


@pytest.mark.parametrize("scale", [SEQUENTIAL_COLOURS, DIVERGING_COLOURS[3:], DIVERGING_COLOURS[3::-1]])
def test_strong_values_stand_out_more_on_both_backgrounds(scale):
    for background, colours in (
        (LIGHT_BACKGROUND, scale),
        (DARK_BACKGROUND, [DARK_COLOURS[colour] for colour in scale]),
    ):
        assert all(contrast(weak, background) < contrast(strong, background) for weak, strong in pairwise(colours))


def test_the_dark_colours_lead_back_to_the_light_ones():
    assert len(set(DARK_COLOURS.values())) == len(DARK_COLOURS)


def colours_of(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from colours_of(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from colours_of(inner, key)
    elif isinstance(value, str) and re.search(r"colou?r|palette", key):
        yield from re.findall(r"#[0-9a-f]{3,8}\b|rgba?\([^)]*\)", value)


@pytest.mark.parametrize("kind", ["write_study", "write_inspection", "write_circuit"])
def test_every_colour_of_a_figure_has_a_dark_one(samples, tmp_path, kind):
    html = render_report(getattr(samples, kind)(tmp_path / "run"))
    found = {colour for data in figures(html) for colour in colours_of(data)}
    assert found <= set(DARK_COLOURS)
    assert found or kind == "write_circuit"


@pytest.mark.needs_chromium
@pytest.mark.parametrize("is_dark", spread([True, False], 1))
def test_the_page_follows_the_system_until_it_is_told_otherwise(study_run, browser, is_dark):
    (first, second), console = browser.look(render_report(study_run), LOOK, dark=is_dark)
    assert console == []
    light, dark = (second, first) if is_dark else (first, second)
    assert [light["pressed"], dark["pressed"]] == ["false", "true"]
    for found, paper in ((light, "rgb(253, 252, 249)"), (dark, "rgb(22, 25, 29)")):
        assert found["paper"] == paper
        assert len(found["curves"]) > 5
        assert all(contrast(colour, paper) >= 3 for colour in found["curves"])
        assert all(contrast(colour, paper) >= 7 for colour in [*found["text"], *found["legend"]])
        assert found["text"]
        assert found["chosen"] == "0"  # the choice of the reader


@pytest.mark.needs_chromium
def test_the_mode_is_remembered(inspect_run, browser):
    with browser.open(browser.save(render_report(inspect_run))) as page:
        assert page.run(CLICK) == [False, "rgb(22, 25, 29)"]
        page.load("Page.reload")
        assert page.run("return getComputedStyle(document.body).backgroundColor;") == "rgb(22, 25, 29)"
        assert page.read_console() == []


@pytest.mark.needs_chromium
def test_the_mode_can_be_changed_without_storage(study_run, browser):
    seen, console = browser.look(render_report(study_run), CLICK, early=NO_STORAGE)
    assert console == []
    assert seen == [True, "rgb(22, 25, 29)"]
