"""Scores on repeated tokens: known patterns, known nulls, and what is refused."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mesascope.activations import capture
from mesascope.analyses import repeated_token_heads, run_analyses, sample_repeated_tokens
from mesascope.analyses.heads.role_scores import (
    NUM_DRAWS,
    ROLES,
    sample_random_overlap,
    sample_role_nulls,
    score_roles,
)
from mesascope.tasks.base import Batch
from mesascope.testing import check_analysis


def language_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    )
    return LlamaForCausalLM(config).eval()


def tokens(count: int = 3, **options) -> torch.Tensor:
    return sample_repeated_tokens(torch.arange(3, 60), 10, count, torch.Generator().manual_seed(1), **options)


def one_key(length: int, key) -> torch.Tensor:
    pattern = torch.zeros(length, length)
    for query in range(length):
        pattern[query, max(key(query), 0)] = 1.0
    return pattern


@pytest.mark.parametrize("bos", [0, 1])
def test_scores_of_known_patterns(bos):
    half = 8
    length = 2 * half + bos
    keys = {
        "previous token": lambda query: query - 1,
        "first token": lambda query: 0,
        "self": lambda query: query,
        "induction": lambda query: query - half + 1,
        "duplicate token": lambda query: query - half,
    }
    uniform = torch.ones(length, length).tril()
    patterns = [one_key(length, key) for key in keys.values()] + [uniform / uniform.sum(-1, keepdim=True)]
    scores = score_roles(torch.stack(patterns)[None])[0]
    assert scores.diagonal().tolist() == pytest.approx([1.0] * len(ROLES))
    assert scores[0, [1, 2, 3, 4]].tolist() == [0, 0, 0, 0]
    assert scores[3, [0, 2, 4]].tolist() == [0, 0, 0]


def test_induction_looks_at_what_followed_the_token_before():
    x = tokens(1, bos=1)
    half = (x.shape[1] - 1) // 2
    for query in range(1 + half, x.shape[1]):
        before = (x[0, :query] == x[0, query]).nonzero().flatten().tolist()
        assert before == [query - half]
        if query + 1 < x.shape[1]:
            assert x[0, query - half + 1] == x[0, query + 1]


def test_the_null_of_a_mass_is_that_of_uniform_attention():
    generator = torch.Generator().manual_seed(3)
    pattern = (3 * torch.randn(200, 2, 13, 13, generator=generator)).masked_fill(
        torch.ones(13, 13).triu(1) > 0, -torch.inf
    )
    nulls = sample_role_nulls(pattern.softmax(-1)).double()
    assert nulls.shape == (200, 2, 2, NUM_DRAWS)
    expected = [np.mean([1 / (query + 1) for query in queries]) for queries in (range(2, 13), range(7, 13))]
    assert np.allclose(nulls.mean((0, 1, 3)), expected, rtol=0.02)


def test_the_null_of_the_overlap_is_that_of_random_rows():
    expected = np.mean([1 - (1 - 1 / n) ** n for n in range(3, 121)])
    assert float(sample_random_overlap(torch.arange(1, 121)).mean()) == pytest.approx(expected, rel=0.01)


def test_losses_are_those_of_the_same_tokens_twice():
    model, x = language_model(), tokens(bos=1)
    found = repeated_token_heads(capture(model, x, ["output"], reduce=repeated_token_heads.reductions))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(x[:, :-1]).logits.mT, x[:, 1:], reduction="none")
    assert x[0, 2:11].equal(x[0, 12:])
    assert float(found["loss_first"]) == pytest.approx(float(loss[:3, 1:10].mean()), rel=1e-5)
    assert float(found["loss_again"]) == pytest.approx(float(loss[:3, 11:].mean()), rel=1e-5)
    assert float(found["loss_again_null"]) == pytest.approx(float(loss[3:, 11:].mean()), rel=1e-5)


def test_scores_are_the_same_in_micro_batches():
    model, x = language_model(), tokens()
    whole, parts = (
        run_analyses(model, x, [repeated_token_heads], batch_size=size)["repeated_token_heads"] for size in (None, 1)
    )
    assert np.allclose(whole["score"], parts["score"], atol=1e-6)
    assert np.allclose(whole["score_null_no_repetition"], parts["score_null_no_repetition"], atol=1e-6)


def test_roles_passes_the_conformance_suite():
    x = tokens()
    batch = Batch(inputs=x, targets=x, weight=torch.ones(x.shape))
    found = check_analysis(repeated_token_heads, language_model(), batch)
    assert found["score"].dims == ("layer", "head", "stat")
    assert found["role"].dims == ("layer", "head")
    assert found["score_null"].attrs["control"] == "keys shuffled"


def test_repeated_tokens_are_random_and_differ():
    x = tokens(4, bos=2, num_controls=1)
    assert x.shape == (5, 21)
    assert (x[:, 0] == 2).all()
    assert (x[:4, 1:11] == x[:4, 11:]).all()
    assert [len(row.unique()) for row in x[:, 1:]] == [10, 10, 10, 10, 20]
    assert not x[0].equal(x[1])
    assert x.equal(tokens(4, bos=2, num_controls=1))


def test_what_does_not_repeat_as_it_must_is_refused():
    with pytest.raises(ValueError, match="there must be 80 different tokens to draw from, but got 60"):
        sample_repeated_tokens(torch.arange(60), 40, 1, torch.Generator())
    with pytest.raises(ValueError, match="length must be 4 or more and count 1 or more, but got 3 and 1"):
        sample_repeated_tokens(torch.arange(60), 3, 1, torch.Generator())
    model = language_model()
    for wrong in (tokens(num_controls=0), tokens()[3:], torch.full((2, 20), 5)):
        with pytest.raises(ValueError, match="repeated once, and sequences without repetition, but got"):
            run_analyses(model, wrong, [repeated_token_heads])
