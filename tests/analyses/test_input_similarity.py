"""Similarity of what attention reads: agreement with scipy, planted heads, and scores without interaction."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from mesascope.activations import capture
from mesascope.analyses import run_analyses, similarity
from mesascope.analyses.heads._input_similarity import MAX_PAIRS
from mesascope.ground_truth.models.vectors import VECTOR_MECHANISMS, build_planted_model
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.tasks.base import Batch

ROLES = {"dissimilar, added": -1, "similar, subtracted": 1, "similar, added": 1}
SITES = ["attn_scores", "query", "key", "resid_pre"]
LENGTH, WIDTH = 8, 16


def independent(dim: int, count: int = 256) -> Batch:
    x = torch.randn(count, LENGTH + 1, dim, generator=torch.Generator().manual_seed(5))
    return Batch(inputs=x[:, :-1], targets=x[:, 1:], weight=torch.ones(count, LENGTH))


def build_decoder(norm: str = "layer", layers: int = 2, **settings) -> Decoder:
    shape = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": layers}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Decoder(
            DecoderConfig(d_in=4, d_out=4, norm=norm, max_position_embeddings=LENGTH, **shape, **settings)
        ).eval()


def weight(model: Decoder, layer: int, name: str) -> torch.Tensor:
    return model.get_parameter(f"layers.{layer}.attention.{name}.weight")


def test_the_correlations_are_those_of_scipy():
    model, batch = build_decoder(), independent(4)
    acts = capture(model, batch, SITES)
    found = similarity(acts)
    for layer, head in ((0, 0), (1, 1)):
        read = acts.readout.apply_attention_norm(layer, acts["resid_pre"][layer]).double().numpy()
        unit = read / np.linalg.norm(read, axis=-1, keepdims=True)
        query, key = (acts[name][layer][:, head].double().numpy() for name in ("query", "key"))
        scores = acts["attn_scores"][layer][:, head].numpy()
        plain, centred = [], []
        for q in range(2, LENGTH):
            for k in range(q):
                plain.append(spearmanr(scores[:, q, k], (unit[:, q] * unit[:, k]).sum(-1)).statistic)
                parts = [
                    ((x[:, q] - x[:, q].mean(0)) * (y[:, k] - y[:, k].mean(0))).sum(-1)
                    for x, y in ((query, key), (unit, unit))
                ]
                centred.append(spearmanr(*parts).statistic)
        assert float(found["input_fixed_position"][layer, head]) == pytest.approx(np.mean(plain), abs=1e-6)
        assert float(found["input_interaction"][layer, head]) == pytest.approx(np.mean(centred), abs=1e-6)


@pytest.mark.parametrize("name", VECTOR_MECHANISMS)
def test_planted_roles_are_found_and_nothing_else(name):
    x = torch.randn(256, 21, 1, generator=torch.Generator().manual_seed(5))
    batch = Batch(inputs=x[:, :-1], targets=x[:, 1:], weight=torch.ones(256, 20))
    found = run_analyses(build_planted_model(name), batch, [similarity])["similarity"]
    assert found["input_role"][0].values.tolist() == [ROLES.get(name, 0), 0, 0, 0]


def test_heads_that_compare_what_they_read_have_a_role_in_a_later_layer():
    model = build_decoder()
    with torch.no_grad():
        for sign, rows in ((1, slice(0, 8)), (-1, slice(8, 16))):
            projection = torch.linalg.qr(torch.randn(WIDTH, 8, generator=torch.Generator().manual_seed(3)))[0].T
            weight(model, 1, "q_proj")[rows] = 3 * projection
            weight(model, 1, "k_proj")[rows] = 3 * sign * projection
    found = run_analyses(model, independent(4), [similarity])["similarity"]
    assert found["input_role"].sel(layer=1).values.tolist() == [1, -1]
    assert float(found["input_interaction"][1, 0]) > 0.4
    assert float(found["input_interaction"][1, 0]) == pytest.approx(-float(found["input_interaction"][1, 1]), abs=1e-6)


def test_a_preference_for_keys_has_no_interaction_in_a_later_layer():
    """The query reads a constant, so the score is a function of the key, which holds more than its own term."""
    model = build_decoder(norm="none")
    with torch.no_grad():
        model.get_parameter("embed.weight")[0] = 0.0
        model.get_parameter("position_embed.weight")[:, 0] = 0.0
        model.get_parameter("embed.bias")[0] = 1.0
        weight(model, 0, "o_proj")[0] = 0.0
        for name, parameter in model.named_parameters():
            if name.startswith("layers.0.mlp.down_proj"):
                parameter[0] = 0.0
        weight(model, 1, "q_proj")[:, 1:] = 0.0
        weight(model, 1, "q_proj")[:, 0] = 4.0
    found = run_analyses(model, independent(4), [similarity])["similarity"]
    assert float(found["score_std"].sel(layer=1).min()) > 0.1
    assert (abs(found["input_interaction"].sel(layer=1)) < 1e-9).all()
    assert (found["interaction_std"].sel(layer=1) < 1e-5).all()
    assert (found["input_role"].sel(layer=1) == 0).all()


def test_the_spread_of_the_interaction_has_the_unit_of_the_scores():
    """The scale of a score is not recorded; a score without main effects is all interaction."""
    acts = capture(build_planted_model("similar, added", length=LENGTH), independent(1), SITES)
    found = similarity(acts)
    assert float(found["interaction_std"][0, 0]) == pytest.approx(float(found["score_std"][0, 0]), rel=0.02)


def test_shuffled_partners_of_the_inputs_are_controls():
    found = run_analyses(build_decoder(), independent(4), [similarity])["similarity"]
    for name in ("input_interaction", "input_fixed_position"):
        for edge in ("", "_low", "_high"):
            assert found[f"{name}_null{edge}"].attrs["control_of"] == name
        assert (abs(found[f"{name}_null"]) < 0.1).all()
        assert (found[f"{name}_null_low"] < found[f"{name}_null"]).all()


def test_of_many_pairs_an_evenly_spaced_selection_is_used():
    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 20}
    x = torch.randn(64, 20, 4, generator=torch.Generator().manual_seed(0))
    acts = capture(Decoder(DecoderConfig(d_in=4, d_out=4, **shape)).eval(), x, SITES)
    pairs = [(q, k) for q in range(2, 20) for k in range(q)]
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, MAX_PAIRS).round().astype(int)]
    read = acts.readout.apply_attention_norm(0, acts["resid_pre"][0]).double().numpy()
    unit, scores = read / np.linalg.norm(read, axis=-1, keepdims=True), acts["attn_scores"][0][:, 0].numpy()
    expected = [spearmanr(scores[:, q, k], (unit[:, q] * unit[:, k]).sum(-1)).statistic for q, k in chosen]
    assert float(similarity(acts)["input_fixed_position"][0, 0]) == pytest.approx(np.mean(expected), abs=1e-6)
