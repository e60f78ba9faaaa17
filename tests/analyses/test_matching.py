"""Errors told apart by label and by output, and attention to what is like the thing asked."""

from dataclasses import replace

import pytest
import torch

from mesascope.activations import capture
from mesascope.analyses import error_by_label, error_by_output, loss_vs_baselines, run_analyses, same_label_attention
from mesascope.ground_truth.models.tokens import (
    PLANTED_HEADS,
    TOKEN_DECOYS,
    TOKEN_MECHANISMS,
    VOCABULARY,
    build_planted_language_model,
)
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.studies.induction_heads.task import Grams
from mesascope.tasks.base import Batch
from mesascope.tasks.functions import LinearFunctions
from mesascope.tasks.regression import OneHotInputs, Regression
from mesascope.testing import check_analysis, check_task

TASK = Regression(
    dim=4,
    num_examples=6,
    layout="joined",
    one_hot_inputs=OneHotInputs(dominant=0.5),
    functions=LinearFunctions(scale=2.0),
)


def model(task=TASK, **changes):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 40}
    return Decoder(DecoderConfig(d_in=task.input_dim, d_out=1, **(shape | changes))).eval()


def batch(task=TASK, count=300):
    return task.sample(count, torch.Generator().manual_seed(0))


def test_errors_by_label_are_those_of_the_sequences_with_that_label():
    drawn, opened = batch(), model()
    recorded = capture(opened, drawn, ["output"], baselines=TASK.baselines(drawn))
    found = error_by_label(recorded, of="feature")["error"]
    assert found["stat"].values.tolist() == [f"feature {k}" for k in range(4)]
    wrong = TASK.loss(opened(drawn.inputs).logits, drawn)[:, -1]
    asked = drawn.latents["feature"][:, -1]
    for kind in range(4):
        assert float(found.sel(predictor="model", stat=f"feature {kind}")) == pytest.approx(
            wrong[asked == kind].mean().item(), rel=1e-5
        )
    every = sum(
        float(found.sel(predictor="model", stat=f"feature {k}")) * (asked == k).float().mean() for k in range(4)
    )
    whole = float(loss_vs_baselines(recorded)["scored"].sel(predictor="model"))
    assert every.item() == pytest.approx(whole, rel=1e-5)


def test_least_squares_is_right_where_the_feature_was_shown():
    drawn = batch()
    error = error_by_label(capture(model(), drawn, ["output"], baselines=TASK.baselines(drawn)), of="feature")["error"]
    known = error.sel(predictor="least squares")
    assert float(known.sel(stat="feature 0")) < float(known.sel(stat="feature 3"))  # rarely shown among six


def test_a_label_that_is_not_there_is_refused():
    recorded = capture(model(), batch(), ["output", "pattern"])
    for each in (error_by_label, same_label_attention):
        with pytest.raises(
            ValueError, match=r"a label must be among those of the batch \(feature\), but got 'generator'"
        ):
            each(recorded, of="generator")
    with pytest.raises(ValueError, match=r"it has none"):
        error_by_label(capture(model(), batch().inputs, ["output"]), of="feature")


def test_errors_by_output_add_up_to_the_whole():
    task = Grams(length=8)
    drawn = batch(task, 50)
    opened = Decoder(DecoderConfig(d_in=1, d_out=2, hidden_size=16, num_attention_heads=2)).eval()
    found = run_analyses(opened, drawn, [loss_vs_baselines, error_by_output], baselines=task.baselines(drawn))
    parts = found["error_by_output"]["error"]
    whole = found["loss_vs_baselines"]["scored"]
    for name in ("model", "exact target", "4-gram only"):
        assert float(parts.sel(predictor=name).sum()) == pytest.approx(
            float(whole.sel(predictor=name)), abs=1e-7, rel=1e-5
        )
    assert float(parts.sel(predictor="4-gram only")[0]) == pytest.approx(0, abs=1e-9)


def test_errors_by_output_need_vectors():
    tokens = torch.zeros(2, 5, dtype=torch.long)
    opened = Decoder(DecoderConfig(vocab_size=7, hidden_size=16, num_attention_heads=2)).eval()
    recorded = capture(opened, Batch(inputs=tokens, targets=tokens, weight=torch.ones(2, 5)), ["output"])
    with pytest.raises(ValueError, match=r"needs vector targets"):
        error_by_output(recorded)


