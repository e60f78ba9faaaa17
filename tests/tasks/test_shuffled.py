"""Targets that belong to other places: as frequent as before, and nothing can be told of them."""

from dataclasses import replace

import torch

from mesascope.studies.norm_growth.task import Shuffled
from mesascope.tasks.affine import Affine
from mesascope.tasks.chains import Chains
from mesascope.tasks.text import Text
from mesascope.testing import check_task

CHAINS = Shuffled(task=Chains(symbols=4, length=12))


def drawn(task, count=300, seed=0):
    return task.sample(count, torch.Generator().manual_seed(seed))


def test_it_is_a_task():
    check_task(CHAINS)
    check_task(Shuffled(task=Affine(length=6)))


def test_inputs_stay_and_targets_are_the_same_ones_elsewhere():
    found, plain = drawn(CHAINS), drawn(CHAINS.task)
    assert torch.equal(found.inputs, plain.inputs)
    assert torch.equal(found.weight, plain.weight)
    assert not torch.equal(found.targets, plain.targets)
    assert torch.equal(found.targets.flatten().sort().values, plain.targets.flatten().sort().values)
    vectors = drawn(Shuffled(task=Affine(length=6))).targets
    assert torch.equal(vectors.flatten().sort().values, drawn(Affine(length=6)).targets.flatten().sort().values)


def test_nothing_can_be_told_of_them():
    """Not even which sequence they are of: the best constant is as good as knowing the input before."""
    found, plain = drawn(CHAINS, 3000), drawn(CHAINS.task, 3000)

    def told(batch):
        pairs = torch.zeros(4, 4).index_put(
            (batch.inputs.flatten(), batch.targets.flatten()), torch.ones(()), accumulate=True
        )
        share, alone = pairs / pairs.sum(), pairs.sum(0) / pairs.sum()
        return (share * (share / (share.sum(1, keepdim=True) * alone)).log().nan_to_num()).sum().item()

    assert told(found) < 1e-3
    own = (found.targets == plain.targets).float().mean()
    assert abs(own - 0.25) < 0.05


def test_the_rest_is_that_of_the_task(tmp_path):
    text = Text(length=8, vocabulary=260)
    task = Shuffled(task=text).prepared(tmp_path, print)
    assert task.digest == text.prepared(tmp_path, print).digest
    assert task.spell(65) == text.spell(65)
    assert task.validation() == replace(task, task=task.task.validation())
    batch = drawn(task.validation(), 2)
    assert torch.equal(batch.inputs, drawn(task.task.validation(), 2).inputs)
    assert set(task.oracles(batch)) == {"unigram", "bigram"}
