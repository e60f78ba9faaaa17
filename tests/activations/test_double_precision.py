"""Models in double precision whose norms and softmax run in single precision inside."""

import pytest
import torch
from torch import nn

import small
from mesascope import UnsupportedModel, capture
from mesascope.activations.readout._norm import identify_norm

X = torch.randint(0, 20, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_all_that_single_precision_has(implementation, device):
    model = small.llama(attn_implementation=implementation, initializer_range=0.2).to(device, torch.float64)
    acts = capture(
        model, X, ["attn_scores", "pattern", "z", "attn_out", "resid_pre", "mlp_out", "resid_post", "output"]
    )
    readout, final = acts.readout, acts["resid_post"][-1]
    assert acts["pattern"].dtype == torch.float64
    assert torch.allclose(acts.head_out().sum(2), acts["attn_out"])
    assert readout.final_norm.gain.shape == (16,)
    assert all(norm is not None for norm in readout.attention_norms)
    assert readout.value_projection.shape == (3, 2, 16, 4)
    parts = torch.stack([acts["resid_pre"][0], *acts["attn_out"], *acts["mlp_out"]])
    total = readout.attribute_logits(parts, final).sum(0) + readout.readout_bias
    assert torch.allclose(total, acts["output"], atol=1e-5)


def test_the_closer_norm_is_named():
    class Almost(nn.Module):
        def forward(self, x):
            return x / x.square().mean(-1, keepdim=True).add(1e-5).sqrt() * (1 + 1e-3 * x.sign())

    with pytest.raises(UnsupportedModel, match=r"the closer one differs by 1\.0e-03"):
        identify_norm(Almost().double(), torch.randn(8, 16, dtype=torch.float64), "the norm")
