"""Identities of the measures on small models, and their controls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mesascope import analyses
from mesascope.activations import capture
from mesascope.analyses.heads.attention import score_positions
from mesascope.analyses.inner_objectives import objectives
from mesascope.analyses.inner_objectives.measure import inner
from mesascope.analyses.stream.attribution import decompose_output
from mesascope.ground_truth.models.vectors import build_planted_model
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch
from mesascope.tasks.regression import Regression


def batch(n=64, dim=1):
    task = Affine(dim=dim, matrix="diagonal" if dim == 1 else "dense", length=12)
    return task, task.sample(n, torch.Generator().manual_seed(0))


def decoder(seed=0, **changes):
    torch.manual_seed(seed)
    shape = {"d_in": 1, "d_out": 1, "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2}
    return Decoder(DecoderConfig(**(shape | changes))).eval()


def language_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), torch.randint(0, 50, (3, 24), generator=torch.Generator().manual_seed(1))


def test_behaviour_is_the_squared_error_of_everyone():
    task, sequences = batch()
    model = decoder()
    found = analyses.run_analyses(model, sequences, [analyses.loss_vs_baselines], baselines=task.baselines(sequences))[
        "loss_vs_baselines"
    ]
    by_hand = (model(sequences.inputs).logits - sequences.targets).square().sum(-1).mean(0)
    assert np.allclose(found["error"].sel(predictor="model"), by_hand.detach(), rtol=1e-5)
    step = (sequences.inputs - sequences.targets).square().sum(-1).mean(0)
    assert np.allclose(found["error"].sel(predictor="copy"), step, rtol=1e-5)
    assert np.allclose(found["relative"].sel(predictor="copy"), 1.0)
    assert (found["error"].sel(predictor="least squares")[4:] < 1e-6).all()


def test_behaviour_of_tokens_is_the_cross_entropy():
    model, ids = language_model()
    tokens = Batch(inputs=ids[:, :-1], targets=ids[:, 1:], weight=torch.ones(3, 23))
    found = analyses.loss_vs_baselines(capture(model, tokens, ["output"]))
    loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).logits.transpose(1, 2), ids[:, 1:], reduction="none")
    assert np.allclose(found["error"].sel(predictor="model"), loss.mean(0).detach(), rtol=1e-5)


def test_what_a_task_does_not_score_counts_in_no_loss_of_a_layer():
    """Targets and weights are the batch's: the last target is no input, and the first positions are not scored."""
    model, ids = language_model()
    weight = torch.ones(3, 23)
    weight[:, :5] = 0
    tokens = Batch(inputs=ids[:, :-1], targets=ids[:, 1:], weight=weight)
    readout = inner(objectives.readout)
    found = analyses.run_analyses(
        model, tokens, [analyses.loss_vs_baselines, analyses.logit_lens, analyses.affine_lens, readout]
    )
    loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).logits.transpose(1, 2), ids[:, 1:], reduction="none")
    scored = float(loss[:, 5:].mean().detach())
    assert float(found["loss_vs_baselines"]["scored"].sel(predictor="model")) == pytest.approx(scored, rel=1e-5)
    assert float(found["logit_lens"]["loss"][-1]) == pytest.approx(scored, rel=1e-5)
    everywhere = analyses.run_analyses(model, replace(tokens, weight=torch.ones(3, 23)), [analyses.logit_lens, readout])
    assert float(everywhere["logit_lens"]["loss"][-1]) == pytest.approx(float(loss.mean().detach()), rel=1e-5)
    assert not np.isclose(scored, float(loss.mean().detach()), rtol=1e-4)
    name = "inner_readout"
    assert not np.allclose(found[name]["before"], everywhere[name]["before"], rtol=1e-4, equal_nan=True)
    assert np.isfinite(found[name]["before"]).all()


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("mlp", [0, 24])
def test_contributions_sum_to_the_output_and_shares_to_one(norm, mlp):
    _, sequences = batch()
    model = decoder(norm=norm, intermediate_size=mlp)
    recorded = capture(model, sequences, ["resid_pre", "resid_post", "attn_out", "z", "output"])
    total = sum(decompose_output(recorded).values())
    assert ("mlp 0" in decompose_output(recorded)) == bool(mlp)
    assert torch.allclose(total.float(), recorded["output"], atol=2e-5)
    found = analyses.direct_attribution(recorded)
    assert float(found["fraction"].sum()) == pytest.approx(1.0, abs=1e-4)
    assert float(found["gap"]) < 2e-5


def test_a_planted_head_has_the_whole_share():
    _, sequences = batch()
    found = analyses.run_analyses(build_planted_model("copying", length=12), sequences, [analyses.direct_attribution])[
        "direct_attribution"
    ]
    assert float(found["fraction"].sel(component="head 0.0")) == pytest.approx(1.0, abs=0.01)


def test_the_own_readout_at_the_end_is_the_models_output():
    _, sequences = batch()
    model = decoder(norm="layer")
    found = analyses.run_analyses(model, sequences, [analyses.probe_and_logit_lens])["probe_and_logit_lens"]
    half = model(sequences.inputs[32:]).logits.detach()
    error = (half - sequences.targets[32:]).square().sum(-1).mean()
    assert float(found["logit_lens_error"][-1]) == pytest.approx(float(error), rel=1e-4)


def test_the_logit_lens_at_the_end_is_the_models_loss():
    model, ids = language_model()
    found = analyses.run_analyses(model, ids, [analyses.logit_lens])["logit_lens"]
    loss = model(ids, labels=ids).loss.detach()
    assert float(found["loss"][-1]) == pytest.approx(float(loss), rel=1e-5)
    assert float(found["agrees_with_final"][-1]) == 1.0


