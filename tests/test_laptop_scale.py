"""The affine study at the scale that decides its claims: minutes, so `make test-slow` and not `make test`."""

import time

import pytest
import torch

from mesascope import api
from mesascope.models.load import load_checkpoint

MOST_ERROR = 0.05
MOST_MINUTES = 6


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_seed_learns_the_rule_in_context_and_in_time(tmp_path):
    began = time.monotonic()
    run = api.run("affine", out=tmp_path / "affine", device="cpu")
    assert time.monotonic() - began < 60 * MOST_MINUTES
    generator = torch.Generator().manual_seed(99)  # sequences of our own: nothing of the task's code is used
    a = (torch.rand(4096, 1, generator=generator) * 2 - 1) * 0.8
    b, x = (torch.randn(4096, 1, generator=generator) for _ in range(2))
    terms = [x]
    for _ in range(20):
        terms.append(a * terms[-1] + b)
    known, target = torch.stack(terms[:-1], 1), torch.stack(terms[1:], 1)
    copied = (known - target).square()[:, 4:13].sum()
    for seed in range(3):
        with torch.no_grad():
            wrong = (
                (load_checkpoint(run.verified_checkpoint(seed, 6000))(known).logits - target).square()[:, 4:13].sum()
            )
        assert float(wrong / copied) < MOST_ERROR, seed
