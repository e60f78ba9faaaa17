"""Attention within edges, and attention along the chain of edges from the goal to the root."""

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.studies.backward_chaining.tree_positions import (
    ChainLocation,
    TreePositions,
    locate_captured_trees,
    mean_where,
)

Pattern = Float[Tensor, "layer batch head query key"]
OTHER_SOURCES, OTHER_EDGES = "sources of other edges", "other edges"
QUERY_LOCATIONS: dict[str, tuple[ChainLocation, str]] = {
    "chain": ("root", "the root"),
    "chain_at_colon": ("colon", "the colon"),
    "chain_at_goal": ("goal", "the goal"),
    "chain_at_later_nodes": ("later", "later branching nodes of the path"),
}


@analysis(
    title="Attention within edges and along the chain",
    description="""
        Within edges: mean attention from the target of an edge to the source of the same edge, which must be copied for
        an edge to be known at one position; control: attention to the source of an earlier edge, mean over those. Along
        the chain: mean attention from the position of the root to the target of the edge into the ancestor of the goal
        at a distance. A deduction head that has the ancestor finds this edge, and copies its source, the next ancestor.
        Sequences are those in which the root branches and the path is at least two edges longer than the distance.
        Control: attention to the target of an edge that is neither on the path nor at the root, mean over those. The
        same from the goal and the colon before the root, and from later branching nodes of the path at least as far
        from the ancestor; their control leaves out the edges from the current node. Also the attention from the root to
        the goal.
    """,
    sites=["pattern"],
    steps="ends",
)
def chaining_attention(acts: Capture) -> xr.Dataset:
    """Compute attention within edges and along the chain from the goal to the root.

    Args:
        acts: a capture of a batch of `TreePaths`, with ``pattern`` at all queries.

    Returns:
        by layer and head ``within_edge``; by distance from the goal ``chain``, and the same from the colon, the goal
        and later nodes (``chain_at_colon``, ...), each with its control; and ``to_goal``.
    """
    trees = locate_captured_trees(acts)
    pattern = acts["pattern"].double().cpu()
    distances = list(range(min(len(acts.layers), trees.task.num_nodes - 2)))
    within, to_earlier = _measure_edges(pattern, trees)
    goal = pattern[..., trees.root_position, trees.task.goal_position]
    layers = {"layer": list(acts.layers)}

    def label(values: Tensor, description: str, coords: dict[str, list]) -> xr.DataArray:
        axes = ("layer", "head", *coords)
        return to_data_array(values, *axes, units="1", description=description, coords=layers | coords)

    by_distance = {"_distance": distances}
    chains = {}
    for name, (location, start) in QUERY_LOCATIONS.items():
        along, others = zip(*(_measure_chain(pattern, trees, location, d) for d in distances), strict=True)
        about = f"attention from {start} to the target of the edge into the ancestor of the goal at a distance"
        other = label(torch.stack(others, -1), f"attention from {start} to the target of another edge", by_distance)
        chains |= with_null(
            name,
            label(torch.stack(along, -1), about, by_distance).assign_attrs(headline=1),
            Null(name=OTHER_EDGES, value=other),
        )
    return xr.Dataset(
        {
            **with_null(
                "within_edge",
                label(within, "attention from the target of an edge to its source", {}).assign_attrs(headline=1),
                Null(name=OTHER_SOURCES, value=label(to_earlier, "attention to the source of an earlier edge", {})),
            ),
            **chains,
            "to_goal": label(
                mean_where(goal.movedim(1, -1), trees.root_branches), "attention from the root to the goal", {}
            ),
        }
    )


def _measure_edges(pattern: Pattern, trees: TreePositions) -> tuple[Tensor, Tensor]:
    """Return the mean attention from targets of edges to their own source, and to the source of an earlier edge."""
    targets, sources = list(trees.task.target_positions), list(trees.task.source_positions)
    block = pattern[..., targets, :][..., sources].mean(1)  # (layer, head, edge, edge)
    own = block.diagonal(dim1=-2, dim2=-1).mean(-1)
    num_edges = len(targets)
    earlier = block.tril(-1).sum((-2, -1)) / (num_edges * (num_edges - 1) / 2)
    return own, earlier


def _measure_chain(
    pattern: Pattern, trees: TreePositions, location: ChainLocation, distance: int
) -> tuple[Tensor, Tensor]:
    """Return the mean attention to the edge into an ancestor, and to other edges of the same sequences."""
    rows, positions = trees.select_positions(location, distance)
    queries = pattern[:, rows, :, positions]  # (row, layer, head, key): indexed axes come first
    edge = trees.find_edge_into(trees.ancestors[:, distance])[rows]
    to_edge = queries.gather(-1, edge[:, None, None, None].expand(*queries.shape[:-1], 1))[..., 0]
    current = trees.current_nodes[rows, (positions - trees.root_position).clamp_min(0)]
    other = trees.mask_other_edges()[rows] & (trees.edge_sources[rows] != current[:, None])
    to_edges = queries[..., list(trees.task.target_positions)]
    to_other = (to_edges * other[:, None, None]).sum(-1) / other.sum(-1)[:, None, None]
    everywhere = torch.ones(len(rows), dtype=torch.bool)
    return mean_where(to_edge.movedim(0, -1), everywhere), mean_where(to_other.movedim(0, -1), other.any(-1))
