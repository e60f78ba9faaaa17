"""The graph of a circuit of a model whose heads share key-value heads."""

import json

import pytest

from browser import Browser
from mesascope import api
from mesascope.report import write_report
from mesascope.store import Run
from pages import read_figure_data
from saved import save_tiny
from test_circuit_command import write_pairs

SIZE = 40
# the first edges into a key or value: the boxes of all heads that share it are marked, and its curve ends in a bracket
PROBE = """
  const slider = document.querySelector(".graph input"), find = selector => [...document.querySelectorAll(selector)];
  slider.value = slider.max;
  slider.dispatchEvent(new Event("input"));
  const name = path => path.querySelector("title").textContent.split(":")[0];
  return { used: find(".circuit rect.used title").map(one => one.textContent),
    curves: find(".circuit path").map(path => [name(path), path.getAttribute("d"), path.style.display]) };
"""


@pytest.fixture(scope="module")
def grouped_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("grouped")
    pairs = write_pairs(folder / "pairs.jsonl")
    return api.circuit(save_tiny(folder, grouped=True), pairs=pairs, size=SIZE, steps=1, out=folder / "run")


def read_data(page: str) -> dict[str, object]:
    return next(json.loads(text) for text in read_figure_data(page) if '"edges"' in text)


def test_an_edge_leads_to_all_heads_that_share_a_key_value_head(grouped_run: Run):
    data = read_data(write_report(grouped_run.path).read_text(encoding="utf-8"))
    nodes, edges = data["nodes"], data["edges"]
    names = grouped_run.read_results("circuit")["receiver_name"].values.tolist()
    expected = {
        f"L{layer}.H{n}.{letter}": [f"L{layer}.H{2 * n + one}" for one in (0, 1)]
        for layer in (0, 1)
        for n in (0, 1)
        for letter in "kv"
    }
    for name, readers, (x, row) in zip(names, edges["readers"], edges["receiver"], strict=True):
        found = [nodes[index]["name"] for index in readers]
        assert found == expected.get(name, [name.removesuffix(".q")])
        assert {nodes[index]["row"] for index in readers} == {row}
        assert x == pytest.approx(sum(nodes[index]["x"] for index in readers) / len(readers))
    assert set(names) & set(expected)


@pytest.mark.needs_chromium
def test_the_page_marks_all_of_them(grouped_run: Run, browser: Browser):
    page = write_report(grouped_run.path).read_text(encoding="utf-8")
    said, console = browser.look(page, PROBE)
    assert not console, console
    heads = {f"layer {layer}, head {head}" for layer in (0, 1) for head in range(4)}
    assert heads <= set(said["used"])
    for name, curve, display in said["curves"]:
        shared = name.endswith(("(key)", "(value)"))
        assert ("H" in curve) == shared, name
        assert display == ""
