"""What attention reads, the values it makes, embedding and readout by rows: the same identities in every family."""

import pytest
import torch
from torch.testing import assert_close

from mesascope.activations import UnsupportedModel, capture

from .families import FAMILIES, make, tokens

NORMED_VALUES = {"deepseek_v3"}
POST_NORM = {"olmo2", "olmo3", "exaone4"}
LAYER_NORM = {"olmo", "gpt2", "gpt_bigcode", "gpt_neox", "phi", "opt", "stablelm", "starcoder2", "cohere", "cohere2",
              "biogpt", "nemotron"}  # fmt: skip
POSITIONS_ADDED = {"gpt2", "gpt_bigcode", "opt", "biogpt"}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def recorded(family):
    return capture(make(family), tokens(), ["resid_pre", "resid_post", "value", "output"])


def normed(recorded) -> torch.Tensor:
    return torch.stack(
        [recorded.readout.apply_attention_norm(layer, resid) for layer, resid in enumerate(recorded["resid_pre"])]
    )


def test_values_follow_from_the_normed_stream_or_are_refused(family, recorded):
    if family in NORMED_VALUES:
        with pytest.raises(
            UnsupportedModel, match=r"values must be a linear function .* a norm may follow the value projection"
        ):
            _ = recorded.readout.value_projection
        return
    again = torch.einsum("lbpm,lkmd->lbkpd", normed(recorded), recorded.readout.value_projection)
    assert_close(again + recorded.readout.value_bias[:, None, :, None], recorded["value"], rtol=1e-4, atol=1e-5)


def test_the_norm_before_attention_is_numbers_or_not_there(family, recorded):
    for layer, norm in enumerate(recorded.readout.attention_norms):
        x = recorded["resid_pre"][layer]
        assert (norm is None) == (family in POST_NORM)
        if norm is not None:
            assert norm.centred == (family in LAYER_NORM)
            out = recorded.readout.apply_attention_norm(layer, x)
            assert_close(norm.linear_part(x) / norm.scale(x, out) + norm.bias, out, rtol=1e-4, atol=1e-5)


def test_embeddings_enter_the_first_layer_positions_apart(family, recorded):
    x = recorded["resid_pre"][0] - recorded.readout.embed_tokens(tokens().flatten()).unflatten(0, tokens().shape)
    assert_close(x, x[:1].expand_as(x), rtol=1e-4, atol=1e-5)
    assert (x.abs().max() > 0.01) == (family in POSITIONS_ADDED)


def test_rows_of_the_output_map_read_the_logits(recorded):
    readout, final = recorded.readout, recorded["resid_post"][-1].flatten(0, 1)
    wanted = tokens().flatten()
    if readout.output_head.softcap is not None:
        final = final / final.norm(dim=-1, keepdim=True)
    logits = readout.output_head(final)
    along = readout.logit_directions(readout.get_unembedding_rows(wanted), final)
    again = (along * final).sum(-1) + readout.readout_bias[wanted]
    assert_close(again, logits.gather(-1, wanted[:, None])[:, 0], rtol=1e-4, atol=1e-4)
    mean = readout.logit_directions(readout.unembedding_mean.expand_as(final), final)
    assert_close((mean * final).sum(-1) + readout.readout_bias.mean(), logits.mean(-1), rtol=1e-4, atol=1e-4)
