"""Where what is kept lies, how patterns come there, and what heads write from there."""

from importlib import import_module

import pytest
import torch
from torch.testing import assert_close
from transformers import PreTrainedModel

import small
from mesascope.activations import NotRecorded, capture
from mesascope.activations import _memory as memory

attending = import_module("mesascope.activations.hooks._attention_patterns")  # a function has this name too
SITES = ("resid_pre", "pattern", "z", "output")


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return small.llama()


def tokens() -> torch.Tensor:
    return torch.randint(3, 20, (5, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_what_lies_in_large_pages_is_the_same(llama, monkeypatch, batch_size):
    small_pages = capture(llama, tokens(), SITES, batch_size=batch_size)
    monkeypatch.setattr(memory, "HUGE_PAGE_THRESHOLD", 1)
    large_pages = capture(llama, tokens(), SITES, batch_size=batch_size)
    for site in SITES:
        assert torch.equal(large_pages[site], small_pages[site])
    assert torch.equal(large_pages.head_out(), small_pages.head_out())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_patterns_of_a_few_sequences_at_a_time_are_the_same(monkeypatch, dtype, padding):
    model, x = small.llama().to(dtype), tokens()
    mask = None if padding == "none" else torch.ones_like(x)
    if mask is not None:
        mask[1, slice(None, 3) if padding == "left" else slice(-3, None)] = 0
    together = capture(model, x, ["pattern", "output"], attention_mask=mask)
    monkeypatch.setattr(attending, "MAX_CHUNK_SCORES", 2 * together["pattern"][0, 0].numel())
    apart = capture(model, x, ["pattern", "output"], attention_mask=mask)
    assert torch.equal(apart["output"], together["output"])
    assert_close(apart["pattern"], together["pattern"])
    assert apart["pattern"].dtype == dtype


def test_what_heads_write_sums_to_what_attention_writes(llama):
    recorded = capture(llama, tokens(), ["z", "attn_out"], layers=[1])
    writes, heads = recorded.head_out(), llama.config.num_attention_heads
    assert writes.shape == (1, 5, heads, 9, llama.config.hidden_size)
    summed = writes.sum(2) + recorded.readout.output_bias[:, None, None]
    assert_close(summed, recorded["attn_out"])


def test_what_heads_write_needs_what_they_give(llama):
    with pytest.raises(NotRecorded, match="'z' was not recorded; recorded are resid_pre"):
        capture(llama, tokens(), ["resid_pre"]).head_out()
