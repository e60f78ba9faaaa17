"""Markov chains in context: the symbols follow their chain, and every count is what it says."""

import pytest
import torch

from mesascope.tasks.chains import MarkovChains
from mesascope.tasks.counting import counting_algorithms
from mesascope.testing import check_task


def drawn(task: MarkovChains, n: int = 16, seed: int = 0):
    return task.sample(n, torch.Generator().manual_seed(seed))


def named(name: str):
    return next(each for each in counting_algorithms(3) if each.name == name)


@pytest.mark.parametrize(
    "task", [MarkovChains(), MarkovChains(num_symbols=2, length=9, concentration=5.0, tokens=(7, 3))], ids=repr
)
def test_every_kind_of_task_is_sound(task):
    check_task(task)


def test_each_symbol_comes_by_the_one_before_it():
    """In one long sequence the shares after each symbol are far from alike, and stay the same in its two halves."""
    task = MarkovChains(num_symbols=3, length=20_000, concentration=1.0)
    tokens = drawn(task, 1).inputs[0]
    tables = []
    for half in tokens.chunk(2):
        pairs = torch.zeros(3, 3)
        pairs.index_put_((half[:-1], half[1:]), torch.tensor(1.0), accumulate=True)
        tables.append(pairs / pairs.sum(1, keepdim=True).clamp_min(1))
    assert torch.allclose(*tables, atol=0.05)
    assert float(tables[0].std(0).max()) > 0.1


def by_hand(row: list[int], place: int, span: int, added: float) -> list[float]:
    counts = [added] * 3
    for at in range(place):
        if at >= span - 1 and row[at - span + 1 : at + 1] == row[place - span + 1 : place + 1]:
            counts[row[at + 1]] += 1
    return [count / sum(counts) for count in counts]


@pytest.mark.parametrize(("name", "span"), [("unigram", 0), ("bigram", 1), ("trigram", 2)])
def test_counts_are_those_counted_by_hand(name, span):
    task = MarkovChains(num_symbols=3, length=24)
    batch = drawn(task, 4)
    found = named(name).predict(task.extract_examples(batch.inputs), (1,), pseudocount=0.5)[0]
    for row, tokens in enumerate(batch.inputs.tolist()):
        for place in (5, 12, 23):
            wanted = by_hand(tokens, place, span, 0.5) if span else None
            if wanted is None:
                counts = [0.5 + tokens[1 : place + 1].count(symbol) for symbol in range(3)]
                wanted = [count / sum(counts) for count in counts]
            assert found[row, place].tolist() == pytest.approx(wanted)


def test_the_last_match_is_what_followed_last():
    task = MarkovChains(num_symbols=3, length=8)
    tokens = torch.tensor([[0, 1, 0, 2, 1, 1, 0, 0]])
    found = named("most recent match").predict(task.extract_examples(tokens), (1,), confidence=1.0)[0][0]
    assert found[6].tolist() == [0, 0, 1]  # the 0 before was followed by 2
    assert found[7].tolist() == [1, 0, 0]  # and the last one by 0
    assert found[1].tolist() == pytest.approx([1 / 3] * 3)


def test_answers_are_probabilities_of_the_symbols_alone():
    task = MarkovChains(num_symbols=2, length=4, tokens=(5, 2))
    logits = torch.randn(1, 4, 9)
    found = task.convert_predictions(logits)
    assert torch.allclose(found.sum(-1), torch.ones(1, 4, dtype=torch.float64))
    assert torch.allclose(found[..., 0] / found[..., 1], (logits[..., 5] - logits[..., 2]).double().exp(), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_symbols": 1}, r"num_symbols must be at least 2, but got 1"),
        ({"length": 2}, r"length must be at least 3"),
        ({"concentration": 0.0}, r"concentration must be above 0"),
        ({"tokens": (1, 1, 2, 3)}, r"tokens must be 4 distinct tokens"),
        ({"scored_from": 48}, r"scored_from must lie in 0\.\.47"),
    ],
)
def test_what_cannot_be_sampled_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MarkovChains(**fields)


def test_a_token_that_stands_for_nothing_is_refused():
    with pytest.raises(ValueError, match=r"tokens must be those of the symbols, \[0, 1, 2, 3\]"):
        MarkovChains().extract_examples(torch.tensor([[0, 1, 9]]))
