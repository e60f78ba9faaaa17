"""Captures of encoder-decoders are those of the untouched model: logits, streams, attention, sums, padding."""

import pickle

import pytest
import torch
from torch.testing import assert_close
from transformers import BartForCausalLM

from mesascope.activations import SITES, Capture, EncoderDecoderCapture, NotRecorded, UnsupportedModel, capture
from mesascope.activations.hooks import _attention_math as attention_math
from mesascope.models.transformer import Decoder, DecoderConfig

from .pairs import CROSS_HEADS, HEADS, PRE_NORM, SMALL_BART, SOURCE, STREAM, TARGET, UPDATES, build, offered, pair, run

NAMES = ("own", "t5", "bart", "marian", "pegasus")


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return build(name)


@pytest.fixture(scope="module")
def acts(name, model):
    return capture(model, pair(), offered(name))


def test_logits_are_bitwise_those_of_the_model(model, acts):
    assert isinstance(acts, EncoderDecoderCapture)
    assert torch.equal(acts["logits"], run(model, pair()).logits)
    assert acts.encoder.attn_implementation == "sdpa"


def test_an_eager_capture_is_the_eager_pass_bit_for_bit(name, model, acts):
    eager = capture(model, pair(), ["pattern", "cross_pattern", "logits"], attn_implementation="eager")
    assert (eager.decoder.attn_implementation, model.config._attn_implementation) == ("eager", "sdpa")
    assert torch.equal(eager["logits"], run(build(name, "eager"), pair()).logits)
    for site in ("encoder.pattern", "decoder.pattern", "cross_pattern"):
        assert_close(eager[site], acts[site], rtol=1e-4, atol=1e-6)


def test_axes_have_the_lengths_of_their_stacks(acts):
    assert acts.encoder["pattern"].shape[-2:] == (SOURCE, SOURCE)
    assert acts.decoder["pattern"].shape[-2:] == (TARGET, TARGET)
    assert acts["cross_pattern"].shape[-2:] == (TARGET, SOURCE)
    assert acts["cross_value"].shape[3] == SOURCE
    for stack in (acts.encoder, acts.decoder):
        for site, value in stack.items():
            assert value.ndim == len(stack.axes[site])
    assert acts.decoder.to_xarray("cross_pattern").dims == ("layer", "batch", "head", "query", "source")
    assert torch.equal(acts["encoder.z"], acts.encoder["z"])
    assert torch.equal(acts["decoder.z"], acts.decoder["z"])
    assert {name for name in acts if name.startswith("encoder.")} == {f"encoder.{site}" for site in acts.encoder}


def test_the_stream_runs_through_the_layers(acts):
    for stack in (acts.encoder, acts.decoder):
        assert torch.equal(stack["resid_post"][:-1], stack["resid_pre"][1:])


def test_weights_mix_the_values_and_are_the_softmax_of_the_scores(acts):
    for stack, prefix in ((acts.encoder, ""), (acts.decoder, ""), (acts.decoder, "cross_")):
        pattern, value, z = (stack[f"{prefix}{site}"] for site in ("pattern", "value", "z"))
        for layer in range(len(pattern)):
            assert_close(attention_math.mix_values(pattern[layer], value[layer]), z[layer], rtol=1e-4, atol=1e-5)
        assert_close(stack[f"{prefix}attn_scores"].softmax(-1), pattern, rtol=1e-4, atol=1e-6)
        assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
    assert (acts.decoder["pattern"].triu(1) == 0).all()
    assert (acts.encoder["pattern"] > 0).all()
    assert (acts["cross_pattern"] > 0).all()


