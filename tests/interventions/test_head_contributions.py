"""Total contributions of heads equal differences of ablated passes; with one path they are the direct ones."""

import pytest
import torch

from mesascope.activations import capture
from mesascope.analyses.heads.refinement import direct_head_contributions
from mesascope.interventions import mean, total_head_contributions
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder


def build_decoder(**shape) -> Decoder:
    torch.manual_seed(0)
    config = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 8}
    return Decoder(DecoderConfig(d_in=2, d_out=2, **config, **shape)).eval()


def sample_inputs(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 8, 2, generator=torch.Generator().manual_seed(1))


def test_contribution_is_the_difference_to_the_ablated_pass():
    model, x = build_decoder(norm="layer", intermediate_size=24), sample_inputs()
    found = total_head_contributions(model, x)
    acts = capture(model, x, ["z", "output"])
    for layer, head in ((0, 1), (1, 0)):
        ablated = capture(model, x, ["output"], edits=[mean("z", acts, {"layer": layer, "head": head})])
        assert torch.allclose(found[layer, head], acts["output"] - ablated["output"], atol=1e-5)
    assert float(found.abs().amax(dim=(2, 3, 4)).min()) > 0.01  # every head of this model changes the output


def test_contribution_in_the_last_layer_is_the_direct_one_without_its_mean():
    model, x = build_decoder(), sample_inputs()
    direct = direct_head_contributions(capture(model, x, ["z", "resid_post"]), 1)
    found = total_head_contributions(model, x)
    assert torch.allclose(found[1], direct - direct.mean(1, keepdim=True), atol=1e-5)
    assert not torch.allclose(found[0], direct_head_contributions(capture(model, x, ["z", "resid_post"]), 0), atol=1e-2)


def test_contributions_do_not_depend_on_the_batch_of_edits():
    model, x = build_decoder(), sample_inputs()
    assert torch.allclose(
        total_head_contributions(model, x), total_head_contributions(model, x, max_positions=1), atol=1e-6
    )


def test_one_sequence_raises():
    with pytest.raises(ValueError, match="contributions need two or more sequences, but got one"):
        total_head_contributions(build_decoder(), sample_inputs(1))
