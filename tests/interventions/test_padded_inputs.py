"""Padded inputs in every form, and metrics, objectives and edits that leave padding out."""

from dataclasses import replace as with_other

import pytest
import torch
import xarray as xr
from torch.testing import assert_close
from transformers import BatchEncoding, LlamaForCausalLM

from mesascope.activations import Edit, UnsupportedModel, capture
from mesascope.interventions import (
    Metric,
    attribution_patch,
    logit_difference,
    patch,
    path_patch,
    sweep,
    total_head_contributions,
    zero,
)
from mesascope.interventions.head_ablation_effects import head_ablation_effects
from mesascope.interventions.metrics import kl_divergence, loss, task_loss
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch

from .ragged import CLOSE, DIFFERENCE, WIDTH, both_models, mean_alone, padded, prompts, values_of
from .test_changes import MODELS


@pytest.mark.parametrize(("name", "side"), [("gpt2", "left")])
def test_every_form_of_inputs_is_taken(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    found = values_of(sweep(model, ids, zero("z"), attention_mask=mask))
    encoding = BatchEncoding({"input_ids": ids, "attention_mask": mask})
    for inputs in (encoding, BatchEncoding({"input_ids": ids.tolist(), "attention_mask": mask.tolist()})):
        assert torch.equal(values_of(sweep(model, inputs, zero("z"))), found)
    assert torch.equal(values_of(sweep(model, ids.int(), zero("z"), attention_mask=mask.bool().numpy())), found)
    other, other_mask = padded(prompts(1), side)
    source = BatchEncoding({"input_ids": other, "attention_mask": other_mask})
    masks = {"attention_mask": mask, "source_attention_mask": other_mask}
    for run in (patch, path_patch):
        tensors = run(model, ids, other, DIFFERENCE, "mlp_out", ("layer",), **masks)
        xr.testing.assert_equal(run(model, encoding, source, DIFFERENCE, "mlp_out", ("layer",)), tensors)
    estimates = attribution_patch(model, ids, zero("z"), metric=DIFFERENCE, attention_mask=mask)
    xr.testing.assert_equal(attribution_patch(model, encoding, zero("z"), metric=DIFFERENCE), estimates)
    assert head_ablation_effects(model, encoding, DIFFERENCE).effect.shape == (3, 4, 2, 4)
    assert total_head_contributions(model, encoding).shape == (3, 4, 4, WIDTH, 20)


@pytest.mark.parametrize("name", ["llama"])
def test_small_integers_are_tokens_answers_and_targets(name):
    model, text = MODELS[name], torch.cat(prompts(lengths=(8, 8)))
    answers, output = torch.tensor([3, 4]), capture(model, text)["output"]
    edit, expected = zero("mlp_out"), loss(text)(output)
    for given in (text.int(), text.short()):
        assert torch.equal(loss(given)(output), expected)
        xr.testing.assert_equal(sweep(model, given, edit, ("layer",)), sweep(model, text, edit, ("layer",)))
    metrics = logit_difference(answers.int(), answers.to(torch.uint8) + 1), logit_difference(answers, answers + 1)
    assert torch.equal(*(metric(output) for metric in metrics))
    targets = Batch(inputs=text, targets=text.roll(-1, 1), weight=torch.ones(2, 8))
    small = with_other(targets, targets=targets.targets.int())
    xr.testing.assert_equal(*(sweep(model, one, edit, ("layer",)) for one in (small, targets)))


@both_models
def test_metrics_of_several_positions_leave_out_padding(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)

    def norm(output, attention_mask=None):
        weight = torch.ones(output.shape[:2]) if attention_mask is None else attention_mask
        return (output.norm(dim=-1) * weight).sum(1) / weight.sum(1)

    found = sweep(model, ids, zero("z"), metric=norm, attention_mask=mask)
    assert_close(
        values_of(found), mean_alone([sweep(model, text, zero("z"), metric=norm) for text in prompts()]), **CLOSE
    )
    last = Metric(name="last", units="logit", description="a logit", fn=lambda y: y[:, -1, 7], last_position_only=True)
    found = sweep(model, ids, zero("z"), metric=last, attention_mask=mask)
    assert_close(
        values_of(found), mean_alone([sweep(model, text, zero("z"), metric=last) for text in prompts()]), **CLOSE
    )
    for metric, line in ((lambda y: y[:, -1, 7], "the metric <lambda> must leave it out"), (min, "metric min must")):
        for run in (sweep, attribution_patch):
            with pytest.raises(ValueError, match=line):
                run(model, ids, zero("z"), ("layer",), metric, attention_mask=mask)
    outputs = capture(model, ids, attention_mask=mask)["output"]
    assert_close(kl_divergence(outputs)(outputs, mask), torch.zeros(4).double(), **CLOSE)


@both_models
def test_a_batch_of_a_task_can_have_padding(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    weight = torch.rand(4, WIDTH, generator=torch.Generator().manual_seed(0)) + 0.1
    batch = Batch(inputs=ids, targets=ids.flip(1), weight=weight)
    found = sweep(model, batch, zero("z"), attention_mask=mask)
    own = [
        Batch(inputs=ids[row, real][None], targets=ids.flip(1)[row, real][None], weight=weight[row, real][None])
        for row, real in enumerate(mask.bool())
    ]
    assert_close(values_of(found), mean_alone([sweep(model, one, zero("z")) for one in own]), **CLOSE)
    gradient = capture(model, batch, ["resid_pre_grad"], attention_mask=mask)["resid_pre_grad"]
    expected, row, real = capture(model, own[0], ["resid_pre_grad"])["resid_pre_grad"], 0, mask[0].bool()
    assert_close(gradient[:, row, real], expected[:, 0], **CLOSE)
    assert not gradient[:, row, ~real].any()


@both_models
def test_an_objective_reads_the_last_position_that_is_no_padding(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    found = capture(model, ids, ["mlp_out_grad"], objective=DIFFERENCE, attention_mask=mask)["mlp_out_grad"]
    for row, text in enumerate(prompts()):
        alone = capture(model, text, ["mlp_out_grad"], objective=DIFFERENCE)["mlp_out_grad"]
        assert_close(found[:, row, mask[row].bool()], alone[:, 0], **CLOSE)
    with pytest.raises(ValueError, match="with padding, an objective must leave it out"):
        capture(model, ids, ["mlp_out_grad"], objective=lambda y: y[:, -1, 3], attention_mask=mask)


@both_models
def test_an_edit_never_reaches_padding(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    plain = capture(model, ids, ["pattern"], attention_mask=mask)
    flat = Edit(site="pattern", fn=lambda old: torch.full_like(old, 0.1))  # on padding, too, if it could
    edited = capture(model, ids, ["pattern", "output"], edits=[flat], attention_mask=mask, batch_size=3)
    real = mask.bool()
    pairs = (real[:, None, :, None] & real[:, None, None]).expand(4, 4, WIDTH, WIDTH)
    assert torch.equal(edited["pattern"][0, ~pairs], plain["pattern"][0, ~pairs])
    for row, text in enumerate(prompts()):
        alone = capture(model, text, ["output"], edits=[flat])["output"]
        assert_close(edited["output"][row, real[row]], alone[0], **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_vectors_can_have_padding_and_a_loss_of_a_task_refuses_it(side):
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(d_in=2, d_out=2, hidden_size=16, max_position_embeddings=20, initializer_range=0.5))
    x = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(0))
    kept = slice(3, 7) if side == "left" else slice(4)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0] = 0
    mask[0, kept] = 1
    found = sweep(model, x, zero("z"), metric="squared_distance", attention_mask=mask)
    alone = [sweep(model, one, zero("z"), metric="squared_distance") for one in (x[:1, kept], x[1:])]
    assert_close(values_of(found), mean_alone(alone), **CLOSE)
    metric = task_loss(Affine(), Batch(inputs=x, targets=x, weight=torch.ones(2, 7)))
    with pytest.raises(
        ValueError, match="with padding, the metric loss must leave it out, but takes no attention_mask"
    ):
        sweep(model, x, zero("z"), metric=metric, attention_mask=mask)


def test_a_model_whose_padding_changes_its_output_is_refused():
    class SeesPadding(LlamaForCausalLM):
        def forward(self, input_ids=None, attention_mask=None, **given):
            return super().forward(input_ids, **given)

    model, (ids, mask) = SeesPadding(MODELS["llama"].config).eval(), padded(prompts(), "left")
    with pytest.raises(UnsupportedModel, match=r"padding must not change .*; pass sequences of one length"):
        sweep(model, ids, zero("z"), ("layer",), DIFFERENCE, attention_mask=mask)
