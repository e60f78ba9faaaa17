"""Number of heads with each role: equal to the roles, comparable with untrained models, and refused elsewhere."""

import numpy as np
import pytest
import torch
import xarray as xr

from mesascope import analyses
from mesascope.analyses import run_analyses
from mesascope.analyses.heads.role_counts import find_role_masks, with_role_counts
from mesascope.analyses.nulls import with_draws
from mesascope.ground_truth.models.vectors import build_planted_model
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch

OF_VECTORS = (analyses.similarity, analyses.value_copying, analyses.positional_attention)
OF_TOKENS = (analyses.token_similarity, analyses.ov_copying_score, analyses.natural_induction)


def sample(count: int = 256) -> Batch:
    return Affine().sample(count, torch.Generator().manual_seed(0))


def build_untrained(seed: int, layers: int = 1) -> Decoder:
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": layers, "max_position_embeddings": 20}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Decoder(DecoderConfig(d_in=1, d_out=1, norm="none", intermediate_size=0, **shape)).eval()


def test_counts_of_a_planted_model_are_its_roles():
    found = run_analyses(build_planted_model("similar, subtracted"), sample(), OF_VECTORS)
    counts = {name: result["role_count"].sel(layer=0) for name, result in found.items()}
    assert float(counts["similarity"].sel(role_name="similarity")) == 1
    assert float(counts["similarity"].sel(role_name="negative similarity")) == 0
    assert float(counts["similarity"].sel(role_name="similarity of inputs")) == 1
    assert counts["value_copying"].to_series().to_dict() == {"copying": 0, "subtracting": 1}
    previous = run_analyses(build_planted_model("previous"), sample(), OF_VECTORS)["positional_attention"]
    assert previous["role_count"].sel(role_name="previous").values.tolist() == [1]


def test_counts_of_tokens_are_sums_of_the_roles():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
    model = Decoder(DecoderConfig(vocab_size=60, num_hidden_layers=2, **shape)).eval()
    text = torch.randint(0, 20, (4, 24), generator=torch.Generator().manual_seed(1))
    found = run_analyses(model, text, OF_TOKENS)
    generator = torch.Generator().manual_seed(0)
    repeated = analyses.sample_repeated_tokens(torch.arange(60), 8, 4, generator)
    found |= run_analyses(model, repeated, [analyses.repeated_token_heads])
    for name in ("token_similarity", "ov_copying_score"):
        count = found[name]["role_count"].sum("role_name")
        assert (count == (found[name]["role"] != 0).sum("head")).all()
    text_roles, count = found["repeated_token_heads"]["role"], found["repeated_token_heads"]["role_count"]
    for role in count["role_name"].values:
        has_role = np.array([[role in words.split(", ") for words in row] for row in text_roles.values.tolist()])
        assert count.sel(role_name=role).values.tolist() == has_role.sum(1).tolist()
    assert found["natural_induction"]["role_count"].sizes == {"layer": 2, "role_name": 2}


def test_refining_heads_are_counted_by_the_kind_of_contribution():
    role = xr.DataArray([[[1, 0], [1, 1]]], dims=("layer", "head", "stat"), coords={"stat": ["direct", "total"]})
    counts = with_role_counts("refinement_heads", xr.Dataset({"role": role}))["role_count"]
    assert counts.sel(layer=0).to_series().to_dict() == {"refining, direct": 2, "refining, total": 1}


def test_an_analysis_without_roles_is_refused_by_name():
    with pytest.raises(ValueError, match="must be one that reports them, but got 'norms'"):
        find_role_masks("norms", xr.Dataset())


@pytest.mark.slow
def test_an_untrained_model_has_as_many_roles_as_other_untrained_models():
    """A decoy: most heads have a role by their own null, and the number is that of the untrained models."""
    draws = [run_analyses(build_untrained(seed), sample(), OF_VECTORS) for seed in range(1, 9)]
    decoy = run_analyses(build_untrained(0), sample(), OF_VECTORS)
    for name in ("similarity", "value_copying"):
        joined = with_draws(decoy[name], "untrained", [draw[name] for draw in draws])
        null = joined["role_count_null_untrained"]
        assert null.sizes["draw"] == 8
        assert null.attrs["control_of"] == "role_count"
        with_role, null_with_role = joined["role_count"].sum(), null.sum(("layer", "role_name"))
        assert float(null_with_role.mean()) > 2, "most of the four heads of an untrained layer have a role"
        assert float(null_with_role.min()) <= float(with_role) <= float(null_with_role.max())
        for draw, result in enumerate(draws):
            assert joined["role_null_untrained"].isel(draw=draw).equals(result[name]["role"].assign_coords(draw=draw))


def test_draws_are_a_null_of_numbers_that_are_not_about_single_tokens_or_controls():
    about = {"units": "1", "description": "a number"}
    one = xr.Dataset(
        {
            "score": ("layer", [0.5], about),
            "score_null": ("layer", [0.1], about | {"control_of": "score"}),
            "score_se": ("layer", [0.1], about | {"uncertainty_of": "score"}),
            "loss": ("pos", [0.1], about),
            "role": ("layer", ["first"], about),
        }
    )
    joined = with_draws(one, "random weights", [one, one])
    assert set(joined) - set(one) == {"score_null_random_weights"}
    assert joined["score_null_random_weights"].attrs["control"] == "random weights"
