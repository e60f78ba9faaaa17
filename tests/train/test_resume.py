"""A run that is killed, damaged or interrupted ends bit for bit where an undisturbed one ends."""

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import trainee

from mesascope.store import CHECKPOINT_FILE, HistoryReader, Run, RunError


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    for seed in (0, 1):
        trainee.train(path, seed)
    return path


def assert_same(first: Path, second: Path, seed: int = 0) -> None:
    """Every checkpoint has the same bytes (weights, optimiser, configuration), every step had the same loss, and the
    history is whole."""
    one, two = Run.open(first), Run.open(second)
    for step in trainee.TRAINING.checkpoint_steps:
        assert (one.verified_checkpoint(seed, step) / CHECKPOINT_FILE).read_text() == (
            two.verified_checkpoint(seed, step) / CHECKPOINT_FILE
        ).read_text()
    for column in ("step", "loss", "learning rate", "gradient norm"):
        assert one.read_log(seed)[column].tolist() == two.read_log(seed)[column].tolist()
    assert one.read_log(seed)["step"].tolist() == list(range(trainee.TRAINING.steps))
    assert (two.read_log(seed)["seconds"][1:] >= two.read_log(seed)["seconds"][:-1]).all()
    assert not list(two.seed_path(seed).rglob(".tmp-*"))
    pasts = [HistoryReader(run.seed_path(seed) / "history") for run in (one, two)]
    assert [past.steps for past in pasts] == [trainee.TRAINING.steps] * 2
    for name in pasts[0].columns:
        assert pasts[0].read_column(name).tobytes() == pasts[1].read_column(name).tobytes()


def script(kind: str, path: Path) -> subprocess.Popen:
    command = [sys.executable, str(Path(trainee.__file__)), kind, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_three_times_at_random_moments(undisturbed: Path, tmp_path: Path) -> None:
    with script("alone", tmp_path) as process:
        told, _ = process.communicate(timeout=120)
    endings = [tuple(map(int, line.split())) for line in told.splitlines()]
    assert [code for code, _ in endings] == [-9, -9, -9]
    assert 0 < endings[0][1] < endings[1][1] < endings[2][1] < trainee.TRAINING.steps
    trainee.train(tmp_path, 0)
    assert_same(undisturbed, tmp_path)
    assert not (tmp_path / "models" / "seed=0" / "resume").exists()


@pytest.mark.slow
def test_children_die_with_a_killed_parent_and_both_seeds_resume(undisturbed: Path, tmp_path: Path) -> None:
    with script("both", tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline(), "it ended before its first step"
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(random.uniform(0.02, 0.15))
        process.kill()
    gone, alive = psutil.wait_procs(children, timeout=5)
    assert len(gone) >= 2
    assert not alive
    for seed in (0, 1):
        trainee.train(tmp_path, seed)
        assert_same(undisturbed, tmp_path, seed)


def test_a_truncated_checkpoint_is_named_and_trained_again(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    good, bad = trainee.TRAINING.checkpoint_steps[-3:-1]
    weights = Run.open(tmp_path).verified_checkpoint(0, bad) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    heard: list[int] = []
    with pytest.raises(RunError, match=rf"step={bad}/model.safetensors must have .*; delete .*step={bad} and run"):
        trainee.train(tmp_path, 0)
    shutil.rmtree(weights.parent)
    trainee.train(tmp_path, 0, progress=lambda done, total, loss: heard.append(done))
    assert heard[0] == good + 1
    assert_same(undisturbed, tmp_path)


def test_killed_while_a_damaged_checkpoint_is_trained_again(undisturbed: Path, tmp_path: Path) -> None:
    """The later ones are gone then: they would pass for a finished training, with a history that was cut."""

    def interrupt(done: int, total: int, loss: float) -> None:
        raise KeyboardInterrupt

    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(Run.open(tmp_path).verified_checkpoint(0, trainee.TRAINING.checkpoint_steps[1]))
    with pytest.raises(KeyboardInterrupt):
        trainee.train(tmp_path, 0, progress=interrupt)
    assert Run.open(tmp_path).list_checkpoints(0) != list(trainee.TRAINING.checkpoint_steps)
    trainee.train(tmp_path, 0)
    assert_same(undisturbed, tmp_path)


def test_ctrl_c_keeps_the_last_checkpoint(undisturbed: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, loss: float) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainee.train(tmp_path, 0, progress=interrupt, save_every=0.0)
    assert (Run.open(tmp_path).seed_path(0) / "resume").exists()
    trainee.train(tmp_path, 0)
    assert_same(undisturbed, tmp_path)


def test_what_is_done_is_not_done_again(undisturbed: Path) -> None:
    run = Run.open(undisturbed)
    before = {file: file.stat().st_mtime_ns for file in run.seed_path(0).rglob("step=*/*")}
    heard: list[int] = []
    assert (
        trainee.train(undisturbed, 0, progress=lambda done, *_: heard.append(done)).name
        == f"step={trainee.TRAINING.steps}"
    )
    assert heard == [trainee.TRAINING.steps]
    assert before == {file: file.stat().st_mtime_ns for file in run.seed_path(0).rglob("step=*/*")}