@pytest.mark.parametrize("name", PRE_NORM, indirect=True)
def test_updates_sum_to_the_change_of_the_stream(acts):
    encoder, decoder = acts.encoder, acts.decoder
    total = encoder["resid_pre"] + encoder["attn_out"]
    assert_close(total, encoder["resid_mid"], rtol=1e-5, atol=1e-5)
    assert_close(total + encoder["mlp_out"], encoder["resid_post"], rtol=1e-5, atol=1e-5)
    total = decoder["resid_pre"] + decoder["attn_out"]
    assert_close(total, decoder["resid_mid"], rtol=1e-5, atol=1e-5)
    total = total + decoder["cross_attn_out"]
    assert_close(total, decoder["cross_resid_mid"], rtol=1e-5, atol=1e-5)
    assert_close(total + decoder["mlp_out"], decoder["resid_post"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PRE_NORM, indirect=True)
def test_heads_sum_to_the_updates_of_all_three_attentions(acts):
    for stack in (acts.encoder, acts.decoder):
        total = stack.head_out().sum(2) + stack.readout.output_bias[:, None, None]
        assert_close(total, stack["attn_out"], rtol=1e-4, atol=1e-5)
    total = acts.decoder.head_out("cross_z").sum(2) + acts.decoder.readout.cross_output_bias[:, None, None]
    assert_close(total, acts["cross_attn_out"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PRE_NORM, indirect=True)
def test_contributions_to_the_logits_sum_to_the_logits(acts):
    decoder, readout = acts.decoder, acts.decoder.readout
    updates = [decoder[site] for site in ("attn_out", "cross_attn_out", "mlp_out")]
    parts = torch.cat([decoder["resid_pre"][:1], *updates])
    total = readout.attribute_logits(parts, decoder["resid_post"][-1]).sum(0) + readout.readout_bias
    assert_close(total, acts["logits"], rtol=1e-4, atol=1e-4)
    assert torch.equal(readout.compute_output(decoder["resid_post"][-1]), acts["logits"])


@pytest.mark.parametrize("name", PRE_NORM, indirect=True)
def test_the_unembedding_reads_the_final_norm_of_the_decoder(acts):
    assert acts["final_norm"].shape == acts.decoder["resid_post"][-1].shape
    assert torch.equal(acts.decoder.readout.output_head(acts["final_norm"], 1), acts["logits"])
    assert "final_norm" not in acts.encoder


def test_the_final_norm_is_of_the_decoder_alone(model):
    with pytest.raises(ValueError, match=r"final_norm must be a site of the decoder, but got encoder\.final_norm"):
        capture(model, pair(), ["encoder.final_norm"])


@pytest.mark.parametrize("name", ["bart", "marian"], indirect=True)
def test_post_norm_decoders_have_no_final_norm(model):
    with pytest.raises(UnsupportedModel, match="final_norm must be the output of a norm that the unembedding reads"):
        capture(model, pair(), ["final_norm"])


@pytest.mark.parametrize("name", ["bart", "marian"], indirect=True)
def test_post_norm_blocks_have_no_updates(name, model):
    for site in UPDATES:
        with pytest.raises(UnsupportedModel, match="no module outputs sum to the layer's change"):
            capture(model, pair(), [f"decoder.{site}"])
    with pytest.raises(UnsupportedModel, match="no module outputs sum to the layer's change"):
        capture(model, pair(), ["encoder.attn_out"])


@pytest.mark.parametrize("name", ["t5", "bart", "marian", "pegasus"], indirect=True)
@pytest.mark.parametrize("sides", [("", ""), ("right", "right")])
def test_the_model_returns_the_same_streams_and_weights_in_eager_mode(name, sides):
    model, inputs = build(name, "eager"), pair(*sides)
    acts = capture(model, inputs, [*STREAM, "pattern", "cross_pattern", "logits"])
    told = run(model, inputs, output_attentions=True, output_hidden_states=True)
    assert torch.equal(acts["logits"], told.logits)
    for site, stack, weights in (
        ("pattern", acts.encoder, told.encoder_attentions),
        ("pattern", acts.decoder, told.decoder_attentions),
        ("cross_pattern", acts.decoder, told.cross_attentions),
    ):
        assert_close(stack[site], torch.stack(weights), rtol=1e-5, atol=1e-6)
    for stack, streams in ((acts.encoder, told.encoder_hidden_states), (acts.decoder, told.decoder_hidden_states)):
        depth = len(stack["resid_pre"])
        assert torch.equal(stack["resid_pre"], torch.stack(streams[:depth]))


def test_position_biases_are_in_the_scores():
    model = build("t5")
    acts = capture(model, pair(), ["query", "key", "attn_scores", "cross_query", "cross_key", "cross_attn_scores"])
    for stack, part in ((acts.encoder, model.encoder), (acts.decoder, model.decoder)):
        attention, length = part.block[0].layer[0].SelfAttention, stack["query"].shape[3]
        bias = attention.compute_bias(length, length).detach()
        scores = stack["query"] @ stack["key"].mT + bias
        finite = stack["attn_scores"].isfinite()
        assert_close(stack["attn_scores"][finite], scores[finite], rtol=1e-4, atol=1e-4)
        assert float(bias.abs().amax()) > 0.01
    assert_close(acts["cross_attn_scores"], acts["cross_query"] @ acts["cross_key"].mT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target_side", ["", "right", "left"])
@pytest.mark.parametrize("source_side", ["", "right", "left"])
@pytest.mark.parametrize("name", ["own", "t5", "bart"], indirect=True)
def test_padding_changes_nothing_at_other_positions_or_is_refused(name, model, source_side, target_side):
    inputs = pair(source_side, target_side)
    counted_from_the_left = name == "bart"  # positions are embedded by column
    if counted_from_the_left and "left" in (source_side, target_side):
        side = "source" if source_side == "left" else "target"
        with pytest.raises(UnsupportedModel, match=f"padding of the {side} must not change what is computed"):
            capture(model, inputs, ["logits"])
        return
    acts = capture(model, inputs, ["resid_post", "pattern", "cross_pattern", "logits"])
    assert torch.equal(acts["logits"], run(model, inputs).logits)
    real = [
        inputs.get(key, torch.ones(3, size)).bool()
        for key, size in (("attention_mask", SOURCE), ("decoder_attention_mask", TARGET))
    ]
    for row in range(3):
        source, target = (each[row] for each in real)
        assert not acts["cross_pattern"][:, row][..., ~source].any()
        assert not acts.encoder["pattern"][:, row][..., ~source].any()
        if name == "own":
            continue  # its source has a fixed length
        alone = {
            "input_ids": inputs["input_ids"][row : row + 1, source],
            "decoder_input_ids": inputs["decoder_input_ids"][row : row + 1, target],
        }
        assert_close(acts["logits"][row, target], run(model, alone).logits[0], rtol=1e-4, atol=1e-4)


def test_padding_tokens_are_padding_without_a_mask_in_own_models():
    model, inputs = build("own"), pair("right", "right")
    tokens = torch.cat([inputs["input_ids"], inputs["decoder_input_ids"]], 1)
    acts = capture(model, tokens, ["logits", "cross_pattern"])
    assert torch.equal(acts.encoder.attention_mask, inputs["attention_mask"])
    assert torch.equal(acts.decoder.attention_mask, inputs["decoder_attention_mask"])
    assert torch.equal(acts.decoder.source_mask, inputs["attention_mask"])
    assert torch.equal(acts["logits"], model(tokens).logits[:, SOURCE:])


def test_micro_batches_and_selected_layers_record_the_same(name, model, acts):
    parts = capture(
        model, pair(), ["pattern", "cross_z", "logits"], batch_size=2, layers={"encoder": [2, 0], "decoder": None}
    )
    assert_close(parts.encoder["pattern"], acts.encoder["pattern"][[2, 0]], rtol=1e-4, atol=1e-5)
    assert_close(parts["cross_z"], acts["cross_z"], rtol=1e-4, atol=1e-5)
    only = capture(model, pair(), ["pattern"], layers={"encoder": None})
    assert list(only) == ["encoder.pattern"]


def test_what_is_not_recorded_is_said(acts):
    with pytest.raises(NotRecorded, match=r"write encoder.pattern or decoder.pattern"):
        acts["pattern"]
    with pytest.raises(NotRecorded, match="'logits' was not recorded"):
        acts.encoder["logits"]
    assert pickle.loads(pickle.dumps(acts)).decoder["cross_z"].shape == acts["cross_z"].shape


@pytest.mark.parametrize(
    ("sites", "options", "error", "message"),
    [
        (["encoder.cross_z"], {}, ValueError, "cross_z must be a site of the decoder"),
        (["encoder.logits"], {}, ValueError, "logits must be a site of the decoder"),
        (["encoder.nonsense"], {}, ValueError, "a site must be one of"),
        (["encoder.cross_attn_out_grad"], {}, ValueError, "cross_attn_out_grad must be a site of the decoder"),
        (["memory_z"], {}, UnsupportedModel, "memory_z needs a model that processes chunks of positions"),
        (["num_steps"], {}, UnsupportedModel, "num_steps needs a model that returns halting_probabilities"),
        (["z"], {"queries": [0]}, ValueError, "queries= must be omitted for an encoder-decoder"),
        (["z"], {"iterations": [0]}, ValueError, "iterations= must be omitted for an encoder-decoder"),
        (["z"], {"layers": {"middle": [0]}}, ValueError, "layers must be by encoder and decoder"),
        (["encoder.z"], {"layers": {"decoder": [0]}}, ValueError, "encoder.z must be in a stack that layers= names"),
        (["z"], {"layers": [2]}, ValueError, "layers must lie within the 2 layers"),
        (["z"], {"attention_mask": torch.ones(3, SOURCE)}, ValueError, "move it into the mapping"),
    ],
)
def test_requests_that_have_no_meaning_are_refused(sites, options, error, message):
    with pytest.raises(error, match=message):
        capture(build("t5"), pair(), sites, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_input_ids": None}, "inputs must have either decoder_input_ids or decoder_inputs_embeds"),
        ({"labels": torch.ones(3, 4).long()}, "prepare_decoder_input_ids_from_labels"),
        ({"head_mask": torch.ones(3)}, "would not be read: head_mask"),
        ({"decoder_input_ids": torch.ones(2, 4).long()}, "as many sequences, but got 3 and 2"),
        ({"input_ids": torch.full((3, 5), VOCABULARY_SIZE := 40)}, "tokens must be from 0 to 39, but got 40"),
        ({"input_ids": torch.ones(3, 5)}, "input_ids must be integers"),
        ({"attention_mask": torch.zeros(3, SOURCE)}, "a source must not be all padding, but that of sequence 0 is"),
        ({"decoder_attention_mask": torch.ones(3, 2)}, r"decoder_attention_mask must be \(batch, pos\)"),
        ({"inputs_embeds": torch.ones(3, 5, 32)}, "either input_ids or inputs_embeds"),
    ],
)
def test_inputs_that_are_wrong_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        capture(build("t5"), pair() | changes, ["logits"])


def test_tokens_alone_are_refused_with_advice():
    with pytest.raises(ValueError, match="must have a source and a target, but got a Tensor; pass a mapping with"):
        capture(build("t5"), pair()["input_ids"], ["logits"])


def test_models_with_one_stack_lack_the_sites_of_two():
    model, x = Decoder(DecoderConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)), torch.ones(2, 5).long()
    with pytest.raises(UnsupportedModel, match="the layer has no cross-attention"):
        capture(model, x, ["cross_pattern"])
    with pytest.raises(UnsupportedModel, match=r"encoder\.z must be a site of an encoder-decoder"):
        capture(model, x, ["encoder.z"])
    with pytest.raises(ValueError, match="layers by stack need an encoder-decoder"):
        capture(model, x, ["z"], layers={"encoder": [0]})


def test_a_decoder_of_a_family_of_encoder_decoders_is_captured_as_before():
    settings = {key: value for key, value in SMALL_BART.items() if not key.startswith("encoder_l")}
    model = BartForCausalLM._from_config(type(build("bart").config)(**settings)).eval()
    acts = capture(model, pair()["input_ids"], ["pattern", "logits"])
    assert isinstance(acts, Capture)


def test_other_tools_refuse_encoder_decoders_by_name():
    from mesascope.interventions import head_ablation_effects, logit_difference, total_head_contributions

    for model, inputs in ((build("t5"), pair()), (build("own"), torch.ones(2, 15).long())):
        with pytest.raises(UnsupportedModel, match="is an encoder-decoder; use capture, its edits"):
            head_ablation_effects(model, inputs, logit_difference(3, 4))
        with pytest.raises(UnsupportedModel, match="is an encoder-decoder; use capture, its edits"):
            total_head_contributions(model, inputs)


def test_every_site_of_a_stack_is_offered_or_explained():
    names = {site for site in SITES if not site.endswith("_grad")} - {"output"}
    assert names | set(CROSS_HEADS) | set(UPDATES) == set(offered("t5"))
    assert set(HEADS) < names
