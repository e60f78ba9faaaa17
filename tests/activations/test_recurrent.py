"""Captures of recurrent transformers that call each layer once, and their calls of the attention function."""

import pytest
import torch
from torch import Tensor

from mesascope import capture
from mesascope.activations.hooks.attention_interface import AttentionCall, route_attention
from mesascope.activations.sites import SITES, UnsupportedModel
from recurrent_models import recurrent, some_tokens


@torch.no_grad()
def test_a_single_step_is_captured_as_a_decoder_is() -> None:
    """Every site holds what the modules of the model compute."""
    model, x = recurrent("UT without halting", max_iterations=1, num_hidden_layers=2), some_tokens()
    sites = [name for name in SITES if not name.endswith("_grad") and name != "output"]
    found = capture(model, x, [*sites, "logits"])
    mask = torch.full((11, 11), torch.finfo(torch.float32).min).triu(1)[None, None]
    stream, places = model.embed(x), torch.arange(11)[None]
    for number, block in enumerate(model.layers):
        attn_out = block.attention(block.attention_norm(stream), mask, places)
        mlp_out = block.mlp(block.mlp_norm(stream + attn_out))
        expected = {"resid_pre": stream, "attn_out": attn_out, "mlp_out": mlp_out, "resid_mid": stream + attn_out}
        stream = stream + attn_out + mlp_out
        for name, value in (expected | {"resid_post": stream}).items():
            torch.testing.assert_close(found[name][number], value)
    assert torch.equal(found["logits"], model(x).logits)
    torch.testing.assert_close(found.readout.output_head(found["resid_post"][-1]), found["logits"])


@torch.no_grad()
def test_a_single_gated_step_has_a_stream_and_attention_but_no_updates() -> None:
    model, x = recurrent("UT without halting", max_iterations=1, gate=True), some_tokens()
    found = capture(model, x, ["resid_pre", "resid_post", "pattern", "z", "logits"])
    mask = torch.full((11, 11), torch.finfo(torch.float32).min).triu(1)[None, None]
    expected = model.layers[0](model.embed(x), mask, torch.arange(11)[None])
    torch.testing.assert_close(found["resid_post"][0], expected)
    assert torch.equal(found["logits"], model(x).logits)
    for site in ("attn_out", "mlp_hidden", "mlp_out", "resid_mid"):
        with pytest.raises(UnsupportedModel, match=f"{site} must exist in every requested layer"):
            capture(model, x, [site])


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        ("UT without halting", 5),
        ("TLB", 3 * 2 * 2 + 2),  # 3 chunks of 2 layers with 2 attentions each, and 2 updates of the memory
        ("GUT", 5),
        ("GUTLB", 3 * 5 * 2 + 2),
    ],
)
def test_all_attention_goes_through_the_attention_interface(kind: str, calls: int) -> None:
    """Whatever the function that intercepts it returns is what the model goes on with."""
    model, x, seen = recurrent(kind, halting_threshold=1.0), some_tokens(), []
    expected = model(x).logits

    def count(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        seen.append(call.module)
        return call.run_original(call.query, call.key, call.value)

    with route_attention(model, count):
        assert torch.equal(model(x).logits, expected)
    assert len(seen) == calls

    def silence(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        return 0 * call.run_original(call.query, call.key, call.value)[0], None

    with route_attention(model, silence):
        assert not torch.equal(model(x).logits, expected)
