"""A study with a setting beside its own: both are trained, opened and drawn, and what stands in for a text is told."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

from mesascope import api
from mesascope.checksums import read_record, seal_record
from mesascope.models.load import load_checkpoint
from mesascope.runner import EVALUATION_SEED
from mesascope.store import HistoryReader, Run, RunError, verify_checkpoint
from mesascope.studies import registry
from mesascope.studies.base import ScaleConfig
from mesascope.train import SGD, TrainingConfig

FILE = """
import json
import shutil
from dataclasses import replace
from mesascope import analyses
from mesascope.analyses.training.history_attention import history_attention
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import SCALES, Citation, Condition, ScaleConfig, Study
from mesascope.tasks.seeded import SeededSequences
from mesascope.tasks.text import TextTask
from mesascope.train import SGD, TrainingConfig

TASK = SeededSequences(num_symbols=5, num_generators=3, prefix_length=1, length=6)
SHAPE = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 6}
TRAINING = TrainingConfig(steps=3, batch_size=4, optimizer=SGD(lr=0.1, momentum=0.5), checkpoints=3, history=True)
TEXT = TextTask(length=6, vocab_size=260, source="hub:nobody/nothing", fallback="prose")
STUDY = Study(
    name="two",
    title="Two settings",
    description="For a test.",
    citation=Citation(key="k", authors="A", title="T", year=2024, venue="V", url="https://example.org"),
    conditions=(
        Condition(
            task=TASK,
            model=DecoderConfig(vocab_size=5, **SHAPE),
            scales={name: ScaleConfig(training=TRAINING, sequences=16, evaluation_sequences=40) for name in SCALES},
            analyses=(analyses.loss_vs_baselines, history_attention),
        ),
        Condition(
            name="text",
            title="real text",
            task=TEXT,
            model=DecoderConfig(vocab_size=260, **SHAPE),
            scales={name: ScaleConfig(training=replace(TRAINING, history=False), sequences=4) for name in SCALES},
            analyses=(analyses.loss_vs_baselines, analyses.norms),
        ),
    ),
    claims=(),
    seeds=dict.fromkeys(SCALES, 2),
    minutes=dict.fromkeys(SCALES, 1.0),
)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("two")
    (place / "two.py").write_text(FILE)
    return api.run(str(place / "two.py"), scale="smoke", out=place / "run", on="serial")


def test_both_settings_are_there(finished: Run) -> None:
    assert finished.result_names() == ["history_attention", "loss_vs_baselines", "text_loss_vs_baselines", "text_norms"]
    for run in (finished, finished.for_condition("text")):
        assert [run.list_checkpoints(seed) for seed in (0, 1)] == [[0, 1, 3]] * 2
    assert finished.seed_path(0) != finished.for_condition("text").seed_path(0)
    found = finished.read_results("text_norms")
    assert found["mean"].sizes == {"seed": 2, "step": 3, "layer": 2}
    assert found.attrs["title"] == "Token norms: real text"
    assert found.attrs["weights"] != finished.read_results("loss_vs_baselines").attrs["weights"]
    instances = finished.read_results("history_attention")["instances"]
    assert instances.isel(seed=0).values.tolist() == [0, 24, 72]
    assert HistoryReader(finished.seed_path(1) / "history").steps == 3


def test_losses_are_those_of_all_evaluation_sequences_of_the_seed(finished: Run) -> None:
    found = finished.read_results("loss_vs_baselines")
    assert found.attrs["sequences"] == 40
    assert finished.read_results("history_attention").attrs["sequences"] == 16
    assert finished.record["parameters"]["evaluation_sequences"] == 40
    assert finished.record["parameters"]["text"]["evaluation_sequences"] == 4
    task = registry.load_study(str(finished.path.parent / "two.py")).main.task.validation_task()
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(EVALUATION_SEED + seed)
        chunks = [task.sample(size, generator) for size in (16, 16, 8)]
        model = load_checkpoint(finished.verified_checkpoint(seed, 3))
        predictors = {"model": lambda batch, model=model: model(batch.inputs).logits}
        predictors["bigram"] = lambda batch: task.baselines(batch)["bigram"]
        for name, predict in predictors.items():
            scored_positions = chunks[0].weight[0] > 0  # the same in every sequence
            by_chunk = [task.loss(predict(batch), batch)[:, scored_positions] for batch in chunks]
            losses = torch.cat(by_chunk).double().mean(1).detach()
            scored, standard_error = (
                float(found[each].sel(seed=seed, step=3, predictor=name)) for each in ("scored", "scored_se")
            )
            assert scored == pytest.approx(float(losses.mean()), rel=1e-5)
            assert standard_error == pytest.approx(float(losses.std()) / 40**0.5, rel=1e-5)


