"""Loggers: what reaches TensorBoard, Weights & Biases and trackio, and that their failures stop no run."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mesascope
from mesascope.loggers import RunLogger, create_loggers, log_run
from mesascope.store import Run, verify_run
from studies.small_study import SMALL_STUDY


class Recorder:
    """A logger that keeps all values, and fails at a step if asked to."""

    def __init__(self, failing_step: int | None = None) -> None:
        self.failing_step = failing_step
        self.models: dict[str, dict[int, dict[str, float]]] = {}
        self.configs: list[dict[str, Any]] = []
        self.finished = 0

    def start_model(self, name, config) -> None:
        self.steps = self.models.setdefault(name, {})
        self.configs.append(dict(config))

    def log_scalars(self, step, values) -> None:
        if step == self.failing_step:
            raise ConnectionError("no\nnetwork")
        self.steps[step] = dict(values)

    def finish_model(self) -> None:
        self.finished += 1


class FakeTracker:
    """The functions of wandb and trackio that are used."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **options: Any) -> "FakeTracker":
        self.started.append(options)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("study") / "small.py"
    file.write_text(SMALL_STUDY)
    return str(file)


@pytest.fixture(scope="module")
def run(study: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two seeds in two cells."""
    out = tmp_path_factory.mktemp("runs") / "small"
    return mesascope.run(study, scale="smoke", seeds=2, out=out, vary={"heads": ["2", "1"]})


def list_expected(run: Run, seed: int) -> dict[int, dict[str, float]]:
    log, data = run.read_log(seed), run["loss_vs_baselines"]
    values: dict[int, dict[str, float]] = {}
    for k, step in enumerate(log["step"].astype(int).tolist()):
        names = {"loss": "loss", "learning rate": "learning_rate", "gradient norm": "gradient_norm"}
        values[step] = {f"train/{name}": float(log[column][k]) for column, name in names.items()}
    for name in ("mean_log10_loss",):
        for step in data["step"].values.tolist():
            for predictor in data["predictor"].values.tolist():
                number = float(data[name].sel(seed=seed, step=step, predictor=predictor))
                if math.isfinite(number):
                    values.setdefault(step, {})[f"loss_vs_baselines/{name}/{predictor}"] = number
    return values


def test_every_model_is_logged_with_its_curves_and_evaluations(run: Run):
    recorder, lines = Recorder(), []
    assert isinstance(recorder, RunLogger)
    assert log_run(run.path, [recorder], lines.append) == 4
    assert lines == []
    assert list(recorder.models) == [
        f"small/smoke/{cell}/seed={seed}"
        for cell in ("heads=2,rate=usual", "heads=1,rate=usual")
        for seed in run.record["seeds"]
    ]
    for cell in (run, Run.open(run.path / "cells/heads=1,rate=usual")):
        for seed in run.record["seeds"]:
            logged = recorder.models[f"small/smoke/{cell.record['cell']}/seed={seed}"]
            assert list(logged) == sorted(logged)
            for step, values in list_expected(cell, seed).items():
                assert values.items() <= logged[step].items()
            assert all(math.isfinite(value) for values in logged.values() for value in values.values())
    assert recorder.finished == 4
    first = recorder.configs[0]
    assert (first["study"], first["cell"], first["model"]["num_attention_heads"]) == ("small", "heads=2,rate=usual", 2)
    assert recorder.configs[-1]["model"]["num_attention_heads"] == 1


def read_events(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: {one.step: one.value for one in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_what_was_logged_and_logging_again_replaces_it(run: Run, command):
    for _ in range(2):
        code, printed, _ = command("log", run.path, "--to", "tensorboard")
        assert (code, printed) == (0, "4 models logged to tensorboard\n")
    seed = run.record["seeds"][0]
    folder = run.path / f"tensorboard/small/smoke/heads=2,rate=usual/seed={seed}"
    assert len(list(folder.iterdir())) == 1
    read = read_events(folder)
    for step, values in list_expected(run, seed).items():
        for name, value in values.items():
            assert read[name][step] == pytest.approx(value, rel=1e-6)
    assert verify_run(run.path).problems == ()


def test_tensorboard_writes_to_a_folder_of_choice(run: Run, tmp_path: Path):
    log_run(run.path, create_loggers([f"tensorboard:{tmp_path / 'events'}"], run.path), print)
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 4


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_receive_one_run_per_model(run: Run, monkeypatch, name: str):
    fake, recorder = FakeTracker(), Recorder()
    monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    log_run(run.path, [*create_loggers([name], run.path), recorder], print)
    assert [one["name"] for one in fake.started] == list(recorder.models)
    assert {one["project"] for one in fake.started} == {"mesascope"}
    assert [one["config"] for one in fake.started] == recorder.configs
    assert fake.logged == [pair for steps in recorder.models.values() for pair in steps.items()]
    assert fake.finished == 4


def test_wandb_is_offline_unless_the_user_says_otherwise(run: Run, monkeypatch):
    for setting, mode in ((None, "offline"), ("online", None)):
        fake = FakeTracker()
        monkeypatch.setitem(sys.modules, "wandb", fake)
        if setting:
            monkeypatch.setenv("WANDB_MODE", setting)
        else:
            monkeypatch.delenv("WANDB_MODE", raising=False)
        log_run(run.path, create_loggers(["wandb"], run.path), print)
        assert {one["mode"] for one in fake.started} == {mode}


def test_a_failing_logger_is_named_once_and_stops_neither_the_run_nor_the_others(study: str, tmp_path: Path):
    failing, working, lines = Recorder(failing_step=1), Recorder(), []
    progress = SimpleNamespace(start_stage=_ignore, update_part=_ignore, log_message=lines.append)
    finished = mesascope.run(
        study, scale="smoke", seeds=2, out=tmp_path, loggers=[failing, working], progress=progress, vary={}
    )
    assert len(finished.verdicts) == 1
    assert len(lines) == 1
    assert lines[0].startswith("Recorder failed at small/smoke/")
    assert lines[0].endswith("is left out: ConnectionError: no network")
    assert len(failing.models) == 1
    assert len(working.models) == 2


def _ignore(*_: object) -> None:
    """Receive progress that the test does not need."""


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("tensorbord", "a logger must be one of tensorboard[:FOLDER], wandb, trackio, but got 'tensorbord'"),
        ("tensorboard:", "a logger must be one of"),
        ("wandb", "the logger wandb needs the package wandb, which is not installed; run pip install wandb"),
        ("trackio", "the logger trackio needs the package trackio"),
        ("tensorboard", "the logger tensorboard needs the package tensorboard"),
    ],
)
def test_a_logger_that_cannot_be_used_is_refused_before_training(
    study: str, tmp_path: Path, command: Callable[..., tuple[int, str, str]], monkeypatch, name: str, line: str
):
    for module in ("wandb", "trackio", "torch.utils.tensorboard.writer"):
        monkeypatch.setitem(sys.modules, module, None)
    code, _, err = command("run", study, "--scale", "smoke", "--out", tmp_path / "run", "--log-to", name)
    assert (code, err.count("\n")) == (2, 1)
    assert line in err
    assert not (tmp_path / "run").exists()


def test_an_object_without_the_methods_is_no_logger(tmp_path: Path):
    with pytest.raises(ValueError, match="or have the methods start_model, log_scalars and finish_model, but got dict"):
        create_loggers([{}], tmp_path)
    with pytest.raises(ValueError, match=r"run\.json"):
        log_run(tmp_path, [Recorder()], print)
