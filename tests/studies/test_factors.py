"""Factors of a study: cells, the settings they stand for, and a run of a grid."""

import json
import os
from dataclasses import replace

import pytest
import xarray as xr

from commands import call
from mesascope.models.config import DecoderConfig
from mesascope.store import RunError
from mesascope.studies.base import Factor, Level
from mesascope.studies.cells import load_cells, tabulate_claims
from mesascope.studies.registry import load_study
from mesascope.tasks.distributions import Uniform
from studies.small_study import SMALL_STUDY

AFFINE = load_study("affine")
HEADS = Factor(
    name="heads",
    description="heads per layer",
    levels=(
        Level(name="4", description="4 heads"),
        Level(name="1", description="1 head", model={"num_attention_heads": 1}),
    ),
)
RANGE = Factor(
    name="range",
    description="range of the slope",
    levels=(
        Level(name="contracting", description="|a| < 1"),
        Level(name="growing", description="|a| < 2", task={"spectral_radius": Uniform(0.0, 2.0)}),
    ),
)


def test_the_setting_of_the_study_is_the_first_cell_of_any_grid():
    study = replace(AFFINE, factors=(HEADS, RANGE), grid={})
    assert study.list_cells("laptop") == [{"heads": "4", "range": "contracting"}]
    varied = {"range": ["growing"], "heads": ["1", "4"]}
    assert study.list_cells("laptop", varied) == [
        {"heads": "4", "range": "contracting"},
        {"heads": "1", "range": "growing"},
        {"heads": "4", "range": "growing"},
    ]
    assert study.at_cell({"heads": "4"}) is study
    assert study.cell == "heads=4,range=contracting"


def test_a_cell_replaces_what_its_levels_name_and_nothing_else():
    study = replace(AFFINE, factors=(HEADS, RANGE), grid={})
    cell = study.at_cell({"heads": "1", "range": "growing"})
    assert (cell.name, cell.cell) == ("affine[heads=1,range=growing]", "heads=1,range=growing")
    own, other = AFFINE.main, cell.main
    assert (other.model.num_attention_heads, other.model.num_key_value_heads) == (1, 1)
    assert other.task == replace(own.task, spectral_radius=Uniform(0.0, 2.0))
    assert {**other.model.to_dict(), "num_attention_heads": 4, "num_key_value_heads": 4} == own.model.to_dict()
    assert (other.scales, other.analyses, cell.claims) == (own.scales, own.analyses, AFFINE.claims)
    assert (cell.factors, cell.grid) == ((), {})


def test_a_level_applies_to_what_a_scale_replaces():
    scales = {
        name: replace(
            one, model=DecoderConfig(d_in=1, d_out=1, hidden_size=32), task=replace(AFFINE.main.task, length=9)
        )
        for name, one in AFFINE.main.scales.items()
    }
    study = replace(AFFINE, conditions=(replace(AFFINE.main, scales=scales),), factors=(HEADS, RANGE), grid={})
    main = study.at_cell({"heads": "1", "range": "growing"}).main
    assert (main.model_at("paper").hidden_size, main.model_at("paper").num_attention_heads) == (32, 1)
    assert main.task_at("paper") == replace(AFFINE.main.task, length=9, spectral_radius=Uniform(0.0, 2.0))


