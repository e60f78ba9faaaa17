"""Settings that a user changes: `--set`, and `--vary` with the path of a field."""

import json
from dataclasses import replace

import pytest

from commands import call
from mesascope import api
from mesascope.studies.cells import load_cells
from mesascope.studies.registry import load_study
from mesascope.train import TrainingConfig
from studies.test_factors import AFFINE, HEADS

HALT = load_study("dynamic-halt")


def test_a_setting_changes_its_field_at_every_scale_and_nothing_else():
    main, own = AFFINE.at_cell({"training.optimizer.lr": "1e-4"}).main, AFFINE.main
    for scale, config in own.scales.items():
        optimizer = replace(config.training.optimizer, lr=1e-4)
        assert main.scales[scale].training == replace(config.training, optimizer=optimizer)
        assert main.model_at(scale).to_dict() == own.model_at(scale).to_dict()
        assert main.task_at(scale) == own.task_at(scale)


def test_tasks_and_models_of_scales_are_changed():
    own = AFFINE.main
    scales = own.scales | {"smoke": replace(own.scales["smoke"], task=replace(own.task, length=9))}
    study = replace(AFFINE, conditions=(replace(own, scales=scales),), factors=(), grid={})
    main = study.at_cell({"task.unit_rms": "true", "model.num_hidden_layers": "5"}).main
    assert [main.task_at(scale).length for scale in scales] == [9, own.task.length, own.task.length]
    assert all(main.task_at(scale).unit_rms for scale in scales)
    assert [main.model_at(scale).num_hidden_layers for scale in scales] == [5, 5, 5]


def test_settings_that_depend_on_each_other_are_changed_together():
    with pytest.raises(ValueError, match="must be valid at laptop scale, but is not: warmup must be less than steps"):
        AFFINE.at_cell({"training.steps": "1"}, "laptop")
    training = AFFINE.at_cell({"training.steps": "3", "training.warmup": "1"}, "laptop").main.scales["laptop"].training
    assert (training.steps, training.warmup) == (3, 1)


def test_a_setting_may_be_invalid_at_another_scale():
    """It changes those scales alone at which it is valid, and is refused where it is not."""
    own = AFFINE.main.scales
    steps = own["smoke"].training.steps + 1
    paper = replace(own["paper"], training=TrainingConfig(steps=1000, warmup=500))
    study = replace(AFFINE, conditions=(replace(AFFINE.main, scales={**own, "paper": paper}),), factors=(), grid={})
    cell = {"training.steps": str(steps)}
    assert study.at_cell(cell, "smoke").main.scales["smoke"].training.steps == steps
    assert study.at_cell(cell, "smoke").main.scales["paper"] == paper
    with pytest.raises(ValueError, match=f"training.steps = {steps} must be valid at paper scale, but is not: warmup"):
        study.at_cell(cell, "paper")


def test_a_setting_applies_to_the_conditions_that_have_the_field():
    with_field = [one.name for one in HALT.conditions if hasattr(one.task, "max_arguments")]
    assert 0 < len(with_field) < len(HALT.conditions)
    for own, changed in zip(HALT.conditions, HALT.at_cell({"task.max_arguments": "3"}).conditions, strict=True):
        if own.name in with_field:
            assert changed.task_at("laptop").max_arguments == 3
        else:
            assert changed == own


def test_settings_vary_beside_factors_and_the_own_value_is_no_cell():
    study = replace(AFFINE, factors=(HEADS,), grid={})
    varied = {"heads": ["1"], "training.clip": ["default", "0.5", "none"]}
    assert study.list_cells("laptop", varied) == [
        {"heads": "4"},
        {"heads": "1"},
        {"heads": "1", "training.clip": "0.5"},
        {"heads": "1", "training.clip": "none"},
    ]
    cell = study.at_cell({"heads": "1", "training.clip": "none"})
    assert cell.name == "affine[heads=1,training.clip=none]"
    assert cell.main.model.num_attention_heads == 1
    assert {config.training.clip for config in cell.main.scales.values()} == {None}
    assert cell.title.endswith("training.clip = none")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training.step": "5"}, "'training.step' is none: TrainingConfig has the fields steps, batch_size"),
        ({"training.steps.more": "5"}, "'training.steps.more' is none: int has no fields"),
        ({"model.heads": "5"}, "'model.heads' is none: DecoderConfig has the fields vocab_size"),
        (
            {"training.steps": "many"},
            "training.steps = many must be valid at smoke scale, but is not: steps must be an",
        ),
        ({"training.optimizer.lr": "-1"}, "but is not: lr must be 0 or more and finite, but got -1"),
        ({"model.hidden_size": "63"}, "but is not: hidden_size must be a multiple of num_attention_heads"),
        ({"task.dim": "9"}, "but is not: dim must lie in 1..8, but got 9"),
        ({"steps": 5}, "a setting must be a field of the task, the model or the training, such as training.steps"),
    ],
)
def test_wrong_settings_are_one_clear_line(tmp_path, capsys, monkeypatch, settings, message):
    options = [f"--set={name}={value}" for name, value in settings.items()]
    words = ["run", "affine", "--scale", "smoke", "--out", str(tmp_path / "run"), *options]
    code, _, told = call(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, told.count("\n")) == (2, 1)
    assert message in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options", [["--set", "training.steps"], ["--set", "training.clip=1", "--set", "training.clip=2"]]
)
def test_options_of_another_form_are_refused(small, capsys, monkeypatch, options):
    code, _, told = call("run", str(small), *options, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2
    assert "--set must name each field once, as in --set training.steps=500" in told


def test_settings_and_a_grid_are_not_mixed(small):
    with pytest.raises(
        ValueError, match=r"settings must be given without vary, but got both; pass training\.clip to vary"
    ):
        api.run(str(small), scale="smoke", settings={"training.clip": None}, vary={"heads": ["1"]})


def test_a_run_of_settings_has_a_folder_of_its_own(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["run", str(small), "--scale", "smoke", "--on", "serial", "--set", "training.steps=3"]
    assert call(*words, "--set", "model.norm=rms", capsys=capsys, monkeypatch=monkeypatch)[0] == 0
    record = json.loads((tmp_path / "runs/small-smoke-training.steps=3,model.norm=rms/run.json").read_text())
    assert record["parameters"]["training"]["steps"] == 3
    assert record["parameters"]["model"]["norm"] == "rms"
    assert record["cell"].endswith("training.steps=3,model.norm=rms")


def test_a_sweep_is_a_map_of_verdicts(small, tmp_path):
    out = tmp_path / "run"
    vary = {"training.optimizer.lr": ["1e-3", "3e-4"], "heads": ["2", "1"]}
    run = api.run(str(small), scale="smoke", on="serial", out=out, vary=vary, quiet=True)
    cells = load_cells(run.path)
    assert [dict(cell.levels).get("training.optimizer.lr") for cell in cells] == [None, "1e-3", "3e-4", "1e-3", "3e-4"]
    rates = [
        json.loads((cell.path / "run.json").read_text())["parameters"]["training"]["optimizer"]["lr"] for cell in cells
    ]
    assert rates[1:] == [1e-3, 3e-4, 1e-3, 3e-4]
    page = (out / "report.html").read_text()
    assert "training.optimizer.lr <b>as in the study</b>" in page
    assert "training.optimizer.lr <b>3e-4</b>" in page
