"""Trees, edge lists and baselines agree with brute force over all small trees."""

from collections import Counter
from itertools import product

import pytest
import torch

from mesascope.tasks.trees.baselines import (
    EXACT,
    NO_WRONG_LEAF,
    RANDOM_CHILD,
    UNIFORM,
    name_limited_chaining,
    predict_next_nodes,
)
from mesascope.tasks.trees.paths import TreePaths
from mesascope.tasks.trees.sampling import (
    NO_PARENT,
    Trees,
    list_edges_forward,
    sample_two_branch_trees,
    sample_uniform_trees,
)
from mesascope.testing import check_task

NODES = 5


def climb(parents: tuple[int, ...], node: int) -> list[int]:
    """Return a node and its ancestors; a cycle ends after as many nodes as there are."""
    path = [node]
    while parents[path[-1]] != NO_PARENT and len(path) <= len(parents):
        path.append(parents[path[-1]])
    return path


def list_all_trees(num_nodes: int) -> list[tuple[int, ...]]:
    """List all labelled rooted trees with at most two children per node, by the parent of every node."""
    every = product(range(NO_PARENT, num_nodes), repeat=num_nodes)
    return [
        parents
        for parents in every
        if parents.count(NO_PARENT) == 1
        and max(Counter(parents).values()) <= 2
        and all(len(climb(parents, node)) <= num_nodes for node in range(num_nodes))
    ]


def draw(sampler, n: int = 20_000, num_nodes: int = NODES, seed: int = 0) -> list[tuple[tuple[int, ...], int]]:
    trees = sampler(n, num_nodes, torch.Generator().manual_seed(seed))
    return list(zip(map(tuple, trees.parents.tolist()), trees.goal.tolist(), strict=True))


def all_trees_with_goals(num_nodes: int = NODES) -> Trees:
    rows = [(tree, goal) for tree in list_all_trees(num_nodes) for goal in range(num_nodes) if goal not in tree]
    return Trees(parents=torch.tensor([tree for tree, _ in rows]), goal=torch.tensor([goal for _, goal in rows]))


@pytest.mark.parametrize("tree_sampler", ["two_branches", "uniform"])
@pytest.mark.parametrize("edge_order", ["backward", "forward", "random", "mixed"])
def test_every_kind_of_task_is_sound(tree_sampler, edge_order):
    task = TreePaths(num_nodes=6, tree_sampler=tree_sampler, edge_order=edge_order)
    check_task(task)
    check_task(task.validation_task())


def test_uniform_trees_are_uniform():
    """Every tree occurs, about equally often, and so does every leaf of it as the goal."""
    counts, trees = Counter(draw(sample_uniform_trees)), list_all_trees(NODES)
    drawn = Counter(tree for tree, _ in counts.elements())
    assert set(drawn) == set(trees)
    expected = 20_000 / len(trees)
    chi_square = sum((drawn[tree] - expected) ** 2 / expected for tree in trees)
    assert chi_square < len(trees) + 4 * (2 * len(trees)) ** 0.5
    assert all(goal not in tree for tree, goal in counts)
    star = next(tree for tree in trees if len(climb(tree, 0)) == 2 and sum(node not in tree for node in range(5)) == 3)
    assert len({goal for tree, goal in counts if tree == star}) == 3


def test_two_branch_trees_follow_the_rules_of_the_paper():
    """Lengths of the path are uniform; the root has a second child whenever a node is left; the goal is a leaf."""
    drawn = draw(sample_two_branch_trees)
    assert {tree for tree, _ in drawn} <= set(list_all_trees(NODES))
    lengths = Counter(len(climb(tree, goal)) - 1 for tree, goal in drawn)
    assert set(lengths) == {1, 2, 3, 4}
    assert all(abs(count - 5_000) < 300 for count in lengths.values())
    for tree, goal in drawn[:2_000]:
        assert goal not in tree
        path = climb(tree, goal)
        assert tree.count(path[-1]) == (2 if len(path) < NODES else 1)


def test_two_branch_trees_have_the_enumerated_distribution():
    """Five nodes and a path of one edge.

    The second branch has 1, 2 or 3 edges. In the first two cases the last node is hung under either of two nodes, and
    one choice gives a chain below the root: 2/3 of these trees have one other leaf, 1/3 have two.
    """
    num_other_leaves = Counter(
        sum(node not in tree for node in range(NODES)) - 1
        for tree, goal in draw(sample_two_branch_trees)
        if len(climb(tree, goal)) == 2
    )
    assert set(num_other_leaves) == {1, 2}
    assert num_other_leaves[1] / num_other_leaves.total() == pytest.approx(2 / 3, abs=0.03)


def test_edges_are_listed_breadth_first():
    trees = all_trees_with_goals()
    for parents, targets in zip(trees.parents.tolist(), list_edges_forward(trees.parents).tolist(), strict=True):
        queue, expected = [parents.index(NO_PARENT)], []
        while queue:
            children = [node for node in range(NODES) if parents[node] == queue[0]]
            expected += children
            queue = queue[1:] + children
        assert targets == expected


