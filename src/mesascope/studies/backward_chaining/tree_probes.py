"""Linear probes of edges, of the goal and its ancestors, and of what comes next, layer by layer."""

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Capture
from mesascope.analyses.base import analysis
from mesascope.analyses.nulls import Null, with_null
from mesascope.axes import to_data_array
from mesascope.studies.backward_chaining.probe_scores import score_node_probe, score_set_probe
from mesascope.studies.backward_chaining.tree_positions import ChainLocation, TreePositions, locate_captured_trees

MAX_EDGE_SEQUENCES = 2_000  # whose edges are probed; each has several
PROBE_LOCATIONS: dict[str, tuple[ChainLocation, str]] = {
    "ancestor": ("root", "at the position of the root"),
    "ancestor_at_colon": ("colon", "at the position of the colon"),
    "ancestor_at_goal": ("goal", "at the position of the goal"),
    "ancestor_at_later_nodes": ("later", "at later branching nodes of the path"),
}
CHILDREN, LEAVES = "children of the current node", "leaves other than the goal"
SHUFFLED = "labels shuffled"


@analysis(
    title="Linear probes of the tree",
    description="""
        F1 of linear probes (ridge regression onto indicators of nodes; fitted on half of the sequences, scored on the
        other) before the first layer (depth 0) and after each layer. Edges: the source of an edge, read at the position
        of its target, and the target of an edge, read at the position of its source, where it is not yet known. Goal
        and ancestors: the ancestor of the goal at a distance, read at the position of the root, in sequences in which
        the root branches and the path is at least two edges longer than the distance, so that the ancestor is neither
        the root nor the next node, but an intermediate result of backward chaining. The same is read at the goal
        and at the colon before the root, which see all edges as well, and at later branching nodes of the path. Answer:
        the first node of the path after a root with two children, read at goal, colon and root. One-step
        look-ahead: the children of the root, and the leaves other than the goal, read at the position of the root. In
        backward and forward edge order the edges of the root have fixed positions, so that its children are easy to
        find. Control: the same probes fitted on labels of other sequences.
    """,
    sites=["resid_pre", "resid_post"],
    steps="ends",
)
def tree_probes(acts: Capture, seed: int = 0) -> xr.Dataset:
    """Compute the F1 of linear probes by depth.

    Args:
        acts: a capture of a batch of `TreePaths`, with ``resid_pre`` and ``resid_post``.
        seed: of the permutation of labels in the control.

    Returns:
        by depth ``edge_at_target`` and ``edge_at_source``; ``ancestor``, and the same at the colon, the
        goal and later nodes (``ancestor_at_colon``, ...), by distance from the goal; ``answer_at_goal``,
        ``answer_at_colon`` and ``answer_at_root``; and ``lookahead`` (by set of nodes), each with its control.
    """
    trees = locate_captured_trees(acts)
    depths = [acts["resid_pre"][0], *acts["resid_post"]]
    num_distances = min(len(acts.layers), trees.task.num_nodes - 2)
    edges = {
        "edge_at_target": ("source of an edge, at the position of its target", trees.edge_sources, 1),
        "edge_at_source": ("target of an edge, at the position of its source", trees.edge_targets, 0),
    }
    results = {}
    for name, (label, nodes, offset) in edges.items():
        scores = [score_node_probe(*_edge_rows(x, nodes, offset), trees.task.num_nodes, seed) for x in depths]
        results |= _label_scores(name, f"F1 of the {label}", torch.tensor(scores).T, {})
    for name, (location, label) in PROBE_LOCATIONS.items():
        scores = [[_score_ancestor(x, trees, location, d, seed) for d in range(num_distances)] for x in depths]
        about = f"F1 of the ancestor of the goal, {label}, by distance from the goal"
        distances = {"_distance": list(range(num_distances))}
        results |= _label_scores(name, about, torch.tensor(scores).movedim(-1, 0), distances)
    branches = trees.root_branches
    answer_positions = {
        "goal": trees.task.goal_position,
        "colon": trees.colon_position,
        "root": trees.root_position,
    }
    for name, position in answer_positions.items():
        answers = [
            score_node_probe(x[branches, position].cpu(), trees.first_nodes[branches], trees.task.num_nodes, seed)
            for x in depths
        ]
        about = f"F1 of the first node of the path after the root, at the position of the {name}"
        results |= _label_scores(f"answer_at_{name}", about, torch.tensor(answers).T, {})
    sets = {
        CHILDREN: trees.children_of_root,
        LEAVES: trees.leaves & (torch.arange(trees.task.num_nodes) != trees.trees.goal[:, None]),
    }
    at_root = [x[branches, trees.root_position].cpu() for x in depths]
    ahead = [[score_set_probe(x, each[branches], seed) for each in sets.values()] for x in at_root]
    results |= _label_scores(
        "lookahead",
        "F1 of a set of nodes, at the position of the root",
        torch.tensor(ahead).movedim(-1, 0),
        {"stat": list(sets)},
    )
    return xr.Dataset(results)


def _edge_rows(x: Float[Tensor, "batch pos d_model"], nodes: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Return the activations at one end of the edges, and the node at the other end."""
    num_edges = nodes.shape[1]
    rows = x[: min(len(x) // 2 * 2, MAX_EDGE_SEQUENCES), offset : 3 * num_edges : 3].cpu()
    return rows.flatten(0, 1), nodes[: len(rows)].flatten()


def _score_ancestor(
    x: Float[Tensor, "batch pos d_model"], trees: TreePositions, location: ChainLocation, distance: int, seed: int
) -> tuple[float, float]:
    rows, positions = trees.select_positions(location, distance)
    at_location = x[rows.to(x.device), positions.to(x.device)].cpu()
    return score_node_probe(at_location, trees.ancestors[rows, distance], trees.task.num_nodes, seed)


def _label_scores(
    name: str, description: str, scores: Float[Tensor, "kind depth *axes"], coords: dict[str, list]
) -> dict[str, xr.DataArray]:
    axes = {"_depth": list(range(scores.shape[1])), **coords}
    value, shuffled = (
        to_data_array(each, *axes, units="1", description=text, coords=axes)
        for each, text in zip(scores, (description, f"{description}; {SHUFFLED}"), strict=True)
    )
    return with_null(name, value.assign_attrs(headline=1), Null(name=SHUFFLED, value=shuffled))
