"""Learners that are fitted to the context of every query: trees, boosted trees and a small network.

Garg et al. (arXiv 2208.01066) compare transformers with these learners on nonlinear functions. Because a fit per query
is slow, they serve as baselines only and are not among the candidate algorithms of a task.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.tasks.algorithms import Algorithm, IterationGrid, Trajectory
from mesascope.tasks.icl.context import ContextExamples

TREE_DEPTHS = tuple(range(1, 7))
BOOSTING_ROUNDS, BOOSTING_SHRINKAGE = 20, 0.3  # the shrinkage is the default of XGBoost
NETWORK_LEARNING_RATE = 5e-3  # as in the authors' code
NETWORK_STEPS = 1000  # ours
NETWORK_BATCH_SIZE = 64  # sequences whose networks are trained in one batch

InputRows = Float[np.ndarray, "pair feature"]
TargetRows = Float[np.ndarray, "pair out"]


def greedy_tree(*, signs_only: bool = False) -> Algorithm:
    """Build a regression tree that is grown greedily by squared error (scikit-learn) and cut at a given depth.

    Args:
        signs_only: fit on the signs of the coordinates only.

    Returns:
        The algorithm; its iteration is the depth.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid) -> Trajectory:
        from sklearn.tree import DecisionTreeRegressor

        weight = context.context_x.new_zeros(len(iteration_grid), *context.context_x.shape[:3])
        for row, query, context_x, context_y, query_x in _iterate_prompts(context, signs_only):
            grown = DecisionTreeRegressor(random_state=0).fit(context_x, context_y, check_input=False)
            paths = grown.tree_.decision_path(np.vstack([query_x, context_x])).toarray()
            query_path = paths[0].nonzero()[0]  # root to leaf, because scikit-learn numbers nodes depth first
            for number, tick in enumerate(iteration_grid):
                inside = paths[1:, query_path[min(tick, len(query_path) - 1)]]
                weight[number, row, query, : len(context_x)] = torch.from_numpy(inside / inside.sum())
        return (weight[..., None, :] @ context.context_y)[..., 0, :]

    return Algorithm(
        name=_learner_name("greedy tree", signs_only),
        predict=predict_queries,
        iteration_grid=TREE_DEPTHS,
        iteration_unit="level",
    )


def boosted_trees(*, signs_only: bool = False) -> Algorithm:
    """Build gradient boosting with 20 trees of depth 3 (scikit-learn).

    Args:
        signs_only: fit on the signs of the coordinates only.

    Returns:
        The algorithm, which is not differentiable.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid) -> Trajectory:
        from sklearn import config_context
        from sklearn.ensemble import GradientBoostingRegressor

        _check_no_gradients(context, "boosted trees")
        predictions = context.query_x.new_zeros(*context.query_x.shape[:-1], context.context_y.shape[-1])
        for row, query, context_x, context_y, query_x in _iterate_prompts(context, signs_only):
            for out, answers in enumerate(context_y.T):
                trees = GradientBoostingRegressor(
                    n_estimators=BOOSTING_ROUNDS, learning_rate=BOOSTING_SHRINKAGE, random_state=0
                )
                with config_context(skip_parameter_validation=True):  # a quarter of the time of a fit this small
                    trees.fit(context_x, answers)
                predictions[row, query, out] = float(trees.predict(query_x)[0])
        return predictions[None]

    return Algorithm(name=_learner_name("boosted trees", signs_only), predict=predict_queries)


def trained_network(num_hidden: int) -> Algorithm:
    """Build a network with one hidden ReLU layer, trained by Adam on the mean squared error of the context.

    Args:
        num_hidden: number of hidden units; the paper uses the size of the networks that generate the targets.

    Returns:
        The algorithm, which is not differentiable; its iteration is the training step.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid) -> Trajectory:
        _check_no_gradients(context, "a trained network")
        starts = range(0, len(context.context_x), NETWORK_BATCH_SIZE)
        chunks = [context.select_sequences(slice(start, start + NETWORK_BATCH_SIZE)) for start in starts]
        return torch.cat([_train_networks(chunk, num_hidden, iteration_grid) for chunk in chunks], dim=1)

    return Algorithm(
        name="trained network", predict=predict_queries, iteration_grid=(NETWORK_STEPS,), iteration_unit="step"
    )