def test_position_scores_of_known_patterns():
    length = 8
    eye = torch.eye(length)
    shifted = torch.zeros(length, length)
    shifted[range(1, length), range(length - 1)] = 1.0
    uniform = torch.tril(torch.ones(length, length))
    uniform = uniform / uniform.sum(-1, keepdim=True)
    scores = score_positions(torch.stack([eye, shifted, uniform])[None])[0]
    assert scores[0].tolist() == pytest.approx([0, 1, 0, 0, 0, float(scores[0, 5])])
    assert scores[1, :4].tolist() == [0, 0, 1, 0]
    assert scores[2, 4:].tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_the_null_of_position_scores_is_what_uniform_attention_has():
    _, sequences = batch()
    found = analyses.run_analyses(
        build_planted_model("uniform", length=12), sequences, [analyses.positional_attention]
    )["positional_attention"]
    assert np.allclose(found["score"][0, 0], found["score_null"][0, 0], atol=1e-6)


def test_norms_are_norms_and_sinks_stand_apart():
    model, ids = language_model()
    recorded = capture(model, ids, ["resid_pre", "resid_post"])
    found = analyses.norms(recorded)
    expected = recorded["resid_post"][-1].norm(dim=-1)
    assert np.allclose(found["norm"][-1], expected, rtol=1e-5)
    assert float(found["mean"][-1]) == pytest.approx(float(expected[:, 1:].mean()), rel=1e-5)
    z_score = found["robust_z_score"]
    assert abs(float(z_score[-1, :, 1:].median())) < 0.1
    assert float(abs(z_score[-1, :, 1:]).median()) == pytest.approx(1.0, abs=0.1)
    assert bool(z_score[:, :, 0].isnull().all())
    assert float(abs(z_score).max()) <= 5
    with torch.no_grad():
        model.model.embed_tokens.weight[int(ids[0, 5])] *= 1000
    sinks = analyses.norms(capture(model, ids, ["resid_pre", "resid_post"]))["sinks"]
    assert int(sinks[0]) == int((ids[:, 1:] == ids[0, 5]).sum())


def test_similarity_and_copying_refuse_tokens_and_say_why():
    model, ids = language_model()
    with pytest.raises(ValueError, match="needs vectors as inputs"):
        analyses.similarity(capture(model, ids, ["attn_scores"]))
    with pytest.raises(ValueError, match="value_copying needs vectors"):
        analyses.value_copying(capture(model, ids, ["pattern", "z", "resid_post", "output"]))
    with pytest.raises(ValueError, match="needs targets"):
        analyses.loss_vs_baselines(capture(model, ids, ["output"]))
    with pytest.raises(ValueError, match="probe_and_logit_lens needs a capture of a Batch"):
        analyses.probe_and_logit_lens(capture(model, ids, ["resid_pre", "resid_post", "output"]))
    with pytest.raises(ValueError, match="a lens on tokens needs tokens"):
        analyses.run_analyses(decoder(), batch()[1], [analyses.logit_lens])


def test_a_measure_without_its_site_is_refused_by_name():
    with pytest.raises(KeyError, match="attn_scores"):
        analyses.similarity(capture(decoder(), batch()[1], ["pattern"]))


def test_options_are_noted_and_used():
    task, sequences = batch()
    late = analyses.probe_and_logit_lens.using(first=6)
    found = analyses.run_analyses(decoder(), sequences, [late], baselines=task.baselines(sequences))[
        "probe_and_logit_lens"
    ]
    assert found.attrs["option first"] == "6"
    assert float(found["affine_error"][-1]) == pytest.approx(float(found["affine_error_by_position"][-1, 6:].mean()))


def test_vectors_of_several_dimensions_pass_all_measures():
    task, sequences = batch(dim=2)
    model = decoder(d_in=2, d_out=2)
    chosen = [
        analyses.loss_vs_baselines,
        analyses.probe_and_logit_lens,
        analyses.similarity,
        analyses.value_copying,
        analyses.direct_attribution,
    ]
    found = analyses.run_analyses(model, sequences, chosen, baselines=task.baselines(sequences))
    assert all(bool(np.isfinite(array).all()) for dataset in found.values() for array in dataset.data_vars.values())


def test_padding_is_refused_where_it_would_be_taken_for_inputs():
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=20, hidden_size=16, num_attention_heads=2, max_position_embeddings=20))
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[1, 6:] = 0
    recorded = capture(
        model.eval(),
        torch.randint(0, 20, (2, 10)),
        [],
        reduce=analyses.positional_attention.reductions,
        attention_mask=mask,
    )
    with pytest.raises(ValueError, match="positional_attention needs sequences of one length"):
        analyses.positional_attention(recorded)


def test_places_that_are_not_scored_are_left_out():
    """Between inputs and answers that alternate, nothing is predicted where an answer stands."""
    task = Regression(dim=2, num_examples=3)
    batch = task.sample(8, torch.Generator().manual_seed(0))
    exact = {"right": batch.targets, "wrong elsewhere": batch.targets + (batch.weight[..., None] == 0)}
    recorded = capture(Decoder(DecoderConfig(d_in=2, d_out=1)), batch, ["output"], baselines=exact)
    found = analyses.loss_vs_baselines(recorded)
    assert found["pos"].values.tolist() == [0, 2, 4, 6]
    assert (found["error"].sel(predictor=["right", "wrong elsewhere"]) == 0).all()
    assert (found["scored"].sel(predictor=["right", "wrong elsewhere"]) == 0).all()
    shown = float(found["error"].sel(predictor="model").mean())
    assert float(found["scored"].sel(predictor="model")) == pytest.approx(shown)
