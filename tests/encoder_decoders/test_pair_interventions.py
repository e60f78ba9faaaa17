"""Sweeps, activation patching and path patching of the three attentions of encoder-decoders."""

import numpy as np
import pytest
import torch

from cases import covering
from mesascope import capture
from mesascope.activations import EditHadNoEffect, PairedEdits, UnsupportedModel, prepare_source_and_target
from mesascope.interventions import (
    attribution_patch,
    knock_out_attention,
    logit_difference,
    mean,
    patch,
    path_patch,
    replace,
    scale,
    sweep,
    zero,
)

from .hand_set import COPYING, LOOKUP, SHIFTED, SILENT, build_hand_set, sequences
from .pairs import SOURCE, TARGET, build, pair, run

SIDES = {"own": ("left", "right"), "t5": ("right", "right"), "bart": ("right", "")}
HEADS = ["encoder.z", "decoder.z", "cross_z"]
PATCHED = [
    ("encoder.resid_pre", ("layer", "pos")),
    ("encoder.z", ("layer", "head")),
    ("encoder.value", ("layer", "kv_head", "pos")),
    ("decoder.resid_pre", ("layer", "pos")),
    ("decoder.z", ("layer", "pos", "head")),
    ("decoder.pattern", ("layer", "head", "query")),
    ("cross_query", ("layer", "head")),
    ("cross_key", ("layer", "kv_head", "source")),
    ("cross_value", ("layer", "source")),
    ("cross_attn_scores", ("layer", "head")),
    ("cross_pattern", ("layer", "head", "query")),
    ("cross_z", ("layer", "head", "pos")),
    ("decoder.resid_post", ("layer",)),
]
METRIC = logit_difference(7, 9)


def others(name, padded):
    """A run, and another one of the same padding."""
    sides = SIDES[name] if padded else ("", "")
    inputs, other = pair(*sides), pair(*sides)
    for key in ("input_ids", "decoder_input_ids"):
        changed = 3 + (other[key] * 7 + 1) % 37
        mask = other.get({"input_ids": "attention_mask"}.get(key, "decoder_attention_mask"), torch.ones_like(changed))
        other[key] = changed * mask
    return inputs, other


@pytest.mark.parametrize(("name", "padded", "site"), covering(SIDES, [False, True], HEADS))
def test_a_sweep_has_the_effects_of_edits_one_by_one(name, padded, site):
    model, inputs = build(name), pair(*SIDES[name]) if padded else pair()
    found = sweep(model, inputs, zero(site), metric=METRIC)
    mask = inputs.get("decoder_attention_mask")
    intact = METRIC(capture(model, inputs, ["logits"])["logits"], mask).mean()
    assert found["effect"].dims == ("layer", "head")
    assert found["effect"].shape == (3 if site == "encoder.z" else 2, 4)
    for layer, head in ((0, 1), (1, 3)):
        edited = capture(model, inputs, ["logits"], edits=zero(site, {"layer": layer, "head": head}))["logits"]
        expected = float(METRIC(edited, mask).mean() - intact)
        assert float(found["effect"][layer, head]) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert (found["changed"] == 1).all()


def test_positions_of_source_and_target_are_swept():
    model, inputs = build("t5"), pair("right", "right")
    by_source = sweep(model, inputs, zero("cross_pattern"), axes=("layer", "source"), metric=METRIC)
    assert by_source["effect"].sizes == {"layer": 2, "source": SOURCE}
    assert by_source["num_sequences"].values.tolist() == [3] * 6 + [1] * 3
    by_target = sweep(model, inputs, zero("decoder.mlp_out"), axes=("pos",), metric="kl_divergence")
    assert by_target["num_sequences"].values.tolist() == [3] * 4 + [1] * 2
    assert by_target["effect"].sizes == {"pos": TARGET}
    assert (by_target["effect"].values > 0).all()
    by_loss = sweep(model, pair(), zero("encoder.attn_out"), axes=("layer", "pos"), metric="loss")
    assert by_loss["effect"].sizes == {"layer": 3, "pos": SOURCE}
    edited = capture(model, pair(), ["logits"], edits=zero("encoder.attn_out", {"layer": 1, "pos": 4}))["logits"]
    targets = pair()["decoder_input_ids"]
    loss = torch.nn.functional.cross_entropy(edited[:, :-1].mT, targets[:, 1:])
    assert float(by_loss["value"][1, 4]) == pytest.approx(float(loss), rel=1e-4)


