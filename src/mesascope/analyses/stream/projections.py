"""Representations as points in a plane."""

from importlib import import_module

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import measure
from mesascope.analyses.stream.clusters import ENDINGS, place_of, representations
from mesascope.analyses.stream.norms import at_depths, norms, sinks
from mesascope.analyses.stream.probes import depth_names
from mesascope.analyses.stream.token_lenses import SAMPLE, next_tokens
from mesascope.axes import label

MOST = 256  # sequences in a picture: more hide one another
NEIGHBOURS = 15  # of a point, whose distances UMAP keeps; its authors' default (McInnes et al. 2018)
AXES = ["first", "second"]

Places = Float[Tensor, "batch component"]


@measure(title="Pictures of representations", sites=[], reductions=ENDINGS, steps="ends", order=14)
def pictures(
    recorded: Capture,
    position: int | None = None,
    method: str = "pca",
    most: int = MOST,
    seed: int = 0,
) -> xr.Dataset:
    """One position's vector of the residual stream, of each sequence, as a point in a plane, at the embedding and after
    each layer. By principal components, the plane holds the two directions along which these vectors vary most: what
    lies apart in it is apart, but what lies together may be apart in other directions. By UMAP (McInnes et al. 2018),
    neighbours are kept together as well as can be, and distances between groups say little. Each picture has axes of
    its own.

    Args:
        recorded: a capture. Points are sorted by the labels of its batch, or else, where tokens are read, by the next
            token.
        position: whose vectors are shown, counted from the end where negative. By default the last, or the last that
            has a next token where bare tokens were captured.
        method: ``pca``, or ``umap``, for which umap-learn must be installed.
        most: sequences shown, the first ones.
        seed: of UMAP's layout.

    Raises:
        ValueError: no such position or method, fewer than two sequences or coordinates, or no umap-learn.
    """
    _check(method)
    bare = recorded.batch is None and not recorded.inputs.is_floating_point()
    place = place_of(recorded, (-2 if bare else -1) if position is None else position)
    vectors = representations(recorded, place)[:, :most].double().cpu()
    found = _drawn(
        recorded, vectors, method, seed, f"each sequence's vector at position {place}", "sequences as points"
    )
    for name, kinds in _labels(recorded, place).items():
        found |= _label(name, kinds[:most], f"the {name} of each sequence at that position")
    return xr.Dataset(found)


@measure(
    title="Pictures of tokens", sites=[], reductions={"lens_sample": SAMPLE, **norms.reductions}, steps="ends", order=14
)
def token_pictures(recorded: Capture, method: str = "pca", most: int = MOST, seed: int = 0) -> xr.Dataset:
    """The vectors of the residual stream of the tokens of a text as points in a plane, at the embedding and after each
    layer; sinks are left out, for one of them would take an axis for itself. By principal components, the plane holds
    the two directions along which these vectors vary most: what lies apart in it is apart, but what lies together may
    be apart in other directions. By UMAP (McInnes et al. 2018), neighbours are kept together as well as can be, and
    distances between groups say little. Each picture has axes of its own.

    Args:
        recorded: a capture of tokens.
        method: ``pca``, or ``umap``, for which umap-learn must be installed.
        most: tokens shown, spread evenly over those looked at.
        seed: of UMAP's layout.

    Raises:
        ValueError: vectors were read, no such method, fewer than two tokens, or no umap-learn.
    """
    if recorded.inputs.is_floating_point():
        raise ValueError("pictures of tokens need tokens, but the inputs are vectors; use pictures")
    _check(method)
    streams, following, known = next_tokens(recorded)
    tokens = recorded.inputs[:, list(recorded.queries)]
    apart = sinks(at_depths(recorded)).to(known.device)[:, list(recorded.queries)]
    points = (known & ~apart).flatten().nonzero()[:, 0]
    points = points[torch.linspace(0, len(points) - 1, min(most, len(points))).round().long()]
    vectors = torch.stack([stream.flatten(0, 1)[points] for stream in streams]).double().cpu()
    found = _drawn(recorded, vectors, method, seed, "each token's vector", "tokens as points")
    for name, kinds in (("token", tokens), ("next token", following)):
        found |= _label(name, kinds.flatten()[points], f"the {name} at each position")
    return xr.Dataset(found)


