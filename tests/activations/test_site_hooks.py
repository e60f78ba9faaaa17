"""Hook functions of sites: ``None`` leaves everything as it is, and a tensor takes the place of the value."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from torch import nn

import small
from mesascope.activations import FORWARD_SITES, attach_hooks
from mesascope.activations.forward import eval_no_grad
from mesascope.activations.structure._read_structure import read_structure

from .ours import TOKENS, decoder, inputs

HOOKED = [name for name in FORWARD_SITES if name not in ("final_norm", "output")]
HEADS = ["query", "key", "value", "attn_scores", "pattern", "z"]
REPLACED = ["resid_pre", "attn_out", "mlp_hidden", "mlp_out", "resid_post", *HEADS]
MODELS = {"decoder": partial(decoder, **TOKENS, intermediate_size=24), "llama": small.llama}


@pytest.mark.parametrize("name", MODELS)
def test_a_hook_that_returns_none_leaves_every_output_object_of_the_model(name):
    model, returned, called = MODELS[name](), [[], []], set()

    def store(into: list, module: nn.Module, args: tuple, output: object) -> None:
        into.append(output)

    def look(site: str, layer: int, value: torch.Tensor) -> None:
        called.add(site)

    x = torch.randint(3, 20, (2, 9), generator=torch.Generator().manual_seed(1))
    with eval_no_grad(model), ExitStack() as handles:
        layers = read_structure(model, x).layers
        expected = model(x).logits
        layers_by_site = {site: [n for n, each in enumerate(layers) if site not in each.missing] for site in HOOKED}
        for module in model.modules():
            handles.callback(module.register_forward_hook(partial(store, returned[0])).remove)
        with attach_hooks(model, layers, layers_by_site, look):
            for module in model.modules():
                handles.callback(module.register_forward_hook(partial(store, returned[1])).remove)
            assert torch.equal(model(x).logits, expected)
    assert called == set(HOOKED)
    assert len(returned[0]) == len(returned[1])
    assert all(before is after for before, after in zip(*returned, strict=True))


@pytest.mark.parametrize("site", REPLACED)
def test_what_a_hook_returns_replaces_the_value(site):
    model = decoder(**TOKENS, intermediate_size=24)
    x = inputs(model)
    with eval_no_grad(model):
        layers = read_structure(model, x).layers
        expected = model(x).logits
        with attach_hooks(model, layers, {site: [1]}, lambda site, layer, value: torch.zeros_like(value)):
            assert not torch.equal(model(x).logits, expected)
        assert torch.equal(model(x).logits, expected)