def test_a_sweep_runs_as_many_edits_together_as_fit():
    model, inputs = build("own"), pair()
    seen = []
    wide = sweep(model, inputs, zero("cross_z"), metric=METRIC, progress=lambda done, total: seen.append((done, total)))
    narrow = sweep(model, inputs, zero("cross_z"), metric=METRIC, max_positions=1)
    np.testing.assert_allclose(wide["effect"], narrow["effect"], rtol=1e-3, atol=1e-5)
    assert seen == [(0, 8), (4, 8), (8, 8)]
    acts = capture(model, inputs, ["cross_z"])
    means = sweep(model, inputs, mean("cross_z", acts), metric=METRIC, axes=("layer",))
    edited = capture(model, inputs, ["logits"], edits=mean("cross_z", acts, {"layer": 1}))["logits"]
    assert float(means["value"][1]) == pytest.approx(float(METRIC(edited).mean()), rel=1e-4)


@pytest.mark.parametrize(("name", "site_and_axes"), covering(SIDES, PATCHED))
def test_patching_with_the_same_run_changes_nothing(name, site_and_axes):
    site, axes = site_and_axes
    model, (inputs, other) = build(name), others(name, padded=False)
    acts = capture(model, inputs, [site])
    runner = PairedEdits(model, prepare_source_and_target(model, inputs), site)
    edit = replace(site, acts)
    runner.validate_edit(edit)
    assert not runner.has_effect(edit)
    with pytest.warns(EditHadNoEffect):
        logits = capture(model, inputs, ["logits"], edits=edit)["logits"]
    assert torch.equal(logits, run(model, inputs).logits)
    with pytest.warns(EditHadNoEffect), pytest.raises(ValueError, match="the metric must differ between the two runs"):
        _ = sweep(model, inputs, edit, axes=axes, metric=METRIC), patch(model, inputs, inputs, METRIC, site, axes)
    found = patch(model, inputs, other, METRIC, site, axes)
    assert (found["changed"] == 1).all() or site == "decoder.pattern"  # the first query attends to itself alone
    assert found["recovered"].dims == axes


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("padded", [False, True])
def test_patching_everything_gives_the_other_run(name, padded):
    model, (inputs, other) = build(name), others(name, padded)
    for sites in (
        ["decoder.resid_post"],
        ["encoder.resid_post", "decoder.resid_pre"],
        ["encoder.resid_pre", "decoder.resid_pre"],
    ):
        layers = {"decoder.resid_post": 1, "encoder.resid_post": 2}
        acts = capture(model, other, [*sites, "logits"])
        edits = [replace(site, acts, {"layer": layers.get(site, 0)}) for site in sites]
        logits = capture(model, inputs, ["logits"], edits=edits)["logits"]
        real = inputs.get("decoder_attention_mask", torch.ones(3, TARGET)).bool()
        assert torch.equal(logits[real], acts["logits"][real])
    whole = patch(model, inputs, other, METRIC, "decoder.resid_post", ("layer",))
    assert float(whole["recovered"].sel(layer=1)) == pytest.approx(1.0, abs=1e-4)
    same_target = other | {key: value for key, value in inputs.items() if key.startswith("decoder")}
    source = patch(model, inputs, same_target, METRIC, "encoder.resid_post", ("layer",))
    assert float(source["recovered"].sel(layer=2)) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", ["own", "t5"])
