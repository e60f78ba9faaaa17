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

from mesascope.studies import published, registry
from mesascope.studies.next_token_convergence.toy_model import STAGE_DESCENTS, NextTokenModel

STUDY = "next-token-convergence"
DOCS = Path(__file__).parents[1] / "docs"
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


def test_every_study_with_a_page_has_its_verdicts_in_the_package_and_the_other_way_round():
    pages = {file.stem for file in (DOCS / "studies").glob("*.md")} - {"released"}
    assert pages == set(published.load_published())
    for name, one in published.load_published().items():
        text = (DOCS / "studies" / f"{name}.md").read_text(encoding="utf-8")
        assert {
            word: text.count(f"| **{word}** |") for word in WORDS if f"| **{word}** |" in text
        } == published.count_statuses(one["verdicts"].values())


def test_pages_and_verdicts_are_of_the_claims_as_they_are_now():
    for name, one in published.load_published().items():
        text = (DOCS / "studies" / f"{name}.md").read_text(encoding="utf-8")
        claims = registry.load_study(name).claims
        assert {**one["verdicts"], **one["others"]}.keys() == {claim.name for claim in claims}, name
        assert [claim.name for claim in claims if f"| {claim.statement} |" not in text] == [], name


def test_what_the_pages_show_is_there():
    for page in (DOCS / "studies").glob("*.md"):
        for part in page.read_text(encoding="utf-8").split("](figures/")[1:]:
            assert (page.parent / "figures" / part.split(")")[0]).is_file()
