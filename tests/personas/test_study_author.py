"""Somebody with a question of their own: a task, an analysis and a study in one file, from the checks to the verdict.

The file is `own_study.py`, written by docs/adding-a-task.md, docs/adding-an-analysis.md and docs/adding-a-study.md.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import mesascope
from mesascope.analyses import run_analyses
from mesascope.ground_truth.models.vectors import build_planted_model
from mesascope.studies.registry import load_study
from mesascope.testing import check_analysis, check_study, check_task

pytestmark = pytest.mark.slow

FILE = Path(__file__).with_name("own_study.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> mesascope.Run:
    """All five seeds, trained to the end."""
    return mesascope.run(str(FILE), scale="smoke", out=tmp_path_factory.mktemp("runs") / "first-term", quiet=True)


def test_every_part_is_checked_before_anything_is_trained():
    study = load_study(str(FILE))
    check_task(study.main.task)
    batch = study.main.task.sample(32, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    untrained = AutoModelForCausalLM.from_config(study.main.model).eval()
    (own,) = (one for one in study.main.analyses if one.name == "first_attention")
    check_analysis(own, untrained, batch)
    score = run_analyses(untrained, batch, [own])["first_attention"]
    assert abs(score["score"] - score["score_null"]).max() < 0.2
    check_study(study)


def test_a_misspelled_label_is_named_in_seconds(tmp_path: Path):
    text = FILE.read_text(encoding="utf-8").replace('predictor="model"', 'predictor="modle"')
    (tmp_path / "misspelled.py").write_text(text)
    line = "axis predictor of loss_vs_baselines has the labels model, exact, zero, copy"
    with pytest.raises(AssertionError, match=line) as error:
        check_study(load_study(str(tmp_path / "misspelled.py")))
    assert "a head attends to the first term" in str(error.value)


def test_the_command_runs_the_file_and_resumes_it(tmp_path: Path, command: Callable):
    """The first time with few steps and one seed, to see what a run looks like."""
    words = ("run", FILE, "--scale", "smoke", "--seeds", "1", "--set", "training.steps=20", "--out", tmp_path / "run")
    code, out, err = command(*words)
    assert code == 0, err
    printed = " ".join(out.split())
    assert "A head pays 20 % more attention to the first term than before training." in printed
    assert f"Report: {tmp_path / 'run' / 'report.html'}" in printed
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*.safetensors")}
    assert command(*words)[0] == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    (report,) = json.loads(command("report", tmp_path / "run", "--json")[1])
    assert report["study"] == "first-term[training.steps=20]"
    assert command("verify", tmp_path / "run")[0] == 0


def test_the_claim_gets_its_verdict(run: mesascope.Run):
    """Five models of five learn the task, and in each a head attends to the first term."""
    verdict = run.verdicts.iloc[0]
    assert verdict["status"] == "supported", verdict.to_dict()
    assert verdict["value"] - verdict["control"] > 0.2
    assert run["first_attention"]["score"].sizes == {"seed": 5, "step": 2, "layer": 1, "head": 2}
    error = run["loss_vs_baselines"]["scored"].isel(step=-1).mean("seed")
    assert float(error.sel(predictor="exact")) == 0
    assert float(error.sel(predictor="model")) < 0.05 < float(error.sel(predictor="zero"))


def test_the_report_has_a_section_for_the_own_analysis(run: mesascope.Run):
    page = run.report().read_text(encoding="utf-8")
    assert "Attention to the first position" in page
    assert "A head pays 20 % more attention to the first term than before training." in page


def test_the_analysis_finds_nothing_in_a_head_that_looks_elsewhere():
    """A model whose first head attends to the previous position, whatever the position."""
    (own,) = (one for one in load_study(str(FILE)).main.analyses if one.name == "first_attention")
    batch = load_study(str(FILE)).main.task.sample(32, torch.Generator().manual_seed(0))
    results = run_analyses(build_planted_model("previous"), batch, [own])["first_attention"]
    assert float(results["score"].sel(layer=0, head=0)) < float(results["score_null"].sel(layer=0, head=0))
