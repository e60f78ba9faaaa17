"""Linear maps: found in every family by what they do, and what they read taken while the model runs."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import PreTrainedModel

from mesascope.activations import UnsupportedModel
from mesascope.activations.capture import read_structure
from mesascope.activations.forward import eval_no_grad, run_model
from mesascope.activations.linear_inputs import (
    max_sampled_tokens,
    record_linear_inputs,
    sample_linear_inputs,
    sample_tokens,
)
from mesascope.activations.structure._linear_modules import LinearModules, find_linear_modules
from mesascope.models.transformer import Decoder

from .ours import decoder, inputs

MAPS = [f"attention.{name}_proj" for name in "qkvo"] + ["mlp.up_proj", "mlp.down_proj"]


def language_model() -> Decoder:
    return decoder(vocab_size=20, intermediate_size=24, norm="rms")


def maps_of(model: PreTrainedModel, x: torch.Tensor) -> LinearModules:
    with eval_no_grad(model):
        return find_linear_modules(model, read_structure(model, x))


def all_of(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(x.shape[:2], dtype=torch.bool)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("settings", [{}, {"share_layers": True}, {"attention": "linear", "norm": "layer"}])
def test_the_maps_of_our_decoder_are_found_in_the_order_of_their_calls(settings):
    model = decoder(vocab_size=20, intermediate_size=24, **settings)
    maps = maps_of(model, inputs(model))
    assert [(each.layer, each.name) for each in maps.modules] == [(layer, name) for layer in range(3) for name in MAPS]
    assert not maps.excluded
    query = maps.modules[0]
    assert torch.equal(query.weight, model.layers[0].attention.q_proj.weight)
    assert query.bias is not None
    assert torch.equal(query.bias, model.layers[0].attention.q_proj.bias)


def test_a_module_that_reads_some_tokens_or_is_called_twice_or_is_not_linear_is_left_out():
    class Some(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.expert, self.twice = inner, nn.Linear(16, 16), nn.Linear(16, 16)
            self.bent, self.unused = Bent(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            self.expert(x[:, :3])
            return self.inner(x) + self.twice(self.twice(x)) + self.bent(x)

    class Bent(nn.Linear):
        def forward(self, x):
            return super().forward(x).relu()

    model = language_model()
    model.layers[1].mlp = Some(model.layers[1].mlp)
    left_out = maps_of(model, inputs(model)).excluded
    assert {name for _, name in left_out} == {"mlp.expert", "mlp.twice", "mlp.bent", "mlp.unused"}
    assert left_out[1, "mlp.expert"] == "it read 3 vectors for 8 tokens"
    assert left_out[1, "mlp.twice"] == "it was called 2 times in one forward pass"
    assert left_out[1, "mlp.unused"] == "it was called 0 times in one forward pass"
    assert "is not its weight times its input" in left_out[1, "mlp.bent"]


def test_an_expert_that_read_all_of_the_probe_is_left_out_once_it_misses_a_token():
    class Routed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.expert = inner, nn.Linear(16, 16)

        def forward(self, x):
            self.expert(x[:, :8])
            return self.inner(x)

    model = language_model()
    model.layers[0].mlp = Routed(model.layers[0].mlp)
    sampled = sample_linear_inputs(model, inputs(model))
    assert sampled.excluded == {(0, "mlp.expert"): "its input has 32 vectors for 40 tokens"}
    names = [sample.linear.name for sample in sampled.samples if sample.linear.layer == 0]
    assert "mlp.expert" not in names
    assert "mlp.inner.up_proj" in names  # what it reads is what the expert read on the probe


def test_what_several_maps_read_is_kept_once():
    model = language_model()
    sampled = sample_linear_inputs(model, inputs(model), layers=[1])
    query, key, value, out, up, down = (each.inputs for each in sampled.samples)
    assert query is key is value
    assert len({id(each) for each in (query, out, up, down)}) == 4
    assert sampled.layers == (1,)


def test_maps_that_shared_their_input_on_the_probe_alone_are_kept_apart():
    model = language_model()
    x = inputs(model)
    maps = maps_of(model, x)
    wrong = tuple(
        replace(each, same_input_as="attention.q_proj") if each.name == "attention.o_proj" else each
        for each in maps.modules
    )
    with eval_no_grad(model), record_linear_inputs(replace(maps, modules=wrong), all_of(x)) as watched:
        for row in x.split(1):
            run_model(model, row)
    for mistaken, right in zip(watched.collect_samples().samples, sample_linear_inputs(model, x).samples, strict=True):
        assert_close(mistaken.inputs, right.inputs)


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_change_nothing(size):
    model = language_model()
    whole, parts = (sample_linear_inputs(model, inputs(model), max_tokens=13, batch_size=each) for each in (None, size))
    assert whole.num_tokens == 13
    for one, other in zip(whole.samples, parts.samples, strict=True):
        assert len(one.inputs) == 13
        assert_close(one.inputs, other.inputs)
        assert_close(one.output_sq_norms, other.output_sq_norms, rtol=1e-5, atol=1e-6)


def test_only_counted_tokens_are_looked_at():
    model = decoder(d_in=2, d_out=2)
    x = inputs(model)
    counted = torch.zeros(x.shape[:2], dtype=torch.bool)
    counted[1:3, 4:7] = True
    everything = sample_linear_inputs(model, x).samples[0].inputs.view(*x.shape[:2], -1)
    some = sample_linear_inputs(model, x, eligible=counted)
    assert some.num_tokens == 6
    assert_close(some.samples[0].inputs, everything[counted], rtol=0, atol=0)
    with pytest.raises(ValueError, match="at least one token must be eligible"):
        sample_linear_inputs(model, x, eligible=torch.zeros_like(counted))


def test_padding_is_not_looked_at():
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[1, :4] = 0
    model = language_model()
    assert sample_linear_inputs(model, inputs(model, 3, 11), attention_mask=mask).num_tokens == 29


def test_the_choice_of_tokens_is_even_and_repeatable():
    counted = torch.ones(50, 40, dtype=torch.bool)
    counted[:, 0] = False
    picked = [sample_tokens(counted, 500, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(picked[0], picked[1])
    assert not torch.equal(picked[0], picked[2])
    assert all(int(each.sum()) == 500 and not each[:, 0].any() for each in picked)
    assert int(picked[0][:, :20].sum()) == pytest.approx(500 * 19 / 39, abs=4 * (500 / 4) ** 0.5)


def test_what_is_kept_is_bounded_in_bytes():
    model = language_model()
    maps = maps_of(model, inputs(model))
    width = 3 * (3 * 16 + 24)  # of three layers: what attention, its projection and the MLP's two maps read
    assert max_sampled_tokens(maps, torch.float32, 10 * width * 4 + 3) == 10
    assert max_sampled_tokens(maps, torch.float64, 10 * width * 4) == 5


def test_every_hook_is_gone_afterwards_also_after_an_error():
    model = language_model()
    x = inputs(model)
    maps = maps_of(model, x)
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="on purpose"):
        _fail_while_watching(model, maps, x)
    assert hooks(model) == 0


def _fail_while_watching(model: Decoder, maps: LinearModules, x: torch.Tensor) -> None:
    with record_linear_inputs(maps, all_of(x)):
        assert hooks(model) == len(maps.modules)
        raise RuntimeError("on purpose")


def test_watching_changes_no_bit():
    model = language_model()
    x = inputs(model)
    maps = maps_of(model, x)
    with eval_no_grad(model):
        alone = run_model(model, x)
        with record_linear_inputs(maps, all_of(x)):
            assert torch.equal(alone, run_model(model, x))


def test_layers_without_any_map_are_refused():
    with (
        record_linear_inputs(
            LinearModules(modules=(), layers=(0,), excluded={}), torch.ones(1, 3, dtype=torch.bool)
        ) as watched,
        pytest.raises(UnsupportedModel, match="none does: no module has a matrix"),
    ):
        watched.collect_samples()
