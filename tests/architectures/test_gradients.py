"""Gradients by the stream, against plain autograd; several sites of a layer seen at once."""

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from mesascope.activations import Edit, LayerReduction, Reduction, capture
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch

from .families import make, tokens

GRADIENTS = ["resid_pre_grad", "attn_out_grad", "mlp_out_grad"]
FAMILIES = {"gpt2": True, "gpt_neox": True, "phi": True} | dict.fromkeys(  # others compute norms in float32
    ("llama", "granite", "gemma2", "qwen3_moe", "cohere"), False
)


@pytest.mark.parametrize(("family", "precise"), FAMILIES.items())
def test_gradients_are_the_slopes_of_the_loss(family, precise):
    """A small step along any direction at a site changes the summed loss by the product with the gradient."""
    model, x = make(family), tokens()[:2]
    model = model.double() if precise else model
    size, tolerance = (1e-5, 1e-5) if precise else (3e-3, 2e-2)
    recorded = capture(model, x, [*GRADIENTS, "output"])
    generator = torch.Generator().manual_seed(0)
    for name in GRADIENTS:
        gradient = recorded[name].double()
        for layer in range(len(gradient)):
            direction = torch.randn(gradient[layer].shape, generator=generator, dtype=torch.float64)
            step = (size * direction).to(recorded[name].dtype)
            above, below = (_loss_after(model, x, name.removesuffix("_grad"), layer, way * step) for way in (1, -1))
            product = (gradient[layer] * direction).sum()
            assert_close(product, (above - below) / (2 * size), rtol=tolerance, atol=tolerance * gradient.norm().item())


def _loss_after(model, x, site, layer, step):
    edit = Edit(site=site, where={"layer": layer}, fn=lambda value: value + step)
    logits = capture(model, x, ["output"], edits=[edit], check=False)["output"]
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), x[:, 1:].flatten(), reduction="sum")


