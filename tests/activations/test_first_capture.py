"""The first capture of a model: its checks share a pass with the recording, and refuse what they refused before."""

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

import small
from mesascope import UnsupportedModel, capture

LENGTH, LAYERS = 40, 6


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(1, 20, shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    return small.llama(num_hidden_layers=LAYERS)


class AddsWhenWatched(nn.Module):
    """A decoy: an MLP that adds 1 in long texts while its attention function is wrapped."""

    def __init__(self, base: nn.Module, config: object) -> None:
        super().__init__()
        self.base, self.config = base, config

    def forward(self, x):
        is_watched = x.shape[1] > 20 and self.config._attn_implementation.startswith("mesascope")
        return self.base(x) + (1 if is_watched else 0)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_one_block_that_looks_at_its_attention_function_in_long_texts_is_refused(model, layer):
    block = model.model.layers[layer]
    block.mlp = AddsWhenWatched(block.mlp, model.config)
    capture(model, tokens(1, 16), ["pattern"])
    for sites in (["resid_pre"], ["pattern"], ["output"]):
        with pytest.raises(UnsupportedModel, match="must not change the output"):
            capture(model, tokens(1, LENGTH), sites)


def test_blocks_that_all_look_at_their_attention_function_are_refused(model):
    for block in model.model.layers:
        block.mlp = AddsWhenWatched(block.mlp, model.config)
    with pytest.raises(UnsupportedModel, match="must not change the output"):
        capture(model, tokens(1, LENGTH), ["pattern"])


def test_a_model_that_sets_a_flag_for_its_blocks_is_refused(model):
    def add(module, args, output):
        return output + float(getattr(model, "is_long", False))

    def set_flag(module, args, kwargs):
        model.is_long = kwargs["input_ids"].shape[1] > 20 and model.config._attn_implementation == "sdpa"

    model.register_forward_pre_hook(set_flag, with_kwargs=True)
    for block in model.model.layers:
        block.mlp.register_forward_hook(add)
    with pytest.raises(UnsupportedModel, match="must not change the output"):
        capture(model, tokens(1, LENGTH), ["resid_pre"])


class BranchesLate(LlamaForCausalLM):
    """A decoy: its logits depend on the name of the attention implementation in long texts."""

    def forward(self, input_ids=None, **given):
        output = super().forward(input_ids, **given)
        if input_ids.shape[1] > 20 and self.config._attn_implementation in ("eager", "sdpa"):
            output.logits = output.logits * 2
        return output


@pytest.mark.parametrize("sites", [["resid_pre"], ["pattern"], ["output"]])
def test_a_model_that_branches_late_is_refused_for_one_sequence(model, sites):
    late = BranchesLate(model.config).eval()
    with pytest.raises(UnsupportedModel, match="must not change the output"):
        capture(late, tokens(1, LENGTH), sites)


def test_a_recorded_output_is_compared_at_all_positions(model):
    """A decoy whose other positions are wrong is refused as soon as they are recorded."""

    def shift_first(module, args, output):
        if output.logits.shape[1] == LENGTH and model.config._attn_implementation != "sdpa":
            output.logits = output.logits + torch.eye(LENGTH)[0, None, :, None]

    model.register_forward_hook(shift_first)
    capture(model, tokens(1, LENGTH), ["resid_pre"])
    with pytest.raises(UnsupportedModel, match="must not change the output"):
        capture(model, tokens(1, LENGTH), ["output"])


@pytest.mark.parametrize("shape", [(1, LENGTH), (3, LENGTH)])
def test_checks_change_no_bit(model, shape):
    x = tokens(*shape)
    for batch_size in (None, 1):
        first = capture(model, x, ["resid_pre", "pattern", "mlp_out", "output"], batch_size=batch_size)
        again = capture(model, x, ["resid_pre", "pattern", "mlp_out", "output"], batch_size=batch_size)
        assert all(torch.equal(first[name], again[name]) for name in first)
    with torch.no_grad():
        assert torch.equal(first["output"][:1], model(x[:1]).logits)


def test_a_model_that_writes_to_the_stream_is_compared_in_full(model):
    def write(module, args):
        args[0].mul_(2.0)  # before the final norm, to the stream that the last block returned

    model.model.norm.register_forward_pre_hook(write)
    first = capture(model, tokens(1, LENGTH), ["resid_pre", "output"])
    with torch.no_grad():
        assert torch.equal(first["output"], model(tokens(1, LENGTH)).logits)
