"""Where a device is fastest with all seeds at once, a study trains them so, and goes on as it always does."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mesascope.executors import SerialExecutor
from mesascope.runner import run_study
from mesascope.store import Run

FILE = """
from dataclasses import replace
from mesascope import analyses
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import SCALES, Citation, Condition, ScaleConfig, Study
from mesascope.tasks.affine import Affine
from mesascope.train import SGD, TrainingConfig

MODEL = DecoderConfig(d_in=1, d_out=1, num_hidden_layers=1, hidden_size=8, num_attention_heads=2)
TRAINING = TrainingConfig(steps=3, batch_size=4, optimizer=SGD(lr=0.01), checkpoints=3, dtype="float64")
STUDY = Study(
    name="crew",
    title="Two settings",
    description="For a test.",
    citation=Citation(key="k", authors="A", title="T", year=2024, venue="V", url="https://example.org"),
    conditions=(
        Condition(
            task=Affine(length=6),
            model=MODEL,
            scales={name: ScaleConfig(training=TRAINING, sequences=4) for name in SCALES},
            analyses=(analyses.norms,),
        ),
        Condition(
            name="kept",
            title="with a history",
            task=Affine(length=6),
            model=MODEL,
            scales={name: ScaleConfig(training=replace(TRAINING, history=True), sequences=4) for name in SCALES},
            analyses=(analyses.norms,),
        ),
    ),
    claims=(),
    seeds=dict.fromkeys(SCALES, 2),
    minutes=dict.fromkeys(SCALES, 1.0),
)
"""


class Listening:
    """A watcher that keeps what it hears."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, list[str]]] = []
        self.parts: set[tuple[str, int, int]] = set()
        self.lines: list[str] = []

    def start_stage(self, name: str, parts: Sequence[str]) -> None:
        self.stages.append((name, list(parts)))

    def update_part(self, index: int, done: int, total: int, loss: float) -> None:
        self.parts.add((self.stages[-1][0], index, done))

    def log_message(self, line: str) -> None:
        self.lines.append(line)


def run(place: Path, name: str, watcher: Listening, seeds: int = 2, device: str = "cpu") -> Run:
    (place / "crew.py").write_text(FILE)
    return run_study(
        str(place / "crew.py"),
        scale="smoke",
        seeds=seeds,
        path=place / name,
        device=device,
        executor=SerialExecutor(),
        progress=watcher,
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Listening]:
    """The study as it is run on a processor, and what was heard of it."""
    watcher = Listening()
    return run(tmp_path_factory.mktemp("plain"), "plain", watcher), watcher


def assert_alike(one: Run, two: Run) -> None:
    assert one.result_names() == two.result_names() == ["kept_norms", "norms"]
    for arm in ("", "kept"):
        for seed in range(2):
            found = [each.for_condition(arm).verified_checkpoint(seed, 3) / "model.safetensors" for each in (one, two)]
            weights = [load_file(file) for file in found]
            for key in weights[0]:
                torch.testing.assert_close(weights[0][key], weights[1][key], rtol=0, atol=1e-6)


def test_seeds_are_trained_together_then_measured_each(
    plain: tuple[Run, Listening], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    after = Listening()
    monkeypatch.setattr("mesascope.runner._study.POPULATION_DEVICES", ("cpu", "cuda"))
    crewed = run(tmp_path, "crewed", after, device=device)
    jobs = ("training and analysis", [f"{arm}seed {seed}" for arm in ("", "kept ") for seed in range(2)])
    assert plain[1].stages == [jobs]
    assert after.stages == [("joint training", ["seeds 0 to 1"]), jobs]  # a history is kept of each by itself
    assert ("joint training", 0, 3) in after.parts
    assert_alike(plain[0], crewed)
    again = Listening()
    run(tmp_path, "crewed", again, device=device)
    assert again.stages == []


def test_one_seed_is_no_population(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Listening()
    monkeypatch.setattr("mesascope.runner._study.POPULATION_DEVICES", ("cpu",))
    run(tmp_path, "one", watcher, seeds=1)
    assert [name for name, _ in watcher.stages] == ["training and analysis"]


def test_what_does_not_fit_at_once_is_trained_by_itself(
    plain: tuple[Run, Listening], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory is left")

    watcher = Listening()
    monkeypatch.setattr("mesascope.runner._study.POPULATION_DEVICES", ("cpu",))
    monkeypatch.setattr("mesascope.runner._jobs.train_population", full)
    assert_alike(plain[0], run(tmp_path, "crewed", watcher))
    assert watcher.lines == ["seeds 0 to 1 do not fit on cpu together; each is trained separately"]
