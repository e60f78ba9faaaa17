"""What a layer knows of the hidden generator is found after that layer; nothing is seen in those that look alike."""

import pytest
import torch

from mesascope.activations import Edit, capture
from mesascope.analyses import clusters
from mesascope.analyses.stream.clusters import ABOUT, ENDINGS
from mesascope.ground_truth.models.generators import (
    HEADS,
    LAYERS,
    SIZE,
    VOCABULARY,
    named_sequences,
    planted_generator,
    subspace,
)
from mesascope.tasks.base import Batch

BATCH = Batch(**named_sequences(512, torch.Generator().manual_seed(0)))
CHANCE = 0.05
DEPTHS = ["embedding", *(f"after {layer}" for layer in range(LAYERS))]


def found(model, edits=(), labels=("generator", "next token"), **options):
    return clusters(capture(model, BATCH, [], reduce=ENDINGS, edits=edits), labels=labels, **options)


def at_chance(data, label: str, depths) -> bool:
    here = data.sel(stat=label, layer=depths)
    adjusted = max(float(here[name].max()) for name in ("adjusted_rand_index", "adjusted_mutual_information"))
    highest = here["pairwise_f1_permuted"].max("draw") + 0.03
    return adjusted < CHANCE and bool((here["pairwise_f1"] < highest).all())


def without(layer: int, directions: torch.Tensor) -> Edit:
    """Takes out of the stream, after a layer, what lies along orthonormal directions (d_model, count)."""
    where = {"layer": layer}
    return Edit(site="resid_post", where=where, fn=lambda stream: stream - stream @ directions @ directions.T)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_generator_is_found_after_its_layer_and_nowhere_else(layer):
    data = found(planted_generator(layer), labels=())
    there = data.sel(layer=f"after {layer}")
    for name in ABOUT:
        assert float(there[name].sel(stat="generator")) > 0.99
    assert at_chance(data, "generator", [depth for depth in DEPTHS if depth != f"after {layer}"])
    assert at_chance(data, "next token", DEPTHS)
    assert data["clusters"].values.tolist() == [VOCABULARY, VOCABULARY, VOCABULARY**2]


@pytest.mark.parametrize("seed", range(3))
def test_any_first_centres_will_do(seed):
    there = found(planted_generator(2), labels=("generator",), seed=seed).sel(layer="after 2")
    assert float(there["adjusted_rand_index"].min()) > 0.99


@pytest.mark.parametrize("layer", range(LAYERS))
def test_it_is_gone_without_its_subspace_and_stays_without_another(layer):
    model, width = planted_generator(layer), HEADS * 32
    axes = torch.eye(width)
    own, others = (
        axes[:, subspace(layer)],
        torch.cat([axes[:, : subspace(layer).start], axes[:, subspace(layer).stop :]], 1),
    )
    mixed = torch.linalg.qr(torch.randn(others.shape[1], VOCABULARY, generator=torch.Generator().manual_seed(layer)))[0]
    assert at_chance(found(model, [without(layer, own)]), "generator", [f"after {layer}"])
    kept = found(model, [without(layer, others @ mixed)]).sel(layer=f"after {layer}", stat="generator")
    assert float(kept["adjusted_rand_index"]) > 0.99
    assert float(kept["pairwise_f1"]) > 0.99


@pytest.mark.parametrize("layer", [0, 2])
def test_another_token_of_the_same_size_is_not_taken_for_the_generator(layer):
    data = found(planted_generator(layer, "nothing"))
    assert at_chance(data, "generator", DEPTHS)
    assert at_chance(data, "next token", DEPTHS)


@pytest.mark.parametrize("layer", [1, 3])
def test_where_the_next_token_is_planted_only_it_is_found(layer):
    data = found(planted_generator(layer, "next token"))
    there = data.sel(layer=f"after {layer}", stat="next token")
    assert float(there["adjusted_rand_index"]) > 0.99
    assert at_chance(data, "next token", [depth for depth in DEPTHS if depth != f"after {layer}"])
    assert at_chance(data, "generator", DEPTHS)


def test_decoys_look_alike():
    """The same heads with weights of the same size, and a stream of the same norm after each layer."""
    models = [planted_generator(1, planted) for planted in ("generator", "next token", "nothing")]
    streams = [capture(model, BATCH, ["resid_post"])["resid_post"][:, :, -1] for model in models]
    for model, stream in zip(models[1:], streams[1:], strict=True):
        torch.testing.assert_close(stream.norm(dim=-1), streams[0].norm(dim=-1))
        for (name, weight), other in zip(models[0].named_parameters(), model.parameters(), strict=True):
            assert torch.equal(weight.norm(), other.norm()), name
    written = streams[0][1][:, subspace(1)]
    torch.testing.assert_close(written, SIZE * torch.eye(VOCABULARY)[BATCH.inputs[:, 0]])


def test_there_are_four_layers():
    with pytest.raises(ValueError, match="layer must be from 0 to 3, but got 4"):
        planted_generator(4)
