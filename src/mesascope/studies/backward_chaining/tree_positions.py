"""Positions and nodes of the path in captured sequences of `TreePaths`."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.activations import Capture
from mesascope.tasks.base import Batch
from mesascope.tasks.trees.paths import TreePaths
from mesascope.tasks.trees.sampling import NO_PARENT, Trees, count_children

ChainLocation = Literal["root", "colon", "goal", "later"]  # of a chain; "later" is all branching nodes after the root
NUM_REGISTER_EDGES = 3  # registers are sources and separators of the last edges, and the goal: 36 to 45 of the paper
NUM_REGISTERS = 7


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
    def colon_position(self) -> int:
        """The position before that of the root."""
        return self.root_position - 1

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

    @property
    def branching_steps(self) -> Bool[Tensor, "batch step"]:
        """Mask of the steps of the path, from the root on, whose current node has two children."""
        return (self.current_nodes != NO_PARENT) & (
            count_children(self.trees.parents).gather(1, self.current_nodes.clamp_min(0)) == 2
        )

    @property
    def current_nodes(self) -> Int[Tensor, "batch step"]:
        """The node of the path at every step before the goal; -1 from the goal on."""
        distance = self.path_length[:, None] - torch.arange(self.task.num_nodes - 1)
        return torch.where(distance > 0, self.ancestors.gather(1, distance.clamp_min(0)), NO_PARENT)

    @property
    def first_nodes(self) -> Int[Tensor, " batch"]:
        """The first node of the path after the root."""
        return self.ancestors.gather(1, self.path_length[:, None] - 1)[:, 0]

    def select_positions(
        self, location: ChainLocation, distance: int
    ) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Return where the ancestor at a distance is needed only as an intermediate result.

        At a branching node of the path, the ancestor must be neither this node nor the next one. At the goal and at
        the colon, the sequences are those of the root.

        Args:
            location: the root, the colon or the goal before it, or all later nodes of the path.
            distance: from the goal.

        Returns:
            sequences and positions, in the order of the sequences.
        """
        if location != "later":
            rows = self.select_deep(distance).nonzero()[:, 0]
            before = {"root": 0, "colon": 1, "goal": 2}[location]
            return rows, torch.full_like(rows, self.root_position - before)
        steps = torch.arange(self.task.num_nodes - 1)
        is_far = self.path_length[:, None] - steps >= distance + 2
        rows, steps = (self.branching_steps & is_far & (steps > 0)).nonzero(as_tuple=True)
        return rows, self.root_position + steps

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


def list_registers(task: TreePaths) -> list[int]:
    """Return the positions of the registers: those of the paper, counted from the end of the edge list.

    Args:
        task: gives the positions.

    Returns:
        sources and separators of the last three edges, and the goal: 36, 38, 39, 41, 42, 44 and 45 for 16 nodes.
    """
    first = max(task.goal_position - 3 * NUM_REGISTER_EDGES, 0)
    return _exclude_targets(task, range(first, task.goal_position + 1))


def list_earlier_positions(task: TreePaths) -> list[int]:
    """Return the control of the registers: as many sources and separators of earlier edges, the last ones.

    Args:
        task: gives the positions.

    Returns:
        positions before the first register; fewer than there are registers, or none, for few nodes.
    """
    return _exclude_targets(task, range(list_registers(task)[0]))[-NUM_REGISTERS:]


def _exclude_targets(task: TreePaths, positions: range) -> list[int]:
    return [position for position in positions if position not in task.target_positions]


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
