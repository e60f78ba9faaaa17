"""The record of a training gives back its maps: outputs are attention over all that they were trained on."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trainee

from cases import covering
from mesascope.activations import UnsupportedModel
from mesascope.analyses.training.dual_form import dual_coefficients, random_half
from mesascope.analyses.training.history_attention import TrainingHistory, history_attention
from mesascope.models.config import DecoderConfig
from mesascope.models.load import load_checkpoint
from mesascope.store import HistoryReader, Run, RunError
from mesascope.tasks.seeded import SeededSequences
from mesascope.train import SGD, AdamW, ConstantSchedule, CosineSchedule, TrainingConfig, sample_batches, train_model

TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
TASK = SeededSequences(num_symbols=7, num_generators=3, prefix_length=2, length=8)
MODEL = DecoderConfig(
    vocab_size=7, num_hidden_layers=2, hidden_size=16, intermediate_size=24, norm="layer", max_position_embeddings=8
)
PLAIN = TrainingConfig(
    steps=100, batch_size=8, optimizer=SGD(lr=1.0), schedule=ConstantSchedule(), checkpoints=3, history=True
)
HEAVY = replace(
    PLAIN,
    optimizer=SGD(lr=0.2, momentum=0.9, weight_decay=1e-3),
    warmup=10,
    schedule=CosineSchedule(final_fraction=0.1),
)


def trained(path: Path, training: TrainingConfig, seed: int = 0, config: DecoderConfig = MODEL) -> Run:
    run = Run.create(path / "run", trainee.WHAT)
    train_model(TASK, config, training, seed, run)
    return run


def opened(run: Run, training: TrainingConfig, step: int | None = None, seed: int = 0):
    """The past, the model and held-out sequences at a step."""
    step = training.steps if step is None else step
    history = HistoryReader(run.seed_path(seed) / "history", step)
    initial, model = (load_checkpoint(run.verified_checkpoint(seed, s)) for s in (0, step))
    past = TrainingHistory(history=history, initial=initial, replay=lambda: sample_batches(TASK, training, seed))
    return past, model, TASK.validation_task().sample(32, torch.Generator().manual_seed(9))


@pytest.mark.parametrize(("training", "dtype"), covering([PLAIN, HEAVY], ["float64", "float32"]))
def test_the_dual_form_gives_every_output(tmp_path: Path, training: TrainingConfig, dtype) -> None:
    training = replace(training, dtype=dtype)
    run = trained(tmp_path, training)
    assert load_checkpoint(run.verified_checkpoint(0, 0)).dtype == getattr(torch, dtype)
    for step in training.checkpoint_steps:
        past, model, batch = opened(run, training, step)
        found = history_attention(past, model, batch)
        errors = found["dual_error"].values
        assert (errors[~torch.from_numpy(errors).isnan().numpy()] <= TOLERANCE[dtype]).all()
        assert found["dual_error"].count() == 13, "six maps in each layer, and the output head"
    assert float(found["dual_error_half"].min()) > 0.1
    assert run.read_log(0)["loss"][-20:].mean() < 0.7 * run.read_log(0)["loss"][0], "it learned something"


def test_the_clipped_share_counts(tmp_path: Path) -> None:
    training = replace(HEAVY, dtype="float64", clip=1.0)
    run = trained(tmp_path, training)
    kept = HistoryReader(run.seed_path(0) / "history").read_column("steps")[:, 1]
    assert (kept < 1).any()
    assert (kept == 1).any()
    past, model, batch = opened(run, training)
    assert float(history_attention(past, model, batch)["dual_error"].max()) <= TOLERANCE["float64"]


def test_another_training_s_history_is_refused(tmp_path: Path) -> None:
    training = replace(HEAVY, steps=40, checkpoints=2)
    run = trained(tmp_path, training)
    train_model(TASK, MODEL, training, 1, run)
    past, _, batch = opened(run, training)
    other = load_checkpoint(run.verified_checkpoint(1, training.steps))
    with pytest.raises(UnsupportedModel, match=r"reproduce the outputs of layers\.0\..* to a relative error of 0\.01"):
        history_attention(past, other, batch)


def test_coefficients_are_those_of_the_optimiser() -> None:
    """One number, one gradient at a time: what the optimiser makes of it is what the coefficient says."""

    class Told(HistoryReader):
        def __init__(self) -> None:
            self.metadata = {"momentum": 0.8, "rule": "SGD"}

        def read_column(self, name: str):
            return torch.tensor([[0.3, 1.0], [0.2, 0.5], [0.1, 1.0]], dtype=torch.float64).numpy()

    start, pushes = dual_coefficients(Told(), decay=0.05)
    for step in (None, 0, 1, 2):
        weight = torch.nn.Parameter(torch.tensor([1.0 if step is None else 0.0], dtype=torch.float64))
        rule = torch.optim.SGD([weight], lr=1.0, momentum=0.8, weight_decay=0.05)
        for now, (rate, kept) in enumerate([(0.3, 1.0), (0.2, 0.5), (0.1, 1.0)]):
            rule.param_groups[0]["lr"] = rate
            weight.grad = torch.tensor([kept if now == step else 0.0], dtype=torch.float64)
            rule.step()
        assert float(weight.detach()) == pytest.approx(start if step is None else pushes[step], rel=1e-12)


def test_adam_has_the_attended_instances_alone(tmp_path: Path) -> None:
    training = replace(HEAVY, optimizer=AdamW(), steps=20)
    run = trained(tmp_path, training)
    past, model, batch = opened(run, training)
    found = history_attention(past, model, batch)
    assert "top" in found
    assert "dual_error" not in found
    with pytest.raises(
        UnsupportedModel, match=r"needs a history of gradient descent \(SGD\), but this is one of AdamW"
    ):
        dual_coefficients(past.history, 0.0)


def test_shared_weights_are_refused(tmp_path: Path) -> None:
    config = DecoderConfig(vocab_size=7, hidden_size=16, max_position_embeddings=8, share_layers=True)
    with pytest.raises(ValueError, match=r"separate weights, but this model shares some"):
        trained(tmp_path, HEAVY, config=config)


def test_a_history_that_is_too_short_is_refused(tmp_path: Path) -> None:
    training = replace(HEAVY, steps=20, warmup=2)
    run = trained(tmp_path, training)
    folder = run.seed_path(0) / "history"
    file = folder / "readout.in.bin"
    with file.open("r+b") as handle:
        handle.truncate(100)
    with pytest.raises(RunError, match=r"must hold 20 steps, but has 0 complete ones"):
        HistoryReader(folder, 20)
    shutil.rmtree(run.verified_checkpoint(0, 20))  # so that training has to go on
    with pytest.raises(RunError, match=r"must hold the \d+ steps before the checkpoint, but has 0; delete"):
        train_model(TASK, MODEL, training, 0, run)


def test_half_is_half() -> None:
    import numpy as np

    kept = random_half(np.arange(10_000))
    assert abs(kept.mean() - 0.5) < 0.02