def test_micro_batches_and_kept_weights_give_the_same_gradients_and_leave_no_trace():
    model, x = make("llama"), tokens()
    needed = [p.requires_grad for p in model.parameters()]
    whole, parts = (capture(model, x, GRADIENTS, batch_size=size) for size in (None, 1))
    for name in GRADIENTS:
        assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-6)
        assert whole[name].abs().max() > 0
    assert [p.requires_grad for p in model.parameters()] == needed
    assert all(p.grad is None for p in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    assert not whole["resid_pre_grad"].requires_grad


def test_the_prediction_is_the_same_bit_for_bit_with_and_without_gradients():
    model, x = make("llama"), tokens()
    with_, without = (capture(model, x, ["output", *more]) for more in (GRADIENTS, []))
    assert torch.equal(with_["output"], without["output"])


def test_padding_has_no_loss():
    model, x = make("llama"), tokens()[:2]
    mask = torch.ones_like(x)
    mask[0, -3:] = 0
    padded = capture(model, x, GRADIENTS, attention_mask=mask)
    alone = capture(model, x[:1, :-3], GRADIENTS)
    for name in GRADIENTS:
        assert_close(padded[name][:, :1, :-3], alone[name], rtol=1e-4, atol=1e-6)
        assert (padded[name][:, 0, -3:] == 0).all()


def test_a_batch_of_vectors_has_the_weighted_squared_error():
    task = Affine(length=8)
    batch = task.sample(3, torch.Generator().manual_seed(0))
    model = Decoder(DecoderConfig(d_in=1, d_out=1, hidden_size=16, num_attention_heads=2))
    recorded = capture(model, batch, ["resid_pre_grad", "resid_pre", "output"])
    last = recorded["resid_pre"][-1].clone()
    frame_loss = _vector_loss(model, batch, last)
    (expected,) = torch.autograd.grad(frame_loss[0], frame_loss[1])
    assert_close(recorded["resid_pre_grad"][-1], expected, rtol=1e-4, atol=1e-6)


def _vector_loss(model, batch, stream):
    stream = stream.requires_grad_()
    with torch.enable_grad():
        hooked = model.model.layers[-1] if hasattr(model, "model") else model.layers[-1]
        handle = hooked.register_forward_pre_hook(lambda module, args: (stream, *args[1:]))
        loss = ((model(batch.inputs).logits - batch.targets).square().sum(-1) * batch.weight).sum()
        handle.remove()
    return loss, stream


def test_what_has_no_loss_is_refused():
    model = Decoder(DecoderConfig(d_in=2, d_out=2, hidden_size=16, num_attention_heads=2))
    with pytest.raises(ValueError, match="the vectors have no targets; pass a Batch with targets"):
        capture(model, torch.ones(2, 5, 2), ["resid_pre_grad"])


def test_gradients_through_edits_are_refused():
    model, x = make("llama"), tokens()
    edit = Edit(site="resid_pre", fn=torch.zeros_like)
    with pytest.raises(ValueError, match="gradients must be of the unedited model, but edits were given"):
        capture(model, x, ["resid_pre_grad"], edits=[edit])


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_layer_is_seen_whole(family, back):
    """Everything a view offers equals the sites of a capture that keeps them all."""
    model, x = make(family), tokens()
    sites = ("resid_pre", "attn_out", "mlp_out", "pattern", "query", "attn_scores")
    sites += ("resid_pre_grad", "attn_out_grad") if back else ()
    kept = capture(model, x, [*sites, "resid_post"])
    queries = [3, 5]

    def fn(view):
        again = view.recompute_query(view["resid_pre"])
        difference = (again - view["query"]).abs().amax((1, 3))
        end = view.sublayer_input("mlp") + view.sublayer_output("mlp")
        return {
            "again": difference,
            "write": view.sublayer_output("attention") * 1.0,
            "end": end,
            "rows": view["pattern"] * 1.0,
            "slope": view.sublayer_input_gradient("mlp") * 1.0 if back else end,
        }

    stream = ("batch", "pos", "d_model")
    rows = ("batch", "head", "query", "key")
    axes = {"again": ("batch", "pos"), "write": stream, "end": stream, "rows": rows, "slope": stream}
    how = LayerReduction(sites=sites, fn=fn, axes=axes)
    seen = capture(model, x, [], reduce={"seen": how}, batch_size=2, queries=queries)
    assert (seen["again"] == 0).all()
    assert_close(seen["write"], kept["attn_out"])
    if family == "llama":
        assert_close(seen["end"], kept["resid_post"], rtol=1e-4, atol=1e-5)
        if back:
            assert_close(seen["slope"], kept["attn_out_grad"], rtol=1e-4, atol=1e-6)
    else:
        assert_close(seen["end"], kept["resid_pre"] + kept["mlp_out"], rtol=1e-4, atol=1e-5)
        if back:
            assert_close(seen["slope"], kept["resid_pre_grad"], rtol=1e-4, atol=1e-6)
    assert_close(seen["rows"], kept["pattern"][..., queries, :])
    assert seen.to_xarray("rows")["query"].values.tolist() == queries
    assert seen.axes["end"] == ("layer", *stream)


def test_a_query_of_another_stream_can_be_differentiated():
    model, x = make("llama"), tokens()
    slopes = []

    def fn(view):
        with torch.enable_grad():
            stream = view["resid_pre"].clone().requires_grad_()
            view.recompute_query(stream).square().sum().backward()
        slopes.append(stream.grad)
        return {"slope": stream.grad}

    how = LayerReduction(sites=("resid_pre",), fn=fn, axes={"slope": ("batch", "pos", "d_model")})
    assert capture(model, x, [], reduce={"x": how})["slope"].abs().min() >= 0
    assert all(one.abs().max() > 0 for one in slopes)
    assert len(slopes) == 2


def test_what_makes_no_sense_is_refused():
    model, x = make("llama"), tokens()
    nothing = {"nothing": ("batch",)}
    with pytest.raises(ValueError, match="must have layers, but output has none"):
        LayerReduction(sites=("output",), fn=dict, axes=nothing)
    with pytest.raises(ValueError, match="the first axis of nothing must be batch"):
        LayerReduction(sites=(), fn=dict, axes={"nothing": ("pos",)})
    with pytest.raises(ValueError, match="queries must be positions from 0 to"):
        capture(model, x, ["pattern"], queries=[99])
    with pytest.raises(ValueError, match="edits of attn_scores and pattern need all rows"):
        capture(model, x, [], queries=[1], edits=[Edit(site="pattern", fn=torch.zeros_like)])
    how = LayerReduction(sites=("resid_pre",), fn=lambda view: {"a": view["query"]}, axes={"a": ("batch",)})
    with pytest.raises(KeyError, match="'query' must be among the requested sites"):
        capture(model, x, [], reduce={"a": how})
    size = Reduction(site="resid_pre", fn=lambda v: v.norm(dim=-1), axes=("batch", "pos"))
    with pytest.raises(ValueError, match="two return 'a'"):
        capture(model, x, [], reduce={"a": size, "b": how})


def test_a_batch_of_tokens_is_scored_on_its_targets():
    model, x = make("llama"), tokens()
    batch = Batch(inputs=x, targets=x.roll(-1, 1), weight=torch.ones(x.shape))
    batch.weight[:, -1] = 0
    given, implied = capture(model, batch, ["resid_pre_grad"]), capture(model, x, ["resid_pre_grad"])
    assert_close(given["resid_pre_grad"], implied["resid_pre_grad"])
