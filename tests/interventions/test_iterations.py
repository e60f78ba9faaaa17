"""Sweeps over the iterations of models that repeat their layers; other interventions refuse such models by name."""

import numpy as np
import pytest
import torch
from torch import Tensor

import small
from mesascope import capture
from mesascope.activations import BatchedEdits, UnsupportedModel
from mesascope.interventions import (
    head_ablation_effects,
    log_probability,
    mean,
    patch,
    path_patch,
    sweep,
    total_head_contributions,
    zero,
)
from mesascope.models.recurrent.unroll import unroll_steps
from recurrent_models import recurrent, some_tokens


def last_logit(output: Tensor) -> Tensor:
    return output[:, -1, 3]


@pytest.mark.parametrize("site", ["z", "resid_post"])
def test_a_sweep_over_iterations_is_that_over_the_layers_of_the_unrolled_copy(site):
    model, x = recurrent("UT without halting", num_hidden_layers=2, max_iterations=3), some_tokens()
    more = ("head",) if site == "z" else ("pos",)
    found = sweep(model, x, zero(site), axes=("iteration", "layer", *more), metric=last_logit)
    expected = sweep(unroll_steps(model), x, zero(site), axes=("layer", *more), metric=last_logit)
    assert found["effect"].dims == ("iteration", "layer", *more)
    for name in ("effect", "value", "changed"):
        values = found[name].values.reshape(expected[name].shape)
        np.testing.assert_allclose(values, expected[name].values, rtol=1e-4, atol=1e-6)
    assert found["changed"].all()


@pytest.mark.parametrize("kind", ["UT", "GUT"])
@pytest.mark.parametrize("side", ["none", "left"])
def test_a_sweep_of_a_model_that_halts_measures_what_edits_of_captures_do(kind, side):
    model, x, mask = recurrent(kind, max_iterations=6, halting_threshold=0.99), some_tokens(), None
    if side == "left":
        mask = torch.ones_like(x).index_put((torch.tensor([0]), torch.tensor([0])), torch.tensor(0))
    ran = int(capture(model, x, ["z"], attention_mask=mask).iterations_run.max())
    assert ran == (4 if kind == "UT" else 6)
    found = sweep(model, x, zero("z"), axes=("iteration", "head"), metric="kl_divergence", attention_mask=mask)
    plain = capture(model, x, ["logits"], attention_mask=mask)["logits"].log_softmax(-1)
    real = torch.ones_like(x, dtype=torch.float) if mask is None else mask.float()
    for iteration in range(6):
        for head in range(2):
            one = found.sel(iteration=iteration, head=head)
            assert one["changed"] == (iteration < ran)
            if iteration >= ran:
                assert one["effect"] == 0
                continue
            edit = zero("z", {"iteration": iteration, "head": head})
            edited = capture(model, x, ["logits"], edits=edit, attention_mask=mask)["logits"].log_softmax(-1)
            kl = (plain.exp() * (plain - edited)).sum(-1)
            expected = ((kl * real).sum(1) / real.sum(1)).mean()
            assert float(one["value"]) == pytest.approx(float(expected), rel=1e-3, abs=1e-6)


def test_an_edit_without_iterations_is_applied_in_every_one():
    model, x = recurrent("UT without halting", max_iterations=3), some_tokens()
    ablation = mean("z", capture(model, x, ["z"]))
    for where in ({}, {"layer": 0}):
        found = sweep(model, x, zero("z", where), axes=("head",), metric=last_logit)
        for head in range(2):
            expected = capture(model, x, ["output"], edits=zero("z", {"head": head}))["output"]
            assert float(found["value"].sel(head=head)) == pytest.approx(float(last_logit(expected).mean()), rel=1e-4)
    of_source = sweep(model, x, ablation, axes=("iteration",), metric=last_logit)
    expected = capture(model, x, ["output"], edits=mean("z", capture(model, x, ["z"]), {"iteration": 1}))["output"]
    assert float(of_source["value"].sel(iteration=1)) == pytest.approx(float(last_logit(expected).mean()), rel=1e-4)


def test_other_interventions_are_refused_by_name():
    model, x = recurrent("UT without halting"), some_tokens()
    message = "this intervention needs a model that calls each layer once, but RecurrentTransformer repeats its layers"
    with pytest.raises(UnsupportedModel, match=message):
        patch(model, x, x.flip(1), last_logit)
    with pytest.raises(UnsupportedModel, match=message):
        BatchedEdits(model, x, "z")
    with pytest.raises(UnsupportedModel, match=message):
        path_patch(model, x, x.flip(1), last_logit)
    with pytest.raises(UnsupportedModel, match=message):
        head_ablation_effects(model, x, log_probability(x[:, -1]))
    with pytest.raises(UnsupportedModel, match=message):
        total_head_contributions(model, x)


def test_iterations_of_models_without_any_are_refused():
    model, x = small.llama(), some_tokens()
    with pytest.raises(ValueError, match="the axis iteration needs a model that repeats its layers"):
        sweep(model, x, zero("z"), axes=("iteration",), metric=last_logit)
    with pytest.raises(ValueError, match=r"where\['iteration'\] needs a model that repeats its layers"):
        sweep(model, x, zero("z", {"iteration": 0}), axes=("layer",), metric=last_logit)
    with pytest.raises(IndexError, match=r"where\['iteration'\] must lie within 5 entries"):
        sweep(recurrent("UT"), x, zero("z", {"iteration": 5}), axes=("head",), metric=last_logit)
