"""Clusters recover the hidden generator after the planted layer, and nothing in decoys."""

import pytest
import torch

from cases import spread
from mesascope.activations import Edit, capture
from mesascope.analyses import clusters
from mesascope.analyses.stream.clusters import LAST_POSITION_REDUCTIONS, SCORE_DESCRIPTIONS
from mesascope.ground_truth.models.generators import (
    HEADS,
    LAYERS,
    VOCABULARY,
    WRITE_NORM,
    build_generator_model,
    layer_subspace,
    sample_labelled_sequences,
)
from mesascope.tasks.base import Batch

BATCH = Batch(**sample_labelled_sequences(512, torch.Generator().manual_seed(0)))
CHANCE = 0.05
DEPTHS = ["embedding", *(f"after {layer}" for layer in range(LAYERS))]


def run_clusters(model, edits=(), labels=("generator", "next token"), **options):
    return clusters(capture(model, BATCH, [], reduce=LAST_POSITION_REDUCTIONS, edits=edits), labels=labels, **options)


def is_at_chance(data, label: str, depths) -> bool:
    here = data.sel(stat=label, layer=depths)
    adjusted = max(float(here[name].max()) for name in ("adjusted_rand_index", "adjusted_mutual_information"))
    highest = here["pairwise_f1_null"].max("draw") + 0.03
    return adjusted < CHANCE and bool((here["pairwise_f1"] < highest).all())


def remove_directions(layer: int, directions: torch.Tensor) -> Edit:
    """Project orthonormal directions (d_model, count) out of the residual stream after a layer."""
    where = {"layer": layer}
    return Edit(site="resid_post", where=where, fn=lambda stream: stream - stream @ directions @ directions.T)


@pytest.mark.parametrize("layer", spread(range(LAYERS), 2))
def test_generator_is_recovered_after_the_planted_layer_only(layer):
    data = run_clusters(build_generator_model(layer), labels=())
    there = data.sel(layer=f"after {layer}")
    for name in SCORE_DESCRIPTIONS:
        assert float(there[name].sel(stat="generator")) > 0.99
    assert is_at_chance(data, "generator", [depth for depth in DEPTHS if depth != f"after {layer}"])
    assert is_at_chance(data, "next token", DEPTHS)
    assert data["clusters"].values.tolist() == [VOCABULARY, VOCABULARY, VOCABULARY**2]


@pytest.mark.parametrize("seed", range(3))
def test_result_does_not_depend_on_initial_centres(seed):
    there = run_clusters(build_generator_model(2), labels=("generator",), seed=seed).sel(layer="after 2")
    assert float(there["adjusted_rand_index"].min()) > 0.99


@pytest.mark.parametrize("layer", spread(range(LAYERS), 2))
def test_removing_the_layer_subspace_removes_the_generator(layer):
    model, width = build_generator_model(layer), HEADS * 32
    axes = torch.eye(width)
    own, others = (
        axes[:, layer_subspace(layer)],
        torch.cat([axes[:, : layer_subspace(layer).start], axes[:, layer_subspace(layer).stop :]], 1),
    )
    mixed = torch.linalg.qr(torch.randn(others.shape[1], VOCABULARY, generator=torch.Generator().manual_seed(layer)))[0]
    assert is_at_chance(run_clusters(model, [remove_directions(layer, own)]), "generator", [f"after {layer}"])
    kept = run_clusters(model, [remove_directions(layer, others @ mixed)]).sel(layer=f"after {layer}", stat="generator")
    assert float(kept["adjusted_rand_index"]) > 0.99
    assert float(kept["pairwise_f1"]) > 0.99


@pytest.mark.parametrize("layer", [0, 2])
def test_uninformative_token_of_equal_norm_is_not_the_generator(layer):
    data = run_clusters(build_generator_model(layer, "nothing"))
    assert is_at_chance(data, "generator", DEPTHS)
    assert is_at_chance(data, "next token", DEPTHS)


@pytest.mark.parametrize("layer", [1, 3])
def test_planted_next_token_is_recovered_and_the_generator_is_not(layer):
    data = run_clusters(build_generator_model(layer, "next token"))
    there = data.sel(layer=f"after {layer}", stat="next token")
    assert float(there["adjusted_rand_index"]) > 0.99
    assert is_at_chance(data, "next token", [depth for depth in DEPTHS if depth != f"after {layer}"])
    assert is_at_chance(data, "generator", DEPTHS)


def test_decoys_match_norms_of_the_planted_model():
    """Weights and residual streams have the same norms as in the planted model."""
    models = [build_generator_model(1, planted) for planted in ("generator", "next token", "nothing")]
    streams = [capture(model, BATCH, ["resid_post"])["resid_post"][:, :, -1] for model in models]
    for model, stream in zip(models[1:], streams[1:], strict=True):
        torch.testing.assert_close(stream.norm(dim=-1), streams[0].norm(dim=-1))
        for (name, weight), other in zip(models[0].named_parameters(), model.parameters(), strict=True):
            assert torch.equal(weight.norm(), other.norm()), name
    written = streams[0][1][:, layer_subspace(1)]
    torch.testing.assert_close(written, WRITE_NORM * torch.eye(VOCABULARY)[BATCH.inputs[:, 0]])


def test_layer_out_of_range_raises():
    with pytest.raises(ValueError, match="layer must be from 0 to 3, but got 4"):
        build_generator_model(4)
