"""Training of recurrent transformers: the penalty on steps, checkpoints, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trainee

from mesascope.models.config import DecoderConfig
from mesascope.models.load import load_checkpoint
from mesascope.models.recurrent.config import RecurrentConfig
from mesascope.models.recurrent.model import RecurrentTransformer
from mesascope.store import Run, RunError
from mesascope.tasks.seeded import SeededSequences
from mesascope.train import AdamW, ConstantSchedule, TrainingConfig, train_model, train_population
from recurrent_models import GUT

TASK = SeededSequences(num_symbols=5, num_generators=3, prefix_length=1, length=8)
SHAPE: dict[str, Any] = {"vocab_size": 5, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
MODEL = RecurrentConfig(**SHAPE, **GUT, max_iterations=4, max_position_embeddings=8)
TRAINING = TrainingConfig(
    steps=40, batch_size=16, optimizer=AdamW(lr=1e-2), schedule=ConstantSchedule(), checkpoints=3, spacing="even"
)


def train(path: Path, config: DecoderConfig, training: TrainingConfig = TRAINING) -> RecurrentTransformer:
    model: Any = load_checkpoint(train_model(TASK, config, training, 0, Run.create(path, trainee.WHAT)))
    assert type(model) is RecurrentTransformer
    return model


@torch.no_grad()
def test_training_adds_the_penalty_on_steps_to_the_loss(tmp_path: Path) -> None:
    """Started from the same weights and data, a larger penalty takes fewer steps, and the log has the task's loss."""
    x, steps = TASK.sample(32, torch.Generator().manual_seed(5)).inputs, {}
    for penalty in (0.0, 0.3, 3.0):
        config = RecurrentConfig(**SHAPE, **GUT, max_iterations=4, max_position_embeddings=8, halting_penalty=penalty)
        with torch.enable_grad():
            model = train(tmp_path / str(penalty), config)
        assert model.config.halting_penalty == penalty
        steps[penalty] = model(x).expected_steps.mean().item()
    assert steps[3.0] < steps[0.3] < steps[0.0]
    assert steps[3.0] < 0.5 * steps[0.0]
    first = [Run.open(tmp_path / str(penalty)).read_log(0)["loss"][0] for penalty in steps]
    assert first[0] == first[1] == first[2]


def test_a_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", MODEL)

    class Stop(Exception):  # noqa: N818
        pass

    def stop(done: int, *_: object) -> None:
        if done > 25:
            raise Stop

    run = Run.create(tmp_path / "halves", trainee.WHAT)
    with pytest.raises(Stop):
        train_model(TASK, MODEL, TRAINING, 0, run, progress=stop)
    resumed = load_checkpoint(train_model(TASK, MODEL, TRAINING, 0, run))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_another_model_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    train(tmp_path, MODEL)
    run = Run.open(tmp_path)
    fields = {"max_iterations": 4, "max_position_embeddings": 8, "transition": True}
    for other in (
        RecurrentConfig(**SHAPE, **GUT, max_iterations=4, max_position_embeddings=8, activation="relu"),
        RecurrentConfig(**SHAPE, **fields, gate=True),
        DecoderConfig(**SHAPE, max_position_embeddings=8, norm="layer", positions="rotary", num_hidden_layers=1),
    ):
        with pytest.raises(RunError, match=r"must be trained with one configuration, but holds another .*model"):
            train_model(TASK, other, TRAINING, 0, run)


def test_a_history_and_a_population_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="called once in a step, on all positions, but RecurrentTransformer"):
        train(tmp_path / "history", MODEL, replace(TRAINING, history=True))
    with pytest.raises(
        ValueError, match="a population must be of decoders, but the configuration is of type RecurrentConfig"
    ):
        train_population(TASK, MODEL, TRAINING, [0, 1], Run.create(tmp_path / "population", trainee.WHAT))
