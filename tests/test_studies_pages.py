"""The pages of the studies: every verdict as it is, pictures of what the report draws, what goes into the package."""

import json
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from mesascope.store import Run
from mesascope.studies import published, registry
from mesascope.studies.next_token_convergence.toy_model import STAGE_DESCENTS, NextTokenModel

STUDY = "next-token-convergence"
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WORDS = ("supported", "contradicted", "inconclusive")


@pytest.fixture
def build(monkeypatch, tmp_path):
    """docs/build.py, writing elsewhere."""
    monkeypatch.syspath_prepend(str(DOCS))
    import build as found

    monkeypatch.setattr(found, "PAGES", tmp_path / "pages")
    monkeypatch.setattr(found, "FIGURES", tmp_path / "pages" / "figures")
    copy = tmp_path / "published.json"
    copy.write_text(published.PUBLISHED.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(published, "PUBLISHED", copy)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{found.BEGIN}\nold\n{found.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(found, "README", readme)
    (tmp_path / "pages").mkdir()
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with two seeds of the toy model, and verdicts of three kinds."""
    place, study = tmp_path_factory.mktemp("made") / "run", registry.load_study(STUDY)
    (place / "results").mkdir(parents=True)
    small = NextTokenModel(vocabulary=5, length=3, sentences=8, unseen=30, steps=150, checkpoints=9)
    seeds = xr.concat([small.simulate(0), small.simulate(1)], "seed")
    seeds.assign_attrs(title="Toy model", description="", simulation="toy_model").to_netcdf(
        place / "results" / "toy_model.nc"
    )
    made = {"torch": "0", "transformers": "0", "processors": 2}
    record = {
        "study": STUDY,
        "title": study.title,
        "description": study.description,
        "scale": "laptop",
        "seeds": [0, 1],
    }
    record |= {"provenance": made, "citation": asdict(study.citation)}
    (place / "run.json").write_text(json.dumps(record))
    told = {"value": 1.5, "interval": [1.0, 2.0], "control": None, "control_description": "", "per_seed": [1.0, None]}
    told |= {"level": 0.98}
    texts = {"description": "what", "source": "who", "reason": "why"}
    verdicts = [
        {"name": claim.name, "kind": claim.kind, "status": WORDS[k % 3], "statement": claim.statement, **told, **texts}
        for k, claim in enumerate(study.claims)
    ]
    (place / "verdicts.json").write_text(json.dumps(verdicts))
    return place


def test_every_verdict_stands_on_the_page_as_it_is(build, run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["build.py", str(run)])
    build.main()
    text = (build.PAGES / f"{STUDY}.md").read_text(encoding="utf-8")
    claims = registry.load_study(STUDY).claims
    for k, claim in enumerate(claims):
        assert f"| **{WORDS[k % 3]}** | {claim.statement} | 1.5 [1, 2] | - | 1, - |" in text
    told = published.load_published()[STUDY]
    published_statuses = told["verdicts"] | told["others"]
    assert published_statuses == {claim.name: WORDS[k % 3] for k, claim in enumerate(claims)}
    assert list(told["verdicts"]) == [claim.name for claim in claims if claim.kind == "replication"]
    assert text.index("## Simulations") < text.index("## Sanity checks")
    assert (told["scale"], told["seeds"]) == ("laptop", 2)
    assert "affine" in published.load_published()  # the others stay


def test_pictures_show_the_curves_of_the_report(build, run):
    import matplotlib.image

    record, verdicts = (build.load_json(run / f"{name}.json") for name in ("run", "verdicts"))
    text = build.format_study_page(run, record, verdicts)
    assert "![Toy model](figures/next-token-convergence-toy_model.png)" in text
    assert "*excess loss*: cross-entropy minus its infimum." in text
    pixels = matplotlib.image.imread(build.FIGURES / f"{STUDY}-toy_model.png")
    assert pixels.shape[0] > 400  # four plots in two rows
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10


@pytest.mark.parametrize(
    ("marked", "titles"),
    [((), ["excess loss", "norm"]), (("norm",), ["norm"]), (("excess_loss",), ["excess loss"])],
    ids=["none", "one", "another"],
)
def test_pictures_show_what_the_report_does_not_fold_away(build, run, tmp_path, marked, titles):
    """All curves where nothing is marked, and those that are marked where something is; a point alone is no curve."""
    from figures import draw_figures

    place = tmp_path / "run"
    (place / "results").mkdir(parents=True)
    shutil.copy(run / "run.json", place)
    data = xr.load_dataset(run / "results" / "toy_model.nc")[["excess_loss", "norm"]]
    data["point"] = data["excess_loss"].isel(step=[-1]).rename(step="_one")
    for name in data.data_vars:
        data[name].attrs["headline"] = int(name in marked)
    data.assign_attrs(title="Curves", description="", simulation="toy_model").to_netcdf(place / "results" / "curves.nc")
    drawn = list(draw_figures(place, tmp_path, "page", ()))
    assert [title for title, *_ in drawn] == ["Curves"]
    assert re.findall(r"\*([\w ]+)\*", drawn[0][1]) == titles


def test_what_is_a_straight_line_by_steps_is_drawn_by_steps(build, run):
    """The paths that steps of one length take; all else of training is drawn by the logarithm of steps."""
    from mesascope.report.load_run import load_run
    from mesascope.report.panels.choose_view import build_panels

    (result,) = load_run(run).results
    assert result.data is not None
    looks = {
        panel.title: panel.data["plots"][0]["layout"]["xaxis"] for panel in build_panels(result.data) if panel.data
    }
    assert {title for title in ("excess loss", "norm", "attention", "margin cosine") if "type" not in looks[title]} == {
        "excess loss",
        "norm",
    }
    names = {
        one["name"] for panel in build_panels(result.data) if panel.title == "norm" for one in panel.data["legend"]
    }
    assert set(STAGE_DESCENTS) <= names


def list_published_pages():
    """Name of the page, name of the study, and published verdicts of every scale."""
    for name, entry in published.load_published().items():
        yield name, name, entry
        for scale, further in entry.get("further_scales", {}).items():
            yield f"{name}-{scale}", name, further


def test_every_study_with_a_page_has_its_verdicts_in_the_package_and_the_other_way_round():
    entries = {page: entry for page, _, entry in list_published_pages()}
    assert {file.stem for file in (DOCS / "studies").glob("*.md")} - {"README", "released"} == set(entries)
    for page, entry in entries.items():
        text = (DOCS / "studies" / f"{page}.md").read_text(encoding="utf-8")
        cells = [entry, *entry.get("cells", {}).values()]
        statuses = [status for cell in cells for status in (*cell["verdicts"].values(), *cell["others"].values())]
        assert {word: text.count(f"| **{word}** |") for word in set(statuses)} == published.count_statuses(statuses)


def test_pages_and_verdicts_are_of_the_claims_as_they_are_now():
    for page, study, entry in list_published_pages():
        text = (DOCS / "studies" / f"{page}.md").read_text(encoding="utf-8")
        claims = registry.load_study(study).claims
        for cell in (entry, *entry.get("cells", {}).values()):
            assert {**cell["verdicts"], **cell["others"]}.keys() == {claim.name for claim in claims}, page
        assert [claim.name for claim in claims if f"| {claim.statement} |" not in text] == [], page


def test_a_run_at_another_scale_has_a_page_of_its_own(build, run, tmp_path, monkeypatch):
    larger = tmp_path / "larger"
    shutil.copytree(run, larger)
    record = json.loads((run / "run.json").read_text()) | {"scale": "paper", "seeds": list(range(8))}
    (larger / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr(sys, "argv", ["build.py", str(run), str(larger), str(run)])
    build.main()
    entry = published.load_published()[STUDY]
    assert (entry["scale"], entry["further_scales"]["paper"]["scale"]) == ("laptop", "paper")
    assert (entry["seeds"], entry["further_scales"]["paper"]["seeds"]) == (2, 8)
    own, other = ((build.PAGES / f"{name}.md").read_text() for name in (STUDY, f"{STUDY}-paper"))
    assert f"[paper scale]({STUDY}-paper.md)" in own
    assert f"`mesascope run {STUDY} --scale paper`" in other
    assert "Also run" not in other
    assert f"figures/{STUDY}-paper-toy_model.png" in other


def test_what_the_pages_show_is_there():
    for page in (DOCS / "studies").glob("*.md"):
        for part in page.read_text(encoding="utf-8").split("](figures/")[1:]:
            assert (page.parent / "figures" / part.split(")")[0]).is_file()


def save_layers(run, name, **variables):
    """Write results of three layers: plain lists, or (values, control) for a control of the cosine."""
    data = xr.Dataset()
    for key, given in variables.items():
        values, control = given if isinstance(given, tuple) else (given, None)
        attrs = {"control_of": "cosine", "control": control} if control else {}
        data[key] = xr.DataArray(np.asarray(values, float), dims=("draw", "layer")[-np.ndim(values) :], attrs=attrs)
    sublayers = xr.DataArray(["attention", "mlp"], dims="sublayer", name="sublayer")
    run.write_results(name, data.expand_dims(sublayer=sublayers) if "cosine" in data else data)


def test_statements_on_a_released_model_count_the_layers_that_exceed_every_control(build, tmp_path):
    import released

    run = Run.create(tmp_path / "run", {"study": "inspect", "scale": "laptop"})
    shuffled, other = ([[0.0, 0.1, 0.0], [0.0, 0.28, 0.0]], "keys shuffled"), ([0.0, 0.0, 0.0], "other positions")
    unused = ([0.9, 0.9, 0.9], "positions shuffled")
    undefined = ([np.nan] * 3, "keys shuffled")
    save_layers(run, "inner_fast_weight", cosine=[0.3, 0.3, 0.04], cosine_null=shuffled, cosine_null_more=unused)
    save_layers(run, "inner_outer", cosine=[0.3, 0.3, 0.3], cosine_null=undefined, cosine_null_other=other)
    save_layers(run, "inner_readout", cosine=[-0.3, 0.0, 0.3])
    for name, variable in (("logit_lens", "loss"), ("affine_lens", "loss"), ("norms", "variation")):
        random = {f"{variable}_null_random_weights": [[1.0, 1.0, 2.0]]}
        save_layers(run, name, **{variable: [3.0, 2.0, 1.0]}, **random)
    counts = [row.split(" | ")[1] for row in released.format_statements(run.path)[4:]]
    assert counts == ["1 of 3", "3 of 3", "3 of 3", "1 of 3", "1 of 3", "2 of 2", "2 of 2", "2 of 2"]
    assert "random weights 0 of 2, 0.5" in released.format_statements(run.path)[-1]


def test_the_readme_lists_the_claims_of_the_papers_by_verdict(build):
    """Those that hold in all cells of the grid, those that do in none, and all others."""
    names = [claim.name for claim in registry.load_study("affine").claims if claim.by_paper]
    first, second, third, fourth, *_ = names
    own = {
        first: "supported",
        second: "supported",
        third: "no effect",
        fourth: "inconclusive",
        "not the paper's": "supported",
    }
    other = {first: "supported", second: "contradicted", third: "contradicted", fourth: "not learned"}
    entry = {"scale": "laptop", "seeds": 5, "verdicts": own, "others": {}}
    entry |= {"cell": "block=bare", "cells": {"block=prenorm": {"seeds": 5, "verdicts": other, "others": {}}}}
    larger = {"scale": "paper", "seeds": 8, "verdicts": {first: "contradicted"}, "others": {}}
    entry["further_scales"] = {"paper": larger}
    published.PUBLISHED.write_text(json.dumps({"affine": entry}), encoding="utf-8")
    build.write_readme_table()
    row = (
        f"| [`affine`](docs/studies/affine.md) | 2 x 5 | {first} | {third} (no effect, contradicted) | "
        f"{second} (supported in 1 of 2 cells); {fourth} (inconclusive, not learned) |"
    )
    lines = build.README.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert lines.count(row) == 1
    assert lines.count(f"| [`affine-paper`](docs/studies/affine-paper.md) | 8 |  | {first} (contradicted) |  |") == 1
    assert len(lines) == 8


def test_the_readme_has_the_published_verdicts(build, monkeypatch):
    monkeypatch.undo()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.split(build.BEGIN)[1].split(build.END)[0].strip().splitlines() == build.format_readme_table()
