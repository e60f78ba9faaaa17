"""Logit lens and affine lens: identities, a planted map, a stream without information, and padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mesascope import analyses
from mesascope.activations import capture
from mesascope.analyses.stream.token_lenses import fit_shrunk_map
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.ridge import LOG10_PENALTIES

VOCABULARY, WIDTH = 40, 16


def untrained_decoder(**changes):
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 64}
    return Decoder(DecoderConfig(vocab_size=VOCABULARY, norm="rms", **(shape | changes))).eval()


def random_tokens(sequences=6, length=32):
    return torch.randint(0, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(1))


def run_lenses(model, tokens, **options):
    return analyses.run_analyses(model, tokens, [analyses.logit_lens, analyses.affine_lens], **options)


def rotated_streams(rows, noise=0.0, seed=3):
    """Return a stream and the final stream, which is the stream rotated and shifted."""
    g = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9)))[0]
    x = torch.randn(rows, WIDTH, generator=g)
    return x, x @ rotation + 1.0 + noise * torch.randn(rows, WIDTH, generator=g)


@pytest.mark.parametrize("sequences", [1, 6])
def test_the_affine_lens_after_the_last_layer_is_the_model(sequences):
    model, tokens = untrained_decoder(), random_tokens(sequences)
    found = run_lenses(model, tokens)
    logits = model(tokens).logits.detach()[:, :-1]
    loss = float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
    for name in ("logit_lens", "affine_lens"):
        assert float(found[name]["loss"][-1]) == pytest.approx(loss, rel=1e-5)
        assert float(found[name]["agrees_with_final"][-1]) == 1.0
    penalty = found["affine_lens"]["log10_penalty"]
    assert (penalty[-1] == LOG10_PENALTIES[-1]).all()
    assert (found["affine_lens"]["penalty_at_edge"][-1] == 1).all()
    assert penalty.sizes == {"layer": 3, "stat": 2}


def test_with_an_infinite_penalty_the_map_is_the_identity():
    x, final = rotated_streams(50)
    apply_map, log10_penalty = fit_shrunk_map(x, final, torch.inf)
    assert torch.equal(apply_map(x), x)
    assert log10_penalty == torch.inf
    nearly = fit_shrunk_map(x, final, LOG10_PENALTIES[-1])[0]
    assert torch.allclose(nearly(x), x, atol=1e-4)


def test_a_planted_map_is_found_on_new_tokens():
    x, final = rotated_streams(200)
    new_x, new_final = rotated_streams(50, seed=4)
    apply_map, log10_penalty = fit_shrunk_map(x, final)
    assert torch.allclose(apply_map(new_x), new_final, atol=1e-3)
    assert log10_penalty < -4


def test_few_tokens_without_a_map_are_left_as_they_are():
    """Decoy: the final stream is the stream plus noise, and there are fewer tokens than coordinates."""
    g = torch.Generator().manual_seed(5)
    x = torch.randn(12, WIDTH, generator=g)
    apply_map, log10_penalty = fit_shrunk_map(x, x + torch.randn(12, WIDTH, generator=g))
    new_x = torch.randn(500, WIDTH, generator=g)
    assert float((apply_map(new_x) - new_x).square().mean()) < 0.3
    assert log10_penalty >= -0.5


def test_the_affine_lens_reads_a_rotated_stream_that_the_logit_lens_cannot_read():
    """Planted: the layer turns the embedding into the one that the unembedding reads."""
    model, tokens = untrained_decoder(num_hidden_layers=1, num_attention_heads=1, positions="none"), random_tokens(120)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7)))[0]
    attention = model.layers[0].attention
    with torch.no_grad():
        attention.q_proj.weight.zero_()
        attention.k_proj.weight.zero_()
        attention.v_proj.weight.copy_(torch.eye(WIDTH))
        attention.o_proj.weight.copy_(4 * turn)
    single = tokens[:, :1].expand(-1, 4).clone()  # a repeated token: the update is a map of the token itself
    found = run_lenses(model, single)
    agreement = {name: float(found[name]["agrees_with_final"][0]) for name in found}
    assert agreement["affine_lens"] > agreement["logit_lens"] + 0.2
    final = float(found["affine_lens"]["loss"][1])
    assert abs(float(found["affine_lens"]["loss"][0]) - final) < abs(float(found["logit_lens"]["loss"][0]) - final)


def test_each_half_is_predicted_with_the_map_of_the_other_half():
    model, tokens = untrained_decoder(), random_tokens(5)
    acts = capture(model, tokens, [], reduce=analyses.affine_lens.reductions)
    stream, final = acts["lens_before"][0], acts["lens_after"][-1]
    mapped = torch.empty_like(stream)
    for fitted, predicted in ((slice(0, 2), slice(2, 5)), (slice(2, 5), slice(0, 2))):
        apply_map, _ = fit_shrunk_map(stream[fitted].flatten(0, 1), final[fitted].flatten(0, 1))
        mapped[predicted] = apply_map(stream[predicted])
    with torch.no_grad():
        logits = acts.readout.compute_output(mapped)[:, :-1]
    by_hand = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert float(analyses.affine_lens(acts)["loss"][0]) == pytest.approx(float(by_hand), rel=1e-5)


def test_padding_is_not_fitted():
    model, tokens = untrained_decoder(), random_tokens(4)
    mask = torch.ones_like(tokens)
    mask[1, 20:] = 0
    acts = capture(model, tokens, [], reduce=analyses.affine_lens.reductions, attention_mask=mask)
    found = analyses.affine_lens(acts)
    spoiled = {name: value.clone() for name, value in acts.sites.items()}
    for value in spoiled.values():
        value[:, 1, 20:] = 1e4
    again = analyses.affine_lens(replace(acts, sites=spoiled))
    assert np.allclose(found["loss"], again["loss"])
    assert np.array_equal(found["log10_penalty"], again["log10_penalty"])


def test_a_single_token_in_a_half_is_refused():
    with pytest.raises(ValueError, match="needs two rows or more, but got 1"):
        run_lenses(untrained_decoder(), random_tokens(1, 3))