def test_the_orders_list_the_same_edges():
    listed = {}
    for edge_order in ("forward", "backward", "random"):
        batch = TreePaths(num_nodes=7, edge_order=edge_order).sample(64, torch.Generator().manual_seed(0))
        listed[edge_order] = batch.latents["edge targets"]
    assert torch.equal(listed["backward"], listed["forward"].flip(1))
    assert torch.equal(listed["random"].sort(1).values, listed["forward"].sort(1).values)
    assert not torch.equal(listed["random"], listed["forward"])
    mixed = TreePaths(num_nodes=7, edge_order="mixed").sample(64, torch.Generator().manual_seed(0))
    is_backward = (mixed.latents["edge targets"] == listed["backward"]).all(1)
    assert 20 < int(is_backward.sum()) < 44


def test_tokens_spell_the_tree_the_goal_and_the_path():
    task = TreePaths(num_nodes=6)
    batch = task.sample(32, torch.Generator().manual_seed(0))
    for row in range(32):
        text = "".join(map(task.decode_token, [*batch.inputs[row].tolist(), int(batch.targets[row, -1])]))
        edges, _, rest = text.partition("|")
        pairs = [tuple(map(int, edge.split(">"))) for edge in edges.split(",")]
        goal, _, path = rest.rstrip(",").partition(":")
        parents = tuple(batch.latents["parents"][row].tolist())
        assert sorted(pairs) == sorted((parent, node) for node, parent in enumerate(parents) if parent != NO_PARENT)
        assert list(map(int, path.split(">"))) == climb(parents, int(goal))[::-1]
        assert int(batch.weight[row].sum()) == batch.latents["path length"][row] == path.count(">")
    scored = batch.targets[batch.weight > 0]
    assert bool((scored >= 6).all() and (scored < 12).all())
    parsed = task.parse_trees(batch.inputs)
    assert torch.equal(parsed.parents, batch.latents["parents"])
    assert torch.equal(parsed.goal, batch.latents["goal"])


def test_held_out_trees_are_not_trained_on():
    task = TreePaths(num_nodes=4)
    pairs = [
        {
            (*tree, goal)
            for tree, goal in zip(batch.latents["parents"].tolist(), batch.latents["goal"].tolist(), strict=True)
        }
        for batch in (one.sample(2_000, torch.Generator().manual_seed(0)) for one in (task, task.validation_task()))
    ]
    assert pairs[1]
    assert not pairs[0] & pairs[1]


def walk_by_hand(parents: tuple[int, ...], goal: int, rule: str, reach: int) -> float:
    """Return the probability that a rule walks from the root to the goal."""
    path, probability = climb(parents, goal), 1.0
    for node in path[1:][::-1]:
        children = [child for child in range(len(parents)) if parents[child] == node]
        if rule != RANDOM_CHILD:
            children = [child for child in children if child == goal or child in parents] or children
        if rule == name_limited_chaining(reach):
            children = [child for child in children if child in path[: reach + 1]] or children
        probability /= 1 if rule == EXACT else len(children)
    return probability


def test_baselines_walk_as_by_hand():
    trees, reach = all_trees_with_goals(), 1
    task = TreePaths(num_nodes=NODES, reach=reach)
    ancestors = trees.ancestors()
    for rule in (UNIFORM, RANDOM_CHILD, NO_WRONG_LEAF, name_limited_chaining(reach), EXACT):
        found = torch.ones(len(trees.goal))
        for step in range(NODES - 1, 0, -1):
            current, following = ancestors[:, step], ancestors[:, step - 1]
            probability = predict_next_nodes(trees, current[:, None], task.reach)[rule][:, 0]
            assert probability.sum(-1).tolist() == pytest.approx([1.0] * len(found))
            chosen = probability.gather(1, following.clamp_min(0)[:, None])[:, 0]
            found *= torch.where(current == NO_PARENT, 1.0, chosen)
        expected = [
            walk_by_hand(tuple(parents), goal, rule, reach)
            for parents, goal in zip(trees.parents.tolist(), trees.goal.tolist(), strict=True)
        ]
        if rule == UNIFORM:
            expected = [NODES ** -(len(climb(parents, goal)) - 1.0) for parents, goal in _rows(trees)]
        assert found.tolist() == pytest.approx(expected)


def _rows(trees: Trees):
    return zip(map(tuple, trees.parents.tolist()), trees.goal.tolist(), strict=True)


def test_a_random_child_walks_as_often_as_by_the_paper():
    """Of the trees of its code a random child walks 35 %; three of four steps do not branch."""
    task = TreePaths()
    batch = task.sample(4_000, torch.Generator().manual_seed(0))
    log_probability = -(task.loss(task.baselines(batch)[RANDOM_CHILD], batch) * batch.weight)
    assert float(log_probability.sum(1).exp().mean()) == pytest.approx(0.35, abs=0.02)
    branching = (log_probability < -0.1).sum() / batch.weight.sum()
    assert float(branching) == pytest.approx(0.24, abs=0.02)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_nodes": 2}, "num_nodes must be at least 3"),
        ({"reach": -1}, "reach must be at least 0"),
        ({"held_out": 1.0}, "held_out must lie between 0 and 1"),
        ({"edge_order": "sorted"}, "edge_order"),
    ],
)
def test_invalid_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TreePaths(**fields)
