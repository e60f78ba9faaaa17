"""Two-dimensional projections of representations: principal components, or UMAP."""

from importlib import import_module

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.analyses.stream.clusters import LAST_POSITION_REDUCTIONS, resolve_position, stream_at_position
from mesascope.analyses.stream.norms import find_sinks, norms, norms_by_depth
from mesascope.analyses.stream.probes import depth_names
from mesascope.analyses.stream.token_lenses import LENS_REDUCTION, next_tokens
from mesascope.axes import to_data_array
from mesascope.statistics import evenly_spaced_indices

MAX_POINTS = 256  # maximum number of points: more would overlap
UMAP_NEIGHBOURS = 15  # n_neighbors of UMAP; the default of McInnes et al. 2018
COMPONENT_NAMES = ["first", "second"]

Coordinates = Float[Tensor, "batch component"]


@analysis(
    title="Projections of representations",
    description="""The residual stream of one position of each sequence, projected onto a plane at the embedding and
    after each layer. PCA: the plane of the first two principal components. Points that are apart in the plane are apart
    in the stream, but points that are close can be apart in other directions. UMAP (McInnes et al. 2018): neighbours
    stay together as well as possible; distances between groups carry little information. Each depth has its own
    axes.""",
    reductions=LAST_POSITION_REDUCTIONS,
    steps="ends",
)
def projections(
    acts: Capture,
    position: int | None = None,
    method: str = "pca",
    max_points: int = MAX_POINTS,
    seed: int = 0,
) -> xr.Dataset:
    """Project one position's residual stream of each sequence onto a plane, at every depth.

    Args:
        acts: a capture. Points are coloured by the labels of its batch, or else by the next token if the inputs are
            tokens.
        position: the position, counted from the end if negative. By default the last one, or the last one with a next
            token if tokens were captured without a batch.
        method: ``pca``, or ``umap``, which requires umap-learn.
        max_points: maximum number of sequences; the first ones are used.
        seed: seed of UMAP.

    Returns:
        ``coordinates`` (layer, batch, component); for PCA ``explained`` (layer, component); and the labels
        of the points.

    Raises:
        ValueError: there is no such position or method, fewer than two sequences or coordinates, or no umap-learn.
    """
    _validate_method(method)
    has_bare_tokens = acts.batch is None and not acts.inputs.is_floating_point()
    position_index = resolve_position(acts, (-2 if has_bare_tokens else -1) if position is None else position)
    vectors = stream_at_position(acts, position_index)[:, :max_points].double().cpu()
    variables = _project_depths(
        acts, vectors, method, seed, f"each sequence's vector at position {position_index}", "sequences as points"
    )
    for name, point_labels in _point_labels(acts, position_index).items():
        variables |= _label_points(name, point_labels[:max_points], f"the {name} of each sequence at that position")
    return xr.Dataset(variables)


@analysis(
    title="Projections of tokens",
    description="""The residual stream of the tokens of a text, projected onto a plane at the embedding and after each
    layer. Attention sinks are left out, since a single one would determine an axis. PCA: the plane of the first two
    principal components. Points that are apart in the plane are apart in the stream, but points that are close can be
    apart in other directions. UMAP (McInnes et al. 2018): neighbours stay together as well as possible; distances
    between groups carry little information. Each depth has its own axes.""",
    reductions={"lens_sample": LENS_REDUCTION, **norms.reductions},
    steps="ends",
)
def token_projections(acts: Capture, method: str = "pca", max_points: int = MAX_POINTS, seed: int = 0) -> xr.Dataset:
    """Project the residual stream of the tokens of a text onto a plane, at every depth, without attention sinks.

    Args:
        acts: a capture of tokens.
        method: ``pca``, or ``umap``, which requires umap-learn.
        max_points: maximum number of tokens, evenly subsampled from the captured queries.
        seed: seed of UMAP.

    Returns:
        the variables of :func:`projections`, with the tokens as points along ``batch``.

    Raises:
        ValueError: the inputs are vectors, there is no such method, fewer than two tokens, or no umap-learn.
    """
    if acts.inputs.is_floating_point():
        raise ValueError("token_projections needs tokens, but the inputs are vectors; use projections")
    _validate_method(method)
    streams, next_token_ids, is_scored = next_tokens(acts)
    tokens = acts.inputs[:, list(acts.queries)]
    is_sink = find_sinks(norms_by_depth(acts)).to(is_scored.device)[:, list(acts.queries)]
    points = (is_scored & ~is_sink).flatten().nonzero()[:, 0]
    points = points[evenly_spaced_indices(len(points), max_points)]
    vectors = torch.stack([stream.flatten(0, 1)[points] for stream in streams]).double().cpu()
    variables = _project_depths(acts, vectors, method, seed, "each token's vector", "tokens as points")
    for name, point_labels in (("token", tokens), ("next token", next_token_ids)):
        variables |= _label_points(name, point_labels.flatten()[points], f"the {name} at each position")
    return xr.Dataset(variables)


