"""The public edge: what is recorded, what is refused, how padding, memory and reductions are handled."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, MiniMaxConfig, PreTrainedConfig, PreTrainedModel

import small
from mesascope.activations import (
    SITES,
    Edit,
    NotEnoughMemory,
    NotRecorded,
    Reduction,
    UnsupportedModel,
    _memory,
    capture,
    estimate_capture_bytes,
)
from mesascope.activations.hooks import _attention_math as attention_math
from mesascope.activations.structure import _read_structure
from mesascope.tasks.affine import Affine

from .ours import TOKENS, VECTORS, decoder, inputs


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return small.llama()


@pytest.fixture(scope="module")
def placed(llama: PreTrainedModel, device: str) -> PreTrainedModel:
    """The same model on the device."""
    return llama if device == "cpu" else small.llama().to(device)


def tokens(rows: int = 5, length: int = 9) -> torch.Tensor:
    return torch.randint(3, 20, (rows, length), generator=torch.Generator().manual_seed(1))


def test_micro_batches_give_the_same_numbers(placed):
    whole = capture(placed, tokens(), list(SITES))
    parts = capture(placed, tokens(), list(SITES), batch_size=2)
    for site in SITES:
        assert_close(parts[site], whole[site], rtol=1e-5, atol=1e-6)


def test_predictions_that_nobody_asks_for_are_not_made_and_change_nothing(llama, request):
    made = []
    x, head = tokens(), llama.lm_head
    request.addfinalizer(head.register_forward_hook(lambda _, given, result: made.append(result.shape[1])).remove)
    sites = ["resid_post", "pattern", "attn_out"]
    capture(llama, x, sites)  # with its probe and its checks, which are not made again
    made.clear()
    without = capture(llama, x, sites)
    assert made == [1]
    whole = Reduction(site="output", fn=lambda logits: logits.sum(-1), axes=("batch", "pos"))
    for wanted, options in ((["output"], {}), (["resid_pre_grad"], {}), ([], {"reduce": {"whole": whole}})):
        made.clear()
        capture(llama, x, wanted, **options, check=False)
        assert made == [x.shape[1]], wanted
    recorded = capture(llama, x, [*sites, "output"])
    assert all(torch.equal(recorded[site], without[site]) for site in sites)


def test_layers_are_picked_and_keep_their_numbers(llama):
    whole, some = capture(llama, tokens(), ["value"]), capture(llama, tokens(), ["value"], layers=[2, -3])
    assert torch.equal(some["value"], whole["value"][[2, 0]])
    assert some.to_xarray("value").layer.values.tolist() == [2, 0]
    assert some.readout.output_projection.shape[0] == 2
    with pytest.raises(ValueError, match="layers must lie within the 3 layers"):
        capture(llama, tokens(), layers=[3])


def test_a_task_s_batch_and_its_oracles_are_kept():
    task = Affine(length=6)
    batch = task.sample(3, torch.Generator().manual_seed(0))
    recorded = capture(decoder(d_in=1, d_out=1), batch, baselines=task.baselines(batch))
    assert recorded.batch is batch
    assert recorded.inputs is batch.inputs
    assert set(recorded.baselines) == set(task.baselines(batch))


def test_what_was_not_recorded_is_a_key_error_that_lists_what_was(llama):
    recorded = capture(llama, tokens(), ["key", "value"])
    with pytest.raises(NotRecorded, match="'pattern' was not recorded; recorded are key, value; pass") as refusal:
        recorded["pattern"]
    assert isinstance(refusal.value, KeyError)
    assert "pattern" not in recorded


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_kernel_that_ran_is_named_and_both_agree(placed, kernel):
    placed.set_attn_implementation(kernel)
    try:
        recorded = capture(placed, tokens(), list(SITES))
    finally:
        placed.set_attn_implementation("sdpa")
    assert recorded.attn_implementation == kernel
    for site in SITES:
        assert_close(recorded[site], capture(placed, tokens(), [site])[site], rtol=1e-4, atol=1e-6)


def test_eager_attention_is_computed_once_and_neither_it_nor_the_model_s_own_is_traced_again(llama, monkeypatch):
    def refuse(*_):
        raise AssertionError

    sites = ["resid_pre", "pattern", "output"]
    own, eager = capture(llama, tokens(), sites), capture(llama, tokens(), sites, attn_implementation="eager")
    assert (own.attn_implementation, eager.attn_implementation) == ("sdpa", "eager")
    assert llama.config._attn_implementation == "sdpa"
    monkeypatch.setattr(_read_structure, "trace_forward", refuse)
    assert torch.equal(capture(llama, tokens(), sites)["output"], own["output"])
    monkeypatch.setattr(attention_math, "scaled_dot_products", refuse)
    again = capture(llama, tokens(), sites, attn_implementation="eager")
    assert all(torch.equal(again[site], eager[site]) for site in sites)
    with pytest.raises(AssertionError):
        capture(llama, tokens(), sites)
    with pytest.raises(ValueError, match="attn_implementation must be"):
        capture(llama, tokens(), sites, attn_implementation="flash")  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_the_model_s_attention_is_restored_after_an_error(llama):
    with pytest.raises(ValueError, match="layers must lie within"):
        capture(llama, tokens(), layers=[3], attn_implementation="eager")
    assert llama.config._attn_implementation == "sdpa"


def test_reductions_equal_the_same_function_of_the_whole_site(llama):
    def entropy(pattern):
        return -torch.xlogy(pattern, pattern).sum(-1)

    reduce = {
        "entropy": Reduction(site="pattern", fn=entropy, axes=("batch", "head", "query")),
        "length": Reduction(site="resid_post", fn=lambda x: x.norm(dim=-1), axes=("batch", "pos")),
        "top": Reduction(site="output", fn=lambda x: x.argmax(-1), axes=("batch", "pos")),
    }
    whole = capture(llama, tokens(), ["pattern", "resid_post", "output"])
    small = capture(llama, tokens(), [], reduce=reduce, batch_size=2)
    assert_close(small["entropy"], entropy(whole["pattern"]), rtol=1e-5, atol=1e-6)
    assert_close(small["length"], whole["resid_post"].norm(dim=-1))
    assert torch.equal(small["top"], whole["output"].argmax(-1))
    assert small.to_xarray("entropy").dims == ("layer", "batch", "head", "query")
    assert small.to_xarray("top").dims == ("batch", "pos")
    assert set(small.sites) == set(reduce)


def test_no_more_than_one_layer_s_pattern_exists_while_it_is_reduced(llama):
    seen: list[weakref.ref] = []
    most = 0
    gc.freeze()  # what was there before is not looked through every time

    def watch(pattern):
        nonlocal most
        gc.collect()
        seen.append(weakref.ref(pattern))
        most = max(most, sum(each() is not None for each in seen))
        return pattern.sum((1, 2, 3))

    for kernel in ("sdpa", "eager"):
        llama.set_attn_implementation(kernel)
        capture(llama, tokens(), [], reduce={"sum": Reduction(site="pattern", fn=watch, axes=("batch",))}, batch_size=2)
    llama.set_attn_implementation("sdpa")
    gc.unfreeze()
    assert len(seen) == 2 * 3 * 3
    assert most == 1


def test_a_reduction_of_another_shape_than_promised_is_refused(llama):
    wrong = Reduction(site="pattern", fn=lambda x: x.sum(), axes=("batch",))
    with pytest.raises(ValueError, match=r"the reduction total must return .'batch',. with 5 sequences"):
        capture(llama, tokens(), [], reduce={"total": wrong})
    with pytest.raises(ValueError, match="the first axis of a reduction must be batch"):
        Reduction(site="pattern", fn=torch.sum, axes=("head",))
    with pytest.raises(ValueError, match="'pattern' is a site"):
        capture(llama, tokens(), [], reduce={"pattern": Reduction(site="attn_scores", fn=torch.sum, axes=("batch",))})


def test_the_estimate_is_what_is_kept(placed):
    kept = sum(value.nbytes for value in capture(placed, tokens(), list(SITES)).sites.values())
    assert estimate_capture_bytes(placed, tokens(), list(SITES)) == kept


def test_what_does_not_fit_is_refused_before_the_run(llama, monkeypatch):
    monkeypatch.setattr(_memory, "_free_bytes", lambda device: 1000)
    with pytest.raises(NotEnoughMemory, match=r"must fit into memory, but needs .* GB of .* GB free; record fewer"):
        capture(llama, tokens())


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("settings", [VECTORS, TOKENS | {"positions": "rotary"}, VECTORS | {"attention": "linear"}])
def test_padding_is_seen_through_in_our_decoder(settings, side):
    model = decoder(**settings)
    x = inputs(model, rows=2, length=7)
    blank = torch.zeros_like(x[:, :3])
    padded = torch.cat([blank, x] if side == "left" else [x, blank], dim=1)
    mask = torch.ones(2, 10, dtype=torch.long)
    real = slice(3, None) if side == "left" else slice(None, 7)
    mask[:] = 0
    mask[:, real] = 1
    sites = ["pattern", "z", "output"]
    alone, beside = capture(model, x, sites), capture(model, padded, sites, attention_mask=mask)
    for seen, known in [
        (beside["output"][:, real], alone["output"]),
        (beside["pattern"][..., real, real], alone["pattern"]),
        (beside["z"][:, :, real], alone["z"]),
    ]:
        assert (seen - known).abs().max() <= 1e-4 * known.abs().max()


def test_a_model_that_sees_its_padding_is_refused():
    model = decoder(**VECTORS)
    model.register_forward_pre_hook(lambda module, args, given: (args, {"inputs": given["inputs"]}), with_kwargs=True)
    x, mask = inputs(model), torch.ones(4, 10, dtype=torch.long)
    mask[1, :3] = 0
    with pytest.raises(
        UnsupportedModel, match=r"padding must not change .* in sequence 1; pass sequences of one length"
    ):
        capture(model, x, attention_mask=mask)


def test_what_is_no_transformers_model_is_refused():
    with pytest.raises(UnsupportedModel, match=r"must be a transformers.PreTrainedModel, but got Linear"):
        capture(nn.Linear(2, 2), torch.zeros(1, 2, 2))


def test_a_model_without_parameters_is_refused():
    class Empty(PreTrainedModel):
        config_class = PreTrainedConfig

    with pytest.raises(UnsupportedModel, match=r"must have parameters, but Empty has none; register its weights"):
        capture(Empty(PreTrainedConfig()), tokens())


def test_a_model_without_logits_is_refused(llama):
    with pytest.raises(UnsupportedModel, match="must return logits at every position, but LlamaModel does not"):
        capture(llama.model, tokens())


def test_a_site_that_does_not_exist_is_refused(llama):
    with pytest.raises(ValueError, match=r"a site must be one of resid_pre, .* but got 'mlp'"):
        capture(llama, tokens(), ["mlp"])


def test_logits_are_a_second_name_of_the_output(llama):
    x = tokens()
    for batch_size in (None, 2):
        both = capture(llama, x, ["output", "logits"], batch_size=batch_size)
        assert torch.equal(both["logits"], both["output"])
    alone = capture(llama, x, ["logits"])
    assert set(alone.sites) == {"logits"}
    assert torch.equal(alone["logits"], capture(llama, x, ["output"])["output"])
    assert alone.to_xarray("logits").dims == ("batch", "pos", "d_out")
    top = Reduction(site="logits", fn=lambda logits: logits.argmax(-1), axes=("batch", "pos"))
    assert torch.equal(capture(llama, x, [], reduce={"top": top})["top"], alone["logits"].argmax(-1))
    with pytest.raises(ValueError, match="an edit must act in a layer, but logits is after"):
        Edit(site="logits", fn=torch.zeros_like)


def test_a_model_of_vectors_has_no_logits():
    model = decoder(**VECTORS)
    with pytest.raises(ValueError, match="the inputs are vectors; use 'output'"):
        capture(model, inputs(model), ["logits"])


def test_inputs_and_masks_of_wrong_shape_are_refused(llama):
    with pytest.raises(ValueError, match="inputs must be"):
        capture(llama, tokens()[0])
    with pytest.raises(ValueError, match="attention_mask must be"):
        capture(llama, tokens(), attention_mask=torch.ones(5, 8))


def test_a_single_layer_called_twice_is_refused():
    model = decoder(**VECTORS)
    model.layers.append(model.layers[0])
    with pytest.raises(UnsupportedModel, match=r"in complete iterations, but Decoder .* in the order 0, 1, 2, 0"):
        capture(model, inputs(model))


def test_a_model_that_looks_at_the_name_of_its_kernel_is_refused():
    model = decoder(**VECTORS)

    def shift(module, args, output):
        output.logits = output.logits + (0 if model.config._attn_implementation == "eager" else 1)

    model.register_forward_hook(shift)
    with pytest.raises(UnsupportedModel, match=r"must not change the output .*, but that of Decoder changes by"):
        capture(model, inputs(model))


def test_a_hybrid_s_other_layers_are_named():
    config = {
        "layer_types": ["linear_attention", "full_attention"],
        "num_hidden_layers": 2,
        "vocab_size": 20,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        MiniMaxConfig(hidden_size=16, intermediate_size=8, num_attention_heads=2, num_local_experts=2, **config)
    )
    with pytest.raises(UnsupportedModel, match=r"MiniMaxForCausalLM lacks it in layers \[0\] .*; pass layers=\[1\]"):
        capture(model, tokens(), ["pattern"])
    assert capture(model, tokens(), ["pattern", "value"], layers=[1])["pattern"].shape == (1, 5, 2, 9, 9)
    assert capture(model, tokens(), ["resid_pre"])["resid_pre"].shape == (2, 5, 9, 16)


def test_a_model_that_fails_when_it_is_looked_at_is_refused():
    model = decoder(**VECTORS)

    def insist(module, args, output):
        if model.config._attn_implementation != "eager":
            raise KeyError("unknown kernel")

    model.register_forward_hook(insist)
    with pytest.raises(UnsupportedModel, match=r"must run with its attention function wrapped, but Decoder fails"):
        capture(model, inputs(model))
    assert model.config._attn_implementation == "eager"


def test_what_is_known_of_a_model_does_not_keep_it_alive():
    torch.manual_seed(0)
    model = decoder(**TOKENS)
    capture(model, inputs(model))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_changed_model_is_read_anew():
    """A cached anatomy or frame must not outlive the weights that it was read from."""
    model = decoder(**TOKENS)
    x = inputs(model)
    before = capture(model, x)
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    after = capture(model, x)
    assert after.readout is not before.readout
    assert capture(model, x).readout.projection_modules is after.readout.projection_modules
    with torch.no_grad():
        assert torch.equal(after["output"], model(x).logits)
