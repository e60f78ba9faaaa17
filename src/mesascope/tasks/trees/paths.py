"""Path finding in binary trees: edge list, goal and root are given, the path from the root to the goal is predicted.

The task of Brinkmann et al., A Mechanistic Analysis of a Transformer Trained on a Symbolic Multi-Step Reasoning Task
(arXiv 2402.11917).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.argument_types import validate_fields
from mesascope.tasks.base import Batch
from mesascope.tasks.token_predictions import TokenTask, log_probabilities
from mesascope.tasks.trees.baselines import predict_next_nodes
from mesascope.tasks.trees.sampling import (
    NO_PARENT,
    Trees,
    list_edges_forward,
    sample_two_branch_trees,
    sample_uniform_trees,
    shuffle_edges,
)

MIXED = "mixed"
PathTokens = Int[Tensor, "batch pos"]


@final
@dataclass(frozen=True, kw_only=True)
class TreePaths(TokenTask):
    """Binary trees as edge lists; the path from the root to a leaf is predicted node by node.

    A sequence is ``a>b,a>c,...|goal:root>next>...>goal``. A node has two tokens: ``a`` as the source of an edge, as the
    goal and as the root, and ``>b`` as the target of an edge and on the path. With n nodes the edges take the positions
    0 to 3n - 5, then come ``|``, the goal, ``:``, the root, and the path, padded with ``,``. Nodes of the path are
    scored, padding is not.

    Attributes:
        num_nodes: number of nodes.
        tree_sampler: distribution of the trees. ``two_branches``: that of the paper's code, see
            `sample_two_branch_trees`; ``uniform``: that of its text, uniform over all trees.
        edge_order: ``backward``: reverse breadth-first, so that leaves come first; ``forward``: breadth-first;
            ``random``; or ``mixed``: backward or random with equal probability, as the paper's code trains.
        reach: number of edges that the baseline of limited backward chaining follows from the goal.
        held_out: fraction of the trees with their goals that is held out for validation.
        split: train or validation.

    Raises:
        ValueError: a field is out of range.

    >>> task = TreePaths(num_nodes=4)
    >>> batch = task.sample(1, torch.Generator().manual_seed(0))
    >>> "".join(task.decode_token(token) for token in batch.inputs[0].tolist())
    '2>3,1>2,0>1|3:0>1>2'
    """

    num_nodes: int = 16
    tree_sampler: Literal["two_branches", "uniform"] = "two_branches"
    edge_order: Literal["backward", "forward", "random", "mixed"] = "backward"
    reach: int = 5
    held_out: float = 1 / 11
    split: Literal["train", "validation"] = "train"

    def __post_init__(self) -> None:
        """Validate the fields."""
        validate_fields(self)
        for name, minimum in (("num_nodes", 3), ("reach", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, but got {getattr(self, name)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, but got {self.held_out}")

    @property
    def vocab_size(self) -> int:
        """Two tokens per node, and three separators."""
        return 2 * self.num_nodes + 3

    @property
    def length(self) -> int:
        """The number of input positions: the longest path but its last node, and all before it."""
        return 4 * self.num_nodes - 2

    @property
    def source_positions(self) -> range:
        """The positions of the sources of the edges."""
        return range(0, 3 * self.num_nodes - 3, 3)

    @property
    def target_positions(self) -> range:
        """The positions of the targets of the edges."""
        return range(1, 3 * self.num_nodes - 3, 3)

    @property
    def goal_position(self) -> int:
        """The position of the goal."""
        return 3 * self.num_nodes - 3

    @property
    def path_positions(self) -> range:
        """The positions from which nodes of the path are predicted; the first is that of the root."""
        return range(3 * self.num_nodes - 1, self.length)

    def sample(self, n: int, generator: torch.Generator) -> Batch:
        """Draw ``n`` trees with their goals.

        Args:
            n: number of sequences.
            generator: source of randomness.

        Returns:
            The batch. Its latents are ``parents`` (batch, node), with -1 for the root; ``goal`` (batch);
            ``path length`` (batch), in edges; and ``edge targets`` (batch, edge), in the order of the list.
        """
        trees = self._sample_split(n, generator)
        targets = self._order_edges(trees, generator)
        tokens = torch.full((n, self.length + 1), 2 * self.num_nodes)
        tokens[:, self.source_positions.start : self.goal_position - 1 : 3] = trees.parents.gather(1, targets)
        tokens[:, self.target_positions.start : self.goal_position - 1 : 3] = self.num_nodes + targets
        tokens[:, self.goal_position - 1] = 2 * self.num_nodes + 2
        tokens[:, self.goal_position] = trees.goal
        tokens[:, self.goal_position + 1] = 2 * self.num_nodes + 1
        ancestors = trees.ancestors()
        path_length = (ancestors != NO_PARENT).sum(1) - 1
        first = self.path_positions.start
        steps = torch.arange(self.num_nodes)
        path = ancestors.gather(1, (path_length[:, None] - steps).clamp_min(0))
        tokens[:, first:] = torch.where(steps <= path_length[:, None], self.num_nodes + path, tokens[:, first:])
        tokens[:, first] = path[:, 0]
        weight = torch.zeros(n, self.length)
        weight[:, first:] = (steps[:-1] < path_length[:, None]).float()
        latents = {
            "parents": trees.parents,
            "goal": trees.goal,
            "path length": path_length,
            "edge targets": targets,
        }
        return Batch(
            inputs=tokens[:, :-1].contiguous(), targets=tokens[:, 1:].contiguous(), weight=weight, latents=latents
        )

    def baselines(self, batch: Batch) -> Mapping[str, Float[Tensor, "batch pos d_out"]]:
        """Compute the log-probabilities of `predict_next_nodes`; positions before the root get the uniform one.

        Args:
            batch: the sequences to predict.

        Returns:
            Log-probabilities by the name of the baseline.
        """
        trees = self.parse_trees(batch.inputs)
        steps = batch.inputs[:, self.path_positions.start :]
        current = torch.where(steps < 2 * self.num_nodes, steps % self.num_nodes, NO_PARENT)
        current[:, 0] = steps[:, 0]
        predictions = predict_next_nodes(trees, current, self.reach)
        return {name: self._log_token_probabilities(one) for name, one in predictions.items()}

    def parse_trees(self, inputs: PathTokens) -> Trees:
        """Return the trees that edge lists describe, with their goals.

        Args:
            inputs: tokens.
        """
        edges = inputs[:, : self.goal_position - 1]
        sources, targets = edges[:, ::3], edges[:, 1::3] - self.num_nodes
        parents = torch.full((len(inputs), self.num_nodes), NO_PARENT, device=inputs.device)
        return Trees(parents=parents.scatter(1, targets, sources), goal=inputs[:, self.goal_position])

    def validation_task(self) -> "TreePaths":
        """Return the task of the held-out trees."""
        return replace(self, split="validation")

    def decode_token(self, token: int) -> str:
        """Decode a token: ``3`` for a source, ``>3`` for a target, or a separator.

        Args:
            token: token index.
        """
        if token >= 2 * self.num_nodes:
            return ",:|"[token - 2 * self.num_nodes]
        return f">{token - self.num_nodes}" if token >= self.num_nodes else str(token)

    def _sample_split(self, n: int, generator: torch.Generator) -> Trees:
        """Draw trees of the split by rejection."""
        sample_trees = sample_uniform_trees if self.tree_sampler == "uniform" else sample_two_branch_trees
        fraction = self.held_out if self.split == "validation" else 1 - self.held_out
        parents, goals, missing = [], [], n
        while missing > 0:
            trees = sample_trees(int(1.1 * missing / fraction) + 8, self.num_nodes, generator)
            is_held_out = trees.hash_fraction() < self.held_out
            trees = trees[is_held_out if self.split == "validation" else ~is_held_out][:missing]
            parents.append(trees.parents)
            goals.append(trees.goal)
            missing -= len(trees.goal)
        return Trees(parents=torch.cat(parents), goal=torch.cat(goals))

    def _order_edges(self, trees: Trees, generator: torch.Generator) -> Int[Tensor, "batch edge"]:
        forward = list_edges_forward(trees.parents)
        if self.edge_order == "forward":
            return forward
        if self.edge_order == "backward":
            return forward.flip(1)
        shuffled = shuffle_edges(forward, generator)
        if self.edge_order == "random":
            return shuffled
        is_backward = torch.rand(len(forward), 1, generator=generator) < 0.5
        return torch.where(is_backward, forward.flip(1), shuffled)

    def _log_token_probabilities(self, steps: Float[Tensor, "batch step node"]) -> Float[Tensor, "batch pos token"]:
        probabilities = torch.zeros(len(steps), self.length, self.vocab_size, device=steps.device)
        probabilities[..., self.num_nodes : 2 * self.num_nodes] = 1 / self.num_nodes
        probabilities[:, self.path_positions.start :, self.num_nodes : 2 * self.num_nodes] = steps
        return log_probabilities(probabilities)
