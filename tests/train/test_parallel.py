"""One model that several processes train together has the numbers and the files of one process."""

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import parallel_study
import psutil
import pytest
import torch
import torch.distributed as dist
import trainee
from safetensors.torch import load_file

import mesascope
from mesascope.executors import ExecutorError, TorchrunExecutor, create_executor
from mesascope.models.config import DecoderConfig
from mesascope.store import CHECKPOINT_FILE, Run
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch, training_loss
from mesascope.tasks.chains import MarkovChains
from mesascope.train import (
    SGD,
    AdaFactor,
    AdamW,
    ParallelStrategy,
    TrainingConfig,
    train_model,
    train_parallel,
    validate_parallel,
)
from mesascope.train._batches import sample_batch
from mesascope.train._parallel_model import select_shard

SHORT = TrainingConfig(steps=10, batch_size=6, optimizer=AdamW(lr=1e-2), warmup=3, checkpoints=4, clip=0.5)
DOUBLE = replace(SHORT, dtype="float64")
SHAPE: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
VECTORS = DecoderConfig(d_in=1, d_out=1, norm="layer", intermediate_size=12, **SHAPE)
TOKENS = DecoderConfig(vocab_size=5, tie_word_embeddings=True, **SHAPE)
SHARED = DecoderConfig(d_in=1, d_out=1, share_layers=True, **SHAPE)
LOST = "mesascope: all 2 processes must run until the end, but one has ended or does not answer"