def test_a_patch_is_the_edit_of_a_plain_hook(name):
    from .test_pair_edits import COLUMNS, HEAD, LAYER, parts, run_with

    model, (inputs, other) = build(name), others(name, padded=False)
    for site in HEADS:
        found = patch(model, inputs, other, METRIC, site, ("layer", "head"))
        taken = capture(model, other, [site])[site][LAYER, :, :, HEAD]

        def change(z, taken=taken):
            z[..., COLUMNS] = taken
            return z

        by_hand = METRIC(run_with(model, inputs, parts(name, model)[site], before=change)).mean()
        assert float(found["value"][LAYER, HEAD]) == pytest.approx(float(by_hand), rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def copying():
    """The model that was set by hand, with two runs whose sources differ in the last word alone."""
    source, target, _ = sequences(16)
    other = source.roll(1, 0)
    rows = source[:, -1] != other[:, -1]
    source, target, last = source[rows], target[rows], other[rows, -1]
    changed = torch.cat([source[:, :-1], last[:, None]], 1)
    runs = [{"input_ids": each, "decoder_input_ids": target} for each in (source, changed)]
    return build_hand_set(), *runs, logit_difference(source[:, -1], last)


@pytest.mark.filterwarnings("ignore::mesascope.activations.EditHadNoEffect")
def test_the_copying_head_is_found_by_sweep_and_patch_and_no_decoy(copying):
    model, inputs, other, metric = copying
    ablated = sweep(model, inputs, zero("cross_z"), metric=metric)["effect"][0]
    assert int(abs(ablated).argmax("head")) == COPYING
    assert float(ablated[SILENT]) == 0.0
    recovered = patch(model, inputs, other, metric, "cross_z", ("layer", "head"))["recovered"][0]
    assert float(recovered[COPYING]) > 0.9
    assert float(recovered[SILENT]) == 0.0
    by_value = patch(model, inputs, other, metric, "cross_value", ("kv_head", "source"))["recovered"]
    assert float(by_value.sel(kv_head=COPYING, source=8)) > 0.9
    assert (abs(by_value.sel(source=range(8))) < 1e-6).all()
    assert not by_value.sel(kv_head=SILENT).any()
    by_key = patch(model, inputs, other, metric, "cross_key", ("kv_head",))
    assert not by_key["changed"].any()  # keys are positions
    knocked_out = sweep(model, inputs, knock_out_attention("cross_attn_scores", [8]), ("head",), metric)["effect"]
    assert int(abs(knocked_out).argmax("head")) == COPYING


@pytest.mark.filterwarnings("ignore::mesascope.activations.EditHadNoEffect")
def test_paths_to_the_copying_head_are_found_and_no_decoy(copying):
    model, inputs, other, metric = copying
    for head, expected in ((COPYING, 0.9), (SILENT, 0.0), (SHIFTED, 0.0)):
        where = {"layer": 0, "kv_head": head}
        found = path_patch(
            model, inputs, other, metric, "encoder.resid_pre", ("pos",), receiver="cross_value", receiver_where=where
        )
        last = float(found["recovered"].sel(pos=8))
        assert last > 0.9 if expected else abs(last) < 0.1
        assert (abs(found["recovered"].sel(pos=range(8))) < 1e-6).all()
    where = {"layer": 0, "kv_head": COPYING}
    keys = path_patch(
        model, inputs, other, metric, "encoder.resid_pre", ("pos",), receiver="cross_key", receiver_where=where
    )
    assert not keys["effect"].any()
    lookup = path_patch(  # the look-up head writes where no head of cross-attention reads
        model, inputs, other, metric, "encoder.z", receiver="cross_value", receiver_where={"layer": 0}
    )
    assert (abs(lookup["effect"]) < 1e-6).all()
    direct = path_patch(model, inputs, other, metric, "cross_z")
    assert float(direct["recovered"][0, COPYING]) > 0.9
    assert float(direct["recovered"][0, SILENT]) == 0.0
    assert lookup["changed"].sel(head=LOOKUP).all()


@pytest.mark.parametrize(("name", "padded"), covering(["own", "t5"], [False, True]))
def test_paths_through_everything_are_patches(name, padded):
    model, (inputs, other) = build(name), others(name, padded)
    for site, axes in (("encoder.z", ("layer", "head")), ("cross_value", ("layer",)), ("decoder.mlp_out", ("layer",))):
        patched = patch(model, inputs, other, METRIC, site, axes)
        through = path_patch(model, inputs, other, METRIC, site, axes, through="all")
        np.testing.assert_allclose(through["effect"], patched["effect"], rtol=1e-3, atol=1e-5)
    same = {key: value.clone() for key, value in inputs.items()}
    changed = same | {"decoder_input_ids": other["decoder_input_ids"]}
    with pytest.warns(EditHadNoEffect):  # the encoders of both runs read the same source
        found = path_patch(
            model, inputs, changed, METRIC, "encoder.z", ("layer",), receiver="cross_value", receiver_where={"layer": 1}
        )
    assert not found["effect"].any()


@pytest.mark.parametrize("name", ["own", "t5"])
@pytest.mark.parametrize("through", ["residual", "mlp"])
def test_a_path_is_what_edits_by_hand_give(name, through):
    """From a head of the encoder to the values of one layer, with all updates between them frozen."""
    model, (inputs, other) = build(name), others(name, padded=False)
    frozen = ["encoder.attn_out", *(["encoder.mlp_out"] if through == "residual" else [])]
    plain, source = capture(model, inputs, [*frozen, "cross_value"]), capture(model, other, ["encoder.z"])
    receiver = {"layer": 1, "kv_head": 2}
    found = path_patch(
        model, inputs, other, METRIC, "encoder.z", receiver="cross_value", receiver_where=receiver, through=through
    )
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        edits = [replace("encoder.z", source, {"layer": layer, "head": head})]
        for site in frozen:
            later = range(layer + (site == "encoder.attn_out"), 3)
            edits += [replace(site, plain, {"layer": list(later)})] if len(later) else []
        reached = capture(model, inputs, ["cross_value"], edits=edits)
        logits = capture(model, inputs, ["logits"], edits=replace("cross_value", reached, receiver))["logits"]
        assert float(found["value"][layer, head]) == pytest.approx(float(METRIC(logits).mean()), rel=1e-4, abs=1e-5)
    assert (found["changed"] == 1).all()


@pytest.mark.parametrize("name", ["own", "t5"])
def test_the_output_is_reached_directly_from_the_decoder(name):
    model, (inputs, other) = build(name), others(name, padded=False)
    frozen = ["decoder.attn_out", "cross_attn_out", "decoder.mlp_out"]
    plain, source = capture(model, inputs, frozen), capture(model, other, ["cross_z"])
    found = path_patch(model, inputs, other, METRIC, "cross_z")
    for layer, head in ((0, 1), (1, 2)):
        edits = [replace("cross_z", source, {"layer": layer, "head": head})]
        edits += [
            replace(site, plain, {"layer": list(range(layer + (site != "decoder.mlp_out"), 2))})
            for site in frozen
            if site == "decoder.mlp_out" or layer == 0
        ]
        logits = capture(model, inputs, ["logits"], edits=edits)["logits"]
        assert float(found["value"][layer, head]) == pytest.approx(float(METRIC(logits).mean()), rel=1e-4, abs=1e-5)


@pytest.mark.filterwarnings("ignore::mesascope.activations.EditHadNoEffect")
def test_first_order_estimates_are_exact_where_the_model_is_linear(copying):
    model, inputs, _, metric = copying
    for steps in (0, 3):
        found = attribution_patch(model, inputs, zero("cross_z"), metric=metric, steps=steps, compare=True)
        np.testing.assert_allclose(found["estimate"], found["effect"], rtol=1e-4, atol=1e-4)
        assert int(abs(found["estimate"][0]).argmax("head")) == COPYING
        assert float(found["estimate"][0, SILENT]) == 0.0


@pytest.mark.parametrize(
    ("name", "site"),
    covering(["own", "t5"], ["encoder.resid_pre", "encoder.z", "decoder.z", "cross_z", "cross_attn_out"]),
)
def test_integrated_gradients_sum_to_the_effect_of_all_edits_of_a_layer(name, site):
    model, inputs = build(name), pair(*SIDES[name])
    axis = "head" if site.endswith("z") else "pos"
    found = attribution_patch(model, inputs, scale(site, 0.5), ("layer", axis), METRIC, steps=256)["estimate"]
    whole = sweep(model, inputs, scale(site, 0.5), ("layer",), METRIC)["effect"]
    if axis == "head":  # with padding, means by position are over other sequences
        np.testing.assert_allclose(found.sum(axis), whole, rtol=2e-2, atol=1e-4)  # 16 steps err by 20 %, 1,024 by 0.1 %
    first = attribution_patch(model, inputs, scale(site, 1 + 1e-2), ("layer", axis), METRIC, compare=True)
    np.testing.assert_allclose(first["estimate"], first["effect"], rtol=0.1, atol=2e-4)


def test_senders_precede_their_receivers():
    model, (inputs, other) = build("t5"), others("t5", padded=False)

    def find_layers(site, receiver, layer=1, **options):
        where = {"layer": layer}
        found = path_patch(
            model, inputs, other, METRIC, site, ("layer",), receiver=receiver, receiver_where=where, **options
        )
        return found["effect"]["layer"].values.tolist()

    assert find_layers("encoder.z", "cross_value") == [0, 1, 2]
    assert find_layers("encoder.z", "encoder.mlp_out") == [0, 1]
    assert find_layers("encoder.mlp_out", "encoder.query") == [0]
    assert find_layers("decoder.z", "cross_query") == [0, 1]
    assert find_layers("cross_z", "decoder.mlp_hidden") == [0, 1]
    assert find_layers("cross_z", "decoder.query") == [0]
    assert find_layers("cross_value", "cross_z") == [0, 1]
    assert find_layers("cross_value", "cross_query") == [0]
    assert find_layers("encoder.z", "decoder.query", through="all") == [0, 1, 2]
    for site, receiver in (
        ("decoder.z", "cross_value"),
        ("cross_z", "encoder.query"),
        ("decoder.mlp_out", "encoder.z"),
    ):
        with pytest.raises(ValueError, match=f"a sender must precede its receiver, but {site} in all selected layers"):
            find_layers(site, receiver)


def test_what_has_no_meaning_is_refused_by_name():
    model, (inputs, other) = build("t5"), others("t5", padded=False)
    with pytest.raises(
        ValueError, match=r"a site of an encoder-decoder must name its stack, but got z; write encoder\.z"
    ):
        sweep(model, inputs, zero("z"))
    with pytest.raises(
        ValueError, match="through cross-attention alone, which is frozen with through='residual', but the"
    ):
        path_patch(model, inputs, other, METRIC, "encoder.z")
    with pytest.raises(
        ValueError, match="through='mlp', but the receiver is query; choose a receiver such as cross_value"
    ):
        path_patch(
            model,
            inputs,
            other,
            METRIC,
            "encoder.z",
            receiver="decoder.query",
            receiver_where={"layer": 1},
            through="mlp",
        )
    with pytest.raises(ValueError, match="a receiver must be in one layer, but cross_value is selected in 2"):
        path_patch(model, inputs, other, METRIC, "encoder.z", receiver="cross_value")
    with pytest.raises(ValueError, match="must name its stack, but got query"):
        path_patch(model, inputs, other, METRIC, "encoder.z", receiver="query", receiver_where={"layer": 1})
    shorter = {key: value[:, :-1] for key, value in other.items()}
    with pytest.raises(ValueError, match="both runs must have the same number of sequences of the same length"):
        patch(model, inputs, shorter, METRIC, "encoder.z", ("layer",))
    with pytest.raises(
        UnsupportedModel, match="cross_attn_out must exist in every requested layer, but the decoder of"
    ):
        sweep(build("bart"), inputs, zero("cross_attn_out", {"layer": 0}), axes=("layer",), metric=METRIC)
    with pytest.raises(
        UnsupportedModel, match="frozen sites must be available between sender and receiver, but the enc"
    ):
        path_patch(
            build("bart"), inputs, other, METRIC, "encoder.z", receiver="cross_value", receiver_where={"layer": 1}
        )
    with pytest.raises(ValueError, match="patch needs a metric that differs between the runs"):
        patch(model, inputs, other, "loss", "encoder.z", ("layer",))
    embedded = model.get_input_embeddings()(inputs["decoder_input_ids"]).detach()
    vectors = {"input_ids": inputs["input_ids"], "decoder_inputs_embeds": embedded}
    with pytest.raises(
        ValueError, match="metrics of an encoder-decoder need the tokens of the target, but got decoder_in"
    ):
        sweep(model, vectors, zero("encoder.z"), metric=METRIC)
    padded = pair("right")
    with pytest.raises(ValueError, match="must have the padding of the run on the side of the encoder"):
        patch(model, padded, other, METRIC, "cross_value", ("layer",))
