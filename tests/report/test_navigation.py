"""Links to sections, figures and claims, and the filters of a page."""

import json
import re
import shutil

import pytest
import xarray as xr

from mesascope.report import render_report
from mesascope.report.anchors import AnchorNames
from report.test_page import parse

USE = """
  document.documentElement.style.scrollBehavior = "auto";
  const said = [], find = selector => [...document.querySelectorAll(selector)];
  const visible = selector => find(selector).filter(one => one.checkVisibility()).map(one => one.textContent.trim());
  const type = (input, text) => { input.value = text; input.dispatchEvent(new Event("input")); };
  const linked = one => one.querySelector(`a.anchor[href="#${one.id}"]`);
  const unlinked = find("main :is(section, figure, article)[id]").filter(one => !linked(one));
  said.push(unlinked.map(one => one.id));
  said.push(find("a.anchor").every(one => one.tabIndex === 0 && one.getAttribute("aria-label")));
  const [sections, claims] = find("[data-filter]"), output = sections.closest(".filter").querySelector("output");
  type(sections, "HEAD role");
  said.push(visible("main > section > .heading h2"), visible("nav li"), output.textContent);
  sections.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
  said.push(visible("main > section > .heading h2").length, output.textContent);
  type(claims, "contradicted scores");
  said.push(visible("details.verdicts .claim"), claims.closest(".filter").querySelector("output").textContent);
  location.hash = "result-odd-hidden";
  const target = document.getElementById("result-odd-hidden");
  await until(() => target.checkVisibility());
  await drawn();
  said.push(target.checkVisibility(), Math.round(target.getBoundingClientRect().top) < innerHeight);
  return said;
"""


def test_ids_are_names_that_occur_once():
    names = AnchorNames(frozenset({"run"}))
    assert [names.add_name("run"), names.add_name("run"), names.add_name("result", "ü <b>x", "")] == [
        "run-2",
        "run-3",
        "result-ü-b-x-unnamed",
    ]


@pytest.mark.parametrize("kind", ["study", "inspection", "hostile"])
def test_every_section_figure_and_claim_has_an_id(samples, inspected, tmp_path, kind):
    write = {"study": samples.write_study, "inspection": inspected.write, "hostile": samples.hostile}[kind]
    found = parse(render_report(write(tmp_path / "run"))).found
    ids = [attrs["id"] for _, attrs in found if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(attrs.get("id") for tag, attrs in found if tag in ("section", "figure", "article"))
    links = [attrs["href"][1:] for tag, attrs in found if tag == "a" and attrs["href"].startswith("#")]
    assert set(links) <= set(ids)


def test_ids_do_not_depend_on_other_results(study_run):
    before = set(re.findall(r'<figure class="[^"]*" id="([^"]*)"', render_report(study_run)))
    assert {"training-study", "result-heads-similarity"} <= before
    shutil.copy(study_run / "results/layers.nc", study_run / "results/another.nc")
    (study_run / "results/loss_vs_baselines.nc").unlink()
    after = set(re.findall(r'<figure class="[^"]*" id="([^"]*)"', render_report(study_run)))
    assert {one for one in before if "loss_vs_baselines" not in one} < after


@pytest.mark.needs_chromium
def test_links_and_filters_work(study_run, samples, browser):
    (study_run / "verdicts.json").write_text(json.dumps(samples.verdicts() * 5))
    odd = xr.load_dataset(study_run / "results/odd.nc")
    odd["hidden"] = odd[next(iter(odd.data_vars))]
    for k, name in enumerate(odd.data_vars):
        odd[name].attrs["headline"] = int(k == 0)
    odd.to_netcdf(study_run / "results/odd.nc")
    seen, console = browser.look(render_report(study_run), USE)
    assert console == []
    unlinked, focusable, sections, contents, counted, all_sections, empty, claims, claims_counted, shown, near = seen
    assert unlinked == []
    assert focusable
    assert sections == contents == ["Head roles"]
    assert counted == "1 of 10"
    assert [all_sections, empty] == [10, ""]
    assert set(claims) == {
        "Negative similarity heads in layer 2 refine the estimate: their scores fall with similarity."
    }
    assert claims_counted == "5 of 20"
    assert shown
    assert near
