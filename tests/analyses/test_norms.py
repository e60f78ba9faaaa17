"""Norms: reduced in place, the same as those of the kept stream; sinks and padding apart."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mesascope import analyses
from mesascope.activations import NotRecorded, capture
from mesascope.analyses.stream.norms import find_sinks, norms, norms_by_depth, vector_norms
from mesascope.models.transformer import Decoder, DecoderConfig

HERE = Path(__file__).parent
MOST_MEMORY = 1.15  # of a plain forward pass


def model():
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=30, hidden_size=16, num_attention_heads=4, max_position_embeddings=40)
    return Decoder(config).eval()


def ids(rows=3, length=24):
    return torch.randint(0, 30, (rows, length), generator=torch.Generator().manual_seed(1))


def test_reduced_in_place_they_are_those_of_the_kept_stream():
    kept = capture(model(), ids(), ["resid_pre", "resid_post"])
    reduced = capture(model(), ids(), [], reduce=norms.reductions, batch_size=2)
    assert set(reduced.sites) == {"resid_pre_norm", "resid_post_norm"}
    expected = torch.cat([kept["resid_pre"][:1], kept["resid_post"]]).double().square().sum(-1).sqrt()
    np.testing.assert_allclose(norms_by_depth(reduced), expected, rtol=1e-6)
    first, second = analyses.norms(kept), analyses.norms(reduced)
    for name, array in first.data_vars.items():
        np.testing.assert_allclose(array, second[name], rtol=1e-5, atol=1e-5, err_msg=str(name))


def test_a_capture_without_stream_and_norms_is_refused():
    with pytest.raises(NotRecorded, match="resid_pre_norm"):
        norms(capture(model(), ids(), ["pattern"]))


def test_lengths_are_those_of_float64_where_float32_would_lose_them():
    stream = torch.full((2, 3, 100), 1e-30)
    np.testing.assert_allclose(vector_norms(stream), np.full((2, 3), 1e-29), rtol=1e-6)  # the squares are no float32


def test_padding_counts_for_nothing_and_the_first_real_position_is_the_first():
    whole = ids(2, 12)
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.long), whole], dim=1)
    mask = (torch.arange(16) >= 4).long().expand(2, 16)
    alone = norms(capture(model(), whole, [], reduce=norms.reductions))
    beside = norms(capture(model(), padded, [], reduce=norms.reductions, attention_mask=mask))
    for name in ("mean", "variation", "first_token", "sinks"):
        np.testing.assert_allclose(alone[name], beside[name], rtol=1e-4, err_msg=name)
    assert bool(beside["norm"][:, :, :4].isnull().all())
    np.testing.assert_allclose(alone["norm"], beside["norm"][:, :, 4:], rtol=1e-4)
    assert not find_sinks(torch.tensor(beside["norm"].values))[:, :4].any()
    assert find_sinks(torch.tensor(beside["norm"].values))[:, 4].all()


@pytest.mark.parametrize(("times", "found"), [(11.0, 1), (9.0, 0)], ids=["a sink", "a decoy"])
def test_a_planted_sink_is_found_at_any_depth_and_a_long_token_is_none(times, found):
    norm = 1 + 0.1 * torch.rand(4, 3, 20, generator=torch.Generator().manual_seed(0))
    norm[2, 1, 7] = times * norm[2, :, 1:].median()
    where = find_sinks(norm)
    assert where[:, 0].all()
    assert int(where[:, 1:].sum()) == found
    assert bool(where[1, 7]) == bool(found)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_all_layers_of_a_language_model_take_hardly_more_memory_than_a_plain_pass():
    command = [sys.executable, str(HERE / "peak.py")]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout
    plain, reduced = map(int, told.split()[-2:])
    assert plain > 300_000  # torch and the model: a smaller number would be no peak of it
    assert reduced < MOST_MEMORY * plain, (plain, reduced)
