"""The page of a model of vectors in a real browser: a sequence that is changed, charts, and a shared address."""

import pytest
import torch

from explorer.test_browser import TOKEN, script, serving
from mesascope.explorer import (
    ExploredModel,
    explore_task_model,
    view_objective,
    view_term_ablation,
    view_term_lens,
    view_term_patching,
    view_terms,
)
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.tasks.affine import Affine
from report.test_accessibility import CHECK

pytestmark = pytest.mark.needs_chromium

LENGTH = 10
NUMBERS = """
const power = sign => "-0123456789"["⁻⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(sign)];
const read = text => Number(text.replace("−", "-").replace(/\\u00a0×\\u00a010/, "e").replace(/[⁻⁰¹²³⁴-⁹]/g, power));
"""
USE = f"""
{NUMBERS}
const points = (host, kind) => all(`${{host}} .chart .point.${{kind}}`).length;
await submit("#ask", "#prompt", "3");
said.terms = all(".t").map(one => read(one.textContent));
await after(() => all(".t")[4].click());
said.readout = find("#token-readout").textContent;
said.label = find("#value-label").textContent;
said.lens = all("#lens-table tbody tr").map(row => [...row.children].slice(1).map(one => read(one.textContent)));
said.points = ["truth", "before", "source"].map(kind => points("#terms-chart", kind));
await pick("compare with", "least squares");
said.compared = points("#terms-chart", "source");
await after(() => {{ find("#value").value = "1.5"; find("#change").requestSubmit(); }});
said.prompt = find("#prompt").value;
said.changed = all(".t").map(one => read(one.textContent));
said.marked = all(".t").map((one, k) => one.matches(".changed") ? k : -1).filter(k => k >= 0);
said.truth = points("#terms-chart", "truth");
said.note = find("#changed").textContent;
await pick("objective", "quadratic");
said.objective = all("#objective-table tbody tr").map(row => [...row.children].map(one => one.textContent));
said.identity = find("#objective-identity").textContent;
await after(() => find('#headmap [aria-label^="layer 1, head 2"]').click());
said.map = find("#pattern-map canvas").getAttribute("aria-label");
await after(() => find("#toggle").click());
await pick("by", "mean");
said.ablated = find("#ablation-table .readout").textContent;
said.after = points("#ablation-table", "after");
await submit("#patch", "#source", "7; 0=2");
said.patched = find("#patching-table .readout").textContent;
await pick("colour by", "attention of the clicked position by the head");
said.coloured = all(".t").map(one => one.style.background !== "");
said.code = find("[data-code=patching]").textContent;
said.hash = location.hash;
await submit("#patch", "#source", "7; 99=2");
said.wrong = find("[data-problem=patching]").textContent;
await after(() => find("#undo").click());
said.undone = find("#prompt").value;
await submit("#ask", "#prompt", "three");
said.error = find("[data-problem=terms]").textContent;
said.left = all("table").length + all(".t").length + all(".chart").length;
"""


@pytest.fixture(scope="module")
def subject() -> ExploredModel:
    torch.manual_seed(0)
    config = DecoderConfig(d_in=1, d_out=1, hidden_size=16, intermediate_size=24, norm="layer")
    return explore_task_model(Decoder(config).eval(), Affine(length=LENGTH), "affine <b>model</b>")


@pytest.fixture(scope="module")
def used(subject, browser):
    with serving(subject) as address:
        return browser.visit(address, script(USE))


def rounded(value):
    return pytest.approx(value, rel=6e-3, abs=1e-12)


