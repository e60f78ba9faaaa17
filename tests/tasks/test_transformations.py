"""Sequences of syntactic transformations hold rules, a sentence and its output, and splits share no held-out pair."""

from dataclasses import replace

import pytest
import torch

from mesascope.tasks.base import Batch
from mesascope.tasks.syntax.edge_functions import NAMES, transform
from mesascope.tasks.syntax.levels import build_tree
from mesascope.tasks.syntax.transformations import CHANCE, EXACT, IDENTITY, SyntacticTransformations
from mesascope.testing import check_task

TASK = SyntacticTransformations()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def read_sequences(task: SyntacticTransformations, n: int = 200) -> list[tuple[dict[str, str], list[str], list[str]]]:
    """Return the rules, the words and the output of every sequence, read from the texts of the tokens."""
    return read_batch(task, task.sample(n, seeded()))


def read_batch(task: SyntacticTransformations, batch: Batch) -> list[tuple[dict[str, str], list[str], list[str]]]:
    sequences = []
    for inputs, targets, weight in zip(batch.inputs.tolist(), batch.targets.tolist(), batch.weight, strict=True):
        texts = list(map(task.decode_token, inputs))
        rules = dict(text.split(":") for text in texts[: task.max_rules] if text != ".")
        words = [text for text in texts[task.max_rules : task.source_length] if text != "."]
        output = [task.decode_token(targets[position]) for position in weight.nonzero()[:, 0].tolist()]
        assert texts[task.source_length] == "="
        assert texts[task.source_length + 1 : task.source_length + len(output)] == output[:-1]
        assert output[-1] == "#"
        sequences.append((rules, words, output[:-1]))
    return sequences


@pytest.mark.parametrize(
    "task",
    [
        TASK,
        TASK.validation_task(),
        SyntacticTransformations(num_levels=3, functions=NAMES, max_rules=6, max_output=40),
        SyntacticTransformations(functions=("rev",), held_out=0, max_rules=1, min_words=2, max_words=2, max_output=2),
    ],
)
def test_every_kind_of_task_is_sound(task):
    check_task(task)


def test_the_output_is_that_of_the_rules_and_differs_from_the_sentence():
    for rules, words, output in read_sequences(TASK):
        labels = [word.rstrip("0123456789") for word in words]
        tree = build_tree(TASK.labels, labels, words)
        assert transform(tree, rules) == output != words
        assert TASK.min_words <= len(words) <= TASK.max_words
        assert list(rules) == sorted(rules)
        assert set(rules) & set(labels)


def test_rules_are_subsets_of_labels_in_and_outside_the_sentence():
    """A position among the rules does not stand for a label, and some rules have nothing to do."""
    first, absent = set(), 0
    for rules, words, _ in read_sequences(TASK):
        first.add(next(iter(rules)))
        absent += bool(set(rules) - {word.rstrip("0123456789") for word in words})
    assert len(first) >= 3
    assert 20 < absent < 180


def test_held_out_pairs_occur_in_validation_only():
    pairs = TASK.held_out_pairs
    assert len(pairs) == len(TASK.functions) - 1
    train, validation = (
        [set(rules.items()) for rules, _, _ in read_sequences(task)] for task in (TASK, TASK.validation_task())
    )
    assert not pairs & set().union(*train)
    assert all(pairs & rules for rules in validation)
    assert pairs <= set().union(*validation)
    assert set().union(*train) == {(label, one) for label in TASK.labels.names for one in TASK.functions} - pairs
    assert int(TASK.validation_task().sample(100, seeded()).latents["held-out rules"].min()) == 1


def test_sentences_with_given_rules():
    """Of any pairs, in the order of the labels; a rule changes every output."""
    rules = {"br": "bracket-1", "al": "ignore-dep"}
    assert ("al", "ignore-dep") in TASK.held_out_pairs
    for task in (TASK, TASK.validation_task()):
        batch = task.sample_with_rules(rules, 50, seeded())
        for given, words, output in read_batch(task, batch):
            tree = build_tree(task.labels, [word.rstrip("0123456789") for word in words], words)
            assert list(given.items()) == [("al", "ignore-dep"), ("br", "bracket-1")]
            assert transform(tree, rules) == output != words
        assert set(batch.latents["held-out rules"].tolist()) == {0, 1}


