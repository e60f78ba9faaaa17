"""Models that repeat their layers a fixed number of times are captured like others, with an axis `iteration`."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

import small
from cases import covering
from mesascope import capture
from mesascope.activations import BatchedEdits, Edit, EditHadNoEffect, LayerReduction, LayerView, Reduction
from mesascope.activations.capture import attention_layers, estimate_capture_bytes
from mesascope.activations.linear_inputs import sample_linear_inputs
from mesascope.activations.sites import SITES, UnsupportedModel
from mesascope.interventions import replace, zero
from mesascope.models.recurrent.model import RecurrentTransformer
from mesascope.models.recurrent.unroll import unroll_steps
from mesascope.models.transformer import Decoder, DecoderOutput
from recurrent_models import recurrent, some_tokens

from .ours import TOKENS, decoder, inputs

ALL_SITES = [site for site in SITES if site != "output"]
GATED_SITES = [site for site in ALL_SITES if not site.startswith(("attn_out", "resid_mid", "mlp"))]
SHAPES: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers": {"num_hidden_layers": 2, "max_iterations": 3},
    "gate": {"gate": True},
    "gate, two layers, full mask": {"gate": True, "num_hidden_layers": 2, "mask": "full"},
}


def fixed(shape: str = "two layers", **fields: Any) -> RecurrentTransformer:
    return recurrent("UT without halting", **SHAPES[shape] | fields)


def sites_of(shape: str) -> list[str]:
    return GATED_SITES if "gate" in shape else ALL_SITES


@pytest.fixture(params=["no padding", "left", "right"])
def padding(request) -> Tensor | None:
    if request.param == "no padding":
        return None
    mask = torch.ones(3, 11, dtype=torch.long)
    mask[1, :4] = mask[2, :1] = 0
    return mask if request.param == "left" else mask.flip(1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_run_for_k_steps_equals_its_unrolled_copy_bit_for_bit(shape, padding):
    model, x = fixed(shape), some_tokens()
    unrolled, iterations, layers = unroll_steps(model), model.config.max_iterations, len(model.layers)
    found = capture(model, x, sites_of(shape), attention_mask=padding)
    expected = capture(unrolled, x, sites_of(shape), attention_mask=padding)
    assert (found.layers, found.iterations) == (tuple(range(layers)), tuple(range(iterations)))
    assert found.iterations_run.tolist() == [iterations] * 3
    for site in sites_of(shape):
        if "layer" in SITES[site].axes:
            for call, value in enumerate(expected[site]):
                assert torch.equal(found[site][call % layers, call // layers], value), (site, call)
            assert found[site].shape[:2] == (layers, iterations)
        assert torch.equal(found.unrolled()[site], expected[site]), site
    assert found.unrolled().layers == expected.layers
    assert found.unrolled().axes == expected.axes
    with torch.no_grad():
        assert torch.equal(found["logits"], model(x, attention_mask=padding).logits)


@pytest.mark.parametrize("shape", ["one layer", "two layers"])
def test_the_readout_is_that_of_the_unrolled_copy(shape):
    model, x = fixed(shape), some_tokens()
    sites = ["resid_pre", "attn_out", "mlp_out", "resid_post", "z", "logits"]
    found, expected = capture(model, x, sites), capture(unroll_steps(model), x, sites)
    calls = found.unrolled()
    assert torch.equal(calls.head_out(), expected.head_out())
    assert torch.equal(found.head_out(), expected.head_out().unflatten(0, (-1, len(model.layers))).transpose(0, 1))
    for name in ("output_projection", "output_bias", "value_projection", "value_bias"):
        assert torch.equal(getattr(found.readout, name), getattr(expected.readout, name)), name
    parts = torch.cat([calls["resid_pre"][:1], calls["attn_out"], calls["mlp_out"]])
    total = found.readout.attribute_logits(parts, calls["resid_post"][-1]).sum(0) + found.readout.readout_bias
    torch.testing.assert_close(total, found["logits"])


def test_layers_and_iterations_are_selected():
    model, x = fixed(), some_tokens()
    whole = capture(model, x, ["z", "resid_pre_grad"])
    part = capture(model, x, ["z", "resid_pre_grad"], layers=[1], iterations=[-1, 0])
    assert (part.layers, part.iterations) == ((1,), (2, 0))
    for site in ("z", "resid_pre_grad"):
        assert torch.equal(part[site], whole[site][1:, [2, 0]])
    assert part.unrolled().layers == (5, 1)
    rows = capture(model, x, ["pattern"], queries=[3, 7])["pattern"]
    torch.testing.assert_close(rows, capture(model, x, ["pattern"])["pattern"][..., [3, 7], :])
    labelled = part.to_xarray("z")
    assert labelled.dims == ("layer", "iteration", "batch", "pos", "head", "d_head")
    assert labelled.coords["iteration"].values.tolist() == [2, 0]
    assert labelled.coords["layer"].values.tolist() == [1]
    assert torch.equal(pickle.loads(pickle.dumps(part))["z"], part["z"])
    with pytest.raises(ValueError, match="iterations must lie within the 3 iterations of the model, but got"):
        capture(model, x, ["z"], iterations=[3])
    with pytest.raises(ValueError, match="layers must lie within the 2 layers of the model, but got"):
        capture(model, x, ["z"], layers=[2])
    with pytest.raises(ValueError, match="needs a model that repeats its layers, but Decoder calls each layer once"):
        capture(decoder(**TOKENS), inputs(decoder(**TOKENS)), ["z"], iterations=[0])


def test_micro_batches_and_estimates_agree():
    model, x = fixed(), some_tokens()
    whole, parts = capture(model, x, ALL_SITES), capture(model, x, ALL_SITES, batch_size=2)
    for site in ALL_SITES:
        torch.testing.assert_close(whole[site], parts[site], rtol=1e-4, atol=1e-6)
    stored = sum(whole[site].nbytes for site in ALL_SITES)
    assert estimate_capture_bytes(model, x, ALL_SITES) == stored
    assert attention_layers(model, x) == [0, 1]


def test_reductions_see_every_call():
    model, x = fixed(), some_tokens()

    def measure(view: LayerView) -> dict[str, Tensor]:
        change = view["resid_post"] - view["resid_pre"]
        return {"change": change.norm(dim=-1), "call": torch.full((len(change),), float(view.layer))}

    reduce = {
        "norm": Reduction(site="resid_pre", fn=lambda stream: stream.norm(dim=-1), axes=("batch", "pos")),
        "several": LayerReduction(
            sites=("resid_pre", "resid_post"), fn=measure, axes={"change": ("batch", "pos"), "call": ("batch",)}
        ),
    }
    found = capture(model, x, ["resid_pre", "resid_post"], reduce=reduce)
    assert found.axes["norm"] == found.axes["change"] == ("layer", "iteration", "batch", "pos")
    assert torch.equal(found["norm"], found["resid_pre"].norm(dim=-1))
    assert torch.equal(found["change"], (found["resid_post"] - found["resid_pre"]).norm(dim=-1))
    assert found["call"][:, :, 0].tolist() == [[0, 2, 4], [1, 3, 5]]
    assert torch.equal(found.unrolled()["norm"], found.unrolled()["resid_pre"].norm(dim=-1))


@pytest.mark.parametrize(
    ("site", "layer"),
    covering(["resid_pre", "attn_out", "mlp_hidden", "mlp_out", "resid_post", "query", "pattern", "z"], [0, 1]),
)
def test_an_edit_of_one_iteration_is_that_of_one_layer_of_the_unrolled_copy(site, layer):
    model, x = fixed(), some_tokens()
    sites = [name for name in ALL_SITES if not name.endswith("_grad")]
    edit, other = ({"layer": layer, "iteration": 1}, {"layer": 2 + layer})
    found = capture(model, x, sites, edits=zero(site, edit)).unrolled()
    expected = capture(unroll_steps(model), x, sites, edits=zero(site, other))
    plain = capture(model, x, sites).unrolled()
    for name in sites:
        assert torch.equal(found[name], expected[name]), name
        if "layer" in SITES[name].axes:
            assert torch.equal(found[name][: 2 + layer], plain[name][: 2 + layer]), name
    assert not torch.equal(found["logits"], plain["logits"])


def test_an_edit_without_iterations_is_applied_in_every_one():
    model, x = fixed(), some_tokens()
    found = capture(model, x, ["mlp_out", "logits"], edits=zero("mlp_out", {"layer": 1}))
    expected = capture(unroll_steps(model), x, ["logits"], edits=zero("mlp_out", {"layer": [1, 3, 5]}))
    assert torch.equal(found["logits"], expected["logits"])
    assert not found["mlp_out"][1].any()
    every = capture(model, x, ["z"], edits=zero("z", {"iteration": slice(1, None)}))["z"]
    assert not every[:, 1:].any()
    assert every[:, 0].any()


def test_edits_of_iterations_that_do_not_exist_are_refused():
    model, x = fixed(), some_tokens()
    with pytest.raises(IndexError, match=r"where\['iteration'\] must lie within 3 entries, but got 3"):
        capture(model, x, edits=zero("z", {"iteration": 3}))
    once = decoder(**TOKENS)
    with pytest.raises(ValueError, match=r"where\['iteration'\] needs a model that repeats its layers"):
        capture(once, inputs(once), edits=zero("z", {"iteration": 0}))
    with pytest.raises(ValueError, match=r"where\['iteration'\] needs a model that repeats its layers"):
        BatchedEdits(once, inputs(once), "z").validate_edit(zero("z", {"iteration": 0}))


def test_activations_of_another_run_replace_those_of_the_same_calls():
    model, x, other = fixed(), some_tokens(), some_tokens().flip(1)
    source = capture(model, other, ["resid_post", "logits"], iterations=[2, 1])
    found = capture(model, x, ["resid_post", "logits"], edits=replace("resid_post", source))
    assert torch.equal(found["resid_post"][:, [2, 1]], source["resid_post"])
    assert torch.equal(found["logits"], source["logits"])
    with pytest.raises(ValueError, match="the source of an edit of resid_post must have layer 0, but has only layers"):
        capture(model, x, edits=replace("resid_post", source, {"iteration": 0}))
    with pytest.warns(EditHadNoEffect, match="an edit of resid_post at"):
        capture(model, other, edits=replace("resid_post", source, {"iteration": 2}))


def test_a_llama_that_repeats_its_layers_is_captured():
    """The same module twice in the list of layers: that is how weights are shared in Hugging Face models, too."""
    copied, repeated, x = small.llama(), small.llama(), some_tokens()
    block = repeated.model.layers[0]
    repeated.model.layers = nn.ModuleList([block] * 3)
    for layer in copied.model.layers:
        layer.load_state_dict(block.state_dict())
    found, expected = capture(repeated, x, ALL_SITES), capture(copied, x, ALL_SITES)
    assert (found.layers, found.iterations) == ((0,), (0, 1, 2))
    for site in ALL_SITES:
        assert torch.equal(found.unrolled()[site], expected[site]), site


@pytest.mark.parametrize(
    ("modules", "calls"), [([0, 1, 2, 0], "0, 1, 2, 0"), ([0, 0, 1, 1], "0, 0, 2, 2"), ([0, 1, 1, 0], "0, 1, 1, 0")]
)
def test_incomplete_iterations_are_refused_by_name(modules, calls):
    model = decoder(**TOKENS)
    model.layers = nn.ModuleList([model.layers[number] for number in modules])
    with pytest.raises(UnsupportedModel, match=f"once or in complete iterations, .* in the order {calls}$"):
        capture(model, inputs(model))


class Looping(Decoder):
    """A decoder that takes a step more where a sequence has the token 6."""

    steps = 2

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> DecoderOutput:
        stream, positions = self._embed_inputs(input_ids, None)
        mask = self._build_mask(stream, attention_mask, None)
        for _ in range(self.steps + int((input_ids == 6).any())):
            for layer in self.layers:
                stream = layer(stream, mask, positions)
        return DecoderOutput(logits=self.readout(self.final_norm(stream)))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("check", [True, False])
def test_a_loop_that_depends_on_the_data_is_refused_in_the_run(steps, check):
    """The sequence that is traced, and the longest one that is checked, take one step fewer than another one."""
    model = Looping(decoder(**TOKENS).config).eval()
    model.steps = steps
    x = torch.randint(0, 6, (4, 10), generator=torch.Generator().manual_seed(0))
    assert capture(model, x, ["resid_pre"], check=check)["resid_pre"].shape[0] == 3
    x[2, 9] = 6
    times = "once" if steps == 1 else "in 2 iterations"
    message = f"every forward pass must call the 3 layers of Looping {times}, in order, .* after {3 * steps} calls"
    for batch_size in (None, 1):
        with pytest.raises(UnsupportedModel, match=message):
            capture(model, x, ["resid_pre"], check=check, batch_size=batch_size)


class Naming(Looping):
    """A model with a field of the name of halting probabilities, whose axes are others."""

    axes = "batch pos"

    def forward(self, input_ids: Tensor, **_: Any) -> ModelOutput:
        logits, sizes = super().forward(input_ids).logits, dict(zip(("batch", "pos"), input_ids.shape, strict=True))
        shape = [(sizes | {"iteration": 3})[axis] for axis in self.axes.split()]
        return ModelOutput(logits=logits, halting_probabilities=torch.rand(shape))


@pytest.mark.parametrize("axes", ["batch pos", "batch pos iteration", "iteration", "iteration iteration batch pos"])
def test_a_field_of_another_shape_is_no_declaration_of_halting(axes):
    """Halting probabilities are (iteration, batch, pos), and whether a model halts does not follow from a name."""
    model = Naming(decoder(**TOKENS).config).eval()
    model.axes = axes
    x = torch.randint(0, 6, (4, 10), generator=torch.Generator().manual_seed(0))
    found = capture(model, x, ["resid_pre"])
    assert (found.halts, found.iterations) == (False, (0, 1))
    with pytest.raises(UnsupportedModel, match="halting_probabilities needs a model that returns halting_prob"):
        capture(model, x, ["halting_probabilities"])
    x[3] = 6
    with pytest.raises(UnsupportedModel, match=r"in 2 iterations, in order, .* after 6 calls"):
        capture(model, x, ["resid_pre"])


def test_a_pass_that_ends_early_is_refused():
    model = Looping(decoder(**TOKENS).config).eval()
    x = torch.full((2, 4), 6)
    x[1] = 3
    capture(model, x, ["resid_pre"])
    with pytest.raises(UnsupportedModel, match=r"in 3 iterations, in order, .* but one ends after 6 calls of layers"):
        capture(model, x, ["resid_pre"], batch_size=1)


def test_interventions_and_linear_modules_are_refused_by_name_and_open_the_unrolled_copy():
    model, x = fixed("one layer"), some_tokens()
    with pytest.raises(UnsupportedModel, match="intervention needs a model that calls each layer once, but Recurrent"):
        BatchedEdits(model, x, "z")
    with pytest.raises(UnsupportedModel, match="linear modules need a model that calls each layer once, but Recurrent"):
        sample_linear_inputs(model, x)
    unrolled = unroll_steps(model)
    assert sample_linear_inputs(unrolled, x).layers == (0, 1, 2, 3, 4)
    edits = BatchedEdits(unrolled, x, "z")
    expected = capture(model, x, ["output"], edits=zero("z", {"iteration": 2}))["output"]
    torch.testing.assert_close(edits.run_edits([[zero("z", {"layer": 2})]])[0], expected)


@torch.no_grad()
def test_an_unrolled_copy_has_the_precision_the_mode_and_the_ties_of_the_model():
    model = fixed(tie_word_embeddings=True).double().train()
    unrolled, x = unroll_steps(model), some_tokens()
    assert unrolled.training
    assert unrolled.readout.weight is unrolled.embed.weight
    assert torch.equal(unrolled(x).logits, model(x).logits)
    expected = model(x).logits
    unrolled.layers[3].mlp.down_proj.weight.zero_()
    assert not torch.equal(unrolled(x).logits, expected)
    assert torch.equal(model(x).logits, expected)


def test_what_cannot_be_unrolled_is_refused_by_name():
    with pytest.raises(ValueError, match="a model to be unrolled must have halt='none', but has halt='token'"):
        unroll_steps(fixed("one layer", halt="token"))


def test_a_custom_edit_receives_one_call_at_a_time():
    model, x, seen = fixed(), some_tokens(), []

    def note(old: Tensor) -> Tensor:
        seen.append(tuple(old.shape))
        return old + 1

    capture(model, x, ["logits"], edits=Edit(site="z", where={"layer": 1, "iteration": [0, 2]}, fn=note))
    assert seen[1:] == [(3, 11, 2, 8)] * 2  # the first call is the dry run on zeros