def test_a_reader_sees_the_numbers_of_the_views(used, subject):
    seen, messages = used
    drawn, changed = view_terms(subject, 3), view_terms(subject, "3; 4=1.5")
    assert seen["terms"] == rounded([row[0] for row in drawn["inputs"]])
    assert seen["readout"].startswith("position 4 ")
    assert seen["label"] == "Value at position 4"
    lens = view_term_lens(subject, 3, 4)["rows"]
    assert seen["lens"] == [rounded([row["prediction"][0], row["loss"], row["mean_loss"]]) for row in lens]
    assert seen["points"] == [LENGTH, LENGTH, 0]
    assert seen["compared"] == LENGTH
    assert seen["prompt"] == "3; 4=1.5"
    assert seen["changed"] == rounded([row[0] for row in changed["inputs"]])
    assert seen["marked"] == [4]
    assert seen["truth"] == 4
    assert seen["note"].startswith("Changed: position 4 = 1.5. From the first changed position on, the truth is not")
    rows = view_objective(subject, "3; 4=1.5", 4, "quadratic")["rows"]
    assert [row[0] for row in seen["objective"]] == [f"layer {row['layer']}, attention" for row in rows]
    assert seen["identity"].startswith("Holds by construction: L(x + u) − L(x)")
    assert seen["map"].startswith("Attention of layer 1, head 2")
    assert seen["after"] == LENGTH
    assert seen["coloured"] == [True] * LENGTH
    assert messages == [line for line in messages if "status of 400" in line]


def test_edits_are_those_of_the_views(used, subject):
    seen, _ = used
    ablated = view_term_ablation(subject, "3; 4=1.5", [[1, 2]], "mean")
    patched = view_term_patching(subject, "3; 4=1.5", "7; 0=2", "resid_pre", 0, 4)
    assert seen["code"] == patched["code"]
    for text, view in ((seen["ablated"], ablated), (seen["patched"], patched)):
        assert text.startswith("At position 4: before ")
        assert "Mean loss before" in text
        number = text.rpartition("change of the predictions: ")[2].rstrip(".")
        assert float(number) == rounded(view["change"])


def test_mistakes_are_shown_where_they_were_made(used):
    seen, _ = used
    assert seen["wrong"] == f"the position of a change must be from 0 to {LENGTH - 1}, but got 99"
    assert seen["undone"] == "3"
    assert seen["error"].startswith("a sequence must be given by its number")
    assert seen["left"] == 0


def test_an_address_can_be_shared(used, subject, browser):
    seen, _ = used
    steps = """
    said.prompt = find("#prompt").value; said.source = find("#source").value; said.note = find("#changed").textContent;
    said.here = all(".t").findIndex(one => one.matches(".here")); said.chips = all(".chip").map(one => one.textContent);
    said.ablated = find("#ablation-table .readout").textContent;
    said.patched = find("#patching-table .readout").textContent;
    """
    assert TOKEN not in seen["hash"]
    with serving(subject) as address:
        again, _ = browser.visit(address + seen["hash"], script(steps))
    assert (again["prompt"], again["source"], again["here"]) == ("3; 4=1.5", "7; 0=2", 4)
    assert again["chips"] == ["1.2 ×"]
    for name in ("note", "ablated", "patched"):
        assert again[name] == seen[name]


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_its_window(subject, browser, width):
    steps = """
    await after(() => find("#toggle").click());
    await submit("#patch", "#source", "1");
    all("details").forEach(one => { one.open = true; });
    await wait(100);
    said.beyond = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    said.charts = all(".chart").filter(one => one.getBoundingClientRect().width > 240).length;
    """
    with serving(subject) as address:
        found, _ = browser.visit(address, script(steps), width=width)
    assert found == {"beyond": 0, "charts": 3}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_follows_the_rules(subject, browser, dark):
    """All rules of reports but the landmarks: the explorer is one page without a table of contents."""
    state = "#prompt=3%3B+4%3D1.5&position=4&off=1.2&source=7&baseline=least+squares"
    with serving(subject) as address:
        rules, messages = browser.visit(address + state, script(CHECK), dark=dark)
    assert messages == []
    del rules["landmarks"]
    broken = {name: found["broken"] for name, found in rules.items() if found["broken"]}
    assert not broken, broken
    assert rules["contrast"]["applied"] > 50
