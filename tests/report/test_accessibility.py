"""Every kind of page follows the rules of WCAG that a script can check."""

import json

import pytest

from mesascope.report import render_report
from mesascope.report.index_page import render_index
from report.test_browser import CHROMIUM, look, read_probe

DARK = ("--blink-settings=preferredColorScheme=0",)

pytestmark = [pytest.mark.needs_chromium, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")]

# for each rule, the elements that break it, and how many it was applied to
CHECK = """<script>addEventListener("load", () => setTimeout(() => {
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
  setTimeout(() => {
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
    document.body.dataset.said = JSON.stringify(rules);
  }, 2500);
}, 1500));</script></body>"""


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        pytest.param(kind, flags, id=f"{kind}-{'dark' if flags else 'light'}", marks=marks)
        for kind in ("study", "long study", "comparison", "formulas", "inspection", "circuit")
        for flags, marks in (((), ()), (DARK, () if kind == "inspection" else pytest.mark.slow))
    ],
)
def test_a_page_follows_the_rules(samples, inspected, tmp_path, kind, flags):
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
    dom, console = look(render_report(run), tmp_path, probe=CHECK, flags=flags)
    assert console == []
    rules = read_probe(dom)
    assert list_broken(rules) == {}
    assert all(found["applied"] for found in rules.values())


@pytest.mark.parametrize("flags", [(), DARK], ids=["light", "dark"])
def test_the_index_of_runs_follows_the_rules(runs, tmp_path, flags):
    dom, console = look(allow_scripts(render_index(runs)), tmp_path, probe=CHECK, flags=flags)
    assert console == []
    rules = read_probe(dom)
    assert list_broken(rules) == {}
    assert not [
        name
        for name, found in rules.items()
        if not found["applied"] and name not in ("names of images", "lists", "ids")
    ]


def test_a_folder_without_runs_follows_the_rules(tmp_path):
    dom, _ = look(allow_scripts(render_index(tmp_path)), tmp_path, probe=CHECK)
    assert list_broken(read_probe(dom)) == {}


def list_broken(rules: dict) -> dict:
    return {name: found["broken"] for name, found in rules.items() if found["broken"]}


def allow_scripts(html: str) -> str:
    """Return an index of runs, which has no scripts, such that a probe may run in it."""
    policy = "default-src 'none';"
    assert html.count(policy) == 1
    return html.replace(policy, f"{policy} script-src 'unsafe-inline';")


def test_the_rules_can_be_broken(tmp_path):
    html = (
        '<html><body><h1>a</h1><h3 id="x" style="color: #999">b</h3><button id="x"></button><svg></svg><li>c</li>'
        "<table><thead><tr><th></th></tr></thead></table></body></html>"
    )
    dom, _ = look(html, tmp_path, probe=CHECK)
    broken = {name: found["broken"] for name, found in read_probe(dom).items()}
    assert all(broken.values())