def _validate_method(method: str) -> None:
    if method not in ("pca", "umap"):
        raise ValueError(f"method must be pca or umap, but got {method!r}")


def _label_points(name: str, point_labels: Int[Tensor, " batch"], about: str) -> dict[str, xr.DataArray]:
    """Return the label of each point as a variable; token ids are decoded later, where a tokenizer is at hand."""
    units = "token" if name in ("token", "next token") else "label"
    return {
        f"label_{name.replace(' ', '_')}": to_data_array(
            point_labels, "batch", units=units, description=about
        ).assign_attrs(title=name)
    }


def _project_depths(
    acts: Capture,
    vectors: Float[Tensor, "depth batch d_model"],
    method: str,
    seed: int,
    point_description: str,
    title: str,
) -> dict[str, xr.DataArray]:
    """Project the vectors of every depth, and compute the explained variance.

    Raises:
        ValueError: there are fewer than two vectors or coordinates, or umap-learn is not installed.
    """
    if min(vectors.shape[1:]) < 2:
        raise ValueError(
            f"a projection needs at least two sequences and two coordinates, but got {tuple(vectors.shape[1:])}"
        )
    coords = {"layer": depth_names(acts.layers), "component": COMPONENT_NAMES}
    axes = "principal components" if method == "pca" else "UMAP"
    projected = [principal_components(each) if method == "pca" else (umap_layout(each, seed), None) for each in vectors]
    about = f"{point_description} in two dimensions ({axes})"
    variables = {
        "coordinates": to_data_array(
            torch.stack([coordinates for coordinates, _ in projected]).float(),
            "layer",
            "batch",
            "component",
            units="1",
            description=about,
            coords=coords,
        ).assign_attrs(view="scatter", title=title, headline=1)
    }
    explained = [fraction for _, fraction in projected if fraction is not None]
    if explained:
        about = "fraction of the variance of these vectors along each principal component"
        variables["explained"] = to_data_array(
            torch.stack(explained), "layer", "component", units="1", description=about, coords=coords
        )
    return variables


def principal_components(vectors: Float[Tensor, "batch d_model"]) -> tuple[Coordinates, Float[Tensor, " component"]]:
    """Project vectors onto their first two principal components.

    The largest weight of each component is positive, so that equal vectors have equal projections.

    Args:
        vectors: the vectors (batch, d_model).

    Returns:
        coordinates (batch, component), and the fraction of the variance along each component.
    """
    centred = vectors - vectors.mean(0)
    _, singular_values, directions = torch.linalg.svd(centred, full_matrices=False)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    variance = singular_values.square()
    return centred @ directions[:2].T, variance[:2] / variance.sum().clamp_min(torch.finfo(variance.dtype).tiny)


def umap_layout(vectors: Float[Tensor, "batch d_model"], seed: int = 0) -> Coordinates:
    """Project vectors onto a plane by UMAP.

    Args:
        vectors: the vectors (batch, d_model).
        seed: seed of UMAP.

    Returns:
        coordinates (batch, component).

    Raises:
        ValueError: umap-learn is not installed.
    """
    try:
        umap = import_module("umap")  # an optional dependency that is slow to import
    except ImportError:
        raise ValueError("method='umap' needs umap-learn; pip install mesascope[umap]") from None
    neighbours = min(UMAP_NEIGHBOURS, len(vectors) - 1)
    reducer = umap.UMAP(n_components=2, n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return torch.as_tensor(reducer.fit_transform(vectors.numpy())).double()


def _point_labels(acts: Capture, position: int) -> dict[str, Int[Tensor, " batch"]]:
    """Return the labels of the sequences at a position: those of the batch, or else the next token if it is known."""
    batch = acts.batch
    if batch is not None and batch.categorical_latents:
        return {name: kinds[:, position] for name, kinds in batch.categorical_latents.items()}
    if batch is not None and not batch.targets.is_floating_point():
        return {"next token": batch.targets[:, position]}
    if not acts.inputs.is_floating_point() and position + 1 < acts.inputs.shape[1]:
        return {"next token": acts.inputs[:, position + 1]}
    return {}
