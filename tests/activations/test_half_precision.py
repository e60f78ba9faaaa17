"""Captures in bfloat16 and float16: outputs as without hooks, identities within 8 roundings of the precision.

The same holds for float32 if its matrix products round their inputs: to bfloat16 on a processor, to TF32 on a GPU.
"""

from collections.abc import Iterator

import pytest
import torch

import small
from mesascope import UnsupportedModel, capture
from mesascope.activations.hooks import _attention_math
from mesascope.activations.tolerances import relative_difference, rounding_tolerance

SITES = ["resid_pre", "attn_out", "mlp_out", "resid_post", "value", "pattern", "z", "output"]
X = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(0))
HALF = {torch.bfloat16: 2**-7, torch.float16: 2**-10}  # eps
ROUNDED = {"cpu": ("medium", 2**-7), "cuda:0": ("high", 2**-10)}  # torch's precision of products, and their eps


@pytest.fixture
def product_eps(device: str) -> Iterator[float]:
    """The eps of products of float32 while they are rounded."""
    precision, eps = ROUNDED[device]
    torch.set_float32_matmul_precision(precision)
    yield eps
    torch.set_float32_matmul_precision("highest")


def test_products_of_float32_that_are_rounded_widen_the_tolerance(device, product_eps):
    model, tolerance = small.llama(initializer_range=0.3).to(device), 8 * product_eps
    acts = capture(model, X, SITES)
    with torch.no_grad():
        assert torch.equal(acts["output"], model(X.to(device)).logits)
    assert rounding_tolerance(acts["z"]) == tolerance
    total = acts["resid_pre"] + acts["attn_out"] + acts["mlp_out"]  # additions are not rounded
    assert relative_difference(total, acts["resid_post"]) <= 1e-6
    mixed = acts["pattern"] @ acts["value"].repeat_interleave(2, 2)
    assert relative_difference(mixed.transpose(2, 3), acts["z"]) <= tolerance
    assert relative_difference(acts.head_out().sum(2), acts["attn_out"]) <= tolerance
    torch.set_float32_matmul_precision("highest")
    exact = capture(model, X, SITES)  # checked anew, at the tolerance of exact products
    assert rounding_tolerance(exact["z"]) == 1e-4
    assert relative_difference(acts["resid_post"], exact["resid_post"]) <= tolerance


@pytest.mark.gpu
def test_products_of_float32_are_rounded_on_a_gpu(request):
    """Not every processor rounds them, so that there it may be exact products that the test above captures."""
    if not torch.cuda.is_available():
        pytest.skip("a test on a GPU needs a CUDA device, but torch finds none")
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)).cuda()
    request.addfinalizer(lambda: torch.set_float32_matmul_precision("highest"))
    exact = x.double() @ x.double()
    gaps = {}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        gaps[precision] = relative_difference(x @ x, exact)
    assert gaps["highest"] < 1e-5 < gaps["high"] <= 8 * 2**-10


@pytest.mark.parametrize("dtype", HALF)
def test_identities_hold_within_eight_roundings(dtype, device):
    model = small.llama().to(device, dtype)
    acts = capture(model, X, SITES)
    with torch.no_grad():
        assert torch.equal(acts["output"], model(X.to(device)).logits)
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
    exact = capture(small.llama().to(device, dtype).float(), X, SITES)
    assert relative_difference(acts["resid_post"], exact["resid_post"]) <= tolerance


@pytest.mark.parametrize("dtype", HALF)
def test_weights_that_are_wrong_by_a_tenth_are_refused(dtype, monkeypatch):
    mix_values = _attention_math.mix_values
    monkeypatch.setattr(_attention_math, "mix_values", lambda pattern, value: 1.1 * mix_values(pattern, value))
    with pytest.raises(UnsupportedModel, match="weights give a z that differs"):
        capture(small.llama().to(dtype), X, ["pattern"])
