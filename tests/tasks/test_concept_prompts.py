"""Multi-concept prompts: their statistics have the closed forms of the sampler, and shifts change what they name."""

from dataclasses import replace
from math import erfc

import pytest
import torch

from mesascope.studies.multi_concept.task import (
    LABEL_RULES,
    LONGER,
    NEAREST,
    SHIFTS,
    SHORTER,
    SKEWED,
    SWITCHED,
    UNSEEN,
    ConceptPrompts,
)
from mesascope.testing import check_task

TASK = ConceptPrompts(demonstrations=8)
SIMPLE = replace(TASK, companion_probability=0.0, noise=0.0)  # words with a single concept and without noise


def sample(task, n=2_000, seed=0):
    return task.sample_prompts(n, torch.Generator().manual_seed(seed))


def find_concepts(task, drawn):
    """Return which concepts each word has, (prompt, pos, concept), read from words without noise."""
    return drawn.words @ task.shared_vectors.T / task.shared_vectors.square().sum(1) > 0.5


@pytest.mark.parametrize("task", [TASK, *TASK.distribution_shifts().values(), TASK.with_swapped_labels()], ids=repr)
def test_every_distribution_conforms(task):
    check_task(task)


@pytest.mark.parametrize("correlation", [0.5, 0.0, -1.0])
def test_words_have_the_stated_geometry(correlation):
    task = replace(SIMPLE, correlation=correlation)
    drawn = sample(task, 64)
    words = torch.cat([task.shared_vectors + task.sign_vectors, task.shared_vectors - task.sign_vectors])
    gram = words @ words.T
    expected = torch.eye(2, dtype=torch.float64) + correlation * torch.eye(2, dtype=torch.float64).flip(0)
    assert torch.allclose(gram, torch.kron(expected, torch.eye(task.concepts, dtype=torch.float64)))
    index = drawn.concept[:, None] + task.concepts * (drawn.signs < 0)
    assert torch.allclose(drawn.words, words[index])
    assert torch.allclose(drawn.labels, words[index[:, :-1]])


def test_the_mean_squared_norm_has_its_closed_form():
    """One for the concept of the prompt, one for each companion that is present, and the variance of the noise."""
    drawn = sample(TASK)
    expected = 1 + (TASK.group_size - 1) * TASK.companion_probability + TASK.dim * TASK.noise**2
    assert drawn.words.square().sum(-1).mean().item() == pytest.approx(expected, rel=0.02)
    label_norm = drawn.labels.square().sum(-1).mean().item()
    assert label_norm == pytest.approx(1 + TASK.dim * TASK.noise**2, rel=0.02)
    same_sign = (drawn.signs[:, :-1] == drawn.signs[:, -1:]).double().mean().item()
    assert same_sign == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("pairing", ["seen", "unseen"])
def test_companions_have_their_probability_and_come_from_one_group(pairing):
    task = replace(TASK, noise=0.0, pairing=pairing)
    drawn = sample(task)
    present = find_concepts(task, drawn)
    own = torch.nn.functional.one_hot(drawn.concept, task.concepts).bool()[:, None]
    assert (present & own).sum(-1).eq(1).all()
    same_group = (torch.arange(task.concepts) // task.group_size)[None] == (drawn.concept // task.group_size)[:, None]
    allowed = (present & ~own).sum(-1).double().mean().item()
    assert allowed == pytest.approx((task.group_size - 1) * task.companion_probability, rel=0.05)
    in_group = (present & ~own & same_group[:, None]).any().item()
    assert in_group == (pairing == "seen")
    assert task.companions.sum(1).eq(task.group_size - 1).all()


def test_no_pair_of_concepts_in_unseen_prompts_is_one_of_training():
    seen, unseen = TASK.companions, TASK.distribution_shifts()[UNSEEN].companions
    assert not (seen & unseen).any()
    assert torch.equal(seen, seen.T)


def test_shifts_change_what_they_name():
    shifts = TASK.distribution_shifts()
    assert list(shifts) == list(SHIFTS)
    assert (shifts[SHORTER].demonstrations, shifts[LONGER].demonstrations) == (4, 16)
    counts = torch.bincount(sample(shifts[SKEWED], 20_000).concept, minlength=TASK.concepts) / 20_000
    assert torch.allclose(counts.double(), shifts[SKEWED].concept_frequencies, atol=0.01)
    assert shifts[SKEWED].concept_frequencies[0].item() == pytest.approx(
        4 * shifts[SKEWED].concept_frequencies[1].item()
    )
    switched = replace(shifts[SWITCHED], companion_probability=0.0, noise=0.0)
    drawn = sample(switched, 50)
    projection = torch.einsum("pli,pi->pl", drawn.words, TASK.sign_vectors[(drawn.concept + 1) % TASK.concepts])
    assert torch.allclose(projection, drawn.signs * (1 - TASK.correlation) / 2)


@pytest.mark.parametrize("rule", LABEL_RULES)
def test_labels_follow_their_rule(rule):
    drawn = sample(replace(TASK, noise=0.0, label_rule=rule))
    projection = torch.einsum("pli,pi->pl", drawn.labels, TASK.sign_vectors[drawn.concept])
    assert torch.equal(projection.sign(), drawn.label_signs[:, :-1])
    agreement = drawn.signs * drawn.label_signs
    if rule in ("own", "swapped"):
        assert agreement.unique().tolist() == [1.0 if rule == "own" else -1.0]
    elif rule == "drawn":
        assert torch.equal(agreement, agreement[:, :1].expand_as(agreement))
        assert agreement[:, 0].mean().abs() < 0.1
    else:
        assert (agreement[:, -1] == 1).all()
        assert agreement[:, :-1].mean().abs() < 0.05


def test_baselines_have_the_errors_of_their_rules():
    """The sign of a query with noise; the nearest of two labels, which is right unless neither has the sign; chance."""
    task = replace(ConceptPrompts(), companion_probability=0.0, noise=0.5)
    assert error_of(task, "sign of the query") == pytest.approx(erfc(1 / 2**0.5) / 2, abs=0.015)
    assert error_of(replace(SIMPLE, demonstrations=2), NEAREST) == pytest.approx(1 / 4, abs=0.02)
    assert error_of(replace(SIMPLE, demonstrations=9), "mean label") == pytest.approx(0.5, abs=0.02)
    assert error_of(SIMPLE.with_swapped_labels(), "sign of the query") == 1


def error_of(task, name, n=4_000):
    batch = task.sample(n, torch.Generator().manual_seed(0))
    predicted = task.baselines(batch)[name][:, -1].argmax(-1)
    return (predicted != batch.targets[:, -1]).double().mean().item()


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        ({"group_size": 4}, "group_size must be 2 or more and a divisor of concepts"),
        ({"group_size": 6}, "less than it, but got 6 and 6"),
        ({"demonstrations": 1}, "demonstrations must be 2 or more"),
        ({"correlation": 1.0}, "correlation must be -1 or more and less than 1"),
        ({"companion_probability": 1.5}, r"companion_probability must lie in \[0, 1\]"),
        ({"noise": -0.1}, "noise must be 0 or more"),
        ({"pairing": "all"}, "pairing must be seen or unseen"),
        ({"label_rule": "other"}, "label_rule must be one of own, swapped, drawn, random"),
    ],
)
def test_invalid_fields_are_refused(invalid, message):
    with pytest.raises(ValueError, match=message):
        replace(TASK, **invalid)
