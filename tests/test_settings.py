"""A study with a setting beside its own: both are trained, opened and drawn, and what stands in for a text is told."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import xarray as xr
from safetensors.torch import load_file

from mesascope import api
from mesascope.store import History, Run, RunError, verify
from mesascope.studies import registry
from mesascope.studies.base import Arm, Setup
from mesascope.tasks.seeded import Seeded
from mesascope.train import SGD, Training

FILE = """
import json
import shutil
from dataclasses import replace
from mesascope import analyses
from mesascope.analyses.training.history_attention import history_attention
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import SCALES, Arm, Citation, Scale, Setup, Study
from mesascope.tasks.seeded import Seeded
from mesascope.tasks.text import Text
from mesascope.train import SGD, Training

TASK = Seeded(symbols=5, generators=3, first=1, length=6)
SHAPE = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 6}
TRAINING = Training(steps=3, batch_size=4, optimizer=SGD(lr=0.1, momentum=0.5), checkpoints=3, history=True)
TEXT = Text(length=6, vocabulary=260, source="hub:nobody/nothing", instead="prose")
STUDY = Study(
    name="two",
    title="Two settings",
    about="For a test.",
    citation=Citation(key="k", authors="A", title="T", year=2024, venue="V", url="https://example.org"),
    task=TASK,
    model=DecoderConfig(vocab_size=5, **SHAPE),
    scales={name: Scale(training=TRAINING, seeds=2, sequences=16, minutes=1.0) for name in SCALES},
    measures=(analyses.behaviour,),
    retrospects=(history_attention,),
    arms=(
        Arm(
            name="text",
            title="real text",
            task=TEXT,
            model=DecoderConfig(vocab_size=260, **SHAPE),
            setups={name: Setup(training=replace(TRAINING, history=False), sequences=4) for name in SCALES},
            measures=(analyses.behaviour, analyses.norms),
        ),
    ),
    claims=(),
)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("two")
    (place / "two.py").write_text(FILE)
    return api.run(str(place / "two.py"), scale="smoke", out=place / "run", on="here")


def test_both_settings_are_there(finished: Run) -> None:
    assert finished.results() == ["behaviour", "history_attention", "text_behaviour", "text_norms"]
    for run in (finished, finished.of("text")):
        assert [run.checkpoints(seed) for seed in (0, 1)] == [[0, 1, 3]] * 2
    assert finished.seed_path(0) != finished.of("text").seed_path(0)
    found = finished.read_results("text_norms")
    assert found["mean"].sizes == {"seed": 2, "step": 3, "layer": 2}
    assert found.attrs["title"] == "Token norms: real text"
    assert found.attrs["weights"] != finished.read_results("behaviour").attrs["weights"]
    instances = finished.read_results("history_attention")["instances"]
    assert instances.isel(seed=0).values.tolist() == [0, 24, 72]
    assert History(finished.seed_path(1) / "history").steps == 3


def test_the_report_shows_both_and_says_which_text_was_read(finished: Run) -> None:
    page = (finished.path / "report.html").read_text(encoding="utf-8")
    assert "<h3>Real text</h3>" in page
    assert "Token norms: real text" in page
    (note,) = finished.record["notes"]
    assert "nobody/nothing" in note
    assert "Python's reference manual stands in for it" in note
    assert note.replace("'", "&#39;").replace('"', "&#34;") in page


def test_taken_up_again_it_is_the_same_run_with_the_same_text(finished: Run) -> None:
    corpus = (finished.path / "data" / "text" / "corpus.jsonl").read_bytes()
    before = {file: file.stat().st_mtime_ns for file in finished.path.glob("results/*.nc")}
    again = api.run(str(finished.path.parent / "two.py"), scale="smoke", out=finished.path, on="here")
    assert {file: file.stat().st_mtime_ns for file in finished.path.glob("results/*.nc")} == before
    assert (finished.path / "data" / "text" / "corpus.jsonl").read_bytes() == corpus
    assert again.record["notes"] == finished.record["notes"]


def test_another_text_is_not_taken_for_the_first(finished: Run, tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(finished.path, place)
    shutil.rmtree(place / "data")
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"Quite another text, number {n}, about {n * n} things." for n in range(1000)))
    text = FILE.replace('instead="prose"', f"instead={str(other)!r}")
    (tmp_path / "two.py").write_text(text)
    with pytest.raises(
        RunError, match=r"must be empty or hold this very run, but holds one with parameters\.text\.task"
    ):
        api.run(str(tmp_path / "two.py"), scale="smoke", out=place, on="here")
    task = registry.load(str(tmp_path / "two.py")).arms[0].task.prepared(tmp_path / "kept", lambda line: None)
    shutil.copytree(tmp_path / "kept", place / "data" / "text")
    source = json.loads((place / "data" / "text" / "source.json").read_text())
    source["recipe"]["instead"] = "prose"  # as if the same source gave another text
    (place / "data" / "text" / "source.json").write_text(json.dumps(source))
    assert task.digest
    with pytest.raises(RunError, match=r"must be trained by one recipe, but holds another data"):
        api.run(str(finished.path.parent / "two.py"), scale="smoke", out=place, on="here")


