"""Attention over the history finds what is attended to, where it is and nowhere else."""

from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch

from mesascope.analyses.training.attended_instances import BLOCK_ROWS, find_attended_instances
from mesascope.analyses.training.history_attention import TrainingHistory, history_attention
from mesascope.ground_truth.models.generators import build_generator_model, sample_labelled_sequences
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.store import HistoryColumn, HistoryReader, HistoryWriter
from mesascope.tasks.base import Batch
from mesascope.tasks.seeded import SeededSequences
from mesascope.train import SGD
from mesascope.train._history import HistoryRecorder

ROWS, WIDTH = 1000, 6


def written(folder: Path, steps: int) -> HistoryReader:
    random = np.random.default_rng(0)
    writer = HistoryWriter(folder, {"map.in": HistoryColumn(rows=ROWS, width=WIDTH)}, {}, keep_steps=0)
    for _ in range(steps):
        writer.append_step({"map.in": random.standard_normal((ROWS, WIDTH), dtype=np.float32)})
    writer.close()
    return HistoryReader(folder)


@pytest.mark.parametrize(("steps", "heads"), [(1, 1), (2, 3), (33, 2)], ids=["a block", "heads", "several blocks"])
def test_the_most_and_the_least_attended_are_those_of_a_full_search(tmp_path: Path, steps: int, heads: int) -> None:
    history, x = written(tmp_path / "history", steps), torch.randn(40, WIDTH)
    assert steps < 33 or steps * ROWS > 2 * BLOCK_ROWS
    found = find_attended_instances(history, "map.in", x, heads=heads)
    everything = torch.from_numpy(history.read_column("map.in")).unflatten(1, (heads, -1))
    scores = torch.einsum("qhd,nhd->hqn", x.unflatten(1, (heads, -1)), everything)
    for largest, weights, places in ((True, found.top_weight, found.top), (False, found.bottom_weight, found.bottom)):
        assert torch.allclose(weights, scores.topk(10, largest=largest).values, atol=1e-5)
        assert torch.allclose(weights, scores.gather(2, places), atol=1e-5)
        assert all(len(set(row.tolist())) == 10 for row in places.flatten(0, 1))


def test_what_cannot_be_attended_is_refused(tmp_path: Path) -> None:
    history = written(tmp_path / "history", 1)
    with pytest.raises(ValueError, match=r"queries must have the 6 features of map\.in, but have 5"):
        find_attended_instances(history, "map.in", torch.randn(3, 5))
    with pytest.raises(ValueError, match=r"at least 10 instances, but has 0; train for longer"):
        find_attended_instances(history.limit_steps(0), "map.in", torch.randn(3, WIDTH))


def recorded(folder: Path, model: Decoder, batches: list[Batch]) -> TrainingHistory:
    """The past of a model that was trained at rate zero: what it read is what it reads."""
    rule = SGD(lr=0.0)
    recorder = HistoryRecorder(model, rule.build_optimizer(model), rule, folder, keep_steps=0)
    with recorder.attach_hooks():
        for batch in batches:
            logits = model(batch.inputs).logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()
            recorder.append_step(batch, 0.0, 1.0)
    return TrainingHistory(history=HistoryReader(folder), initial=model, replay=lambda: iter(batches))


def drawn(n: int, seed: int) -> Batch:
    return Batch(**sample_labelled_sequences(n, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("planted", ["generator", "nothing"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_planted_generator_is_attended_where_it_is_read_and_nowhere_else(
    tmp_path: Path, planted: str, layer: int
) -> None:
    model = build_generator_model(layer, latent=planted)
    past = recorded(tmp_path / "history", model, [drawn(64, seed) for seed in range(8)])
    found = history_attention(past, model, drawn(64, 99))
    share = found["top"].sel(stat="generator", map="attention.q_proj")
    chance = float(found["chance"].sel(stat="generator"))
    for place in map(str, range(4)):
        if planted == "generator" and place == str(layer + 1):
            assert float(share.sel(layer=place)) > 0.9
            assert (
                float(found["top_null_least_attended"].sel(stat="generator", map="attention.q_proj", layer=place))
                < chance
            )
        else:
            assert float(share.sel(layer=place)) < 2 * chance, (place, float(share.sel(layer=place)), chance)
    assert float(found["dual_error"].max()) < 1e-6
    assert float(abs(found["top_null"].sel(stat="generator") - chance).max()) < 0.6 * chance
    everything = torch.cat([batch.categorical_latents["generator"].flatten() for batch in past.replay()])
    by_hand = (everything[:, None] == drawn(64, 99).categorical_latents["generator"][:, -1]).double().mean()
    assert chance == pytest.approx(float(by_hand))


def test_a_model_that_was_never_trained_attends_as_its_replayed_self(tmp_path: Path, monkeypatch) -> None:
    """The control reads all batches again: at rate zero it must find what the record holds."""
    monkeypatch.setattr("mesascope.analyses.training.history_attention.REPLAY_STEPS", 3)
    task = SeededSequences(num_symbols=7, num_generators=3, prefix_length=2, length=8)
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=7, hidden_size=16, num_hidden_layers=2, max_position_embeddings=8))
    drawn = [task.sample(50, torch.Generator().manual_seed(seed)) for seed in range(8)]
    past = recorded(tmp_path / "history", model, drawn)
    found = history_attention(past, model, task.validation_task().sample(40, torch.Generator().manual_seed(99)))
    assert np.allclose(found["top"], found["top_null_untrained"], equal_nan=True, atol=0.06), "but for ties"
    assert np.allclose(
        found["top_null_least_attended"], found["top_null_least_attended_null_untrained"], equal_nan=True, atol=0.06
    )
    reading = {"layer": "0", "map": "attention.q_proj"}
    assert float((found["top"] - found["top_null"]).sel(reading).mean()) > 0.12, "or it would be no test"


def test_labels_are_needed(tmp_path: Path) -> None:
    model = Decoder(DecoderConfig(vocab_size=5, hidden_size=8, num_attention_heads=2, max_position_embeddings=6))
    ids = torch.randint(5, (4, 7), generator=torch.Generator().manual_seed(0))
    batch = Batch(inputs=ids[:, :-1], targets=ids[:, 1:], weight=torch.ones(4, 6))
    past = recorded(tmp_path / "history", model, list(repeat(batch, 3)))
    with pytest.raises(ValueError, match=r"needs integer latents at every position, but the batches"):
        history_attention(past, model, batch)
