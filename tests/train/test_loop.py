"""Training: it learns, it is reproducible, and it stops where numbers stop making sense."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import final

import numpy as np
import pytest
import torch
import trainee

from mesascope.models.config import DecoderConfig
from mesascope.models.load import load_checkpoint
from mesascope.statistics import evenly_spaced_steps
from mesascope.store import Run, RunError
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch
from mesascope.train import SGD, ConstantSchedule, TrainingConfig, TrainingDiverged, log_spaced_steps, train_model
from mesascope.train._batches import prefetch_batches, sample_batch, sample_batches

SHORT = TrainingConfig(steps=8, batch_size=4, checkpoints=4)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", trainee.WHAT)


@final
@dataclass(frozen=True, kw_only=True)
class Breaks(trainee.Blind):
    """An affine task whose loss, or the slope of it, is no number at some batch."""

    what: str = "loss"

    def loss(self, prediction: torch.Tensor, batch: Batch) -> torch.Tensor:
        error = trainee.TASK.loss(prediction, batch)
        if not torch.equal(batch.inputs, sample_batch(trainee.TASK, SHORT, 0, 5).inputs):
            return error
        return error * float("nan") if self.what == "loss" else (error * 0).sqrt() + error.detach()


@pytest.mark.parametrize(
    ("steps", "n", "expected"),
    [
        (1000, 4, (0, 1, 32, 1000)),
        (5, 50, (0, 1, 2, 3, 4, 5)),
        (7, 2, (0, 7)),
        (1, 2, (0, 1)),
        (10, 6, (0, 1, 2, 3, 6, 10)),
    ],
)
def test_log_spaced(steps: int, n: int, expected: tuple[int, ...]) -> None:
    assert log_spaced_steps(steps, n) == expected


def test_log_spaced_gives_as_many_as_asked_for() -> None:
    for steps in range(1, 60):
        for n in range(2, steps + 2):
            points = log_spaced_steps(steps, n)
            assert len(set(points)) == n
            assert (points[0], points[-1]) == (0, steps)


def test_evenly_spaced_gives_as_many_as_asked_for() -> None:
    for steps in range(1, 60):
        for n in range(2, steps + 2):
            points = np.array(evenly_spaced_steps(steps, n))
            assert len(set(points)) == n
            assert (points[0], points[-1]) == (0, steps)
            assert np.ptp(np.diff(points)) <= 1
    assert evenly_spaced_steps(5, 50) == (0, 1, 2, 3, 4, 5)
    assert TrainingConfig(steps=12, checkpoints=4, spacing="even").checkpoint_steps == (0, 4, 8, 12)


def test_another_spacing_is_refused() -> None:
    with pytest.raises(ValueError, match="spacing must be log or even, but got 'linear'"):
        TrainingConfig(steps=12, spacing="linear")  # pyright: ignore[reportArgumentType]


def test_the_loss_falls_and_the_log_says_so(run: Run) -> None:
    last = train_model(trainee.TASK, trainee.MODEL, trainee.TRAINING, 0, run)
    log = run.read_log(0)
    assert log["loss"][-20:].mean() < 0.5 * log["loss"][:20].mean()
    assert log["learning rate"][trainee.TRAINING.warmup - 1] == trainee.TRAINING.optimizer.lr
    assert run.list_checkpoints(0) == list(trainee.TRAINING.checkpoint_steps)
    assert sorted(file.name for file in last.iterdir()) == [
        "README.md",
        "checkpoint.json",
        "config.json",
        "model.safetensors",
        "state.safetensors",
    ]


def test_one_step_is_the_gradient_of_the_batch(run: Run) -> None:
    """Without clipping, momentum and decay: weights after one step are w - lr dL/dw."""
    training = TrainingConfig(
        steps=1, batch_size=4, optimizer=SGD(lr=0.1), schedule=ConstantSchedule(), clip=None, checkpoints=2
    )
    train_model(trainee.TASK, trainee.MODEL, training, 3, run)
    before, after = (load_checkpoint(run.verified_checkpoint(3, step)) for step in (0, 1))
    batch = sample_batch(trainee.TASK, training, 3, 0)
    loss = trainee.TASK.loss(before(batch.inputs).logits, batch).mean()
    loss.backward()
    assert run.read_log(3)["loss"][0] == pytest.approx(loss.item())
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert old.grad is not None
        torch.testing.assert_close(new, old - 0.1 * old.grad)


def test_clipping_bounds_the_update_but_the_log_has_the_whole_norm(run: Run) -> None:
    training = TrainingConfig(
        steps=1, batch_size=4, optimizer=SGD(lr=1.0), schedule=ConstantSchedule(), clip=0.01, checkpoints=2
    )
    train_model(trainee.TASK, trainee.MODEL, training, 0, run)
    before, after = (load_checkpoint(run.verified_checkpoint(0, step)) for step in (0, 1))
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    moved = torch.stack([(a - b).detach().square().sum() for a, b in pairs]).sum()
    assert run.read_log(0)["gradient norm"][0] > 0.1
    assert moved.item() ** 0.5 == pytest.approx(0.01, rel=1e-3)


def test_seeds_differ_in_weights_and_data_and_nothing_global_is_touched(run: Run) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    for seed in (0, 1):
        train_model(trainee.TASK, trainee.MODEL, replace(SHORT, threads=threads + 1), seed, run)
    assert torch.equal(torch.rand(1), expected)
    assert torch.get_num_threads() == threads
    first = [load_checkpoint(run.verified_checkpoint(seed, 0)).readout.weight for seed in (0, 1)]
    assert not torch.equal(*first)
    assert not torch.equal(*(sample_batch(trainee.TASK, SHORT, seed, 0).inputs for seed in (0, 1)))


def test_every_step_has_fresh_data() -> None:
    batches = [sample_batch(trainee.TASK, trainee.TRAINING, 0, step).inputs for step in range(40)]
    assert len({tuple(batch.flatten().tolist()) for batch in batches}) == 40


def test_batches_drawn_ahead_are_the_same() -> None:
    task, training = Affine(length=6), TrainingConfig(steps=40, batch_size=4)
    drawn = zip(
        sample_batches(task, training, 0, 3), prefetch_batches(sample_batches(task, training, 0, 3)), strict=True
    )
    assert sum(torch.equal(one.inputs, other.inputs) for one, other in drawn) == 37


def test_the_next_batch_is_drawn_while_one_is_used() -> None:
    begun = Event()

    def drawn() -> Iterator[Batch]:
        yield Affine(length=6).sample(2, torch.Generator())
        begun.set()
        yield Affine(length=6).sample(2, torch.Generator())

    next(prefetch_batches(drawn()))
    assert begun.wait(10)


def test_what_goes_wrong_ahead_is_told() -> None:
    def drawn() -> Iterator[Batch]:
        yield Affine(length=6).sample(2, torch.Generator())
        raise RuntimeError("the well is dry")

    with pytest.raises(RuntimeError, match=r"the well is dry"):
        list(prefetch_batches(drawn()))


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_what_is_not_finite_ends_training_before_the_update(run: Run, what: str) -> None:
    task = Breaks(what=what)
    with pytest.raises(
        TrainingDiverged, match=rf"the {what} became nan for seed 0 at step 5 \(the last checkpoint is step 3"
    ):
        train_model(task, trainee.MODEL, SHORT, 0, run)
    assert run.list_checkpoints(0) == [0, 1, 3]
    assert run.read_log(0)["step"].tolist() == [0, 1, 2, 3, 4]
    for parameter in load_checkpoint(run.verified_checkpoint(0, 3)).parameters():
        assert parameter.isfinite().all()


def test_another_recipe_in_the_same_place_is_refused(run: Run) -> None:
    train_model(trainee.TASK, trainee.MODEL, SHORT, 0, run)
    with pytest.raises(RunError, match="with one configuration, but holds another training; choose another directory"):
        train_model(trainee.TASK, trainee.MODEL, replace(SHORT, clip=2.0), 0, run)
    wider = DecoderConfig(d_in=1, d_out=1, num_hidden_layers=1, hidden_size=16)
    with pytest.raises(RunError, match="holds another task and model"):
        train_model(Affine(length=7), wider, SHORT, 0, run)


def test_a_configuration_is_not_changed_by_training(run: Run) -> None:
    before = trainee.MODEL.to_dict()
    train_model(trainee.TASK, trainee.MODEL, SHORT, 0, run)
    assert trainee.MODEL.to_dict() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, but got 0"),
        ({"checkpoints": 1}, "checkpoints must be at least 2, but got 1"),
        ({"warmup": 8}, "warmup must be less than steps, but got 8 and 8"),
        ({"clip": 0.0}, "clip must be above 0, or None"),
    ],
)
def test_nonsense_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SHORT, **change)
