"""Random binary trees with a goal leaf, and the orders in which their edges are listed.

Nodes are numbered 0, 1, 2, ...; every node has at most two children, and children have no order.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mesascope.tasks._generator_rules import hash_integers

NO_PARENT = -1  # the parent of the root
HASH_RANGE = 2**31
NodeMask = Bool[Tensor, "batch node"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trees:
    """Trees with a goal.

    Attributes:
        parents: parent of every node; -1 for the root.
        goal: a leaf of each tree.
    """

    parents: Int[Tensor, "batch node"]
    goal: Int[Tensor, " batch"]

    def __getitem__(self, rows: slice | Bool[Tensor, " batch"]) -> "Trees":
        """Return the selected trees."""
        return Trees(parents=self.parents[rows], goal=self.goal[rows])

    def ancestors(self) -> Int[Tensor, "batch distance"]:
        """Return the goal, its parent, the parent of its parent, and so on; -1 above the root."""
        climb = [self.goal]
        for _ in range(self.parents.shape[1] - 1):
            above = self.parents.gather(1, climb[-1].clamp_min(0)[:, None])[:, 0]
            climb.append(torch.where(climb[-1] == NO_PARENT, NO_PARENT, above))
        return torch.stack(climb, 1)

    def hash_fraction(self) -> Float[Tensor, " batch"]:
        """Return a number between 0 and 1 that depends on the tree and its goal alone."""
        value = self.goal
        for node_parent in self.parents.unbind(1):
            value = hash_integers(value * 31 + node_parent + 1)
        return value.double() / HASH_RANGE


def sample_uniform_trees(n: int, num_nodes: int, generator: torch.Generator) -> Trees:
    """Draw trees uniformly from all labelled rooted trees with at most two children per node, and a uniform leaf each.

    A tree is drawn as its rooted Prüfer sequence, in which each node occurs as often as it has children.

    Args:
        n: number of trees.
        num_nodes: nodes of each tree, 2 or more.
        generator: source of randomness.

    Returns:
        the trees.
    """
    binary = torch.multinomial(_binary_node_weights(num_nodes), n, replacement=True, generator=generator)
    slot = torch.rand(n, num_nodes, generator=generator).argsort(1)
    num_single = num_nodes - 1 - 2 * binary
    counts = (slot < binary[:, None]).long() + (slot < (binary + num_single)[:, None])
    keys = torch.rand(n, 2, num_nodes, generator=generator)
    keys[:, 0][counts < 1] = math.inf
    keys[:, 1][counts < 2] = math.inf
    sequence = keys.flatten(1).argsort(1)[:, : num_nodes - 1] % num_nodes
    parents = _decode_pruefer(sequence, counts)
    return Trees(parents=parents, goal=_choose_node(counts == 0, generator))


def sample_two_branch_trees(n: int, num_nodes: int, generator: torch.Generator) -> Trees:
    """Draw trees as the code of Brinkmann et al. 2024 does.

    The length m of the path to the goal is uniform in 1 .. num_nodes - 1. A second branch from the root has a uniform
    length in 1 .. num_nodes - 1 - m. Every other node, in ascending order, is hung under a uniformly chosen node that
    has fewer than two children and is not the goal.

    Args:
        n: number of trees.
        num_nodes: nodes of each tree, 2 or more.
        generator: source of randomness.

    Returns:
        the trees.
    """
    length = torch.randint(1, num_nodes, (n,), generator=generator)
    remaining = num_nodes - 1 - length
    branch = (torch.rand(n, generator=generator) * remaining).long().clamp_max(remaining - 1) + 1
    label = torch.rand(n, num_nodes, generator=generator).argsort(1)
    slots = torch.arange(num_nodes)
    in_paths = slots <= (length + branch)[:, None]
    label = label.gather(1, torch.where(in_paths, slots, num_nodes + label).argsort(1))
    parent_slot, counts = torch.full((n, num_nodes), NO_PARENT), torch.zeros(n, num_nodes, dtype=torch.long)
    for slot in range(1, num_nodes):
        free = (counts < 2) & (slots < slot) & (slots != length[:, None])
        hung = _choose_node(free, generator)
        hung = torch.where(slot <= length + branch, slot - 1, hung)
        hung = torch.where(length == slot - 1, 0, hung)  # the second branch starts at the root
        parent_slot[:, slot] = hung
        counts.scatter_add_(1, hung[:, None], torch.ones_like(hung[:, None]))
    parent_label = torch.where(parent_slot == NO_PARENT, NO_PARENT, label.gather(1, parent_slot.clamp_min(0)))
    parents = torch.empty_like(label).scatter_(1, label, parent_label)
    return Trees(parents=parents, goal=label.gather(1, length[:, None])[:, 0])


def list_edges_forward(parents: Int[Tensor, "batch node"]) -> Int[Tensor, "batch edge"]:
    """Return the targets of all edges in breadth-first order, from the root; siblings are in ascending order.

    Args:
        parents: parent of every node; -1 for the root.

    Returns:
        all nodes but the root; the source of an edge is the parent of its target.
    """
    num_nodes = parents.shape[1]
    depth = _node_depths(parents)
    label = torch.arange(num_nodes).expand_as(parents)
    rank = torch.where(parents == NO_PARENT, 0, num_nodes)
    order = label
    for level in range(1, int(depth.max()) + 1):
        parent_rank = rank.gather(1, parents.clamp_min(0))
        key = (depth * num_nodes + torch.where(depth == level, parent_rank, rank)) * num_nodes + label
        order = torch.where(depth <= level, key, num_nodes**3 + label).argsort(1)
        rank = torch.empty_like(order).scatter_(1, order, label)
    return order[:, 1:]


def shuffle_edges(targets: Int[Tensor, "batch edge"], generator: torch.Generator) -> Int[Tensor, "batch edge"]:
    """Return the edges of every tree in a random order.

    Args:
        targets: targets of the edges.
        generator: source of randomness.
    """
    return targets.gather(1, torch.rand(targets.shape, generator=generator).argsort(1))


def count_children(parents: Int[Tensor, "batch node"]) -> Int[Tensor, "batch node"]:
    """Return the number of children of every node.

    Args:
        parents: parent of every node; -1 for the root.
    """
    counts = torch.zeros(len(parents), parents.shape[1] + 1, dtype=torch.long)
    return counts.scatter_add_(1, parents + 1, torch.ones_like(parents))[:, 1:]


def _binary_node_weights(num_nodes: int) -> Float[Tensor, " binary"]:
    """Return the fraction of trees by their number of nodes with two children.

    There are n! / (b! (b + 1)! (n - 1 - 2b)!) ways to choose who has how many children, and (n - 1)! / 2^b trees with
    given numbers of children.
    """
    logs = [
        -math.lgamma(b + 1) - math.lgamma(b + 2) - math.lgamma(num_nodes - 2 * b) - b * math.log(2)
        for b in range((num_nodes - 1) // 2 + 1)
    ]
    return torch.tensor(logs, dtype=torch.float64).softmax(0)


def _decode_pruefer(
    sequence: Int[Tensor, "batch edge"], counts: Int[Tensor, "batch node"]
) -> Int[Tensor, "batch node"]:
    """Remove the smallest node without children again and again; the sequence names its parent."""
    remaining, parents = counts.clone(), torch.full_like(counts, NO_PARENT)
    for parent in sequence.unbind(1):
        leaf = (remaining == 0).int().argmax(1, keepdim=True)
        parents.scatter_(1, leaf, parent[:, None])
        remaining.scatter_(1, leaf, -1)
        remaining.scatter_add_(1, parent[:, None], torch.full_like(leaf, -1))
    return parents


def _choose_node(mask: NodeMask, generator: torch.Generator) -> Int[Tensor, " batch"]:
    return torch.rand(mask.shape, generator=generator).masked_fill(~mask, -1.0).argmax(1)


def _node_depths(parents: Int[Tensor, "batch node"]) -> Int[Tensor, "batch node"]:
    depth, above = torch.zeros_like(parents), parents
    for _ in range(parents.shape[1] - 1):
        inside = above != NO_PARENT
        if not inside.any():
            break
        depth += inside
        above = torch.where(inside, parents.gather(1, above.clamp_min(0)), NO_PARENT)
    return depth
