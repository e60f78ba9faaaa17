"""Ablation of edges by a mean or by drawn references: identities, exact cases, and what is refused."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import small
from circuits.test_edges import METRIC, decoder, gpt2, linear_model, model, tokens
from mesascope.activations import UnsupportedModel, capture
from mesascope.circuits import attribute_edges, measure_faithfulness, patch_edges, references
from mesascope.circuits.references import ReferenceMean, draw_references
from mesascope.circuits.runs import CircuitRuns

__all__ = ["linear_model", "model"]  # fixtures
RIGHT_PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
LEFT_PADDED = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])


def test_a_mean_run_is_the_clean_run_with_all_edges_and_the_head_of_the_mean_stream_with_none(model: PreTrainedModel):
    clean, others = tokens(0), tokens(1, rows=5)
    runs = CircuitRuns(model, clean, others, METRIC, ablation="mean")
    every = runs.edges.exist
    assert runs.compute_outputs(every[None])[0].equal(runs.clean_output)
    empty = runs.compute_outputs(torch.zeros_like(every)[None])[0]
    assert empty.equal(runs.ablated_output)
    torch.testing.assert_close(empty[0], empty[1])  # it does not depend on the prompt
    acts = capture(model, others, ["resid_post", "logits"])
    torch.testing.assert_close(runs.ablated.output_stream[0], acts["resid_post"][-1].mean(0))
    assert not torch.allclose(empty[0, -1], acts["logits"][:, -1].mean(0), atol=1e-3)  # not the mean of the outputs
    runs.validate_edges()


def test_the_mean_terms_sum_to_the_mean_streams(model: PreTrainedModel):
    runs = CircuitRuns(model, tokens(0), tokens(1, rows=5), METRIC, ablation="mean")
    for receiver in runs.edges.receivers:
        total = runs.ablated.terms[: receiver.num_senders].sum(0)
        torch.testing.assert_close(total, runs.ablated.stream(receiver), rtol=1e-4, atol=1e-5)


def test_the_mean_of_one_sequence_is_its_counterfactual(model: PreTrainedModel):
    clean, other = tokens(0), tokens(1, rows=1)
    mean = attribute_edges(model, clean, other, METRIC, steps=2, ablation="mean")
    paired = attribute_edges(model, clean, other.repeat(2, 1), METRIC, steps=2)
    np.testing.assert_allclose(mean["score_by_sequence"], paired["score_by_sequence"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mean["ablated"], paired["ablated"], rtol=1e-4)


def test_drawn_references_are_counterfactuals(model: PreTrainedModel):
    clean, others = tokens(0), tokens(1, rows=5)
    drawn = draw_references(clean, others, None, None, seed=3)
    found = patch_edges(model, clean, others, METRIC, ablation="resample", seed=3)
    expected = patch_edges(model, clean, others[drawn], METRIC)
    for name in ("effect_by_sequence", "clean", "ablated"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_no_sequence_is_drawn_for_itself_and_every_other_one_is():
    sequences = tokens(0, rows=4)
    drawn = torch.stack([draw_references(sequences, sequences, None, None, seed) for seed in range(60)])
    for row in range(4):
        assert set(drawn[:, row].tolist()) == set(range(4)) - {row}
    assert draw_references(sequences, sequences, None, None, 0).equal(drawn[0])


def test_references_of_the_same_length_are_drawn():
    sequences = tokens(0, rows=6)
    mask = RIGHT_PADDED.repeat(3, 1)
    for seed in range(20):
        drawn = draw_references(sequences, sequences, mask, mask, seed)
        assert mask[drawn].equal(mask)
        assert (drawn != torch.arange(6)).all()
    same_but_for_padding = torch.where(mask > 0, sequences[1], tokens(5, rows=6))[1::2]
    with pytest.raises(ValueError, match=r"sequence 0 has none among 3; pass more references, or use the mean"):
        draw_references(same_but_for_padding, same_but_for_padding, mask[1::2], mask[1::2], 0)


@pytest.mark.parametrize("ablation", ["mean", "resample"])
@pytest.mark.parametrize("steps", [0, 2])
def test_scores_are_exact_on_a_linear_model(linear_model: PreTrainedModel, ablation: str, steps: int):
    arguments = (linear_model, tokens(0), tokens(1, rows=5), METRIC)
    score = attribute_edges(*arguments, steps=steps, ablation=ablation)["score_by_sequence"].values.astype(float)
    effect = patch_edges(*arguments, ablation=ablation)["effect_by_sequence"].values.astype(float)
    mean_score = attribute_edges(*arguments, steps=steps, ablation=ablation)["score"]
    mean_effect = patch_edges(*arguments, ablation=ablation)["effect"]
    assert float(abs(mean_score - mean_effect).max()) < 1e-6 * float(abs(mean_effect).max())
    assert np.nanmax(abs(score - effect)) < 1e-6 * np.nanmax(abs(effect))


def test_on_a_linear_model_the_effect_of_a_mean_is_the_mean_of_the_effects(linear_model: PreTrainedModel):
    clean, others = tokens(0), tokens(1, rows=3)
    effect = patch_edges(linear_model, clean, others, METRIC, ablation="mean")["effect"]
    by_reference = [patch_edges(linear_model, clean, other.repeat(2, 1), METRIC)["effect"] for other in others]
    assert float(abs(effect - sum(by_reference) / 3).max()) < 1e-9 * float(abs(effect).max())


def test_integrated_gradients_of_the_embedding_sum_to_the_change_by_the_mean_embedding():
    """The run from the mean embedding is not the run with the means of all terms."""
    llama = small.llama(initializer_range=0.1)
    clean, others = tokens(0), tokens(1, rows=5)
    found = attribute_edges(llama, clean, others, METRIC, steps=32, ablation="mean")
    total = found["score_by_sequence"].sel(sender="embedding").sum("receiver")
    embedding = llama.get_input_embeddings()(others).mean(0, keepdim=True)
    with torch.no_grad():
        logits = llama(inputs_embeds=embedding).logits[0, -1]
    np.testing.assert_allclose(total, float(logits[3] - logits[4]) - found["clean"].values, rtol=0.02, atol=1e-3)
    assert abs(float(logits[3] - logits[4]) - found["ablated"].values).min() > 1e-3


def test_a_mean_in_parts_is_the_mean_at_once(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch):
    others = tokens(1, rows=5)
    whole = ReferenceMean(model, others, None).run
    monkeypatch.setattr(references, "MAX_BYTES", 1)
    parts = ReferenceMean(model, others, None).run
    torch.testing.assert_close(parts.terms, whole.terms)
    torch.testing.assert_close(parts.output_stream, whole.output_stream)


def test_padding_is_left_out_of_a_mean(model: PreTrainedModel):
    others = tokens(1)
    padded = ReferenceMean(model, others, RIGHT_PADDED).run
    alone = [ReferenceMean(model, others[row : row + 1, :length], None).run for row, length in ((0, 6), (1, 4))]
    torch.testing.assert_close(
        padded.terms[:, :, :4], (alone[0].terms[:, :, :4] + alone[1].terms) / 2, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(padded.terms[:, :, 4:], alone[0].terms[:, :, 4:], rtol=1e-4, atol=1e-5)


def test_the_padding_of_inputs_does_not_count_with_a_mean(model: PreTrainedModel):
    clean, others = tokens(0), tokens(1, rows=3)
    short = attribute_edges(model, clean[1:, :4], others[:, :4], METRIC, steps=2, ablation="mean")
    masks = {"attention_mask": RIGHT_PADDED, "source_attention_mask": torch.ones(3, 6)}
    found = attribute_edges(model, clean, others, METRIC, steps=2, ablation="mean", **masks)
    np.testing.assert_allclose(found["score_by_sequence"][1], short["score"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_faithfulness_is_one_with_all_edges_and_zero_with_none(model: PreTrainedModel, ablation: str):
    arguments = (model, tokens(0), tokens(1, rows=5), METRIC)
    score = attribute_edges(*arguments, steps=0, ablation=ablation)["score"]
    curve = measure_faithfulness(*arguments, score, fractions=[0, 0.3, 1], random_draws=1, ablation=ablation)
    assert curve["faithfulness"].values[[0, -1]].tolist() == pytest.approx([0, 1], abs=1e-5)
    assert curve["completeness"].values[[0, -1]].tolist() == pytest.approx([0, 1], abs=1e-5)


def test_a_model_whose_output_reads_the_tokens_is_refused():
    """With all streams replaced, the output of the mean must not depend on the prompt."""

    class ReadsTokens(type(decoder())):
        def forward(self, inputs: Tensor | None = None, **arguments: object) -> object:
            tokens = inputs if inputs is not None else arguments["input_ids"]
            output = super().forward(inputs, **arguments)
            output.logits = output.logits + torch.nn.functional.one_hot(tokens, 20).to(output.logits)
            return output

    torch.manual_seed(0)
    reads = decoder()
    reads.__class__ = ReadsTokens
    for ablation in ("counterfactual", "mean", "resample"):
        with pytest.raises(UnsupportedModel, match="other modules read the tokens or the stream"):
            attribute_edges(reads, tokens(0), tokens(1), METRIC, ablation=ablation)


def test_bad_references_are_refused():
    torch.manual_seed(0)
    small_model = gpt2()
    clean, others = tokens(0), tokens(1)
    with pytest.raises(ValueError, match="ablation must be one of counterfactual, mean, resample, but got 'zero'"):
        attribute_edges(small_model, clean, others, METRIC, ablation="zero")
    for ablation in ("mean", "resample"):
        with pytest.raises(ValueError, match="both runs must have sequences of the same length"):
            attribute_edges(small_model, clean, tokens(1, length=5), METRIC, ablation=ablation)
    with pytest.raises(ValueError, match="the metric must differ between the clean run and the mean of the references"):
        attribute_edges(small_model, clean[:1], clean[:1], METRIC, ablation="mean")
    with pytest.raises(ValueError, match="sequence 0 has none among 1"):
        attribute_edges(small_model, clean[:1], clean[:1], METRIC, ablation="resample")
    masks = {"attention_mask": LEFT_PADDED, "source_attention_mask": LEFT_PADDED}
    with pytest.raises(ValueError, match="column 2 is a different position in some of them; pad on the right"):
        attribute_edges(small_model, clean, others, METRIC, ablation="mean", **masks)
    masks = {"attention_mask": RIGHT_PADDED, "source_attention_mask": RIGHT_PADDED[1:]}
    with pytest.raises(ValueError, match="none has position 4; pass longer references"):
        attribute_edges(small_model, clean, others[1:], METRIC, ablation="mean", **masks)
    with pytest.raises(ValueError, match="source_attention_mask must be passed too"):
        attribute_edges(small_model, clean, others, METRIC, ablation="mean", attention_mask=RIGHT_PADDED)
    full = {"attention_mask": RIGHT_PADDED, "source_attention_mask": torch.ones(2, 6)}
    with pytest.raises(ValueError, match="both runs must have the same padding"):
        attribute_edges(small_model, clean, others, METRIC, **full)
