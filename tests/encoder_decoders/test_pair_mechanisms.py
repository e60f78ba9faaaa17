"""Sweeps, patching and path patching find look-up and previous-token heads that were set by hand, and no decoy."""

import pytest
import torch

from mesascope.interventions import knock_out_attention, logit_difference, patch, path_patch, sweep, zero

from .hand_set import (
    FIRST_SLOT_TOKEN,
    FIRST_WORD,
    LOOKUP,
    POSITION,
    SHARPNESS,
    SILENT,
    SLOTS,
    SOURCE,
    VOCABULARY,
    WIDTH,
    WORDS,
    build_hand_set,
    label_of_token,
    sequences,
)

LAST = SOURCE - 1  # the position of the last word in the source
PREVIOUS, PREVIOUS_DECOY, UNIFORM = 0, 1, 2  # heads of self-attention of the decoder
pytestmark = pytest.mark.filterwarnings("ignore::mesascope.activations.EditHadNoEffect")


@torch.no_grad()
def build_reading():
    """The model that was set by hand, whose head `SILENT` of cross-attention writes what was looked up.

    Self-attention of the decoder has a head that writes the previous token, one that attends to it and writes nothing,
    and one that writes all earlier tokens alike.
    """
    model = build_hand_set()
    cross, rows = model.layers[0].cross_attention, slice(SILENT * WIDTH, SILENT * WIDTH + VOCABULARY)
    looked_up = slice(POSITION + SOURCE, POSITION + SOURCE + VOCABULARY)
    cross.v_proj.weight[rows].zero_()
    cross.v_proj.weight[rows, looked_up] = torch.eye(VOCABULARY)
    cross.o_proj.weight[:VOCABULARY, rows] = torch.eye(VOCABULARY)
    attention, first = model.layers[0].attention, POSITION + SLOTS
    for head in (PREVIOUS, PREVIOUS_DECOY):
        for pos in range(WORDS):
            attention.q_proj.weight[head * WIDTH + max(pos - 1, 0), first + pos] = SHARPNESS
            attention.k_proj.weight[head * WIDTH + pos, first + pos] = 1.0
    for head in (PREVIOUS, PREVIOUS_DECOY, UNIFORM):
        rows = slice(head * WIDTH, head * WIDTH + VOCABULARY)
        attention.v_proj.weight[rows, :VOCABULARY] = torch.eye(VOCABULARY)
        if head != PREVIOUS_DECOY:
            attention.o_proj.weight[:VOCABULARY, rows] = torch.eye(VOCABULARY)
    return model


def slot_of_label(words):
    return torch.tensor([FIRST_SLOT_TOKEN + label_of_token(int(word)) for word in words])


@pytest.fixture(scope="module")
def looked_up():
    """Two runs whose sources differ in the label of the last word, and the difference of the logits of two slots."""
    source, target, _ = sequences(32)
    other = source.clone()
    for row in range(len(source)):  # a word of another label that has a slot
        candidates = [
            word for word in source[row, SLOTS:-1].tolist() if label_of_token(word) != label_of_token(source[row, -1])
        ]
        other[row, -1] = candidates[0] if candidates else source[row, -1]
    rows = other[:, -1] != source[:, -1]
    assert rows.sum() > 20
    source, other, target = source[rows], other[rows], target[rows]
    runs = [{"input_ids": each, "decoder_input_ids": target} for each in (source, other)]
    return build_reading(), *runs, logit_difference(slot_of_label(source[:, -1]), slot_of_label(other[:, -1]))


def test_the_look_up_head_is_found_and_no_decoy(looked_up):
    model, inputs, other, metric = looked_up
    by_head = sweep(model, inputs, zero("encoder.z"), ("head",), metric)["effect"]
    assert float(by_head[LOOKUP]) < -0.9
    assert not by_head.drop_sel(head=LOOKUP).any()
    hidden = sweep(model, inputs, knock_out_attention("encoder.attn_scores", range(SLOTS)), ("head",), metric)["effect"]
    assert abs(float(hidden[LOOKUP])) > 0.5
    assert not hidden.drop_sel(head=LOOKUP).any()
    by_pos = sweep(model, inputs, zero("encoder.z", {"head": LOOKUP}), ("pos",), metric)["effect"]
    assert float(by_pos[LAST]) < -0.9
    assert (abs(by_pos[:LAST]) < 1e-3).all()  # attention is nearly one-hot
    for site, axis in (("encoder.z", "head"), ("encoder.query", "head"), ("encoder.pattern", "head")):
        recovered = patch(model, inputs, other, metric, site, (axis,))["recovered"]
        assert float(recovered[LOOKUP]) == pytest.approx(1.0, abs=0.02)
        assert not recovered.drop_sel(head=LOOKUP).any()
    values = patch(model, inputs, other, metric, "encoder.value", ("kv_head",))
    assert (
        abs(values["recovered"]) < 1e-6
    ).all()  # those of the slots are the same, and nothing looks up the last word


def test_the_path_from_the_look_up_head_is_found_and_no_decoy(looked_up):
    model, inputs, other, metric = looked_up
    for head in range(4):
        where = {"layer": 0, "kv_head": head}
        found = path_patch(
            model, inputs, other, metric, "encoder.z", ("head",), receiver="cross_value", receiver_where=where
        )["recovered"]
        assert float(found[LOOKUP]) == pytest.approx(float(head == SILENT), abs=0.02)
        assert not found.drop_sel(head=LOOKUP).any()


@pytest.fixture(scope="module")
def previous():
    """Two runs whose targets differ in the token before the last one, and the difference of the logits of the two."""
    source, target, _ = sequences(32)
    other = target.clone()
    other[:, -2] = FIRST_WORD + (target[:, -2] - FIRST_WORD + 1) % (VOCABULARY - FIRST_WORD)
    runs = [{"input_ids": source, "decoder_input_ids": each} for each in (target, other)]
    return build_reading(), *runs, logit_difference(target[:, -2], other[:, -2])


def test_the_previous_token_head_of_the_decoder_is_found_and_no_decoy(previous):
    model, inputs, other, metric = previous
    recovered = patch(model, inputs, other, metric, "decoder.z", ("head",))["recovered"]
    assert int(recovered.argmax("head")) == PREVIOUS
    assert float(recovered[PREVIOUS]) == pytest.approx(6 / 7, abs=0.02)  # the uniform head writes a sixth of it
    assert float(recovered[UNIFORM]) == pytest.approx(1 / 7, abs=0.02)
    assert float(recovered[PREVIOUS_DECOY]) == 0.0
    by_pos = patch(model, inputs, other, metric, "decoder.value", ("kv_head", "pos"))["recovered"]
    assert float(by_pos.sel(kv_head=PREVIOUS, pos=WORDS - 2)) == pytest.approx(6 / 7, abs=0.02)
    assert (abs(by_pos.drop_sel(pos=WORDS - 2)) < 1e-6).all()
    direct = path_patch(model, inputs, other, metric, "decoder.z", ("head",))["recovered"]
    assert float(direct[PREVIOUS]) == pytest.approx(6 / 7, abs=0.02)
    where = {"layer": 0, "kv_head": PREVIOUS}
    paths = path_patch(
        model, inputs, other, metric, "decoder.resid_pre", ("pos",), receiver="decoder.value", receiver_where=where
    )["recovered"]
    assert float(paths[WORDS - 2]) == pytest.approx(6 / 7, abs=0.02)
    ablated = sweep(model, inputs, zero("decoder.z"), ("head",), metric)["effect"]
    assert int(abs(ablated).argmax("head")) == PREVIOUS
    assert float(ablated[PREVIOUS_DECOY]) == 0.0
