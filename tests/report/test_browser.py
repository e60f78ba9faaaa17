"""The page in a real browser: it renders without console messages or network requests and fits a phone."""

import re
import shutil

import pytest
import xarray as xr

from browser import BODY, MEASURE
from mesascope.report import render_report
from mesascope.report.index_page import render_index
from mesascope.report.plotting.variable import make_visible

PLAIN = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")

pytestmark = pytest.mark.needs_chromium

USE = """
  const plots = () => document.querySelectorAll(".js-plotly-plot").length, first = plots();
  scrollTo(0, document.body.scrollHeight);
  await until(() => plots() > first);
  const further = plots();
  await whole();
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
  return [first > 0, first < further, further < plots(), said];
"""


OPEN = """
  const said = [], find = selector => document.querySelector(selector);
  const press = (element, key) => element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  const pick = (select, name) => {
    select.value = [...select.options].find(one => one.textContent === name).value;
    select.dispatchEvent(new Event("change"));
  };
  const reader = find(".reader"), readout = reader.querySelector(".readout"), text = reader.querySelector(".text");
  pick(reader.querySelector("select"), "descent: mlp");
  const tokens = reader.querySelectorAll(".t");
  tokens[1].click();
  said.push(readout.textContent, tokens[1].style.background, String(tokens[16].style.background.startsWith("rgb")));
  pick(reader.querySelector("select"), "norm");
  reader.querySelector("input[type=range]").value = 1;
  reader.querySelector("input[type=range]").dispatchEvent(new Event("input"));
  press(text, "ArrowRight");
  said.push(readout.textContent.replace(/[0-9.]+ *$/, "N"), reader.querySelector("output").textContent);
  const map = find(".headmap"), title = find(".opened h3");
  const head = (layer, k) => [...map.querySelectorAll("button")][layer * 9 + k];
  head(7, 4).click();
  said.push(title.textContent, find(".opened .roles").textContent, find(".known td:nth-child(2)").textContent);
  said.push(find(".known div:last-child tbody td").textContent);
  head(7, 4).focus();
  press(head(7, 4), "ArrowDown");
  press(head(8, 4), "ArrowRight");
  said.push(document.activeElement === head(8, 5), title.textContent);
  head(8, 5).click();
  said.push(title.textContent);
  const canvas = find(".opened canvas"), box = canvas.getBoundingClientRect();
  const at = down => ({ clientX: box.right - 8, clientY: box.top + down });
  const point = down => canvas.dispatchEvent(new PointerEvent("pointermove", at(down)));
  point(8);
  said.push(find(".opened .readout").textContent);
  for (let down = 0; down < box.height; down += 3) point(down);
  said.push(find(".opened .readout").textContent);
  return said;
"""


# plotly.js is the one packed script of the page with an id
NO_PLOTLY = """
const find = document.getElementById.bind(document);
document.getElementById = id => { if (id === "plotly") throw new Error("no plotly"); return find(id); };
"""


GRAPH = """
  const said = [], graph = document.querySelector(".circuit").parentElement, find = one => graph.querySelector(one);
  const slider = find("input[type=range]"), paths = [...graph.querySelectorAll("path")].reverse();
  const drawn = () => paths.filter(path => getComputedStyle(path).display !== "none");
  const rows = () => [...graph.querySelectorAll("tbody tr")];
  const set = value => { slider.value = value; slider.dispatchEvent(new Event("input")); };
  const note = () => said.push(`${drawn().length} ${rows().length} ${find("output").textContent.split(" ")[0]}`);
  const chosen = () => said.push(find(".readout").textContent, paths.findIndex(one => one.matches(".chosen")),
    rows().findIndex(one => one.matches(".chosen")));
  note();
  [0, 5, slider.max].forEach(value => { set(value); note(); });
  const receives = one => { one.focus(); return one === document.activeElement && one.tabIndex === 0; };
  said.push([slider, ...rows().map(row => row.querySelector("button"))].every(receives));
  rows()[59].querySelector("button").click();
  chosen();
  set(5);
  chosen();
  const curve = paths[2], half = curve.getTotalLength() / 2;
  const middle = () => curve.getPointAtLength(half).matrixTransform(curve.getScreenCTM());
  scrollBy(0, middle().y - innerHeight / 2);
  const hit = document.elementFromPoint(middle().x, middle().y);
  hit.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  chosen();
  set(0);
  chosen();
  return said;
"""