def test_held_out_rules_never_occur_together_in_training():
    free = SyntacticTransformations(functions=("rev", "concat-rel"), held_out=1)
    task = replace(free, held_out_rules=("al:rev", "br:rev"))
    drawn, without = ([set(rules.items()) for rules, _, _ in read_sequences(one)] for one in (task, free))
    assert not any(task.composition.items() <= rules for rules in drawn)
    assert any(task.composition.items() <= rules for rules in without)
    assert all(any(pair in rules for rules in drawn) for pair in task.composition.items())
    given = read_batch(task, task.sample_with_rules(task.composition, 5, seeded()))
    assert all(rules == task.composition for rules, _, _ in given)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"cl": "rev"}, "a label must be one of al, ar, bl, br, but got 'cl'"),
        ({"al": "copy"}, "a function must be one of rev, .*, but got 'copy'"),
        ({}, "there must be from 1 to 4 rules, but got 0"),
    ],
)
def test_bad_rules_are_refused_by_name(rules, message):
    with pytest.raises(ValueError, match=message):
        TASK.sample_with_rules(rules, 1, seeded())


def test_latents_are_labels_and_heads_of_the_words():
    task = TASK
    batch, names = task.sample(100, seeded()), (*task.labels.names, "root")
    for row, (rules, words, _) in enumerate(read_sequences(task, 100)):
        labels = [word.rstrip("0123456789") for word in words]
        positions = range(task.max_rules, task.max_rules + len(words))
        assert [names[index] for index in batch.latents["label"][row, positions].tolist()] == labels
        heads = [head - task.max_rules if head >= 0 else -1 for head in batch.latents["head"][row, positions].tolist()]
        assert tuple(heads) == task.labels.parse(labels)
        assert [names[index] for index in batch.latents["rule label"][row, : len(rules)].tolist()] == list(rules)
        for name in ("label", "head"):
            assert (batch.latents[name][row] != -1).sum() == len(words) - (name == "head")


def test_baselines():
    batch = TASK.sample(100, seeded())
    losses = {name: TASK.loss(one, batch) * batch.weight for name, one in TASK.baselines(batch).items()}
    assert float(losses[EXACT].max()) < 1e-6
    assert float(losses[IDENTITY].sum(1).min()) > 1
    chance = losses[CHANCE][batch.weight > 0]
    assert torch.allclose(chance, torch.tensor(float(TASK.vocab_size)).log())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_words": 1}, "min_words must be from 2 to 7, but got 1"),
        ({"max_rules": 5}, "max_rules must be from 1 to 4, but got 5"),
        ({"held_out": 4}, "held_out must be from 0 to 3, but got 4"),
        ({"words_per_label": 0}, "words_per_label must be at least 1, but got 0"),
        ({"num_levels": 9}, "num_levels must be from 1 to 8, but got 9"),
        ({"functions": ("rev", "copy")}, "a function must be one of concat, .*, but got 'copy'"),
        ({"functions": ("rev", "rev")}, "functions must be different and at least one, but got"),
        ({"held_out_rules": ("al:copy", "ar:rev")}, "held_out_rules must be of labels and functions of the task, but"),
        (
            {"held_out_rules": ("al:rev", "al:concat-rel")},
            "held_out_rules must be from 2 to 4 rules of different labels",
        ),
        ({"held_out": 0, "split": "validation"}, "a validation split needs held-out pairs, but there are none"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        SyntacticTransformations(**fields)


def test_outputs_that_are_always_too_long_are_refused():
    task = SyntacticTransformations(functions=("bracket-1",), held_out=0, min_words=4, max_output=4)
    with pytest.raises(ValueError, match="at most 4 words in its output, but none of 10000 draws has"):
        task.sample(1, seeded())