def test_attention_by_label_is_what_patterns_say():
    drawn = batch(count=20)
    recorded = capture(model(), drawn, ["pattern"])
    found = same_label_attention(recorded, of="feature")["attention"]
    asked, pattern = drawn.latents["feature"], recorded["pattern"]
    for kind in asked[:, -1].unique().tolist():
        rows = [row for row in range(20) if asked[row, -1] == kind]
        mass = [sum(pattern[1, row, 0, -1, k] for k in range(6) if asked[row, k] == kind) for row in rows]
        mean = sum(float(each) for each in mass) / len(rows)
        assert float(found.sel(layer=1, head=0, stat=f"feature {kind}")) == pytest.approx(mean, rel=1e-5)


def sequences(count=40):
    """Few tokens drawn again and again, each its own label."""
    generator = torch.Generator().manual_seed(0)
    allowed = torch.randperm(VOCABULARY - 1, generator=generator)[:6] + 1
    tokens = allowed[torch.randint(6, (count, 33), generator=generator)]
    weight = torch.zeros(tokens.shape)
    weight[:, 20:] = 1
    return Batch(inputs=tokens, targets=tokens, weight=weight, latents={"token": tokens})


def test_heads_that_look_for_the_like_are_found_and_decoys_have_their_null():
    found = run_analyses(build_planted_language_model(), sequences(), [same_label_attention.using(of="token")])[
        "same_label_attention"
    ].mean("stat")
    above = found["attention"] - found["attention_null"]
    heads = {place for place, each in PLANTED_HEADS.items() if each is TOKEN_MECHANISMS["duplicate token"]}
    assert {place for place in PLANTED_HEADS if float(above[place]) > 0.5} == heads
    (decoy,) = (place for place, each in PLANTED_HEADS.items() if each is TOKEN_DECOYS["as far back as a duplicate"][1])
    assert abs(float(above[decoy])) < 0.1


def test_uniform_attention_has_its_null():
    opened = model()
    with torch.no_grad():
        for name, parameter in opened.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.zero_()
    drawn = batch(replace(TASK, one_hot_inputs=OneHotInputs()), 2000)
    found = same_label_attention(capture(opened, drawn, ["pattern"]), of="feature")
    assert abs(found["attention"] - found["attention_null"]).max() < 0.02


def test_they_conform():
    drawn = batch(count=32)
    for each in (error_by_label.using(of="feature"), same_label_attention.using(of="feature")):
        check_analysis(each, model(), drawn)
    check_analysis(error_by_output, model(), drawn)
    with pytest.raises(ValueError, match=r"two sequences or more"):
        same_label_attention(capture(model(), batch(count=1), ["pattern"]), of="feature")


@pytest.mark.parametrize("layout", ["joined", "alternating"])
def test_unit_vectors_are_drawn_and_labelled(layout):
    task = replace(TASK, layout=layout)
    check_task(task)
    drawn = task.sample(2000, torch.Generator().manual_seed(0))
    feature = drawn.latents["feature"]
    assert feature.shape == drawn.weight.shape
    asked = slice(None) if layout == "joined" else slice(None, None, 2)
    x = drawn.inputs[:, asked, :4]
    assert (x.argmax(-1) == feature[:, asked]).all()
    assert (x.sum(-1) == 1).all()
    share = feature[:, asked].flatten().bincount(minlength=4) / feature[:, asked].numel()
    assert share.tolist() == pytest.approx([0.5, 1 / 6, 1 / 6, 1 / 6], abs=0.02)
    assert drawn.targets[:, asked].square()[drawn.weight[:, asked] > 0].mean().item() == pytest.approx(1, abs=0.1)
    assert "normal inputs" in task.distribution_shifts()
    assert "correlated inputs" not in task.distribution_shifts()


def test_what_is_no_share_is_refused():
    with pytest.raises(ValueError, match=r"dominant must lie between 0 and 1"):
        OneHotInputs(dominant=1.5)
    with pytest.raises(ValueError, match=r"skew must be 0 for one-hot inputs"):
        replace(TASK, skew=1.0)
