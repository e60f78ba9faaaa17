"""Sequences are what their generators dictate, and the oracles are exact."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from mesascope.tasks.base import training_loss
from mesascope.tasks.seeded import SeededSequences
from mesascope.testing import check_task

TASK = SeededSequences(num_symbols=7, num_generators=6, prefix_length=2, length=10)
STILL = replace(TASK, jump_probability=0.0)


def drawn(task: SeededSequences = TASK, n: int = 400, seed: int = 0):
    return task.sample(n, torch.Generator().manual_seed(seed))


def test_conforms():
    check_task(TASK)
    check_task(TASK.validation_task())


def test_a_permutation_is_one_cycle_through_all_tokens():
    rule = STILL.transition_probabilities[0]
    token, seen = 0, set()
    for _ in range(TASK.num_symbols):
        seen.add(token)
        token = int(rule[token].argmax())
    assert (token, len(seen)) == (0, TASK.num_symbols)
    assert rule.sum() == TASK.num_symbols


def test_congruential_rules_are_lines_and_no_two_are_alike():
    task = SeededSequences(
        num_symbols=6,
        num_generators=11,
        generator_kinds=("congruential",),
        prefix_length=1,
        length=4,
        jump_probability=0.0,
    )
    following = task.transition_probabilities.argmax(-1)
    for row in following.tolist():
        step = (row[1] - row[0]) % 6
        assert row == [(step * x + row[0]) % 6 for x in range(6)]
    assert len({tuple(row) for row in following.tolist()}) == 11
    assert list(range(6)) not in following.tolist()


def test_a_markov_generator_has_few_branches():
    rule = STILL.transition_probabilities[2]
    assert (rule > 0).sum(-1).tolist() == [3] * TASK.num_symbols
    assert torch.allclose(rule.sum(-1), torch.ones(TASK.num_symbols, dtype=torch.float64))


def test_sequences_follow_their_generator_from_the_last_of_the_first_tokens_on():
    batch = drawn(STILL)
    share = STILL.transition_probabilities[batch.latents["generator"], batch.inputs, batch.targets]
    assert (share[:, TASK.prefix_length - 1 :] > 0).all()
    assert (share[:, : TASK.prefix_length - 1] == 0).any(), "the first tokens must be free"
    markov = batch.latents["generator"][:, 0] % 3 == 2
    seen = share[markov, TASK.prefix_length :].mean()
    expected = STILL.transition_probabilities[2::3].square().sum(-1).mean()
    assert seen == pytest.approx(float(expected), abs=0.1), "branches come as often as they are likely"


def test_labels_name_generator_next_token_and_both():
    labels = drawn().categorical_latents
    both = labels["generator and next token"]
    assert torch.equal(both // TASK.num_symbols, labels["generator"])
    assert torch.equal(both % TASK.num_symbols, labels["next token"])
    assert torch.equal(labels["next token"], drawn().targets)


def test_no_validation_sequence_begins_as_a_training_one():
    def beginnings(task: SeededSequences) -> set[tuple[int, ...]]:
        batch = drawn(task, n=4000)
        rows = torch.cat([batch.latents["generator"][:, :1], batch.inputs[:, : task.prefix_length]], dim=1)
        return {tuple(row) for row in rows.tolist()}

    train, validation = beginnings(TASK), beginnings(TASK.validation_task())
    assert not train & validation
    everything = TASK.num_generators * TASK.num_symbols**TASK.prefix_length
    assert len(train) + len(validation) == everything
    assert len(validation) / everything == pytest.approx(TASK.held_out, abs=0.05)


def test_another_world_has_other_generators():
    other = SeededSequences(num_symbols=7, num_generators=6, prefix_length=2, length=10, dataset_seed=1)
    assert not torch.equal(other.transition_probabilities, TASK.transition_probabilities)
    assert torch.equal(TASK.validation_task().transition_probabilities, TASK.transition_probabilities)


def test_bayes_is_the_posterior_by_hand():
    batch = drawn(n=40)
    predicted = TASK.baselines(batch)["Bayes"].exp()
    for row, tokens in enumerate(batch.inputs.tolist()):
        likelihood = [1.0] * TASK.num_generators
        for t, (before, after) in enumerate(pairwise([*tokens, None])):
            if t < TASK.prefix_length - 1:
                assert predicted[row, t].tolist() == pytest.approx([1 / TASK.num_symbols] * TASK.num_symbols)
                continue
            mixed = sum(p * TASK.transition_probabilities[g, before] for g, p in enumerate(likelihood)) / sum(
                likelihood
            )
            assert predicted[row, t].tolist() == pytest.approx(mixed.tolist(), abs=1e-6)
            if after is not None:
                likelihood = [
                    p * float(TASK.transition_probabilities[g, before, after]) for g, p in enumerate(likelihood)
                ]


def test_bayes_expects_the_loss_that_it_has():
    """A posterior is right exactly if its surprise is what it expects: its own entropy, over both splits together."""
    batches = [drawn(task, n=n) for task, n in ((TASK, 6000), (TASK.validation_task(), 2000))]
    surprise, entropy = [], []
    for batch in batches:
        predicted = TASK.baselines(batch)["Bayes"].double()
        surprise.append(TASK.loss(predicted, batch)[:, TASK.prefix_length :])
        entropy.append(-(predicted.exp() * predicted).sum(-1)[:, TASK.prefix_length :])
    gap = (torch.cat(surprise) - torch.cat(entropy)).mean(1)
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(len(gap))


def test_bigram_and_unigram_are_what_counting_gives():
    batches = [drawn(task, n=n) for task, n in ((TASK, 30_000), (TASK.validation_task(), 10_000))]
    pairs = torch.zeros(TASK.num_symbols, TASK.num_symbols)
    for batch in batches:
        before, after = (
            batch.inputs[:, TASK.prefix_length :].flatten(),
            batch.targets[:, TASK.prefix_length :].flatten(),
        )
        pairs.index_put_((before, after), torch.ones(len(before)), accumulate=True)
    told = TASK.baselines(batches[0][:1])
    assert told["unigram"][0, 0].exp().tolist() == pytest.approx((pairs.sum(0) / pairs.sum()).tolist(), abs=0.005)
    bigram = pairs / pairs.sum(1, keepdim=True)
    at = batches[0].inputs[0]
    assert torch.allclose(told["bigram"][0].exp(), bigram[at], atol=0.01)


def test_who_knows_more_loses_less():
    batch = drawn(TASK.validation_task(), n=2000)
    loss = [float(training_loss(TASK, TASK.baselines(batch)[name], batch)) for name in ("known generator", "Bayes")]
    loss += [float(training_loss(TASK, TASK.baselines(batch)[name], batch)) for name in ("bigram", "unigram")]
    assert loss == sorted(loss)
    assert loss[2] > 1.5 * loss[1], "the token alone must not decide"


def test_jumps_come_as_often_as_they_should_and_break_every_repetition():
    def dictated(task: SeededSequences) -> set[tuple[int, ...]]:
        batch = drawn(task, n=1000)
        rows = torch.cat([batch.latents["generator"][:, :1], batch.inputs[:, task.prefix_length - 1 :]], dim=1)
        return {tuple(row) for row in rows.tolist() if row[0] % 3 < 2}

    long = SeededSequences(num_symbols=23, num_generators=3, length=40)
    assert len(dictated(long) & dictated(long.validation_task())) < 0.05 * len(dictated(long))
    still = replace(long, jump_probability=0.0)
    assert dictated(still.validation_task()) <= dictated(still), "without jumps all of validation is in training"
    batch = drawn(replace(TASK, jump_probability=0.3), n=4000)
    likely = TASK.transition_probabilities[batch.latents["generator"], batch.inputs].argmax(-1) == batch.targets
    sure = batch.latents["generator"] % 3 < 2
    share = likely[:, TASK.prefix_length :][sure[:, TASK.prefix_length :]].double().mean()
    assert float(share) == pytest.approx(0.7 + 0.3 / TASK.num_symbols, abs=0.01)


def test_a_split_without_beginnings_is_refused():
    task = SeededSequences(num_symbols=3, num_generators=1, prefix_length=1, length=4, held_out=1e-6)
    with pytest.raises(ValueError, match=r"each split must have prefixes, but none was drawn for validation"):
        drawn(task.validation_task(), n=2)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"jump_probability": 1.0}, r"jump_probability must lie in \[0, 1\), but got 1.0"),
        (
            {"generator_kinds": ("walk",)},
            r"generator_kinds must be a tuple of permutation, congruential, markov, but got \('walk',\)",
        ),
        ({"num_symbols": 2}, r"num_symbols must be at least 3, but got 2"),
        ({"num_generators": 0}, r"num_generators must be at least 1, but got 0"),
        ({"prefix_length": 0}, r"prefix_length must be at least 1, but got 0"),
        ({"length": 3}, r"length must be at least 4, so that a step can be seen, but got 3"),
        ({"branching": 24}, r"branching must lie in 1..23, the number of symbols, but got 24"),
        ({"held_out": 1.0}, r"held_out must lie between 0 and 1, but got 1.0"),
        ({"num_symbols": 3, "num_generators": 18}, r"3 symbols allow at most 5 congruential generators, but got 6"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        SeededSequences(**changes)