@pytest.mark.parametrize("cell", AFFINE.list_cells("paper")[1:], ids=lambda cell: "-".join(cell.values()))
def test_every_cell_of_a_grid_is_loaded_by_its_name(cell):
    study = load_study(AFFINE.at_cell(cell).name)
    assert study.cell == ",".join(f"{factor}={level}" for factor, level in cell.items())
    assert study.main.model.to_dict() == AFFINE.at_cell(cell).main.model.to_dict()
    assert study.main.task == AFFINE.at_cell(cell).main.task


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        ({"levels": HEADS.levels[:1]}, "two or more levels"),
        ({"levels": (HEADS.levels[0], HEADS.levels[0])}, "different names"),
        ({"levels": HEADS.levels[::-1]}, "must replace nothing, but '1' of 'heads' does"),
        ({"name": "number/of/heads"}, "letters, digits"),
    ],
)
def test_a_factor_without_a_choice_is_refused(factor, message):
    with pytest.raises(ValueError, match=message):
        replace(HEADS, **factor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": (replace(HEADS, conditions=("other",)),)}, "the factor 'heads' must exist, but 'other' does not"),
        (
            {"factors": (HEADS,), "grid": {"laptop": {"heads": ("2",)}}},
            "a level of heads must be one of 4, 1, but got '2'",
        ),
        ({"factors": (HEADS,), "grid": {"desk": {}}}, "scales of a grid must be among smoke, laptop, paper"),
        ({"factors": (), "grid": {"laptop": {"heads": ("1",)}}}, "must be a setting, since the study declares none"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(AFFINE, **({"grid": {}} | changes))


def test_a_run_of_a_grid_judges_every_cell(small, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    words = ["run", str(small), "--scale", "smoke", "--out", str(out), "--on", "serial"]
    code, told, _ = call(
        *words, "--vary", "heads=2,1", "--vary", "rate=clipped,usual", capsys=capsys, monkeypatch=monkeypatch
    )
    assert code == 0
    cells = load_cells(out)
    names = ["heads=2,rate=usual", "heads=2,rate=clipped", "heads=1,rate=usual", "heads=1,rate=clipped"]
    assert [cell.name for cell in cells] == names
    assert [cell.path.name for cell in cells] == ["run", *names[1:]]
    (claim,) = tabulate_claims(cells)
    assert claim.statuses == dict.fromkeys(names, "inconclusive")  # one seed decides nothing
    assert claim.support == "0 of 4"
    assert "0 of 4 cells: It is worse than copying." in told
    heads = [json.loads((c.path / "run.json").read_text())["parameters"]["model"]["num_attention_heads"] for c in cells]
    assert heads == [2, 2, 1, 1]
    page = (out / "report.html").read_text()
    assert "Verdicts by setting" in page
    assert 'href="cells/heads=1,rate=clipped/report.html"' in page
    assert "Verdicts by setting" not in (cells[1].path / "report.html").read_text()


def test_a_cell_is_added_to_a_run_without_computing_the_others_again(small, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    words = ["run", str(small), "--scale", "smoke", "--out", str(out), "--on", "serial"]
    assert call(*words, capsys=capsys, monkeypatch=monkeypatch)[0] == 0
    result = out / "results" / "loss_vs_baselines.nc"
    os.utime(result, (1e9, 1e9))
    assert call(*words, "--vary", "heads=1", capsys=capsys, monkeypatch=monkeypatch)[0] == 0
    assert [cell.name for cell in load_cells(out)] == ["heads=2,rate=usual", "heads=1,rate=usual"]
    assert result.stat().st_mtime == 1e9


def test_the_cells_of_a_grid_equal_runs_of_their_own(small, tmp_path, capsys, monkeypatch):
    out, alone = tmp_path / "run", tmp_path / "alone"
    words = ["--scale", "smoke", "--on", "serial", "--out"]
    call("run", str(small), *words, str(out), "--vary", "heads=1", capsys=capsys, monkeypatch=monkeypatch)
    call("run", f"{small}[heads=1]", *words, str(alone), capsys=capsys, monkeypatch=monkeypatch)
    grid, single = ((path / "verdicts.json").read_text() for path in (out / "cells" / "heads=1,rate=usual", alone))
    assert grid == single


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        (["width=2"], "heads, rate, or the path of a setting such as training.steps, but got 'width'"),
        (["heads=3"], "a level of heads must be one of 2, 1, but got '3'"),
        (["heads"], "--vary must name each factor once"),
        (["heads=1", "heads=2"], "--vary must name each factor once"),
    ],
)
def test_a_wrong_factor_is_one_clear_line(small, tmp_path, capsys, monkeypatch, vary, message):
    options = [word for one in vary for word in ("--vary", one)]
    words = ["run", str(small), "--scale", "smoke", "--out", str(tmp_path / "run"), *options]
    code, _, told = call(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert message in told
    assert not (tmp_path / "run").exists()


def test_a_damaged_cell_is_named_and_no_map_is_shown_without_it(small, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    words = ["run", str(small), "--scale", "smoke", "--out", str(out), "--on", "serial", "--vary", "heads=1"]
    call(*words, capsys=capsys, monkeypatch=monkeypatch)
    (out / "cells" / "heads=1,rate=usual" / "verdicts.json").write_text("{")
    with pytest.raises(RunError, match=r"heads=1,rate=usual/verdicts.json must match its checksum .*; run the study"):
        load_cells(out)
    code, _, told = call("report", str(out), capsys=capsys, monkeypatch=monkeypatch)
    assert (code, told.count("\n")) == (2, 1)
    assert "heads=1,rate=usual/verdicts.json must match its checksum" in told
    assert "Verdicts by setting" not in (out / "report.html").read_text(encoding="utf-8")
    code, _, told = call(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0
    assert "heads=1,rate=usual/verdicts.json must match its checksum in manifest.json, but differs; the claims" in told
    assert [cell.name for cell in load_cells(out)] == ["heads=2,rate=usual", "heads=1,rate=usual"]
    assert call("verify", str(out), capsys=capsys, monkeypatch=monkeypatch)[0] == 0


def test_a_stopped_run_does_not_analyse_finished_seeds_again(small, tmp_path, monkeypatch):
    """The results of each seed are stored at once; they hold for this code, these weights and these analyses only."""
    from mesascope import api
    from mesascope.runner import _jobs

    analysed, original = [], _jobs._analyse

    def count(condition, job, *rest):
        analysed.append((job.study.partition("[")[2], job.seed))
        if len(analysed) == 3:
            raise KeyboardInterrupt
        return original(condition, job, *rest)

    monkeypatch.setattr(_jobs, "_analyse", count)
    options = {"scale": "smoke", "seeds": 2, "vary": {"heads": ["1"]}, "on": "serial"}
    with pytest.raises(KeyboardInterrupt):
        api.run(str(small), out=tmp_path / "stopped", **options)
    api.run(str(small), out=tmp_path / "stopped", **options)
    cell = "heads=1,rate=usual]"
    assert analysed == [("", 0), ("", 1), (cell, 0), (cell, 0), (cell, 1)]
    api.run(str(small), out=tmp_path / "whole", **options)
    for name in ("results/loss_vs_baselines.nc", "cells/heads=1,rate=usual/results/loss_vs_baselines.nc"):
        stopped, whole = (xr.load_dataset(tmp_path / place / name) for place in ("stopped", "whole"))
        xr.testing.assert_equal(stopped, whole)
    small.write_text(SMALL_STUDY.replace("analyses.loss_vs_baselines,", "analyses.loss_vs_baselines.using(seed=3),"))
    analysed[:] = [("other options", 0)] * 3
    with pytest.raises(TypeError):  # the analysis has no such option: it was called
        api.run(str(small), out=tmp_path / "stopped", **options)
    assert len(analysed) == 4
