"""Flip-flop sequences obey their rules, and the accuracies of the baselines are exact."""

import re

import pytest
import torch

from mesascope.tasks.flip_flop import CHANCE, LAST_BIT, LAST_WRITTEN, MAJORITY, FlipFlop
from mesascope.testing import check_task


def read_text(task: FlipFlop, n: int = 200) -> list[str]:
    batch = task.sample(n, torch.Generator().manual_seed(0))
    tokens = torch.cat([batch.inputs, batch.targets[:, -1:]], dim=1)
    return ["".join(map(task.decode_token, row)) for row in tokens.tolist()]


@pytest.mark.parametrize("task", [FlipFlop(), FlipFlop(length=4, ignore=0.0), FlipFlop(length=6, ignore=1.0)])
def test_every_kind_of_task_is_sound(task):
    check_task(task)


def test_every_read_gives_the_last_written_bit():
    for text in read_text(FlipFlop(length=30, ignore=0.5)):
        assert re.fullmatch("w[01]([wir][01])*r[01]", text)
        stored = None
        for instruction, bit in zip(text[::2], text[1::2], strict=True):
            stored = bit if instruction == "w" else stored
            assert instruction != "r" or bit == stored


def test_instructions_have_their_probabilities():
    inner = "".join(text[2:-2:2] for text in read_text(FlipFlop(length=64, ignore=0.6), n=1_000))
    for instruction, probability in (("i", 0.6), ("w", 0.2), ("r", 0.2)):
        assert inner.count(instruction) / len(inner) == pytest.approx(probability, abs=0.01)


def test_latents_are_the_state_before_each_prediction():
    batch = FlipFlop(length=12, ignore=0.5).sample(50, torch.Generator().manual_seed(0))
    for row, stored, since in zip(
        batch.inputs.tolist(), *(batch.latents[name].tolist() for name in ("stored bit", "ignored pairs")), strict=True
    ):
        bit, pairs = None, 0
        for position, token in enumerate(row):
            if position % 2 == 0 and position > 0:
                pairs += 1
            elif position % 2 == 1 and row[position - 1] == 2:
                bit, pairs = token, 0
            assert bit is None or (stored[position], since[position]) == (bit, pairs)


@pytest.mark.parametrize("ignore", [0.0, 0.1, 0.8, 1.0])
@pytest.mark.parametrize("length", [4, 6, 20])
def test_the_expected_accuracy_is_that_of_simulated_sequences(ignore, length):
    task, n = FlipFlop(length=length, ignore=ignore), 40_000
    batch = task.sample(n, torch.Generator().manual_seed(1))
    expected = task.expected_accuracy()
    for name, prediction in task.baselines(batch).items():
        right = prediction[:, -1].exp().gather(1, batch.targets[:, -1:])
        assert float(right.mean()) == pytest.approx(expected[name], abs=3 * 0.5 / n**0.5)
    assert set(expected) == {LAST_WRITTEN, LAST_BIT, MAJORITY, CHANCE}


def test_the_exact_baseline_has_no_loss_at_scored_positions():
    task = FlipFlop()
    batch = task.sample(64, torch.Generator().manual_seed(0))
    loss = task.loss(task.baselines(batch)[LAST_WRITTEN], batch)
    assert float((loss * batch.weight).max()) < 1e-6
    assert float(batch.weight[:, -1].min()) == 1


@pytest.mark.parametrize(("field", "value"), [("length", 7), ("length", 2), ("ignore", 1.5)])
def test_bad_fields_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .* but got {value}"):
        FlipFlop(**{field: value})
