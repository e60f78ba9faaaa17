"""Attention weights by hand, against torch's own kernel."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from mesascope.activations.hooks import _attention_math as attention_math


@pytest.fixture
def heads():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, n, 6, 4, generator=generator) for n in (4, 2, 2))


MASKS = {
    "causal": None,
    "padded keys": torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]),
    "truth values": torch.ones(6, 6).tril().bool()[None, None],
    "window": (torch.ones(6, 6).tril() - torch.ones(6, 6).tril(-3)).bool()[None, None],
    "added": torch.zeros(2, 1, 6, 6).masked_fill(~torch.ones(6, 6).tril().bool(), -torch.inf),
}


@pytest.mark.parametrize("mask", MASKS)
def test_weights_mix_to_what_torch_gives(heads, mask):
    query, key, value = heads
    added = attention_math.to_additive_mask(MASKS[mask], query, key, causal=True)
    pattern = attention_math.masked_softmax(attention_math.scaled_dot_products(query, key, 0.3), added)
    allowed = torch.ones(6, 6).tril().bool() if mask == "causal" else added > -1e30
    expected = scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=0.3, enable_gqa=True)
    seen = allowed.any(-1).expand(2, 4, 6).transpose(1, 2)
    assert_close(attention_math.mix_values(pattern, value)[seen], expected.transpose(1, 2)[seen])
    assert_close(pattern.sum(-1), torch.ones(2, 4, 6))


@pytest.mark.parametrize("mask", MASKS)
def test_finished_scores_are_minus_infinity_where_masked_and_give_the_pattern(heads, mask):
    query, key, _ = heads
    added = attention_math.to_additive_mask(MASKS[mask], query, key, causal=True)
    raw = attention_math.scaled_dot_products(query, key, 0.3)
    score = attention_math.mask_scores(raw, added)
    assert torch.equal(score.isneginf(), (added < -1e30).expand_as(score))
    assert_close(attention_math.scores_to_pattern(score), attention_math.masked_softmax(raw, added))


def test_no_mask_and_no_causality_hides_nothing(heads):
    query, key, _ = heads
    assert (attention_math.to_additive_mask(None, query, key, causal=False) == 0).all()