def _check(method: str) -> None:
    """Refuse a way of drawing that is not there."""
    if method not in ("pca", "umap"):
        raise ValueError(f"method must be pca or umap, but got {method!r}")


def _label(name: str, kinds: Int[Tensor, " batch"], about: str) -> dict[str, xr.DataArray]:
    """What points are coloured by; tokens are spelled later, by who knows how."""
    units = "token" if name in ("token", "next token") else "label"
    return {f"label_{name.replace(' ', '_')}": label(kinds, "batch", units=units, about=about).assign_attrs(title=name)}


def _drawn(
    recorded: Capture, vectors: Float[Tensor, "depth batch d_model"], method: str, seed: int, what: str, title: str
) -> dict[str, xr.DataArray]:
    """The places of vectors at every depth, and what the plane holds of them.

    Raises:
        ValueError: fewer than two vectors or coordinates, or no umap-learn.
    """
    if min(vectors.shape[1:]) < 2:
        raise ValueError(f"a picture needs two sequences and coordinates or more, but got {tuple(vectors.shape[1:])}")
    coords = {"layer": depth_names(recorded.layers), "component": AXES}
    axes = "principal components" if method == "pca" else "UMAP"
    drawn = [projection(each) if method == "pca" else (layout(each, seed), None) for each in vectors]
    about = f"{what} in two dimensions ({axes})"
    found = {
        "place": label(
            torch.stack([places for places, _ in drawn]).float(),
            "layer",
            "batch",
            "component",
            units="1",
            about=about,
            coords=coords,
        ).assign_attrs(view="scatter", title=title, headline=1)
    }
    shares = [share for _, share in drawn if share is not None]
    if shares:
        about = "share of the variance of these vectors along each axis of the picture"
        found["explained"] = label(torch.stack(shares), "layer", "component", units="1", about=about, coords=coords)
    return found


def projection(vectors: Float[Tensor, "batch d_model"]) -> tuple[Places, Float[Tensor, " component"]]:
    """The first two principal components of vectors, and the share of variance along each.

    The largest weight of each direction is positive, so that the same vectors always give the same picture.
    """
    centred = vectors - vectors.mean(0)
    _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    variance = sizes.square()
    return centred @ directions[:2].T, variance[:2] / variance.sum().clamp_min(torch.finfo(variance.dtype).tiny)


def layout(vectors: Float[Tensor, "batch d_model"], seed: int = 0) -> Places:
    """The places that UMAP gives to vectors.

    Raises:
        ValueError: umap-learn is not installed.
    """
    try:
        umap = import_module("umap")  # an extra, and slow to import
    except ImportError:
        raise ValueError("method='umap' needs umap-learn; pip install mesascope[umap]") from None
    neighbours = min(NEIGHBOURS, len(vectors) - 1)
    drawing = umap.UMAP(n_components=2, n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return torch.as_tensor(drawing.fit_transform(vectors.numpy())).double()


def _labels(recorded: Capture, place: int) -> dict[str, Int[Tensor, " batch"]]:
    """What sequences can be sorted by at a position: the batch's labels, else the next token where it is known."""
    batch = recorded.batch
    if batch is not None and batch.labels:
        return {name: kinds[:, place] for name, kinds in batch.labels.items()}
    if batch is not None and not batch.targets.is_floating_point():
        return {"next token": batch.targets[:, place]}
    if not recorded.inputs.is_floating_point() and place + 1 < recorded.inputs.shape[1]:
        return {"next token": recorded.inputs[:, place + 1]}
    return {}