class Listening:
    """A watcher that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, name: str, parts: Sequence[str]) -> None: ...

    def part(self, index: int, done: int, total: int, loss: float) -> None: ...

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_damaged_setting_is_named_and_it_alone_is_trained_again(finished: Run) -> None:
    victim = finished.of("text").seed_path(1) / "step=3" / "model.safetensors"
    whole, watcher = victim.read_bytes(), Listening()
    kept = (finished.seed_path(1) / "step=3" / "model.safetensors").stat().st_mtime_ns
    victim.write_bytes(whole[:-8])
    before = {name: finished.read_results(name).drop_attrs(deep=False) for name in finished.results()}
    file = str(finished.path.parent / "two.py")
    again = api.run(file, scale="smoke", out=finished.path, on="here", watcher=watcher)
    for name, dataset in before.items():
        xr.testing.assert_identical(again.read_results(name).drop_attrs(deep=False), dataset)
    assert any("seed=1/step=3/model.safetensors" in line for line in watcher.lines)
    assert victim.read_bytes() == whole
    verify(victim.parent)
    assert (finished.seed_path(1) / "step=3" / "model.safetensors").stat().st_mtime_ns == kept


TRAILS = """
import xarray as xr

from mesascope import analyses
from mesascope.axes import label
from mesascope.analyses.instrument import instrument
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import SCALES, Arm, Citation, Scale, Setup, Study
from mesascope.studies.norm_growth.task import Shuffled
from mesascope.tasks.text import Text
from mesascope.train import Training

TEXT = Text(length=6, vocabulary=260, characters=30_000)
SHAPE = {"vocab_size": 260, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 6}
TRAINING = Training(steps=4, batch_size=4, checkpoints=3, spacing="even")


@instrument(title="Read-out")
def readout(trail):
    \"\"\"The norm of the read-out at every checkpoint.\"\"\"
    found = [trail.load(step).readout.weight.norm().item() for step in trail.steps]
    return xr.Dataset({"norm": label(found, "step", units="1", about="norm", coords={"step": list(trail.steps)})})


def setups(task=None):
    small = DecoderConfig(hidden_size=4, **SHAPE)
    return {name: Setup(training=TRAINING, sequences=4, task=task, model=small) for name in SCALES}


STUDY = Study(
    name="trails",
    title="Trails",
    about="For a test.",
    citation=Citation(key="k", authors="A", title="T", year=2024, venue="V", url="https://example.org"),
    task=TEXT,
    model=DecoderConfig(hidden_size=8, **SHAPE),
    scales={name: Scale(training=TRAINING, seeds=1, sequences=4, minutes=1.0) for name in SCALES},
    measures=(analyses.behaviour,),
    trails=(readout,),
    arms=(
        Arm(name="again", task=TEXT, model=DecoderConfig(hidden_size=8, **SHAPE), setups=setups(), trails=(readout,)),
        Arm(
            name="random",
            title="other targets",
            task=TEXT,
            model=DecoderConfig(hidden_size=8, **SHAPE),
            setups=setups(Shuffled(task=TEXT)),
            trails=(readout,),
        ),
    ),
    claims=(),
)
"""


def test_trails_see_all_checkpoints_at_once(tmp_path: Path) -> None:
    (tmp_path / "trails.py").write_text(TRAILS)
    run = api.run(str(tmp_path / "trails.py"), scale="smoke", out=tmp_path / "run", on="here")
    assert run.results() == ["again_readout", "behaviour", "random_readout", "readout"]
    for name, width in (("", 8), ("again", 4), ("random", 4)):
        found = run.read_results(f"{name}_readout".lstrip("_"))
        assert found["norm"].dims == ("seed", "step")
        assert found["step"].values.tolist() == [0, 2, 4]
        for step in (0, 2, 4):
            weight = load_file(run.of(name).checkpoint(0, step) / "model.safetensors")["readout.weight"]
            assert weight.shape[1] == width  # a scale may have a model of its own
            assert float(found["norm"].sel(seed=0, step=step)) == pytest.approx(float(weight.norm()))
    assert run.read_results("random_readout").attrs["title"] == "Read-out: other targets"
    assert run.record["parameters"]["again"]["model"]["hidden_size"] == 4
    assert sorted(each.name for each in (run.path / "data").iterdir()) == ["own", "random"]  # one task, one text


def test_settings_that_cannot_be_run_are_refused() -> None:
    study = registry.load("meta-learning")
    short = Training(steps=2, optimizer=SGD(), checkpoints=2)
    arm = study.arms[0]
    without = replace(arm, setups={name: Setup(training=short) for name in arm.setups})
    with pytest.raises(ValueError, match=r"history_attention needs a training with history=True, but at smoke, laptop"):
        replace(study, arms=(without,))
    for name in ("a b", "training", "own"):
        with pytest.raises(ValueError, match=r"an arm needs a word as its name, none of own, .* and the scales smoke"):
            replace(study, arms=(replace(arm, name=name),))
    with pytest.raises(ValueError, match=r"the names of a study's results must differ"):
        replace(study, arms=(arm, arm))
    assert Arm(task=Seeded(), model=study.model, setups=study.scales).result(study.measures[0]) == "behaviour"
