"""Edges of circuits: identities of runs and of scores, other instruments on the same edges, what is refused."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
)

import small
from mesascope.activations import UnsupportedModel, capture
from mesascope.circuits import attribute_edges, bootstrap_edges, measure_faithfulness, patch_edges, rank_edges
from mesascope.circuits.runs import CircuitRuns
from mesascope.interventions import attribution_patch, logit_difference, path_patch, replace
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder

METRIC = logit_difference(3, 4)
SHAPE = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}


def tokens(seed: int, rows: int = 2, length: int = 6) -> Tensor:
    return torch.randint(0, 20, (rows, length), generator=torch.Generator().manual_seed(seed))


def gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=20, initializer_range=0.5, n_embd=16, n_layer=3, n_head=4, n_positions=8)
    return GPT2LMHeadModel(config).eval()


def gpt_neox() -> PreTrainedModel:
    config = GPTNeoXConfig(use_parallel_residual=True, num_attention_heads=4, initializer_range=0.5, **SHAPE)
    return GPTNeoXForCausalLM(config).eval()


def decoder() -> PreTrainedModel:
    config = DecoderConfig(vocab_size=20, hidden_size=16, norm="layer", positions="learned", max_position_embeddings=8)
    return Decoder(config).eval()


FAMILIES = {"llama": lambda: small.llama(initializer_range=0.5), "gpt2": gpt2, "gpt_neox": gpt_neox, "decoder": decoder}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    return FAMILIES[request.param]()


@pytest.fixture
def linear_model() -> PreTrainedModel:
    """Attention is uniform whatever the input, and nothing else is there: the output is linear in the embedding."""
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=3, norm="none", positions="learned", max_position_embeddings=8
    )
    linear = Decoder(config).double().eval()
    for name, parameter in linear.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.data.zero_()
    return linear


def test_all_edges_are_one_run_and_none_the_other_bit_for_bit(model: PreTrainedModel):
    clean, other = tokens(0), tokens(1)
    runs = CircuitRuns(model, clean, other, METRIC)
    every = runs.edges.exist
    assert runs.compute_outputs(every[None])[0].equal(runs.clean_output)
    assert runs.compute_outputs(torch.zeros_like(every)[None])[0].equal(runs.ablated_output)
    with torch.no_grad():
        torch.testing.assert_close(runs.clean_output[:, -1], model(clean).logits[:, -1])
        torch.testing.assert_close(runs.ablated_output[:, -1], model(other).logits[:, -1])
    runs.validate_edges()


def test_circuits_in_one_batch_are_circuits_one_by_one(model: PreTrainedModel):
    runs = CircuitRuns(model, tokens(0), tokens(1), METRIC)
    generator = torch.Generator().manual_seed(0)
    circuits = torch.stack([torch.rand(runs.edges.exist.shape, generator=generator) < 0.5 for _ in range(3)])
    circuits &= runs.edges.exist
    together = runs.compute_metric(circuits)
    alone = torch.cat([runs.compute_metric(circuit[None]) for circuit in circuits])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert (together.std(0) > 1e-3).all()


def test_an_edge_is_what_path_patching_finds_on_the_direct_path(model: PreTrainedModel):
    clean, other = tokens(0), tokens(1)
    effect = patch_edges(model, clean, other, METRIC)["effect"]
    receivers = [("query", {"layer": 2, "head": 1}, "L2.H1.q"), ("output", None, "output")]
    if "L2.MLP" in effect["receiver"].values:
        receivers.append(("mlp_out", {"layer": 2}, "L2.MLP"))
    for site, where, receiver in receivers:
        found = path_patch(model, clean, other, METRIC, receiver=site, receiver_where=where, where={"layer": [0, 1]})
        expected = [
            float(effect.sel(sender=f"L{layer}.H{head}", receiver=receiver)) for layer in (0, 1) for head in range(4)
        ]
        np.testing.assert_allclose(found["effect"].values.ravel(), expected, rtol=1e-3, atol=2e-4)
        assert np.abs(expected).max() > 1e-3


def test_integrated_gradients_of_the_embedding_sum_to_the_difference_of_the_runs():
    model = small.llama(initializer_range=0.1)
    found = attribute_edges(model, tokens(0), tokens(1), METRIC, steps=32)
    path = (found["ablated"] - found["clean"]).values
    total = found["score_by_sequence"].sel(sender="embedding").sum("receiver")
    np.testing.assert_allclose(total, path, rtol=0.02, atol=1e-3)


def test_scores_of_a_sender_sum_to_its_node_attribution(model: PreTrainedModel):
    clean, other = tokens(0), tokens(1)
    score = attribute_edges(model, clean, other, METRIC, steps=0)["score"]
    nodes = attribution_patch(model, clean, replace("z", capture(model, other, ["z"])), metric=METRIC)["estimate"]
    for layer in range(3):
        for head in range(4):
            total = float(score.sel(sender=f"L{layer}.H{head}").sum())
            assert total == pytest.approx(float(nodes.sel(layer=layer, head=head)), rel=1e-3, abs=1e-4)


def test_scores_across_a_depth_sum_to_the_attribution_of_the_stream(model: PreTrainedModel):
    clean, other = tokens(0), tokens(1)
    score = attribute_edges(model, clean, other, METRIC, steps=0)["score"]
    edit = replace("resid_pre", capture(model, other, ["resid_pre"]))
    streams = attribution_patch(model, clean, edit, ["layer"], METRIC)["estimate"]
    for layer in range(3):
        across = score.where((score["sender_layer"] < layer) & (score["receiver_layer"] >= layer))
        assert float(across.sum()) == pytest.approx(float(streams.sel(layer=layer)), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("steps", [0, 2])
def test_scores_are_exact_on_a_linear_model(linear_model: PreTrainedModel, steps: int):
    clean, other = tokens(0), tokens(1)
    score = attribute_edges(linear_model, clean, other, METRIC, steps=steps)["score"]
    effect = patch_edges(linear_model, clean, other, METRIC)["effect"]
    assert float(abs(score - effect).max()) < 1e-6 * float(abs(effect).max())
    largest = float(abs(effect).max())
    assert float(abs(effect.sel(receiver=["L2.H0.q", "L2.H0.k"])).max()) < 1e-12 * largest  # they have no effect here
    assert float(abs(effect.sel(receiver="L2.H0.v")).max()) > 1e-3 * largest


def test_padding_does_not_count(model: PreTrainedModel):
    clean, other = tokens(0, rows=1), tokens(1, rows=1)
    alone = attribute_edges(model, clean, other, METRIC, steps=2)
    pads, mask = torch.zeros(1, 2, dtype=torch.long), torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    padded = [torch.cat([pads, x], 1) for x in (clean, other)]
    found = attribute_edges(model, *padded, METRIC, steps=2, attention_mask=mask, source_attention_mask=mask)
    np.testing.assert_allclose(found["score"], alone["score"], rtol=1e-3, atol=1e-4)


def test_faithfulness_is_one_with_all_edges_and_zero_with_none(model: PreTrainedModel):
    clean, other = tokens(0), tokens(1)
    effect = patch_edges(model, clean, other, METRIC)["effect"]
    curve = measure_faithfulness(model, clean, other, METRIC, effect, fractions=[0, 0.3, 1], random_draws=2)
    assert curve["faithfulness"].values[[0, -1]].tolist() == pytest.approx([0, 1], abs=1e-5)
    assert curve["completeness"].values[[0, -1]].tolist() == pytest.approx([0, 1], abs=1e-5)
    np.testing.assert_allclose(curve["random"][:, -1], 1, atol=1e-5)
    sizes, kept = curve["circuit_size"].values / len(rank_edges(effect)), curve["faithfulness"].values
    assert float(curve["cpr"]) == pytest.approx(float(np.trapezoid(kept, sizes)))


def test_rankings_are_by_magnitude_or_by_sign():
    score = xr.DataArray([[0.5, np.nan], [-2.0, 3.0]], dims=("sender", "receiver"))
    assert rank_edges(score).tolist() == [3, 2, 0]
    assert rank_edges(score, "signed").tolist() == [2, 0, 3]
    with pytest.raises(ValueError, match="by magnitude or signed, but got 'size'"):
        rank_edges(score, "size")


def test_equal_pairs_give_one_circuit_and_noise_gives_many():
    generator = np.random.default_rng(0)
    signal = np.where(np.arange(50) < 5, 1.0, 0.0)
    coords = {"sender": ["embedding"], "receiver": [f"r{number}" for number in range(50)]}

    def pairs(noise: float) -> xr.DataArray:
        values = signal + noise * generator.normal(size=(20, 50))
        return xr.DataArray(values[:, None], dims=("batch", "sender", "receiver"), coords=coords)

    same = bootstrap_edges(pairs(0.0), 5)
    assert (same["jaccard"] == 1).all()
    assert same["inclusion"].values.ravel().tolist() == signal.tolist()
    noisy = bootstrap_edges(pairs(5.0), 5)
    assert float(noisy["jaccard"].mean()) < 0.7
    inside = (noisy["low"] <= signal[None]) & (signal[None] <= noisy["high"])
    assert 0.8 <= float(inside.mean()) <= 1.0
    with pytest.raises(ValueError, match="two pairs or more"):
        bootstrap_edges(pairs(0.0)[:1], 5)
    with pytest.raises(ValueError, match="from 1 to 50 edges"):
        bootstrap_edges(pairs(0.0), 51)


def test_what_has_no_edges_is_refused_by_name():
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, state_size=4)).eval()
    with pytest.raises(UnsupportedModel):
        attribute_edges(mamba, tokens(0), tokens(1), METRIC)
    gemma = Gemma2ForCausalLM(Gemma2Config(num_attention_heads=4, num_key_value_heads=2, head_dim=4, **SHAPE)).eval()
    with pytest.raises(UnsupportedModel, match="linear projection, but layer 0 of Gemma2ForCausalLM lacks projection"):
        attribute_edges(gemma, tokens(0), tokens(1), METRIC)


def test_bad_arguments_are_refused():
    torch.manual_seed(0)
    model = decoder()
    with pytest.raises(ValueError, match=r"L0\.H9 -> output"):
        patch_edges(model, tokens(0), tokens(1), METRIC, [("L0.H9", "output")])
    with pytest.raises(ValueError, match=r"L2\.H0 -> L1\.H0\.q"):
        patch_edges(model, tokens(0), tokens(1), METRIC, [("L2.H0", "L1.H0.q")])
    for edges in ([], "", torch.ones(2, 2).half(), [("L0.H0", 1)], [None], "L0.H0"):
        with pytest.raises(ValueError, match="edges must be one or more pairs of the names"):
            patch_edges(model, tokens(0), tokens(1), METRIC, edges)
    with pytest.raises(ValueError, match="metric must differ"):
        attribute_edges(model, tokens(0), tokens(0), METRIC)
    with pytest.raises(ValueError, match="steps must be 0 or more"):
        attribute_edges(model, tokens(0), tokens(1), METRIC, steps=-1)
    other = attribute_edges(small.llama(), tokens(0), tokens(1), METRIC, steps=0)["score"]
    with pytest.raises(ValueError, match="scores must be of the edges of this model"):
        measure_faithfulness(model, tokens(0), tokens(1), METRIC, other)
    scores = attribute_edges(model, tokens(0), tokens(1), METRIC, steps=0)["score"]
    with pytest.raises(ValueError, match="random_draws 1 or more"):
        measure_faithfulness(model, tokens(0), tokens(1), METRIC, scores, random_draws=0)
