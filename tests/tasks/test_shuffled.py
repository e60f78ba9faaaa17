"""Shuffled targets: the same marginal distribution, independent of the inputs."""

from dataclasses import replace

import torch

from mesascope.studies.norm_growth.task import ShuffledTargets
from mesascope.tasks.affine import Affine
from mesascope.tasks.chains import MarkovChains
from mesascope.tasks.text import TextTask
from mesascope.testing import check_task

CHAINS = ShuffledTargets(task=MarkovChains(num_symbols=4, length=12))


def sample_batch(task, count=300, seed=0):
    return task.sample(count, torch.Generator().manual_seed(seed))


def estimate_mutual_information(batch):
    """Return the mutual information of input and target tokens in nats."""
    counts = torch.zeros(4, 4).index_put(
        (batch.inputs.flatten(), batch.targets.flatten()), torch.ones(()), accumulate=True
    )
    joint, marginal = counts / counts.sum(), counts.sum(0) / counts.sum()
    return (joint * (joint / (joint.sum(1, keepdim=True) * marginal)).log().nan_to_num()).sum().item()


def test_shuffled_targets_pass_the_task_checks():
    check_task(CHAINS)
    check_task(ShuffledTargets(task=Affine(length=6)))


def test_inputs_are_unchanged_and_targets_are_a_permutation():
    shuffled, plain = sample_batch(CHAINS), sample_batch(CHAINS.task)
    assert torch.equal(shuffled.inputs, plain.inputs)
    assert torch.equal(shuffled.weight, plain.weight)
    assert not torch.equal(shuffled.targets, plain.targets)
    assert torch.equal(shuffled.targets.flatten().sort().values, plain.targets.flatten().sort().values)
    vectors = sample_batch(ShuffledTargets(task=Affine(length=6))).targets
    assert torch.equal(vectors.flatten().sort().values, sample_batch(Affine(length=6)).targets.flatten().sort().values)


def test_inputs_and_sequences_carry_no_information_on_shuffled_targets():
    shuffled, plain = sample_batch(CHAINS, 3000), sample_batch(CHAINS.task, 3000)
    assert estimate_mutual_information(shuffled) < 1e-3
    unchanged = (shuffled.targets == plain.targets).float().mean()
    assert abs(unchanged - 0.25) < 0.05


def test_other_methods_are_those_of_the_task(tmp_path):
    text = TextTask(length=8, vocab_size=260)
    task = ShuffledTargets(task=text).prepare(tmp_path, print)
    assert task.token_digest == text.prepare(tmp_path, print).token_digest
    assert task.decode_token(65) == text.decode_token(65)
    assert task.validation_task() == replace(task, task=task.task.validation_task())
    batch = sample_batch(task.validation_task(), 2)
    assert torch.equal(batch.inputs, sample_batch(task.task.validation_task(), 2).inputs)
    assert set(task.baselines(batch)) == {"unigram", "bigram"}
