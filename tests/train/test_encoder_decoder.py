"""Training of the encoder-decoder: it learns, its checkpoints resume, and what records single calls is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trainee

from mesascope.models.encoder_decoder.config import EncoderDecoderConfig
from mesascope.models.encoder_decoder.model import EncoderDecoder
from mesascope.models.load import load_checkpoint
from mesascope.store import Run
from mesascope.tasks.syntax.transformations import CHANCE, SyntacticTransformations
from mesascope.train import AdamW, ConstantSchedule, TrainingConfig, train_model, train_population

TASK = SyntacticTransformations(
    num_levels=1, words_per_label=2, min_words=2, max_words=3, functions=("rev",), max_rules=2, max_output=3, held_out=0
)
MODEL = EncoderDecoderConfig(
    vocab_size=TASK.vocab_size,
    source_length=TASK.source_length,
    num_encoder_layers=1,
    num_hidden_layers=1,
    hidden_size=16,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=8,
    pad_token_id=0,
)
TRAINING = TrainingConfig(
    steps=60, batch_size=16, optimizer=AdamW(lr=1e-2), schedule=ConstantSchedule(), checkpoints=3, spacing="even"
)


def test_it_learns_and_resumes_where_it_stopped(tmp_path: Path) -> None:
    whole = load_checkpoint(train_model(TASK, MODEL, TRAINING, 0, Run.create(tmp_path / "whole", trainee.WHAT)))
    assert type(whole) is EncoderDecoder
    batch = TASK.sample(64, torch.Generator().manual_seed(9))
    with torch.no_grad():
        predictions = {"model": whole(batch.inputs).logits, "chance": TASK.baselines(batch)[CHANCE]}
    losses = {name: (TASK.loss(one, batch) * batch.weight).sum() for name, one in predictions.items()}
    assert losses["model"] < 0.5 * losses["chance"]

    class Stop(Exception):  # noqa: N818
        pass

    def stop(done: int, *_: object) -> None:
        if done > 35:
            raise Stop

    run = Run.create(tmp_path / "halves", trainee.WHAT)
    with pytest.raises(Stop):
        train_model(TASK, MODEL, TRAINING, 0, run, progress=stop)
    resumed = load_checkpoint(train_model(TASK, MODEL, TRAINING, 0, run))
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_embeddings_of_parts_are_trained_without_decay(tmp_path: Path) -> None:
    config = EncoderDecoderConfig(
        **{**MODEL.to_diff_dict(), "token_parts": [[0, 1 + n] for n in range(TASK.vocab_size)]}
    )
    training = replace(TRAINING, steps=2, checkpoints=2)
    run = Run.create(tmp_path / "parts", trainee.WHAT)
    trained = load_checkpoint(train_model(TASK, config, training, 0, run))
    assert not torch.equal(
        trained.embed.parts.weight, load_checkpoint(run.verified_checkpoint(0, 0)).embed.parts.weight
    )
    _, rest = AdamW(weight_decay=0.1).build_optimizer(trained).param_groups
    assert rest["weight_decay"] == 0
    assert any(one is trained.embed.parts.weight for one in rest["params"])


def test_a_history_and_a_population_are_refused(tmp_path: Path) -> None:
    training, run = replace(TRAINING, history=True), Run.create(tmp_path / "history", trainee.WHAT)
    with pytest.raises(ValueError, match="called once in a step, on all positions, but EncoderDecoder"):
        train_model(TASK, MODEL, training, 0, run)
    with pytest.raises(
        ValueError, match="a population must be of decoders, but the configuration is of type EncoderDecoder"
    ):
        train_population(TASK, MODEL, TRAINING, [0, 1], Run.create(tmp_path / "population", trainee.WHAT))