def test_the_report_shows_both_and_says_which_text_was_read(finished: Run) -> None:
    page = (finished.path / "report.html").read_text(encoding="utf-8")
    assert "<h3>Real text</h3>" in page
    assert "Token norms: real text" in page
    (note,) = finished.record["notes"]
    assert "nobody/nothing" in note
    assert "using Python's reference manual instead" in note
    assert note.replace("'", "&#39;").replace('"', "&#34;") in page


def test_taken_up_again_it_is_the_same_run_with_the_same_text(finished: Run) -> None:
    corpus = (finished.path / "data" / "text" / "corpus.jsonl").read_bytes()
    before = {file: file.stat().st_mtime_ns for file in finished.path.glob("results/*.nc")}
    again = api.run(str(finished.path.parent / "two.py"), scale="smoke", out=finished.path, on="serial")
    assert {file: file.stat().st_mtime_ns for file in finished.path.glob("results/*.nc")} == before
    assert (finished.path / "data" / "text" / "corpus.jsonl").read_bytes() == corpus
    assert again.record["notes"] == finished.record["notes"]


def test_another_text_is_not_taken_for_the_first(finished: Run, tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(finished.path, place)
    shutil.rmtree(place / "data")
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"Quite another text, number {n}, about {n * n} things." for n in range(1000)))
    text = FILE.replace('fallback="prose"', f"fallback={str(other)!r}")
    (tmp_path / "two.py").write_text(text)
    with pytest.raises(
        RunError, match=r"must be empty or hold the same run, but holds one with parameters\.text\.task"
    ):
        api.run(str(tmp_path / "two.py"), scale="smoke", out=place, on="serial")
    task = (
        registry.load_study(str(tmp_path / "two.py")).conditions[1].task.prepare(tmp_path / "kept", lambda line: None)
    )
    shutil.copytree(tmp_path / "kept", place / "data" / "text")
    file = place / "data" / "text" / "source.json"
    source = read_record(file, "text", "")
    source["recipe"]["fallback"] = "prose"  # as if the same source gave another text
    file.write_text(json.dumps(seal_record(source, "text")))
    assert task.token_digest
    with pytest.raises(RunError, match=r"must be trained with one configuration, but holds another data"):
        api.run(str(finished.path.parent / "two.py"), scale="smoke", out=place, on="serial")


class Listening:
    """A watcher that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start_stage(self, name: str, parts: Sequence[str]) -> None: ...

    def update_part(self, index: int, done: int, total: int, loss: float) -> None: ...

    def log_message(self, line: str) -> None:
        self.lines.append(line)


def test_a_damaged_setting_is_named_and_it_alone_is_trained_again(finished: Run) -> None:
    victim = finished.for_condition("text").seed_path(1) / "step=3" / "model.safetensors"
    whole = victim.read_bytes()
    kept = (finished.seed_path(1) / "step=3" / "model.safetensors").stat().st_mtime_ns
    victim.write_bytes(whole[:-8])
    before = {name: finished.read_results(name).drop_attrs(deep=False) for name in finished.result_names()}
    file = str(finished.path.parent / "two.py")
    with pytest.raises(RunError, match=r"seed=1/step=3/model.safetensors must have .*; delete .*seed=1/step=3 and run"):
        api.run(file, scale="smoke", out=finished.path, on="serial")
    shutil.rmtree(victim.parent)
    again = api.run(file, scale="smoke", out=finished.path, on="serial")
    for name, dataset in before.items():
        xr.testing.assert_identical(again.read_results(name).drop_attrs(deep=False), dataset)
    assert victim.read_bytes() == whole
    verify_checkpoint(victim.parent)
    assert (finished.seed_path(1) / "step=3" / "model.safetensors").stat().st_mtime_ns == kept


TRAILS = """
import xarray as xr

from mesascope import analyses
from mesascope.axes import to_data_array
from mesascope.analyses import analysis
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import SCALES, Citation, Condition, ScaleConfig, Study
from mesascope.studies.norm_growth.task import ShuffledTargets
from mesascope.tasks.text import TextTask
from mesascope.train import TrainingConfig