def said_number(text: str) -> float:
    """Parse a number as it is formatted on the page."""
    return float(text.replace("\u00a0×\u00a010", "e").translate(PLAIN))


def test_a_study_is_drawn_and_its_controls_work(study_run, browser):
    with browser.open(browser.save(render_report(study_run))) as page:
        *drawn_in_turn, used = page.run(USE)
        content, window, plots = page.run(MEASURE)
        assert 'aria-label="layer 2, head 3"' in page.run(BODY)
        assert page.read_console() == []
    assert all(
        drawn_in_turn
    )  # at first what is in view, further ones when the reader scrolls, and the rest when it is asked for
    assert used == ["false", "Layer 1, head 2", "Layer 1, head 2", "0", "0", "steps: linear"]
    assert plots > 20
    assert content <= window == 1280


def test_a_browser_that_cannot_unpack_data_says_so_at_every_figure(study_run, browser):
    """Of this page, all figures are drawn by plotly or store their data compressed; its text is complete."""
    html = render_report(study_run).replace("<body>", "<body><script>delete window.DecompressionStream;</script>")
    body, console = browser.look(html, BODY)
    assert console == []
    notices = re.findall(r'<p class="notice">This figure cannot be drawn: (.*?)\. Open the page', body)
    assert len(notices) == html.count('<div class="draw" ') > html.count(" data-figure ") > 5
    assert set(notices) == {"DecompressionStream is not defined"}
    assert 'class="main-svg"' not in body


def test_without_plotly_the_other_panels_are_drawn(study_run, browser):
    with browser.open(browser.save(render_report(study_run)), early=NO_PLOTLY) as page:
        body = page.run(BODY)
        assert page.read_console() == []
    assert 'aria-label="layer 2, head 3"' in body
    notices = re.findall(r'<p class="notice">This figure cannot be drawn: (.*?)\. Open the page', body)
    assert len(notices) == body.count(" data-figure=") > 5
    assert set(notices) == {"no plotly"}
    assert 'class="main-svg"' not in body


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["study", "inspection", "whole", "hostile", "hostile inspection"])
def test_it_fits_a_telephone(samples, inspected, browser, tmp_path, kind):
    run = tmp_path / "run"
    write = {
        "study": samples.write_study,
        "inspection": samples.write_inspection,
        "whole": inspected.write,
        "hostile": samples.hostile,
        "hostile inspection": lambda path: inspected.hostile(path, samples.HOSTILE),
    }
    (content, window, plots), console = browser.look(render_report(write[kind](run)), width=390)
    assert console == []
    assert plots > 4
    assert content <= window == 390


def test_a_comparison_of_cells_and_algorithms_fits_a_telephone(samples, browser, tmp_path):
    html = render_report(samples.write_comparison(tmp_path / "run"))
    assert "Verdicts by setting" in html
    assert "Most similar algorithm" in html
    (content, window, plots), console = browser.look(html, width=400)
    assert console == []
    assert plots > 4
    assert content <= window == 400


def test_the_index_of_runs_fits_a_telephone(runs, browser):
    (content, window, _), console = browser.look(render_index(runs), width=400)
    assert console == []
    assert content <= window == 400


