"""The page in a real browser: it renders without console messages or network requests and fits a phone."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from mesascope.report import render_report
from mesascope.report.index_page import render_index
from mesascope.report.plotting.variable import make_visible

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

PLAIN = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")

pytestmark = [pytest.mark.needs_chromium, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")]


def look(
    html: str, folder: Path, width: int = 1280, probe: str = PROBE, flags: Sequence[str] = ()
) -> tuple[str, list[str]]:
    """Return the document after its scripts have run, and the console messages."""
    page = folder / "report.html"
    page.write_text(html.replace("</body>", probe), encoding="utf-8")
    command = [
        str(CHROMIUM),
        *QUIET,
        *flags,
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


OPEN = """<script>addEventListener("load", () => setTimeout(() => {
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
  document.body.dataset.said = said.join("|");
}, 1500));</script></body>"""


GRAPH = """<script>addEventListener("load", () => setTimeout(() => {
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
  document.body.dataset.said = said.join("|");
}, 1500));</script></body>"""


def said_number(text: str) -> float:
    """Parse a number as it is formatted on the page."""
    return float(text.replace("\u00a0×\u00a010", "e").translate(PLAIN))


def on_a_telephone(html: str, width: int = 390) -> str:
    """Return the page inside a narrow frame, since the window of this browser is at least 500 pixels wide."""
    inner = escape(html.replace("</body>", PROBE), quote=True)
    frame = f'<iframe srcdoc="{inner}" style="width:{width}px;height:4000px;border:0"></iframe>'
    return f'<meta charset="utf-8"><body>{frame}</body>'


def read_probe(dom: str) -> Any:
    """Return the value that a probe has left in `document.body.dataset.said` as JSON."""
    found = re.search(r'data-said="([^"]*)"', dom)
    assert found, "the script that uses the page did not end"
    return json.loads(unescape(found[1]))


def measured(dom: str) -> tuple[int, int, int]:
    """Return the width of the content, the width of the window and the number of plots."""
    found = re.search(r'data-width="(\d+)/(\d+)/(\d+)"', dom)
    assert found, "the probe did not run"
    return int(found[1]), int(found[2]), int(found[3])


def test_a_study_is_drawn(study_run, tmp_path):
    dom, console = look(render_report(study_run), tmp_path)
    assert console == []
    assert 'aria-label="layer 2, head 3"' in dom
    content, window, plots = measured(dom)
    assert plots > 20
    assert content <= window == 1280


def test_without_plotly_the_other_panels_are_drawn(study_run, tmp_path):
    """A browser that cannot unpack plotly.js says so at every figure."""
    html = render_report(study_run).replace("<body>", "<body><script>delete window.DecompressionStream;</script>")
    dom, console = look(html, tmp_path)
    assert console == []
    assert 'aria-label="layer 2, head 3"' in dom
    notices = re.findall(r'<p class="notice">This figure cannot be drawn: (.*?)\. Open the page', dom)
    assert len(notices) == html.count(" data-figure ") > 5
    assert set(notices) == {"DecompressionStream is not defined"}
    assert measured(dom)[2] == 0


@pytest.mark.parametrize(
    "kind",
    [
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("study", "inspection", "whole", "hostile")),
        "hostile inspection",
    ],
)
def test_it_fits_a_telephone(samples, inspected, tmp_path, kind):
    run = tmp_path / "run"
    write = {
        "study": samples.write_study,
        "inspection": samples.write_inspection,
        "whole": inspected.write,
        "hostile": samples.hostile,
        "hostile inspection": lambda path: inspected.hostile(path, samples.HOSTILE),
    }
    dom, console = look(on_a_telephone(render_report(write[kind](run))), tmp_path, probe="</body>")
    assert console == []
    content, window, plots = measured(dom)
    assert plots > 4
    assert content <= window == 390


def test_a_comparison_of_cells_and_algorithms_fits_a_telephone(samples, tmp_path):
    html = render_report(samples.write_comparison(tmp_path / "run"))
    assert "Verdicts by setting" in html
    assert "Most similar algorithm" in html
    dom, console = look(on_a_telephone(html, width=400), tmp_path, probe="</body>")
    assert console == []
    content, window, plots = measured(dom)
    assert plots > 4
    assert content <= window == 400


def test_the_index_of_runs_fits_a_telephone(runs, tmp_path):
    policy = "default-src 'none';"
    html = render_index(runs).replace(policy, f"{policy} script-src 'unsafe-inline';")  # for the probe
    dom, console = look(on_a_telephone(html, width=400), tmp_path, probe="</body>")
    assert console == []
    content, window, _ = measured(dom)
    assert content <= window == 400


def test_its_controls_work(study_run, tmp_path):
    dom, console = look(render_report(study_run), tmp_path, probe=USE)
    assert console == []
    assert 'data-said="false|Layer 1, head 2|Layer 1, head 2|0|0|steps: linear"' in dom


def test_the_graph_of_a_circuit_can_be_explored(tmp_path, samples):
    run = samples.write_circuit(tmp_path / "run")
    dom, console = look(render_report(run), tmp_path, probe=GRAPH)
    assert console == []
    found = re.search(r'data-said="([^"]*)"', dom)
    assert found, "the script that uses the page did not end"
    said = unescape(found[1]).translate(PLAIN).split("|")
    assert said[:4] == ["4 4 4", "1 1 1", "10 10 10", "60 60 60"]  # curves, rows and the number beside the slider
    assert said[4] == "true"  # the slider and the button of every edge take the keyboard's focus
    last = "L0.MLP → L1.H0.k (key): score 0.01 logit, 95 % interval -0.24 to 0.26, in 20 % of resampled circuits"
    assert said[5:8] == [last, "59", "59"]  # its numbers, and the curve and the row that are marked
    assert said[8:11] == ["", "-1", "-1"]  # the slider hides its curve
    third = (
        "L1.H2 → output: score 6 logit, 95 % interval 5.75 to 6.25, measured effect -6.6, in 97 % of resampled circuits"
    )
    assert said[11:14] == [third, "2", "2"]  # a click on its curve
    assert said[14:] == ["", "-1", "-1"]


def test_a_model_is_drawn(inspect_run, tmp_path):
    dom, console = look(render_report(inspect_run), tmp_path)
    assert console == []
    assert 'class="main-svg"' in dom
    assert re.search(r'<span class="t" style="background: rgb', dom)


def test_the_text_and_the_heads_of_a_model_can_be_explored(inspection, tmp_path):
    dom, console = look(render_report(inspection), tmp_path, probe=OPEN)
    assert console == []
    found = re.search(r'data-said="([^"]*)"', dom)
    assert found, "the script that uses the page did not end"
    said = unescape(found[1]).replace("\u2068", "").replace("\u2069", "").split("|")
    data = xr.load_dataset(inspection / "results/heads.nc")
    tops = xr.load_dataset(inspection / "results/top_tokens.nc")
    assert said[:3] == ["position 1 “␣first”: not measured at this token", "none", "true"]
    assert said[3:5] == ["position 2 “␣thing”: ≈ N", "after 0"]
    role = str(data["role"].values[7, 4])
    assert said[5:7] == ["Layer 7, head 4", f"Role: {role}" if role else ""]
    assert said_number(said[7]) == pytest.approx(data["score"].values[7, 4, 0], rel=0.01)
    assert said[8] == f"“{tops['top_token'].values[7, 4, 0].replace(' ', '␣')}”".replace("\n", "↵")
    assert said[9:12] == ["true", "Layer 7, head 4", "Layer 8, head 5"]
    patterns = xr.load_dataset(inspection / "results/attention_patterns.nc")
    last = make_visible(patterns["token"].values[63])
    assert said[12] == f"position 0 “The” → position 63 “{last}”: masked (causal)"
    where, weight = said[13].split(": ≈ ")
    assert where == f"position 63 “{last}” → position 63 “{last}”"
    assert said_number(weight) == pytest.approx(patterns["pattern"].values[8, 5, 63, 63], abs=0.005)


def test_an_inspection_of_any_strings_runs_none_of_them(tmp_path, samples, inspected):
    html = render_report(inspected.hostile(tmp_path / "run", samples.HOSTILE))
    dom, console = look(html, tmp_path)
    assert console == []
    body = re.sub(r"<script.*?</script>", "", dom, flags=re.S)
    assert "<img" not in body
    assert body.count('data-position="') == 40
    assert "&lt;img src=x" in body  # in the tables of the head that is open
    content, window, _ = measured(dom)
    assert content <= window


def test_few_files_make_a_sensible_page(inspection, tmp_path):
    run = tmp_path / "run"
    (run / "results").mkdir(parents=True)
    for name in ("run.json", "results/norms.nc"):
        shutil.copy(inspection / name, run / name)
    dom, console = look(render_report(run), tmp_path)
    assert console == []
    assert measured(dom)[2] >= 2
    assert "data-reader" not in dom.split("<script>")[0]


def test_hostile_text_runs_nowhere(tmp_path, samples):
    dom, console = look(render_report(samples.hostile(tmp_path / "run")), tmp_path)
    assert console == []
    assert 'class="main-svg"' in dom
    body = re.sub(r"<script.*?</script>", "", dom, flags=re.S)
    assert "<img" not in body


def test_strange_tokens_are_shown_as_they_are(tmp_path, samples):
    tokens = ["<b>", "</span>", "&amp;", "\u202e", "𝔘", "\n", "", " "] * 6
    dom, console = look(render_report(samples.write_inspection(tmp_path / "run", tokens)), tmp_path)
    assert console == []
    assert "&lt;b&gt;" in dom