def _train_networks(context: ContextExamples, num_hidden: int, iteration_grid: IterationGrid) -> Trajectory:
    """Train one network per query in one batch and return its predictions after the given numbers of steps.

    Networks are on the last axis of every tensor, since products of many small matrices are slow on CPUs.
    """
    if context.context_y.shape[-1] != 1:
        raise ValueError(f"a trained network needs targets of dimension 1, but got {context.context_y.shape[-1]}")
    context_x, query_x = _move_networks_last(context.context_x), _move_networks_last(context.query_x[..., None, :])
    context_y = _move_networks_last(context.context_y)[..., 0, :]
    num_context = context.num_context.repeat(len(context.context_x))
    used = torch.arange(len(context_x), device=context_x.device)[:, None] < num_context
    weight = used / num_context.clamp_min(1).float()
    w_in, bias, w_out = _init_networks(context, num_hidden)

    def apply_network(x: Float[Tensor, "pair feature network"]) -> Float[Tensor, "pair network"]:
        hidden = ((x[:, :, None] * w_in).sum(1) + bias).relu()
        return (hidden * w_out).sum(1)

    adam = torch.optim.Adam(
        [w_in, bias, w_out], lr=NETWORK_LEARNING_RATE, fused=True
    )  # elementwise, so networks do not interact
    trajectory = []
    with torch.enable_grad():
        for step in range(1, max(iteration_grid) + 1):
            adam.zero_grad()
            (weight * (apply_network(context_x) - context_y).square()).sum().backward()
            adam.step()
            if step in iteration_grid:
                predictions = apply_network(query_x).detach().view(context.query_x.shape[:2])
                trajectory.append(predictions[..., None].double())
    return torch.stack(trajectory) * (context.num_context > 0)[:, None]  # predict 0 if the context is empty


def _move_networks_last(
    values: Float[Tensor, "seq query *inner"],
) -> Float[Tensor, "*inner network"]:
    """Return float values with sequences and queries, one network each, as the last axis."""
    return values.float().flatten(0, 1).movedim(0, -1).contiguous()


def _init_networks(context: ContextExamples, num_hidden: int) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """Draw input weights (feature, hidden, network), zero biases and output weights (hidden, network)."""
    *lead, _, features = context.context_x.shape
    generator = torch.Generator().manual_seed(0)

    def init_weight(rows: int, columns: int) -> Tensor:
        return torch.randn(*lead, rows, columns, generator=generator) / max(rows, 1) ** 0.5

    w_in, w_out = init_weight(features, num_hidden), init_weight(num_hidden, 1)[..., 0]
    bias = torch.zeros_like(w_out)
    w_in, bias, w_out = (
        nn.Parameter(_move_networks_last(part).to(context.context_x.device)) for part in (w_in, bias, w_out)
    )
    return w_in, bias, w_out


def _iterate_prompts(
    context: ContextExamples, signs_only: bool
) -> Iterator[tuple[int, int, InputRows, TargetRows, InputRows]]:
    """Yield sequence index, query index, context inputs, context targets and query input; skip empty contexts."""
    context_x, query_x = (
        (x.sign() if signs_only else x).detach().float().cpu().numpy() for x in (context.context_x, context.query_x)
    )
    context_y = context.context_y.detach().cpu().numpy()
    for row in range(len(context_x)):
        for query, seen in enumerate(context.num_context.tolist()):
            if seen:
                yield row, query, context_x[row, query, :seen], context_y[row, query, :seen], query_x[row, query, None]


def _check_no_gradients(context: ContextExamples, learner: str) -> None:
    if any(part.requires_grad for part in (context.context_x, context.context_y, context.query_x)):
        raise ValueError(
            f"{learner} cannot be differentiated with respect to the context, but the context requires a gradient"
        )


def _learner_name(name: str, signs_only: bool) -> str:
    return f"{name} of signs" if signs_only else name