def test_the_graph_of_a_circuit_can_be_explored(tmp_path, samples, browser):
    run = samples.write_circuit(tmp_path / "run")
    said, console = browser.look(render_report(run), GRAPH)
    assert console == []
    said = [str(one).translate(PLAIN) for one in said]
    assert said[:4] == ["4 4 4", "1 1 1", "10 10 10", "60 60 60"]  # curves, rows and the number beside the slider
    assert said[4] == "True"  # the slider and the button of every edge take the keyboard's focus
    last = "L0.MLP → L1.H0.k (key): score 0.01 logit, 95 % interval -0.24 to 0.26, in 20 % of resampled circuits"
    assert said[5:8] == [last, "59", "59"]  # its numbers, and the curve and the row that are marked
    assert said[8:11] == ["", "-1", "-1"]  # the slider hides its curve
    third = (
        "L1.H2 → output: score 6 logit, 95 % interval 5.75 to 6.25, measured effect -6.6, in 97 % of resampled circuits"
    )
    assert said[11:14] == [third, "2", "2"]  # a click on its curve
    assert said[14:] == ["", "-1", "-1"]


def test_a_model_is_drawn(inspect_run, browser):
    body, console = browser.look(render_report(inspect_run), BODY)
    assert console == []
    assert 'class="main-svg"' in body
    assert re.search(r'<span class="t" style="background: rgb', body)


def test_the_text_and_the_heads_of_a_model_can_be_explored(inspection, browser):
    said, console = browser.look(render_report(inspection), OPEN)
    assert console == []
    said = [str(one).replace("\u2068", "").replace("\u2069", "") for one in said]
    data = xr.load_dataset(inspection / "results/heads.nc")
    tops = xr.load_dataset(inspection / "results/top_tokens.nc")
    assert said[:3] == ["position 1 “␣first”: not measured at this token", "none", "true"]
    assert said[3:5] == ["position 2 “␣thing”: ≈ N", "after 0"]
    role = str(data["role"].values[7, 4])
    assert said[5:7] == ["Layer 7, head 4", f"Role: {role}" if role else ""]
    assert said_number(said[7]) == pytest.approx(data["score"].values[7, 4, 0], rel=0.01)
    assert said[8] == f"“{tops['top_token'].values[7, 4, 0].replace(' ', '␣')}”".replace("\n", "↵")
    assert said[9:12] == ["True", "Layer 7, head 4", "Layer 8, head 5"]
    patterns = xr.load_dataset(inspection / "results/attention_patterns.nc")
    last = make_visible(patterns["token"].values[63])
    assert said[12] == f"position 0 “The” → position 63 “{last}”: masked (causal)"
    where, weight = said[13].split(": ≈ ")
    assert where == f"position 63 “{last}” → position 63 “{last}”"
    assert said_number(weight) == pytest.approx(patterns["pattern"].values[8, 5, 63, 63], abs=0.005)


def test_an_inspection_of_any_strings_runs_none_of_them(tmp_path, samples, inspected, browser):
    html = render_report(inspected.hostile(tmp_path / "run", samples.HOSTILE))
    with browser.open(browser.save(html)) as page:
        content, window, _ = page.run(MEASURE)
        body = page.run(BODY)
        assert page.read_console() == []
    assert "<img" not in body
    assert body.count('data-position="') == 40
    assert "&lt;img src=x" in body  # in the tables of the head that is open
    assert content <= window


def test_few_files_make_a_sensible_page(inspection, browser, tmp_path):
    run = tmp_path / "run"
    (run / "results").mkdir(parents=True)
    for name in ("run.json", "results/norms.nc"):
        shutil.copy(inspection / name, run / name)
    with browser.open(browser.save(render_report(run))) as page:
        assert page.run(MEASURE)[2] >= 2
        assert "data-reader" not in page.run(BODY)
        assert page.read_console() == []


def test_hostile_text_runs_nowhere(tmp_path, samples, browser):
    body, console = browser.look(render_report(samples.hostile(tmp_path / "run")), BODY)
    assert console == []
    assert 'class="main-svg"' in body
    assert "<img" not in body


def test_strange_tokens_are_shown_as_they_are(tmp_path, samples, browser):
    tokens = ["<b>", "</span>", "&amp;", "\u202e", "𝔘", "\n", "", " "] * 6
    body, console = browser.look(render_report(samples.write_inspection(tmp_path / "run", tokens)), BODY)
    assert console == []
    assert "&lt;b&gt;" in body
