"""Every kind of page follows the rules of WCAG that a script can check."""

import json

import pytest

from mesascope.report import render_report
from mesascope.report.index_page import render_index

pytestmark = pytest.mark.needs_chromium

# for each rule, the elements that break it, and how many it was applied to
CHECK = """
  const find = selector => [...document.querySelectorAll(selector)];
  const seen = one => one.checkVisibility({ opacityProperty: true });
  find("details").forEach(one => { one.open = true; });
  const describe = one => `${one.tagName}.${one.getAttribute("class") || ""} ${one.textContent.trim().slice(0, 40)}`;
  const rules = {}, rule = (name, items, holds) => {
    rules[name] = { applied: items.length, broken: items.filter(one => !holds(one)).map(describe).slice(0, 5) };
  };
  const parse = colour => {
    const [r, g, b, a] = colour.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], a: a ?? 1 };
  };
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const luminance = rgb => rgb.map(v => linear(v / 255)).reduce((sum, v, k) => sum + v * [.2126, .7152, .0722][k], 0);
  const over = (top, below) => top.rgb.map((v, k) => v * top.a + below[k] * (1 - top.a));
  const paper = one => {
    const layers = [];
    for (let at = one; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const contrast = one => {
    const style = getComputedStyle(one), below = paper(one);
    const colour = over(parse(one instanceof SVGElement ? style.fill : style.color), below);
    const [low, high] = [luminance(colour), luminance(below)].sort((a, b) => a - b);
    return (high + .05) / (low + .05);
  };
  const isLarge = ({ fontSize, fontWeight }) => parseFloat(fontSize) >= (fontWeight >= 700 ? 18.66 : 24);
  await whole();
  const isText = node => node.nodeType === 3 && node.data.trim();
  const onMap = one => one.closest("svg") && !one.closest(".xaxislayer-above, .yaxislayer-above, .infolayer, .strip");
  const withText = find("body *").filter(one => !one.closest("script, style, noscript, option, .circuit")
    && !onMap(one) && [...one.childNodes].some(isText) && seen(one));
  rule("contrast", withText, one => contrast(one) >= (isLarge(getComputedStyle(one)) ? 3 : 4.5) - .01);
  const named = one => one.getAttribute("aria-label") || one.textContent.trim()
    || [...one.labels || []].some(label => label.textContent.trim());
  rule("names of controls", find("button, input, select, a[href], summary").filter(seen), named);
  const images = find("[role=img], svg:not([aria-hidden])")
    .filter(one => !one.parentElement.closest("[role=img]") && one.id !== "js-plotly-tester");
  rule("names of images", images, one => one.getAttribute("aria-label")?.trim());
  const identified = find("[id]").filter(one => !one.closest(".main-svg")), ids = identified.map(one => one.id);
  rule("ids", identified, one => ids.indexOf(one.id) === ids.lastIndexOf(one.id));
  const headings = find("h1, h2, h3, h4, h5, h6").filter(seen), level = one => Number(one.tagName[1]);
  const follows = (one, before) => before ? level(one) > 1 && level(one) - level(before) <= 1 : level(one) === 1;
  rule("headings", headings, one => one.textContent.trim() && follows(one, headings[headings.indexOf(one) - 1]));
  const navigations = find("nav[aria-label]").length, expected = find("section").length ? 1 : 0;
  rule("landmarks", [document.documentElement], root => root.lang && document.title.trim()
    && find("main").length === 1 && find("nav").length === expected && navigations === expected
    && find("body > *").every(one => one.matches("main, nav, script, style, .skip, #js-plotly-tester")));
  rule("headers of tables", find("thead th, tbody th"), one => one.textContent.trim() && one.scope);
  rule("lists", find("li, dt, dd"), one => one.parentElement.matches("ul, ol, dl, dl > div"));
  return rules;
"""


@pytest.mark.parametrize(
    ("kind", "dark"),
    [
        pytest.param(kind, dark, id=f"{kind}-{'dark' if dark else 'light'}", marks=marks)
        for kind in ("study", "long study", "comparison", "formulas", "inspection", "circuit")
        for dark, marks in (
            (False, pytest.mark.slow if kind in ("long study", "formulas") else ()),
            (True, pytest.mark.slow),
        )
    ],
)
def test_a_page_follows_the_rules(samples, inspected, browser, tmp_path, kind, dark):
    run = tmp_path / "run"
    write = {
        "study": samples.write_study,
        "long study": samples.write_study,
        "comparison": samples.write_comparison,
        "formulas": samples.write_formulas,
        "inspection": lambda path: inspected.write(path, sequences=2, length=96),
        "circuit": samples.write_circuit,
    }
    write[kind](run)
    if kind == "long study":
        (run / "verdicts.json").write_text(json.dumps(samples.verdicts() * 5))
    rules, console = browser.look(render_report(run), CHECK, dark=dark)
    assert console == []
    assert list_broken(rules) == {}
    assert all(found["applied"] for found in rules.values())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_index_of_runs_follows_the_rules(runs, browser, dark):
    rules, console = browser.look(render_index(runs), CHECK, dark=dark)
    assert console == []
    assert list_broken(rules) == {}
    assert not [
        name
        for name, found in rules.items()
        if not found["applied"] and name not in ("names of images", "lists", "ids")
    ]


def test_a_folder_without_runs_follows_the_rules(tmp_path, browser):
    rules, _ = browser.look(render_index(tmp_path), CHECK)
    assert list_broken(rules) == {}


def list_broken(rules: dict) -> dict:
    return {name: found["broken"] for name, found in rules.items() if found["broken"]}


def test_the_rules_can_be_broken(browser):
    html = (
        '<html><body><h1>a</h1><h3 id="x" style="color: #999">b</h3><button id="x"></button><svg></svg><li>c</li>'
        "<table><thead><tr><th></th></tr></thead></table></body></html>"
    )
    rules, _ = browser.look(html, CHECK)
    broken = {name: found["broken"] for name, found in rules.items()}
    assert all(broken.values())
