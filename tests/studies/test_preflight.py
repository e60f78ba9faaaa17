"""Checks of a study before anything is written: every fault is one line, and leaves no folder behind."""

from dataclasses import replace

import pytest

from commands import call
from mesascope import api
from mesascope.analyses import norms
from mesascope.models.config import DecoderConfig
from mesascope.runner import StudyInvalid, check_models, check_texts
from mesascope.runner._dry_run import check_readings
from mesascope.studies.base import SCALES, Claim, Factor, Level, Quantity, Requirement
from mesascope.studies.registry import list_studies, load_study
from mesascope.tasks.seeded import SeededSequences
from mesascope.tasks.text import TextTask
from studies.test_factors import AFFINE

QUANTITY = Quantity(description="a number", read=lambda results: results["loss_vs_baselines"]["scored"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--set=task.length=400"],
            "small with task.length=400: a sequence must have at most 64 positions (model.max_position_embeddings), "
            "but those of the task have 400; make them shorter, or set model.max_position_embeddings to 400",
        ),
        (
            ["--set=model.d_in=2"],
            "small with model.d_in=2: model.d_in must be the width of the inputs of the task, 1, but is 2; set "
            "model.d_in to 1",
        ),
        (["--set=model.d_out=2"], "small with model.d_out=2: model.d_out must be the width of the targets of the task"),
        (
            ["--set=task.dim=2", "--set=model.d_in=2"],
            "small with task.dim=2,model.d_in=2: model.d_out must be the width of the targets of the task, 2, but is 1",
        ),
        (
            ["--set=model.num_attention_heads=3"],
            "model.num_attention_heads = 3 must be valid at smoke scale, but is not: hidden_size must be a multiple of "
            "num_attention_heads, but got 8 and 3",
        ),
        (
            ["--vary=task.length=5,400"],
            "small with task.length=400: a sequence must have at most 64 positions",
        ),
        (
            ["--vary=heads=2,1", "--vary=task.length=400"],
            "small with task.length=400: a sequence must have at most 64 positions",  # the first of these cells
        ),
    ],
)
def test_a_model_that_does_not_fit_its_task_is_one_line(small, tmp_path, capsys, monkeypatch, options, message):
    words = ["run", str(small), "--scale", "smoke", "--on", "serial", "--out", str(tmp_path / "run"), *options]
    code, _, told = call(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, told.count("\n")) == (2, 1)
    assert message in told
    assert not (tmp_path / "run").exists()


def test_a_level_that_is_invalid_is_named(small, tmp_path, capsys, monkeypatch):
    small.write_text(
        small.read_text()
        .replace(
            'Level(name="1", description="1 head", model={"num_attention_heads": 1',
            'Level(name="1", description="1 head", model={"num_attention_heads": 3',
        )
        .replace('grid={"laptop": {"heads": ("2", "1")}}', "grid={}")
    )
    words = ["run", str(small), "--scale", "smoke", "--out", str(tmp_path / "run"), "--vary", "heads=2,1"]
    code, _, told = call(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, told.count("\n")) == (2, 1)
    assert "heads=1 must be valid for the main condition, but is not: hidden_size must be a multiple of" in told
    assert not (tmp_path / "run").exists()


def with_condition(**changes):
    """The study of the affine task with another condition, at one scale."""
    scales = {name: replace(one, task=None, model=None) for name, one in AFFINE.main.scales.items()}
    other = replace(AFFINE.main, name="other", scales=scales, analyses=(), **changes)
    return replace(AFFINE, conditions=(AFFINE.main, other), factors=(), grid={})


TOKENS = SeededSequences(num_symbols=9, num_generators=3, prefix_length=1, length=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"task": TOKENS, "model": DecoderConfig(vocab_size=5)},
            "affine, condition other: model.vocab_size must be above every token of the task, but is 5 and the task "
            "has the token 8; set model.vocab_size to 9 or more",
        ),
        (
            {"task": TextTask(vocab_size=300), "model": DecoderConfig(vocab_size=260)},
            "affine, condition other: model.vocab_size must be above every token of the task, but is 260",
        ),
        (
            {"task": TOKENS, "model": DecoderConfig(d_in=1, d_out=1)},
            "affine, condition other: the model must take the inputs of the task, but SeededSequences has tokens and "
            "the model takes vectors; set model.vocab_size",
        ),
        (
            {"model": DecoderConfig(vocab_size=5)},
            "affine, condition other: the model must take the inputs of the task, but Affine has vectors and the model "
            "takes tokens; set model.d_in and d_out",
        ),
    ],
)
def test_every_condition_is_checked(tmp_path, changes, message):
    with pytest.raises(StudyInvalid) as refused:
        api.run(with_condition(**changes), scale="smoke", out=tmp_path / "run", quiet=True)
    assert message in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_an_unknown_site_is_refused(tmp_path):
    study = replace(AFFINE, conditions=(replace(AFFINE.main, analyses=(replace(norms, sites=("resid_out",)),)),))
    with pytest.raises(
        StudyInvalid, match="affine: the sites of the analysis norms must exist, but a site must be one"
    ):
        api.run(replace(study, claims=()), scale="smoke", out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_large_models_are_checked_without_a_forward_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("mesascope.runner._preflight.MAX_FORWARD_COST", 0)
    monkeypatch.setattr("mesascope.models.transformer.Decoder.forward", None)
    with pytest.raises(StudyInvalid, match="at most 20 positions"):
        api.run("affine", scale="smoke", settings={"task.length": 400}, out=tmp_path / "run", quiet=True)


@pytest.mark.parametrize("name", [entry.name for entry in list_studies()])
def test_every_study_passes_at_every_scale(name):
    study = load_study(name)
    for scale in SCALES:
        check_models(study, scale, name)
        for cell in study.list_cells(scale):
            check_models(study.at_cell(cell, scale), scale, name)


def test_an_encoder_decoder_may_have_fewer_positions_than_a_sequence(tmp_path):
    """Its stacks share a sequence; their forward pass says what does not fit."""
    with pytest.raises(
        StudyInvalid, match=r"syntactic-transformations with task\.max_words=30: the untrained model must"
    ):
        api.run("syntactic-transformations", scale="smoke", settings={"task.max_words": 30}, out=tmp_path, quiet=True)


def test_a_resumed_run_is_not_checked_again(small, tmp_path, monkeypatch):
    run = api.run(str(small), scale="smoke", on="serial", out=tmp_path / "run", quiet=True)
    monkeypatch.setattr("mesascope.runner._study.check_models", None)
    assert api.run(str(small), scale="smoke", on="serial", out=run.path, quiet=True).path == run.path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"direction": "up"}, r"the claim 'c' is invalid: direction must be above or below, but got 'up'"),
        ({"kind": "replicated"}, r"the claim 'c' is invalid: kind must be .*, but got 'replicated'"),
        ({"scales": ("huge",)}, r"the claim 'c' must name scales among smoke, laptop, paper, but got 'huge'"),
        ({"value": 3.0}, r"the claim 'c' is invalid: value must be a Quantity, but got 3.0"),
        ({"requirements": (3.0,)}, r"the claim 'c' is invalid: an element of requirements must be"),
    ],
)
def test_an_invalid_claim_is_refused_when_it_is_defined(changes, message):
    fields = {"name": "c", "statement": "s", "source": "ours", "value": QUANTITY, "control": QUANTITY}
    with pytest.raises(ValueError, match=message):
        Claim(**{**fields, "direction": "above", **changes})


