"""A dry run of a study: its analyses on untrained models, and what its claims read."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from commands import call
from mesascope import api
from mesascope.analyses import probe_and_logit_lens
from mesascope.runner import dry_run
from mesascope.runner._dry_run import check_readings
from mesascope.studies import registry
from mesascope.studies.base import Quantity, Requirement
from mesascope.testing import check_study

NAMES = [entry.name for entry in registry.list_studies()]


@pytest.fixture
def study(small):
    """The study of the file."""
    return registry.load_study(str(small))


def read_predictor(name):
    """The error of a predictor."""
    return Quantity(
        description=f"error of {name}",
        read=lambda results: results["loss_vs_baselines"]["scored"].sel(predictor=name, drop=True).isel(step=-1),
    )


def with_claim(study, **changes):
    """The study with one of the fields of its claim replaced."""
    return replace(study, claims=(replace(study.claims[0], **changes),))


def test_a_dry_run_has_the_labels_of_a_run_and_leaves_the_generator_as_it_was(small, study, tmp_path):
    before = torch.get_rng_state()
    dry = dry_run(study, "smoke", study.name)["loss_vs_baselines"]
    assert torch.equal(torch.get_rng_state(), before)
    run = api.run(str(small), scale="smoke", seeds=2, on="serial", out=tmp_path / "run", quiet=True)
    found = run.read_results("loss_vs_baselines")
    assert dry.sizes == found.sizes
    assert set(dry.data_vars) == set(found.data_vars)
    for axis in found.indexes:
        assert dry.indexes[axis].equals(found.indexes[axis])
    assert not np.array_equal(dry["scored"].isel(step=0), found["scored"].isel(step=0))


def test_checkpoints_that_are_not_analysed_are_filled(study):
    config = study.main.scales["smoke"]
    long = replace(config, training=replace(config.training, steps=40, warmup=0, checkpoints=6))
    main = replace(study.main, scales={**study.main.scales, "smoke": long})
    found = dry_run(replace(study, conditions=(main,), factors=(), grid={}), "smoke", "long")["loss_vs_baselines"]
    assert tuple(found["step"].values) == long.training.checkpoint_steps
    scored = found["scored"].sel(predictor="model").isel(seed=0)
    assert len(np.unique(scored)) == 2
    assert not scored.isnull().any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"value": read_predictor("nope")},
            r"small: the value of the claim 'worse than copying' must be readable from the results, but fails with "
            r"KeyError: .*predictor.*; the axis predictor of loss_vs_baselines has the labels model, ",
        ),
        (
            {"control": read_predictor("nope")},
            r"the control of the claim 'worse than copying' must be readable .* has the labels model, ",
        ),
        (
            {
                "requirements": (
                    Requirement(statement="it learns", value=read_predictor("x"), threshold=1.0, direction="below"),
                )
            },
            r"the requirement 'it learns' of the claim 'worse than copying' must be readable .* has the labels model, ",
        ),
        (
            {"value": Quantity(description="d", read=lambda results: results["norms"]["mean"])},
            r"fails with KeyError: 'norms'; the results are loss_vs_baselines$",
        ),
        (
            {"value": Quantity(description="d", read=lambda results: results["loss_vs_baselines"]["eror"])},
            r"fails with KeyError: .*eror.*; loss_vs_baselines has the variables error, .* and the axes seed \(0, 1\)",
        ),
        (
            {"value": Quantity(description="d", read=lambda results: results["loss_vs_baselines"]["scored"])},
            r"fails with ValueError: a quantity must have the axis seed and no other, but 'd' has",
        ),
    ],
)
def test_a_claim_that_cannot_be_read_is_named_with_the_valid_labels(study, changes, message):
    with pytest.raises(AssertionError, match=message) as refused:
        check_study(with_claim(study, **changes))
    assert "\n" not in str(refused.value)


def test_an_analysis_that_fails_is_named(study):
    failing = probe_and_logit_lens.using(first=99)
    with pytest.raises(AssertionError, match="small: the analysis probe_and_logit_lens must run on the model and the"):
        check_study(replace(study, conditions=(replace(study.main, analyses=(*study.main.analyses, failing)),)))


def test_a_run_that_takes_long_refuses_such_claims_before_it_writes(small, tmp_path, capsys, monkeypatch):
    small.write_text(small.read_text().replace('value=quantity("model")', 'value=quantity("nope")'))
    words = ["run", str(small), "--scale", "laptop", "--on", "serial", "--out", str(tmp_path / "run")]
    code, _, told = call(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, told.count("\n")) == (2, 1)
    assert "small: the value of the claim 'worse than copying' must be readable from the results" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_dry_run_changes_no_number_of_a_run(small, tmp_path, monkeypatch):
    checked = api.run(str(small), scale="laptop", on="serial", out=tmp_path / "checked", vary={}, quiet=True)
    for name in ("check_models", "check_readings"):
        monkeypatch.setattr(f"mesascope.runner._study.{name}", lambda *_: None)
    unchecked = api.run(str(small), scale="laptop", on="serial", out=tmp_path / "unchecked", vary={}, quiet=True)
    weights = [sorted(one.path.rglob("model.safetensors")) for one in (checked, unchecked)]
    assert len(weights[0]) == 2
    assert [file.read_bytes() for file in weights[0]] == [file.read_bytes() for file in weights[1]]
    assert checked.read_results("loss_vs_baselines").equals(unchecked.read_results("loss_vs_baselines"))


def test_claims_of_results_that_are_left_out_are_not_checked(study, monkeypatch):
    monkeypatch.setattr("mesascope.runner._dry_run.is_quick", lambda *_: False)
    check_readings(with_claim(study, value=read_predictor("nope")), "laptop", "small")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_every_study_passes(name):
    check_study(registry.load_study(name))
