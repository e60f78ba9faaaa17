"""Sequences are what their generators dictate, and the oracles are exact."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from mesascope.tasks.base import training_loss
from mesascope.tasks.seeded import Seeded
from mesascope.testing import check_task

TASK = Seeded(symbols=7, generators=6, first=2, length=10)
STILL = replace(TASK, jump=0.0)


def drawn(task: Seeded = TASK, n: int = 400, seed: int = 0):
    return task.sample(n, torch.Generator().manual_seed(seed))


def test_conforms():
    check_task(TASK)
    check_task(TASK.validation())


def test_a_permutation_is_one_cycle_through_all_tokens():
    rule = STILL.rules[0]
    token, seen = 0, set()
    for _ in range(TASK.symbols):
        seen.add(token)
        token = int(rule[token].argmax())
    assert (token, len(seen)) == (0, TASK.symbols)
    assert rule.sum() == TASK.symbols


def test_congruential_rules_are_lines_and_no_two_are_alike():
    task = Seeded(symbols=6, generators=11, kinds=("congruential",), first=1, length=4, jump=0.0)
    following = task.rules.argmax(-1)
    for row in following.tolist():
        step = (row[1] - row[0]) % 6
        assert row == [(step * x + row[0]) % 6 for x in range(6)]
    assert len({tuple(row) for row in following.tolist()}) == 11
    assert list(range(6)) not in following.tolist()


def test_a_markov_generator_has_few_branches():
    rule = STILL.rules[2]
    assert (rule > 0).sum(-1).tolist() == [3] * TASK.symbols
    assert torch.allclose(rule.sum(-1), torch.ones(TASK.symbols, dtype=torch.float64))


def test_sequences_follow_their_generator_from_the_last_of_the_first_tokens_on():
    batch = drawn(STILL)
    share = STILL.rules[batch.latents["generator"], batch.inputs, batch.targets]
    assert (share[:, TASK.first - 1 :] > 0).all()
    assert (share[:, : TASK.first - 1] == 0).any(), "the first tokens must be free"
    markov = batch.latents["generator"][:, 0] % 3 == 2
    seen = share[markov, TASK.first :].mean()
    expected = STILL.rules[2::3].square().sum(-1).mean()
    assert seen == pytest.approx(float(expected), abs=0.1), "branches come as often as they are likely"


def test_labels_name_generator_next_token_and_both():
    labels = drawn().labels
    both = labels["generator and next token"]
    assert torch.equal(both // TASK.symbols, labels["generator"])
    assert torch.equal(both % TASK.symbols, labels["next token"])
    assert torch.equal(labels["next token"], drawn().targets)


def test_no_validation_sequence_begins_as_a_training_one():
    def beginnings(task: Seeded) -> set[tuple[int, ...]]:
        batch = drawn(task, n=4000)
        rows = torch.cat([batch.latents["generator"][:, :1], batch.inputs[:, : task.first]], dim=1)
        return {tuple(row) for row in rows.tolist()}

    train, validation = beginnings(TASK), beginnings(TASK.validation())
    assert not train & validation
    everything = TASK.generators * TASK.symbols**TASK.first
    assert len(train) + len(validation) == everything
    assert len(validation) / everything == pytest.approx(TASK.held_out, abs=0.05)


def test_another_world_has_other_generators():
    other = Seeded(symbols=7, generators=6, first=2, length=10, world=1)
    assert not torch.equal(other.rules, TASK.rules)
    assert torch.equal(TASK.validation().rules, TASK.rules)


def test_bayes_is_the_posterior_by_hand():
    batch = drawn(n=40)
    predicted = TASK.oracles(batch)["Bayes"].exp()
    for row, tokens in enumerate(batch.inputs.tolist()):
        likelihood = [1.0] * TASK.generators
        for t, (before, after) in enumerate(pairwise([*tokens, None])):
            if t < TASK.first - 1:
                assert predicted[row, t].tolist() == pytest.approx([1 / TASK.symbols] * TASK.symbols)
                continue
            mixed = sum(p * TASK.rules[g, before] for g, p in enumerate(likelihood)) / sum(likelihood)
            assert predicted[row, t].tolist() == pytest.approx(mixed.tolist(), abs=1e-6)
            if after is not None:
                likelihood = [p * float(TASK.rules[g, before, after]) for g, p in enumerate(likelihood)]


def test_bayes_expects_the_loss_that_it_has():
    """A posterior is right exactly if its surprise is what it expects: its own entropy, over both splits together."""
    batches = [drawn(task, n=n) for task, n in ((TASK, 6000), (TASK.validation(), 2000))]
    surprise, entropy = [], []
    for batch in batches:
        predicted = TASK.oracles(batch)["Bayes"].double()
        surprise.append(TASK.loss(predicted, batch)[:, TASK.first :])
        entropy.append(-(predicted.exp() * predicted).sum(-1)[:, TASK.first :])
    gap = (torch.cat(surprise) - torch.cat(entropy)).mean(1)
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / math.sqrt(len(gap))


def test_bigram_and_unigram_are_what_counting_gives():
    batches = [drawn(task, n=n) for task, n in ((TASK, 30_000), (TASK.validation(), 10_000))]
    pairs = torch.zeros(TASK.symbols, TASK.symbols)
    for batch in batches:
        before, after = batch.inputs[:, TASK.first :].flatten(), batch.targets[:, TASK.first :].flatten()
        pairs.index_put_((before, after), torch.ones(len(before)), accumulate=True)
    told = TASK.oracles(batches[0][:1])
    assert told["unigram"][0, 0].exp().tolist() == pytest.approx((pairs.sum(0) / pairs.sum()).tolist(), abs=0.005)
    bigram = pairs / pairs.sum(1, keepdim=True)
    at = batches[0].inputs[0]
    assert torch.allclose(told["bigram"][0].exp(), bigram[at], atol=0.01)


def test_who_knows_more_loses_less():
    batch = drawn(TASK.validation(), n=2000)
    loss = [float(training_loss(TASK, TASK.oracles(batch)[name], batch)) for name in ("generator known", "Bayes")]
    loss += [float(training_loss(TASK, TASK.oracles(batch)[name], batch)) for name in ("bigram", "unigram")]
    assert loss == sorted(loss)
    assert loss[2] > 1.5 * loss[1], "the token alone must not decide"


def test_jumps_come_as_often_as_they_should_and_break_every_repetition():
    def dictated(task: Seeded) -> set[tuple[int, ...]]:
        batch = drawn(task, n=1000)
        rows = torch.cat([batch.latents["generator"][:, :1], batch.inputs[:, task.first - 1 :]], dim=1)
        return {tuple(row) for row in rows.tolist() if row[0] % 3 < 2}

    long = Seeded(symbols=23, generators=3, length=40)
    assert len(dictated(long) & dictated(long.validation())) < 0.05 * len(dictated(long))
    still = replace(long, jump=0.0)
    assert dictated(still.validation()) <= dictated(still), "without jumps all of validation is in training"
    batch = drawn(replace(TASK, jump=0.3), n=4000)
    likely = TASK.rules[batch.latents["generator"], batch.inputs].argmax(-1) == batch.targets
    sure = batch.latents["generator"] % 3 < 2
    share = likely[:, TASK.first :][sure[:, TASK.first :]].double().mean()
    assert float(share) == pytest.approx(0.7 + 0.3 / TASK.symbols, abs=0.01)


def test_a_split_without_beginnings_is_refused():
    task = Seeded(symbols=3, generators=1, first=1, length=4, held_out=1e-6)
    with pytest.raises(ValueError, match=r"each split must have beginnings, but none was found for validation"):
        drawn(task.validation(), n=2)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"jump": 1.0}, r"jump must lie in \[0, 1\), but got 1.0"),
        ({"kinds": ("walk",)}, r"kinds must be of permutation, congruential, markov, but got \('walk',\)"),
        ({"symbols": 2}, r"symbols must be at least 3, but got 2"),
        ({"generators": 0}, r"generators must be at least 1, but got 0"),
        ({"first": 0}, r"first must be at least 1, but got 0"),
        ({"length": 3}, r"length must be at least 4, so that a step can be seen, but got 3"),
        ({"branching": 24}, r"branching must lie in 1..23, the number of symbols, but got 24"),
        ({"held_out": 1.0}, r"held_out must lie between 0 and 1, but got 1.0"),
        ({"symbols": 3, "generators": 18}, r"there are 5 congruential generators of 3 symbols, not 6"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, line):
    with pytest.raises(ValueError, match=line):
        Seeded(**changes)
