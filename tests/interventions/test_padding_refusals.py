"""Edits, sources and masks that do not fit padded sequences are refused by name."""

import pytest
import torch
from torch.testing import assert_close
from transformers import BatchEncoding

from mesascope.activations import capture
from mesascope.interventions import (
    attribution_patch,
    mean,
    patch,
    path_patch,
    replace,
    resample,
    sweep,
    zero,
)

from .ragged import CLOSE, DIFFERENCE, mean_alone, padded, prompts, values_of
from .test_changes import MODELS


def padded_arguments(texts: list[torch.Tensor], side: str) -> tuple:
    ids, mask = padded(texts, side)
    return (BatchEncoding({"input_ids": ids, "attention_mask": mask}),)


@pytest.mark.parametrize("name", ["llama"])
def test_positions_that_count_from_an_end_of_padding_are_refused(name):
    model, (ids, mask) = MODELS[name], padded(prompts(), "right")
    line = r"where\['pos'\] must not count from the end of sequences that end with padding, but got .*; pad on the left"
    for where in (-1, [0, -2], slice(-3, None), slice(1, -1)):
        for run in (sweep, attribution_patch):
            with pytest.raises(ValueError, match=line):
                run(model, ids, zero("z", {"pos": where}), metric=DIFFERENCE, attention_mask=mask)
        with pytest.raises(ValueError, match=line):
            capture(model, ids, edits=[zero("z", {"pos": where})], attention_mask=mask)
    other, other_mask = padded(prompts(1), "right")
    masks = {"attention_mask": mask, "source_attention_mask": other_mask}
    with pytest.raises(ValueError, match=line):
        patch(model, ids, other, DIFFERENCE, "z", ("layer",), where={"pos": -1}, **masks)
    with pytest.raises(ValueError, match=line):
        path_patch(model, ids, other, DIFFERENCE, receiver="key", receiver_where={"layer": 2, "pos": -1}, **masks)
    ids, mask = padded(prompts(), "left")
    found = sweep(model, ids, zero("z", {"pos": -1}), metric=DIFFERENCE, attention_mask=mask)
    alone = [sweep(model, text, zero("z", {"pos": -1}), metric=DIFFERENCE) for text in prompts()]
    assert_close(values_of(found), mean_alone(alone), **CLOSE)


@pytest.mark.parametrize(("name", "side"), [("llama", "left"), ("llama", "right")])
def test_sources_whose_padding_does_not_fit_are_refused(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    sites = ["z", "pattern", "key", "attn_scores"]
    acts = capture(model, ids, sites, attention_mask=mask)
    forgotten = capture(model, ids, sites)
    shorter, shorter_mask = padded(prompts(1, (5, 7, 5, 7)), side)
    longer = capture(model, *padded_arguments(prompts(1, (6, 8, 6, 8)), side), sites)
    short = capture(model, shorter, sites, attention_mask=shorter_mask)
    for edit, line in (
        (mean("z", forgotten), "must have the attention mask of the run"),
        (replace("z", forgotten), "must have the attention mask of the run"),
        (resample("z", forgotten), "must have the attention mask of the run"),
        (
            replace("z", short),
            r"must have an input .*, but has padding at column \d, where sequence 1",
        ),
        (mean("z", short), "must have an input wherever the run has one"),
        (replace("pattern", short), "must have the same padding as the run.* but sequence 1 has another length"),
        (mean("pattern", acts), "a mean of pattern needs sequences of one length"),
        (mean("attn_scores", acts), "a mean of attn_scores needs sequences of one length"),
    ):
        with pytest.raises(ValueError, match=line):
            sweep(model, ids, edit, ("layer",), DIFFERENCE, attention_mask=mask)
        with pytest.raises(ValueError, match=line):
            capture(model, ids, edits=[edit], attention_mask=mask)
    for edit in (mean("key", acts), replace("key", longer)):
        if side == "left":
            with pytest.raises(ValueError, match="must have the same positions as the run"):
                sweep(model, ids, edit, ("layer",), DIFFERENCE, attention_mask=mask)
        else:
            sweep(model, ids, edit, ("layer",), DIFFERENCE, attention_mask=mask)
    with pytest.raises(ValueError, match="must have the attention mask of the run"):
        sweep(model, ids, mean("z", acts), ("layer",), DIFFERENCE)
    lone = capture(model, shorter[:3], ["z"], attention_mask=shorter_mask[:3])
    with pytest.raises(ValueError, match=r"resample needs two or more .* sequence 1 is the only one with 7 inputs"):
        resample("z", lone)


@pytest.mark.parametrize("name", ["llama"])
def test_masks_that_cannot_be_are_refused(name):
    model, (ids, mask) = MODELS[name], padded(prompts(), "left")
    other, other_mask = padded(prompts(1), "left")
    for run in (patch, path_patch):
        with pytest.raises(ValueError, match="source_attention_mask must be passed too"):
            run(model, ids, other, DIFFERENCE, attention_mask=mask)
        with pytest.raises(ValueError, match=r"^attention_mask must be passed too"):
            run(model, ids, other, DIFFERENCE, source_attention_mask=other_mask)
        with pytest.raises(ValueError, match=r"but got shapes \(4, 9\) and \(4, 8\); pad both to one length"):
            run(model, ids, other[:, 1:], DIFFERENCE, attention_mask=mask)
    empty = mask.clone()
    empty[2] = 0
    with pytest.raises(ValueError, match="a sequence must not be all padding, but sequence 2 is"):
        sweep(model, ids, zero("z"), attention_mask=empty)
    single = mask.clone()
    single[1, :-1] = 0
    with pytest.raises(ValueError, match="loss needs a target that is not padding in every sequence, but sequence 1"):
        sweep(model, ids, zero("z"), attention_mask=single)
    with pytest.raises(ValueError, match="attention_mask must be"):
        sweep(model, ids, zero("z"), attention_mask=mask[:, 1:])
    with pytest.raises(ValueError, match="attention_mask must be given once"):
        sweep(model, BatchEncoding({"input_ids": ids, "attention_mask": mask}), zero("z"), attention_mask=mask)