def test_an_invalid_requirement_is_refused_when_it_is_defined():
    with pytest.raises(ValueError, match=r"the requirement 'it learns' is invalid: direction must be .*, but got 'up'"):
        Requirement(statement="it learns", value=QUANTITY, threshold=0.5, direction="up")


def test_levels_of_unknown_fields_are_refused():
    level = Level(name="b", description="b", task={"lenght": 5})
    with pytest.raises(ValueError, match=r"letters=b must be valid for the main condition, but is not: .*lenght"):
        replace(
            AFFINE,
            factors=(Factor(name="letters", description="", levels=(Level(name="a", description="a"), level)),),
            grid={"smoke": {"letters": ("b",)}},
        )


BROKEN = r"so $\frac{a}$"
BROKEN_CLAIM = AFFINE.claims[0]
REQUIREMENT = Requirement(statement="it learns", value=QUANTITY, threshold=0.0, direction="above")


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"title": BROKEN}, "the title"),
        ({"description": BROKEN}, "the description"),
        ({"conditions": (replace(AFFINE.main, title=BROKEN),)}, "the title of the condition "),
        (
            {"conditions": (replace(AFFINE.main, analyses=(replace(norms, description=BROKEN),)),)},
            "the description of the analysis norms",
        ),
        (
            {"claims": (replace(BROKEN_CLAIM, statement=BROKEN),)},
            f"the statement of the claim {BROKEN_CLAIM.name!r}",
        ),
        (
            {"claims": (replace(BROKEN_CLAIM, control=replace(BROKEN_CLAIM.control, description=BROKEN)),)},
            f"the description of the control of the claim {BROKEN_CLAIM.name!r}",
        ),
        (
            {"claims": (replace(BROKEN_CLAIM, requirements=(replace(REQUIREMENT, statement=BROKEN),)),)},
            f"the statement of a requirement of the claim {BROKEN_CLAIM.name!r}",
        ),
    ],
)
def test_a_formula_that_cannot_be_typeset_is_refused_by_the_name_of_its_field(changes, place):
    study = replace(AFFINE, name="mine", **changes)
    with pytest.raises(StudyInvalid) as error:
        check_texts(study, "mine")
    assert str(error.value) == (
        rf"mine, {place}: a formula must be LaTeX that can be typeset, but $\frac{{a}}$ has a command with 1 of its 2 "
        r"arguments; correct it, or write \$ for a dollar sign"
    )


def test_a_run_with_a_broken_formula_leaves_no_folder_behind(small, tmp_path, capsys, monkeypatch):
    text = small.read_text(encoding="utf-8").replace('AFFINE, name="small"', 'AFFINE, name="small", description="$5"')
    small.write_text(text, encoding="utf-8")
    words = ["run", str(small), "--scale", "smoke", "--on", "serial", "--out", str(tmp_path / "run")]
    code, _, told = call(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, told.count("\n")) == (2, 1)
    assert "small, the description: dollar signs must enclose a formula" in told
    assert not (tmp_path / "run").exists()


def test_formulas_in_texts_of_results_are_checked_in_the_dry_run():
    def compute(acts):
        results = norms.compute(acts)
        return results.assign(mean=results["mean"].assign_attrs(description=BROKEN))

    analysis = replace(norms, name="mine", compute=compute)
    study = replace(AFFINE, conditions=(replace(AFFINE.main, analyses=(analysis,)),), claims=())
    with pytest.raises(StudyInvalid, match=r"the attribute description of the variable mean of mine: a formula must"):
        check_readings(study, "smoke", "affine")


def test_the_formulas_of_all_studies_can_be_typeset():
    for entry in list_studies():
        check_texts(load_study(entry.name), entry.name)
