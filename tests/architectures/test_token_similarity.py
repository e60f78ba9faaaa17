"""Similarity of query and key in language models: against scipy, on known scores, and held against distance."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from mesascope.activations import UnsupportedModel, capture
from mesascope.analyses import run_analyses, token_similarity
from mesascope.analyses.heads.token_similarity import (
    MIN_CORRELATION,
    _null_std,
    correlate_over_keys,
    sample_queries,
    score_std_over_keys,
)
from mesascope.analyses.nulls import NULL_BAND_WIDTH
from mesascope.tasks.base import Batch
from mesascope.testing import check_analysis

from .families import make, tokens

LENGTH = 48
QUERIES = sample_queries(LENGTH)


def stream(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, LENGTH, 16, generator=torch.Generator().manual_seed(seed))


def cosines(x: torch.Tensor) -> torch.Tensor:
    unit = x / x.norm(dim=-1, keepdim=True)
    return unit[:, QUERIES] @ unit.mT


def test_the_correlation_is_spearman_s():
    x = stream()
    rows = torch.randn(4, 2, len(QUERIES), LENGTH, generator=torch.Generator().manual_seed(1))
    whole, _ = correlate_over_keys(rows, QUERIES, x)
    expected = [
        np.mean([spearmanr(rows[b, 1, n, :q], cosines(x)[b, n, :q]).statistic for n, q in enumerate(QUERIES.tolist())])
        for b in range(4)
    ]
    assert np.allclose(whole[:, 1], expected, atol=1e-9)


def test_scores_that_follow_the_cosine_are_found_in_both_directions():
    x = stream()
    rows = torch.stack([3 * cosines(x), -(cosines(x) ** 3)], dim=1)
    for found in correlate_over_keys(rows, QUERIES, x):
        assert torch.allclose(found, torch.tensor([1.0, -1.0], dtype=torch.float64).expand(4, 2))


def test_a_taste_for_the_near_is_no_similarity_though_the_near_are_alike():
    """The trap: in a stream that drifts, near keys are alike, and who looks at near keys seems to look for those."""
    drifting = stream().cumsum(1)
    rows = torch.arange(LENGTH).float().expand(4, 1, len(QUERIES), LENGTH)
    whole, partial = correlate_over_keys(rows, QUERIES, drifting)
    assert float(whole.mean()) > 0.6
    assert float(partial.abs().max()) < 1e-6


def test_the_band_is_that_of_permuted_keys():
    x, generator = stream(), torch.Generator().manual_seed(2)
    rows = torch.randn(1, 4, 1, len(QUERIES), LENGTH, generator=generator)
    orders = torch.rand(4, 200, 1, LENGTH, generator=generator).argsort(-1).expand(-1, -1, len(QUERIES), -1)
    permuted = rows[0].expand(-1, 200, -1, -1).gather(-1, orders)  # as many heads as permutations
    spread = torch.stack(correlate_over_keys(permuted, QUERIES, x)).mean(1).std(1)
    assert torch.allclose(spread, _null_std(rows, QUERIES)[0].expand(2), rtol=0.15)
    assert NULL_BAND_WIDTH * float(_null_std(rows, QUERIES)) < MIN_CORRELATION


def test_masked_keys_are_left_out():
    x = stream()
    rows = cosines(x)[:, None].clone()
    window = torch.stack([(torch.arange(LENGTH) < q - 6) | (torch.arange(LENGTH) > q) for q in QUERIES])
    masked = rows.masked_fill(window, -torch.inf)
    whole, _ = correlate_over_keys(masked, QUERIES, x)
    assert torch.allclose(whole, torch.ones_like(whole))
    assert score_std_over_keys(masked, QUERIES).isfinite().all()
    with pytest.raises(ValueError, match="a query must see 4 keys before it or more, but query 8 sees 0"):
        correlate_over_keys(torch.full_like(rows, -torch.inf), QUERIES, x)


def test_the_measure_is_its_core_applied_to_what_attention_reads():
    model, x = make("llama"), torch.cat([tokens(), tokens().flip(1)], dim=1)
    batch = Batch(inputs=x, targets=x, weight=torch.ones(x.shape))
    found = check_analysis(token_similarity, model, batch)
    recorded = capture(model, x, ["attn_scores", "resid_pre"])
    queries = sample_queries(x.shape[1])
    normed = recorded.readout.apply_attention_norm(1, recorded["resid_pre"][1])
    whole, partial = correlate_over_keys(recorded["attn_scores"][1][:, :, queries], queries, normed)
    assert np.allclose(found["over_keys"][1], whole.mean(0), atol=1e-6)
    assert np.allclose(found["partial"][1], partial.mean(0), atol=1e-6)


def test_models_without_plain_scores_are_refused_by_name():
    with pytest.raises(UnsupportedModel, match="attn_scores must exist in every requested layer, but Gemma2"):
        run_analyses(make("gemma2"), tokens(), [token_similarity])
