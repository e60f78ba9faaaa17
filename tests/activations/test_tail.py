"""The final norm as numbers, found by probing a module that tells nothing of itself."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from mesascope.activations import UnsupportedModel
from mesascope.activations.readout._output_head import OutputHead, find_final_norm

WIDTH = 16


class Unknown(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def stirred(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def tail_of(first: nn.Module, last: nn.Module | None = None, scale: float = 1.0) -> OutputHead:
    last = last or stirred(nn.Linear(WIDTH, 5))
    return OutputHead(modules=(first, last), scales=(scale, 1.0, 2.0), softcap=None)


@pytest.mark.parametrize(
    ("first", "centred"),
    [(stirred(nn.LayerNorm(WIDTH)), True), (stirred(nn.RMSNorm(WIDTH, eps=1e-5)), False), (nn.LayerNorm(WIDTH), True)],
)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_norms_are_told_apart_and_freeze_to_themselves(first, centred, scale):
    tail, resid = tail_of(first, scale=scale), 0.1 * torch.randn(2, 8, WIDTH)
    norm = find_final_norm(tail, resid)
    assert norm.centred == centred
    x = resid * scale
    with torch.no_grad():
        out = first(x)
    assert_close(norm.linear_part(x) / norm.scale(x, out) + norm.bias, out, rtol=1e-4, atol=1e-5)
    if first.weight is not None:
        assert_close(norm.gain, first.weight.detach(), rtol=1e-4, atol=1e-5)


def test_a_linear_tail_has_no_norm():
    assert find_final_norm(tail_of(nn.Identity()), torch.randn(2, 8, WIDTH)) is None


def test_what_is_no_norm_is_refused():
    resid = torch.randn(2, 8, WIDTH)
    with pytest.raises(UnsupportedModel, match=r"must be an RMSNorm or a LayerNorm, but Unknown is neither"):
        find_final_norm(tail_of(Unknown(lambda x: x / x.abs().sum(-1, keepdim=True).clamp(min=1) + x.tanh())), resid)
    with pytest.raises(UnsupportedModel, match="must be a linear function of the output of LayerNorm, but is not"):
        find_final_norm(tail_of(nn.LayerNorm(WIDTH), Unknown(torch.tanh)), resid)
    with pytest.raises(UnsupportedModel, match="the shape of its input, but Unknown does not"):
        find_final_norm(tail_of(Unknown(lambda x: x.tanh()[..., :4]), nn.Linear(4, 5)), resid)
