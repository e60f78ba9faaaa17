"""Gradients of both stacks are those of autograd in plain PyTorch."""

from contextlib import ExitStack

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from mesascope import capture
from mesascope.activations import LayerReduction, UnsupportedModel
from mesascope.interventions import logit_difference, zero
from mesascope.models.encoder_decoder.model import EncoderDecoder
from mesascope.tasks.base import Batch

from .hand_set import COPYING, SILENT, SLOTS, WIDTH, build_hand_set, sequences
from .pairs import SOURCE, build, pair
from .test_pair_edits import LAYER, parts

SIDES = {"own": ("left", "right"), "t5": ("right", "right"), "pegasus": ("right", "")}
UPDATES = ("encoder.attn_out", "encoder.mlp_out", "decoder.attn_out", "decoder.mlp_out", "cross_attn_out")


def update_modules(name, model):
    if name != "pegasus":
        return {site: module for site, module in parts(name, model).items() if site in UPDATES}
    encoder, decoder = model.model.encoder.layers[LAYER], model.model.decoder.layers[LAYER]
    modules = [encoder.self_attn.out_proj, encoder.fc2, decoder.self_attn.out_proj, decoder.fc2, decoder.encoder_attn]
    return dict(zip(UPDATES, [*modules[:4], modules[4].out_proj], strict=True))


def blocks(name, model):
    if name == "own":
        return {"encoder": model.encoder_layers[LAYER], "decoder": model.layers[LAYER]}
    if name == "t5":
        return {"encoder": model.encoder.block[LAYER], "decoder": model.decoder.block[LAYER]}
    return {"encoder": model.model.encoder.layers[LAYER], "decoder": model.model.decoder.layers[LAYER]}


def run_with_graph(model, inputs):
    if isinstance(model, EncoderDecoder):
        tokens = torch.cat([inputs["input_ids"], inputs["decoder_input_ids"]], 1)
        return model(tokens).logits[:, SOURCE:]  # padding is where the token is 0
    return model(**inputs, use_cache=False).logits


def sum_losses(logits, inputs):
    targets = inputs["decoder_input_ids"]
    real = inputs.get("decoder_attention_mask", torch.ones_like(targets)).bool()
    losses = functional.cross_entropy(logits[:, :-1].mT, targets[:, 1:], reduction="none")
    return (losses * (real[:, 1:] & real[:, :-1])).sum()


def gradients_by_hand(name, model, inputs, objective):
    """Gradients at the outputs of the modules of layer 1, and at its inputs."""
    seen = {}

    def keep(site, value):
        value.retain_grad()
        seen[site] = value

    with ExitStack() as hooks:
        for site, module in update_modules(name, model).items():
            hooks.callback(module.register_forward_hook(lambda _, args, out, site=site: keep(site, out)).remove)
        for stack, block in blocks(name, model).items():
            hook = lambda _, args, kwargs, stack=stack: keep(  # noqa: E731
                f"{stack}.resid_pre", args[0] if args else kwargs["hidden_states"]
            )
            hooks.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
        objective(run_with_graph(model, inputs)).backward()
    return {site: value.grad for site, value in seen.items()}


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("padded", [False, True])
def test_gradients_are_those_of_autograd(name, padded):
    model, inputs = build(name), pair(*SIDES[name]) if padded else pair()
    sites = ["resid_pre_grad", "attn_out_grad", "mlp_out_grad", "cross_attn_out_grad", "logits"]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    acts = capture(model, inputs, sites)
    for site, expected in gradients_by_hand(name, model, inputs, lambda logits: sum_losses(logits, inputs)).items():
        assert_close(acts[f"{site}_grad"][LAYER], expected, rtol=1e-3, atol=1e-5)
        assert expected.any()
    parts_of_rows = capture(model, inputs, sites, batch_size=2)
    for site in acts:
        assert_close(acts[site], parts_of_rows[site], rtol=1e-3, atol=1e-5)
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable


@pytest.mark.parametrize("name", ["own", "t5"])
def test_an_objective_replaces_the_loss(name):
    model, inputs = build(name), pair("right", "right")
    metric = logit_difference(7, 9)
    acts = capture(model, inputs, ["encoder.resid_pre_grad", "cross_attn_out_grad"], objective=metric)
    mask = inputs["decoder_attention_mask"]
    expected = gradients_by_hand(name, model, inputs, lambda logits: metric(logits, mask).sum())
    assert_close(acts["encoder.resid_pre_grad"][LAYER], expected["encoder.resid_pre"], rtol=1e-3, atol=1e-5)
    assert_close(acts["cross_attn_out_grad"][LAYER], expected["cross_attn_out"], rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="with padding, an objective must leave it out"):
        capture(model, inputs, ["encoder.resid_pre_grad"], objective=lambda output: output.sum((1, 2)))
    with pytest.raises(ValueError, match="an objective needs the whole batch, but batch_size splits it"):
        capture(model, inputs, ["encoder.resid_pre_grad"], objective=metric, batch_size=1)


