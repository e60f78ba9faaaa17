"""Pictures of representations: principal components as numpy computes them, the same at every call; UMAP if asked."""

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from mesascope.activations import capture
from mesascope.analyses import projections, token_projections
from mesascope.analyses.stream.clusters import LAST_POSITION_REDUCTIONS, stream_at_position
from mesascope.analyses.stream.projections import principal_components, umap_layout
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch
from mesascope.testing import check_analysis


def model(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "max_position_embeddings": 32}
    return Decoder(DecoderConfig(**sizes | (options or {"vocab_size": 8}))).eval()


def batch(rows=40, length=6, labelled=True):
    tokens = torch.randint(0, 8, (rows, length + 1), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    latents = {"next token": targets, "last token": inputs} if labelled else {}
    return Batch(inputs=inputs, targets=targets, weight=torch.ones(rows, length), latents=latents)


def recorded(inputs, **options):
    return capture(model(), inputs, [], reduce=LAST_POSITION_REDUCTIONS, **options)


def some(rows=50, width=7, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_places_are_those_of_numpy_up_to_sign():
    for seed in range(5):
        vectors = some(seed=seed) * torch.arange(1, 8)
        places, explained = principal_components(vectors)
        centred = vectors.numpy() - vectors.numpy().mean(0)
        left, sizes, directions = np.linalg.svd(centred, full_matrices=False)
        np.testing.assert_allclose(places.abs(), np.abs(left * sizes)[:, :2], atol=1e-9)
        np.testing.assert_allclose(explained, sizes[:2] ** 2 / (sizes**2).sum())
        for k in range(2):
            sign = np.sign(directions[k][np.abs(directions[k]).argmax()])
            np.testing.assert_allclose(places[:, k], sign * left[:, k] * sizes[k], atol=1e-9)


def test_distances_of_flat_vectors_are_kept():
    flat = some(width=2) @ torch.linalg.qr(some(9, 2))[0].T + some(1, 9)
    places, explained = principal_components(flat)
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(flat, flat))
    assert float(explained.sum()) == pytest.approx(1.0)


def test_the_sign_does_not_depend_on_the_order_of_vectors():
    vectors, order = some(), torch.randperm(50, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(principal_components(vectors)[0][order], principal_components(vectors[order])[0])


def test_vectors_that_are_all_the_same_stand_in_one_place():
    places, explained = principal_components(torch.ones(5, 3, dtype=torch.float64))
    assert not places.any()
    assert not explained.any()


def test_a_batch_with_labels():
    data = check_analysis(projections, model(), batch())
    assert data["coordinates"].dims == ("layer", "batch", "component")
    assert data["coordinates"].attrs["view"] == "scatter"
    assert data["component"].values.tolist() == ["first", "second"]
    assert data["label_next_token"].values.tolist() == batch().targets[:, -1].tolist()
    assert data["label_last_token"].attrs["title"] == "last token"
    held = recorded(batch())
    expected = principal_components(stream_at_position(held, -1)[2].double())
    np.testing.assert_allclose(data["coordinates"].sel(layer="after 1"), expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(data["explained"].sel(layer="after 1"), expected[1], rtol=1e-4)
    assert len(np.unique(data["coordinates"].sel(layer="embedding").round(4), axis=0)) == 8  # one for each last token


def test_points_without_labels():
    inputs = batch().inputs
    bare = projections(recorded(inputs))
    assert bare["label_next_token"].values.tolist() == inputs[:, -1].tolist()
    assert "position 4" in bare["coordinates"].attrs["description"]
    assert "label_next_token" not in projections(recorded(inputs), position=-1)
    targets = projections(recorded(batch(labelled=False)))
    assert targets["label_next_token"].values.tolist() == batch().targets[:, -1].tolist()
    vectors = Affine(length=8).sample(20, torch.Generator().manual_seed(0))
    plain = projections(capture(model(d_in=1, d_out=1), vectors, [], reduce=LAST_POSITION_REDUCTIONS))
    assert set(plain.data_vars) == {"coordinates", "explained"}


def test_no_more_points_than_asked_for():
    assert projections(recorded(batch()), max_points=12).sizes["batch"] == 12
    assert projections(recorded(batch(300))).sizes["batch"] == 256
    assert projections(recorded(batch(300)))["label_next_token"].sizes == {"batch": 256}


def test_umap_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match=r"needs umap-learn; pip install mesascope\[umap\]"):
        projections(recorded(batch()), method="umap")


def test_umap_is_given_vectors_and_a_seed(monkeypatch):
    made = []

    class UMAP:
        def __init__(self, **options):
            made.append(options)

        def fit_transform(self, vectors):
            return vectors[:, :2].astype("float32") + 1

    stub = ModuleType("umap")
    stub.__dict__["UMAP"] = UMAP
    monkeypatch.setitem(sys.modules, "umap", stub)
    data = projections(recorded(batch()), method="umap", seed=7)
    assert set(data.data_vars) == {"coordinates", "label_next_token", "label_last_token"}
    assert made == [{"n_components": 2, "n_neighbors": 15, "random_state": 7, "n_jobs": 1}] * 4
    expected = stream_at_position(recorded(batch()), -1)[..., :2] + 1
    np.testing.assert_allclose(data["coordinates"], expected, rtol=1e-5)
    assert umap_layout(some(4)).shape == (4, 2)
    assert made[-1]["n_neighbors"] == 3


def test_what_cannot_be_drawn_is_refused():
    held = recorded(batch())
    with pytest.raises(ValueError, match="method must be pca or umap, but got 'tsne'"):
        projections(held, method="tsne")
    with pytest.raises(ValueError, match="position must lie within 6 positions, but got -7"):
        projections(held, position=-7)
    with pytest.raises(ValueError, match=r"at least two sequences and two coordinates, but got \(1, 16\)"):
        projections(recorded(batch(1)))
    with pytest.raises(ValueError, match="only the last 2 positions were"):
        projections(held, position=1)


def test_tokens_are_points_without_sinks_and_with_what_comes_next():
    ids = batch(rows=3, length=9).inputs
    bare = token_projections(capture(model(), ids, [], reduce=token_projections.reductions))
    assert bare["coordinates"].sizes == {"layer": 4, "batch": 3 * 7, "component": 2}, "neither the first nor the last"
    assert bare["label_token"].values.tolist() == ids[:, 1:-1].flatten().tolist()
    assert bare["label_next_token"].values.tolist() == ids[:, 2:].flatten().tolist()
    kept = capture(model(), ids, ["resid_pre", "resid_post"])
    after = kept["resid_post"][1][:, 1:-1].flatten(0, 1).double()
    torch.testing.assert_close(torch.from_numpy(bare["coordinates"][2].values), principal_components(after)[0].float())
    scored = replace(batch(rows=3, length=9), weight=torch.tensor([0.0] * 4 + [1.0] * 5).repeat(3, 1))
    some = token_projections(capture(model(), scored, [], reduce=token_projections.reductions), max_points=6)
    assert some["label_next_token"].sizes == {"batch": 6}
    assert some["label_next_token"].values[-1] == scored.targets[-1, -1], "the last target is known, though not read"


def test_pictures_of_tokens_refuse_vectors_and_other_ways_of_drawing():
    vectors = Affine(length=6).sample(4, torch.Generator().manual_seed(0))
    seen = capture(model(d_in=1, d_out=1), vectors, [], reduce=token_projections.reductions)
    with pytest.raises(ValueError, match=r"token_projections needs tokens, .* vectors; use projections"):
        token_projections(seen)
    with pytest.raises(ValueError, match=r"method must be pca or umap, but got 'tsne'"):
        token_projections(capture(model(), batch().inputs, [], reduce=token_projections.reductions), method="tsne")
