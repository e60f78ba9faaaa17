"""Captures in bfloat16 and float16: outputs as without hooks, identities within 8 roundings of the precision."""

import pytest
import torch

import small
from mesascope import UnsupportedModel, capture
from mesascope.activations.hooks import _attention_math
from mesascope.activations.tolerances import relative_difference, rounding_tolerance

SITES = ["resid_pre", "attn_out", "mlp_out", "resid_post", "value", "pattern", "z", "output"]
X = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(0))
HALF = {torch.bfloat16: 2**-7, torch.float16: 2**-10}  # eps


@pytest.mark.parametrize("dtype", HALF)
def test_identities_hold_within_eight_roundings(dtype):
    model = small.llama().to(dtype)
    acts = capture(model, X, SITES)
    with torch.no_grad():
        assert torch.equal(acts["output"], model(X).logits)
    assert all(acts[site].dtype == dtype for site in SITES)
    tolerance = 8 * HALF[dtype]
    assert rounding_tolerance(acts["z"]) == tolerance
    value = acts["value"].repeat_interleave(2, 2)  # two heads to a key-value head
    mixed = acts["pattern"].float() @ value.float()
    assert relative_difference(mixed.transpose(2, 3), acts["z"]) <= tolerance
    total = acts["resid_pre"].float() + acts["attn_out"].float() + acts["mlp_out"].float()
    assert relative_difference(total, acts["resid_post"]) <= tolerance
    written = acts.head_out().float().sum(2) + acts.readout.output_bias[:, None, None].float()
    assert relative_difference(written, acts["attn_out"]) <= tolerance
    logits = acts.readout.compute_output(acts["resid_post"][-1])
    assert torch.equal(logits, acts["output"])
    exact = capture(small.llama().to(dtype).float(), X, SITES)
    assert relative_difference(acts["resid_post"], exact["resid_post"]) <= tolerance


@pytest.mark.parametrize("dtype", HALF)
def test_weights_that_are_wrong_by_a_tenth_are_refused(dtype, monkeypatch):
    mix_values = _attention_math.mix_values
    monkeypatch.setattr(_attention_math, "mix_values", lambda pattern, value: 1.1 * mix_values(pattern, value))
    with pytest.raises(UnsupportedModel, match="weights give a z that differs"):
        capture(small.llama().to(dtype), X, ["pattern"])