def test_a_stack_without_gradients_and_a_batch_of_a_task():
    model, inputs = build("own"), pair()
    tokens = torch.cat([inputs["input_ids"], inputs["decoder_input_ids"]], 1)
    targets, weight = tokens.roll(-1, 1), torch.ones(tokens.shape)
    weight[:, :SOURCE] = 0
    weight[:, -1] = 0
    batch = Batch(inputs=tokens, targets=targets, weight=weight)
    from_batch = capture(model, batch, ["decoder.mlp_out_grad"])
    both = capture(model, inputs, ["mlp_out_grad"])
    assert torch.equal(from_batch["decoder.mlp_out_grad"], both["decoder.mlp_out_grad"])
    assert "mlp_out_grad" not in from_batch.encoder
    half = capture(model, Batch(inputs=tokens, targets=targets, weight=0.5 * weight), ["decoder.mlp_out_grad"])
    assert_close(half["decoder.mlp_out_grad"], 0.5 * from_batch["decoder.mlp_out_grad"])


def test_reductions_of_layers_receive_gradients():
    def multiply(view):
        return {"product": (view["resid_pre"] * view["resid_pre_grad"]).sum(-1)}

    reduce = {
        "all": LayerReduction(
            sites=("encoder.resid_pre", "encoder.resid_pre_grad"), fn=multiply, axes={"product": ("batch", "pos")}
        )
    }
    acts = capture(build("t5"), pair(), ["encoder.resid_pre", "encoder.resid_pre_grad"], reduce=reduce)
    product = (acts["encoder.resid_pre"] * acts["encoder.resid_pre_grad"]).sum(-1)
    assert_close(acts.encoder["product"], product)


def test_the_gradient_of_a_linear_model_is_its_weights():
    """At cross_attn_out, in a model without norms, MLPs and later layers: the difference of two unembedding rows."""
    model, (source, target, _) = build_hand_set(), sequences(4)
    inputs = {"input_ids": source, "decoder_input_ids": target}
    correct, incorrect = source[:, -1], source[:, SLOTS]
    acts = capture(model, inputs, ["cross_attn_out_grad", "cross_z"], objective=logit_difference(correct, incorrect))
    rows = model.readout.weight[correct] - model.readout.weight[incorrect]
    assert_close(acts["cross_attn_out_grad"][0, :, -1], rows.detach())
    assert not acts["cross_attn_out_grad"][0, :, :-1].any()
    by_head = acts.decoder.head_out("cross_z")[0, :, :, -1]  # batch, head, d_model
    effect = torch.einsum("bhd,bd->bh", by_head, acts["cross_attn_out_grad"][0, :, -1])
    differs = correct != incorrect
    assert_close(
        effect[differs, COPYING], torch.full_like(effect[differs, COPYING], 5.0), rtol=0, atol=1e-2
    )  # of attention that is nearly one-hot
    assert not effect[:, SILENT].any()
    assert by_head.shape[-1] == 4 * WIDTH


def test_gradients_that_do_not_exist_are_refused_by_name():
    with pytest.raises(UnsupportedModel, match="attn_out must exist in every requested layer, but the decoder of Bart"):
        capture(build("bart"), pair(), ["decoder.attn_out_grad"])
    with pytest.raises(ValueError, match="gradients must be of the unedited model, but edits were given"):
        capture(build("t5"), pair(), ["resid_pre_grad"], edits=zero("encoder.z"))
    embedded = build("t5").get_input_embeddings()(pair()["decoder_input_ids"]).detach()
    inputs = {"input_ids": pair()["input_ids"], "decoder_inputs_embeds": embedded}
    with pytest.raises(ValueError, match="gradients need a loss, but the vectors have no targets"):
        capture(build("t5"), inputs, ["resid_pre_grad"])
    acts = capture(build("t5"), inputs, ["encoder.resid_pre_grad"], objective=lambda output: output[:, -1, 3])
    assert acts["encoder.resid_pre_grad"].any()