@final
@dataclass(frozen=True, kw_only=True)
class Uneven(trainee.Blind):
    """The affine task with a weight for each sequence; the first ones have none."""

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        batch = trainee.TASK.sample(n, generator)
        return replace(batch, weight=batch.weight * (torch.arange(n) % SHORT.batch_size // 2)[:, None])

    def loss(self, prediction: torch.Tensor, batch: Batch) -> torch.Tensor:
        return trainee.TASK.loss(prediction, batch)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def files(run: Run) -> set[str]:
    return {str(file.relative_to(run.path)) for file in run.path.rglob("*")}


def assert_same_bytes(one: Run, two: Run, steps: tuple[int, ...]) -> None:
    for step in steps:
        places = [run.verified_checkpoint(0, step) / CHECKPOINT_FILE for run in (one, two)]
        assert places[0].read_bytes() == places[1].read_bytes()
    for column in ("step", "loss", "learning rate", "gradient norm"):
        assert one.read_log(0)[column].tolist() == two.read_log(0)[column].tolist()


def assert_alike(one: Run, two: Run, training: TrainingConfig, most: float) -> None:
    """The same files; logs, weights and optimiser's state differ by rounding."""
    assert files(one) == files(two)
    logs = [run.read_log(0) for run in (one, two)]
    for column in ("step", "loss", "learning rate", "gradient norm"):
        np.testing.assert_allclose(logs[1][column], logs[0][column], rtol=most, atol=most)
    for step in training.checkpoint_steps:
        places = [run.verified_checkpoint(0, step) for run in (one, two)]
        for file in ("model.safetensors", "state.safetensors"):
            tensors = [load_file(place / file) for place in places]
            assert tensors[0].keys() == tensors[1].keys()
            assert all(torch.allclose(value, tensors[1][name], most, most) for name, value in tensors[0].items())


CASES = {
    "ddp": ("ddp", Affine(length=6), VECTORS, SHORT),
    "fsdp": ("fsdp", MarkovChains(num_symbols=5, length=6), TOKENS, DOUBLE),
    "fsdp, shared layers": ("fsdp", Uneven(), SHARED, replace(DOUBLE, optimizer=SGD(lr=0.02, momentum=0.9))),
    "ddp, AdaFactor": ("ddp", Affine(length=6), SHARED, replace(SHORT, optimizer=AdaFactor())),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("alone")
def test_one_process_has_the_files_of_ordinary_training_and_resumes_them(name: str, tmp_path: Path) -> None:
    """Bit for bit where the same kernels run."""
    strategy, task, config, training = CASES[name]
    ordinary, parallel = (Run.create(tmp_path / where, trainee.WHAT) for where in ("ordinary", "parallel"))
    train_model(task, config, training, 0, ordinary)
    last = train_parallel(task, config, training, 0, parallel, strategy=strategy)
    assert last == parallel.verified_checkpoint(0, training.steps)
    if strategy == "ddp":
        assert_same_bytes(ordinary, parallel, training.checkpoint_steps)
    assert_alike(ordinary, parallel, training, 1e-9)
    shutil.copytree(parallel.path, tmp_path / "resumed")
    resumed = Run.open(tmp_path / "resumed")
    for step in training.checkpoint_steps[-2:]:
        shutil.rmtree(resumed.verified_checkpoint(0, step))
    heard: list[int] = []
    train_parallel(
        task,
        config,
        training,
        0,
        resumed,
        strategy=strategy,
        save_every=0.0,
        progress=lambda done, total, loss: heard.append(done),
    )
    assert heard[0] == training.checkpoint_steps[-3] + 1
    assert_same_bytes(parallel, resumed, training.checkpoint_steps)
    assert files(resumed) == files(parallel)


def test_gradients_of_the_shares_sum_to_that_of_the_weighted_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over processes of their own weighted means is another number."""
    task, training = Uneven(), DOUBLE
    whole = sample_batch(task, training, 0, 3).to("cpu", torch.float64)
    slope = torch.ones(1, dtype=torch.float64, requires_grad=True)

    def differentiate(batch: Batch, total_weight: torch.Tensor | None = None) -> tuple[float, float]:
        loss = training_loss(task, batch.inputs * slope, batch, total_weight)
        return loss.item(), torch.autograd.grad(loss, slope)[0].item()

    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        shares.append(whole[select_shard(len(whole))])
    assert torch.equal(torch.cat([share.inputs for share in shares]), whole.inputs)
    assert shares[0].weight.sum() == 0 < shares[1].weight.sum() < shares[2].weight.sum()
    parts = np.array([differentiate(share, whole.weight.sum()) for share in shares])
    np.testing.assert_allclose(parts.sum(0), differentiate(whole), rtol=1e-12)
    own = np.array([differentiate(share) for share in shares[1:]])
    assert not np.allclose(own.mean(0), differentiate(whole), rtol=1e-2)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"training": replace(SHORT, batch_size=7)}, "batch_size must be a multiple .*, but got 7 and 2"),
        ({"training": replace(SHORT, history=True)}, "several processes must train without a history"),
        ({"training": replace(SHORT, optimizer=AdaFactor()), "strategy": "fsdp"}, "AdamW or SGD.*but got AdaFactor"),
        ({"strategy": "tensor"}, "strategy must be ddp or fsdp, but got 'tensor'"),
        ({"config": type("Other", (DecoderConfig,), {})(d_in=1, d_out=1)}, "must train a decoder, but .* type Other"),
    ],
    ids=str,
)
def test_what_several_processes_cannot_train_is_refused(changes: dict, line: str) -> None:
    arguments = {"config": VECTORS, "training": SHORT, "num_processes": 2, "strategy": "ddp"}
    validate_parallel(**arguments)
    with pytest.raises(ValueError, match=line):
        validate_parallel(**arguments | changes)


def test_a_missing_launcher_and_a_missing_group_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    executor = create_executor("torchrun,strategy=fsdp")
    assert executor == TorchrunExecutor(strategy="fsdp")
    run = Run.create(tmp_path / "run", trainee.WHAT)
    with pytest.raises(ValueError, match=r"must have a process group, but there is none; start .* with torchrun"):
        train_parallel(Affine(length=6), VECTORS, SHORT, 0, run)
    with pytest.raises(ValueError, match="must be started by torchrun, but RANK is not set; use `torchrun"):
        mesascope.run("affine", scale="smoke", on=executor, out=tmp_path / "study")
    assert not (tmp_path / "study").exists()
    with pytest.raises(ExecutorError, match="the processes must be joined, but are not"):
        executor.map_jobs(len, [])
    with pytest.raises(ValueError, match="strategy must be ddp or fsdp, but got 'ring'"):
        create_executor("torchrun,strategy=ring")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("study") / "shared_out.py"
    file.write_text(parallel_study.STUDY)
    return file


@pytest.fixture(scope="module")
def ordinary(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return mesascope.run(str(study), scale="smoke", on="serial", out=tmp_path_factory.mktemp("ordinary"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_study_on_two_processes_has_the_losses_of_one(strategy: str, study: Path, ordinary: Run, tmp_path) -> None:
    path = tmp_path / "run"
    words = ["run", study, "--scale", "smoke", "--on", f"torchrun,strategy={strategy}", "--out", path]
    code, told = parallel_study.run(2, *words)
    assert code == 0, told
    assert told.count("Report:") == 1
    found = Run.open(path)
    logs = [run.read_log(0) for run in (ordinary, found)]
    assert len(logs[1]["loss"]) == 50
    assert np.abs(logs[0]["loss"] - logs[1]["loss"]).max() < 1e-5
    assert logs[0]["loss"][-1] < logs[0]["loss"][0] - 0.5
    assert files(found) == files(ordinary)
    np.testing.assert_allclose(found["norms"]["norm"], ordinary["norms"]["norm"], rtol=1e-3)
    again = mesascope.run(str(study), scale="smoke", on="serial", out=path)  # nothing is left to do
    assert_same_bytes(found, again, (0, 10, 50))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("strategy", "killed"), [("ddp", 0), ("fsdp", 1)])
def test_a_killed_process_ends_all_and_the_run_resumes_bit_for_bit(
    strategy: ParallelStrategy, killed: int, study: Path, tmp_path: Path
) -> None:
    words = ["run", study, "--scale", "smoke", "--set", "training.steps=300", "--on", f"torchrun,strategy={strategy}"]
    undisturbed, path = tmp_path / "undisturbed", tmp_path / "run"
    code, told = parallel_study.run(2, *words, "--out", undisturbed)
    assert code == 0, told
    with parallel_study.start(2, *words, "--out", path) as launcher:
        while not (path / "models" / "seed=0" / "step=60").exists():
            assert launcher.poll() is None
            time.sleep(0.01)
        ranks = {int(one.environ()["RANK"]): one for one in psutil.Process(launcher.pid).children()}
        os.kill(ranks[killed].pid, signal.SIGKILL)
        began = time.monotonic()
        told, _ = launcher.communicate(timeout=300)
    assert time.monotonic() - began < 120
    assert launcher.returncode == 1
    assert told.count(LOST) == 1
    assert not any(one.is_running() for one in ranks.values())
    steps = Run.open(path).list_checkpoints(0)
    assert steps[-1] in range(60, 300)
    code, told = parallel_study.run(2, *words, "--out", path)
    assert code == 0, told
    assert_same_bytes(Run.open(undisturbed), Run.open(path), tuple(range(0, 301, 60)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_sums_over_three_processes_have_one_order(strategy: str, study: Path, tmp_path: Path) -> None:
    """The first step after a resume is that of the training without interruption."""
    words = ["run", study, "--scale", "smoke", "--on", f"torchrun,strategy={strategy}", "--out"]
    code, told = parallel_study.run(3, *words, tmp_path / "run")
    assert code == 0, told
    whole, resumed = Run.open(tmp_path / "run"), tmp_path / "resumed"
    shutil.copytree(whole.path, resumed)
    shutil.rmtree(resumed / "results")
    for step in (20, 30, 40, 50):
        shutil.rmtree(resumed / "models" / "seed=0" / f"step={step}")
    code, told = parallel_study.run(3, *words, resumed)
    assert code == 0, told
    assert_same_bytes(whole, Run.open(resumed), tuple(range(0, 51, 10)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_mistakes_get_one_line_and_nothing_is_written(study: Path, tmp_path: Path) -> None:
    words = ["run", study, "--scale", "smoke", "--on", "torchrun", "--out", tmp_path / "run"]
    code, told = parallel_study.run(2, *words, "--set", "training.batch_size=9")
    assert code == 1
    lines = [line for line in told.splitlines() if line.startswith("mesascope: ")]
    assert len(lines) == 1
    assert re.search(r"shared-out with .*main condition: batch_size must be a multiple .*, but got 9 and 2", lines[0])
    assert not (tmp_path / "run").exists()
