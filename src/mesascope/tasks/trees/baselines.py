"""Baselines for path finding, computed from the tokens: each gives the probability of every next node."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from mesascope.tasks.trees.sampling import NO_PARENT, Trees

UNIFORM, RANDOM_CHILD, NO_WRONG_LEAF, EXACT = (
    "uniform over nodes",
    "random child",
    "random child, no wrong leaf",
    "exact path",
)
NextNodes = Float[Tensor, "batch step node"]
ChildMask = Bool[Tensor, "batch step node"]


def predict_next_nodes(
    trees: Trees, current: Int[Tensor, "batch step"], reach: int
) -> dict[str, Float[Tensor, "batch step node"]]:
    """Compute the probabilities of the next node on a path.

    - uniform over nodes;
    - random child: of the current node;
    - random child, no wrong leaf: a child that is the goal or has children;
    - backward chaining over ``reach`` edges: the child that is on the path, if it is at most ``reach`` edges away from
      the goal, else as before;
    - exact path: the child that is on the path.

    Where a rule allows no node, such as after the goal, it falls back on the rule before it.

    Args:
        trees: the trees and their goals.
        current: current node of each step; -1 where there is none.
        reach: number of edges that limited backward chaining follows from the goal.

    Returns:
        probabilities by the name of the baseline.
    """
    num_nodes = trees.parents.shape[1]
    is_child = trees.parents[:, None, :] == current[..., None]
    is_child &= (current != NO_PARENT)[..., None]
    has_children = (trees.parents[:, :, None] == torch.arange(num_nodes, device=current.device)).any(1)
    distance = _distance_to_goal(trees)
    everything = torch.ones_like(is_child)
    children = _fall_back(is_child, everything)
    promising = _fall_back(is_child & (has_children | (distance == 0))[:, None], children)
    near = _fall_back(is_child & ((distance >= 0) & (distance <= reach))[:, None], promising)
    exact = _fall_back(is_child & (distance >= 0)[:, None], promising)
    masks = {
        UNIFORM: everything,
        RANDOM_CHILD: children,
        NO_WRONG_LEAF: promising,
        name_limited_chaining(reach): near,
        EXACT: exact,
    }
    return {name: mask / mask.sum(-1, keepdim=True) for name, mask in masks.items()}


def name_limited_chaining(reach: int) -> str:
    """Return the name of the baseline of limited backward chaining.

    Args:
        reach: number of edges that it follows.
    """
    return f"backward chaining over {reach} edges"


def _fall_back(mask: ChildMask, otherwise: ChildMask) -> ChildMask:
    return torch.where(mask.any(-1, keepdim=True), mask, otherwise)


def _distance_to_goal(trees: Trees) -> Int[Tensor, "batch node"]:
    """Return the number of edges from each node on the path to the goal; -1 for all other nodes."""
    ancestors = trees.ancestors()
    on_path = one_hot(ancestors + 1, trees.parents.shape[1] + 1)[..., 1:]
    steps = torch.arange(ancestors.shape[1], device=ancestors.device)[:, None]
    return (on_path * (steps + 1)).amax(1) - 1
