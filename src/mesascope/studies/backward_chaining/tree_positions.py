"""Positions and nodes of the path in captured sequences of `TreePaths`."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.tasks.base import Batch
from mesascope.tasks.trees.paths import TreePaths
from mesascope.tasks.trees.sampling import NO_PARENT, Trees, count_children


@dataclass(frozen=True, kw_only=True, eq=False)
class TreePositions:
    """Positions and nodes of the sequences of a batch.

    Distances are numbers of edges from the goal: the ancestor at distance 0 is the goal itself.

    Attributes:
        task: gives the positions.
        trees: the trees.
        edge_targets: target of every edge, in the order of the list.
        path_length: number of edges from the root to the goal.
    """

    task: TreePaths
    trees: Trees
    edge_targets: Int[Tensor, "batch edge"]
    path_length: Int[Tensor, " batch"]

    @property
    def root_position(self) -> int:
        """The position of the root, where the first node of the path is predicted."""
        return self.task.path_positions.start

    @property
    def ancestors(self) -> Int[Tensor, "batch distance"]:
        """The ancestors of the goal by distance; -1 above the root."""
        return self.trees.ancestors()

    @property
    def edge_sources(self) -> Int[Tensor, "batch edge"]:
        """The source of every edge, in the order of the list."""
        return self.trees.parents.gather(1, self.edge_targets)

    @property
    def root(self) -> Int[Tensor, " batch"]:
        """The root of every tree."""
        return (self.trees.parents == NO_PARENT).int().argmax(1)

    @property
    def children_of_root(self) -> Bool[Tensor, "batch node"]:
        """Mask of the children of the root."""
        return self.trees.parents == self.root[:, None]

    @property
    def leaves(self) -> Bool[Tensor, "batch node"]:
        """Mask of the nodes without children."""
        return count_children(self.trees.parents) == 0

    @property
    def root_branches(self) -> Bool[Tensor, " batch"]:
        """Mask of the sequences whose root has two children, so that the first node of the path must be chosen."""
        return self.children_of_root.sum(1) == 2

    def select_deep(self, distance: int) -> Bool[Tensor, " batch"]:
        """Return the sequences in which the ancestor at a distance is neither the root nor the next node.

        The root must branch, and the path must have at least ``distance + 2`` edges, so that the ancestor is a node
        that a model needs only as an intermediate result.

        Args:
            distance: from the goal.
        """
        return self.root_branches & (self.path_length >= distance + 2)

    def find_edge_into(self, nodes: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return the position of the target of the edge into a node of each sequence.

        Args:
            nodes: a node other than the root, by sequence.
        """
        edge = (self.edge_targets == nodes[:, None]).int().argmax(1)
        return self.task.target_positions.start + 3 * edge

    def mask_other_edges(self) -> Bool[Tensor, "batch edge"]:
        """Return the edges that are neither on the path to the goal nor start from the root: matched controls."""
        on_path = (self.edge_targets[..., None] == self.ancestors[:, None]).any(-1)
        return ~on_path & (self.edge_sources != self.root[:, None])


def locate_trees(batch: Batch) -> TreePositions:
    """Return the positions and nodes of the sequences of a batch.

    Args:
        batch: sequences of `TreePaths`.

    Returns:
        the positions and nodes.

    Raises:
        ValueError: the sequences are not those of `TreePaths`.
    """
    missing = {"parents", "goal", "edge targets", "path length"} - set(batch.latents)
    if missing:
        raise ValueError(f"the batch must be one of TreePaths, but it lacks the latents {', '.join(sorted(missing))}")
    latents = {name: value.cpu() for name, value in batch.latents.items()}
    return TreePositions(
        task=TreePaths(num_nodes=latents["parents"].shape[1]),
        trees=Trees(parents=latents["parents"], goal=latents["goal"]),
        edge_targets=latents["edge targets"],
        path_length=latents["path length"],
    )


def locate_captured_trees(acts: Capture) -> TreePositions:
    """Return the positions and nodes of the sequences of a capture.

    Args:
        acts: a capture of a batch of `TreePaths`.

    Returns:
        the positions and nodes.

    Raises:
        ValueError: inputs without latents were captured.
    """
    if acts.batch is None:
        raise ValueError("trees must be known, but only inputs were captured; capture a Batch of TreePaths")
    return locate_trees(acts.batch)


def mean_where(values: Float[Tensor, "*rest batch"], mask: Bool[Tensor, " batch"]) -> Float[Tensor, "*rest"]:
    """Return the mean over some of the sequences; NaN if there are none.

    Args:
        values: one number for each sequence on the last axis.
        mask: the sequences.
    """
    return values[..., mask].double().mean(-1) if mask.any() else torch.full(values.shape[:-1], torch.nan).double()