TEXT = TextTask(length=6, vocab_size=260, max_characters=30_000)
SHAPE = {"vocab_size": 260, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 6}
TRAINING = TrainingConfig(steps=4, batch_size=4, checkpoints=3, spacing="even")


@analysis(title="Readout", description="The norm of the readout at every checkpoint.", input="checkpoints")
def readout(trail):
    \"\"\"The norm of the readout at every checkpoint.\"\"\"
    found = [trail.load(step).readout.weight.norm().item() for step in trail.steps]
    steps = {"step": list(trail.steps)}
    return xr.Dataset({"norm": to_data_array(found, "step", units="1", description="norm", coords=steps)})


def sizes(task=None):
    small = DecoderConfig(hidden_size=4, **SHAPE)
    return {name: ScaleConfig(training=TRAINING, sequences=4, task=task, model=small) for name in SCALES}


STUDY = Study(
    name="trails",
    title="Trails",
    description="For a test.",
    citation=Citation(key="k", authors="A", title="T", year=2024, venue="V", url="https://example.org"),
    conditions=(
        Condition(
            task=TEXT,
            model=DecoderConfig(hidden_size=8, **SHAPE),
            scales={name: ScaleConfig(training=TRAINING, sequences=4) for name in SCALES},
            analyses=(analyses.loss_vs_baselines, readout),
        ),
        Condition(
            name="again", task=TEXT, model=DecoderConfig(hidden_size=8, **SHAPE), scales=sizes(), analyses=(readout,)
        ),
        Condition(
            name="random",
            title="other targets",
            task=TEXT,
            model=DecoderConfig(hidden_size=8, **SHAPE),
            scales=sizes(ShuffledTargets(task=TEXT)),
            analyses=(readout,),
        ),
    ),
    claims=(),
    seeds=dict.fromkeys(SCALES, 1),
    minutes=dict.fromkeys(SCALES, 1.0),
)
"""


def test_trails_see_all_checkpoints_at_once(tmp_path: Path) -> None:
    (tmp_path / "trails.py").write_text(TRAILS)
    run = api.run(str(tmp_path / "trails.py"), scale="smoke", out=tmp_path / "run", on="serial")
    assert run.result_names() == ["again_readout", "loss_vs_baselines", "random_readout", "readout"]
    for name, width in (("", 8), ("again", 4), ("random", 4)):
        found = run.read_results(f"{name}_readout".lstrip("_"))
        assert found["norm"].dims == ("seed", "step")
        assert found["step"].values.tolist() == [0, 2, 4]
        for step in (0, 2, 4):
            weight = load_file(run.for_condition(name).verified_checkpoint(0, step) / "model.safetensors")[
                "readout.weight"
            ]
            assert weight.shape[1] == width  # a scale may have a model of its own
            assert float(found["norm"].sel(seed=0, step=step)) == pytest.approx(float(weight.norm()))
    assert run.read_results("random_readout").attrs["title"] == "Readout: other targets"
    assert run.record["parameters"]["again"]["model"]["hidden_size"] == 4
    assert sorted(each.name for each in (run.path / "data").iterdir()) == ["own", "random"]  # one task, one text


def test_settings_that_cannot_be_run_are_refused() -> None:
    study = registry.load_study("meta-learning")
    short = TrainingConfig(steps=2, optimizer=SGD(), checkpoints=2)
    condition = study.conditions[1]
    without = replace(condition, scales={name: ScaleConfig(training=short) for name in condition.scales})
    with pytest.raises(
        ValueError, match=r"needs TrainingConfig\(history=True\) at every scale, but lacks it at smoke, laptop"
    ):
        replace(study, conditions=(study.main, without))
    for name in ("a b", "training", "own"):
        with pytest.raises(ValueError, match=r"must be a unique identifier other than own, .* but got"):
            replace(study, conditions=(study.main, replace(condition, name=name)))
    with pytest.raises(ValueError, match=r"must be the main one, without a name, but got 'sgd'"):
        replace(study, conditions=(condition,))
    with pytest.raises(ValueError, match=r"the names of a study's results must differ"):
        replace(study, conditions=(replace(study.main, analyses=(study.main.analyses[0],) * 2),))
    assert study.main.result_name(study.main.analyses[0]) == "loss_vs_baselines"
    assert condition.result_name(condition.analyses[0]) == f"sgd_{condition.analyses[0].name}"
