"""Algorithms that predict without iterating: solvers in closed form, averages, copies and extrapolations."""

import torch

from mesascope.tasks.algorithms._base import Algorithm, Hyperparameter, IterationGrid, Trajectory
from mesascope.tasks.icl.context import ContextExamples, LinearRule

NEIGHBOUR_COUNTS = tuple(range(1, 6))


def least_squares() -> Algorithm:
    """Build ordinary least squares on the context; the minimum-norm solution if it is not unique."""

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid) -> Trajectory:
        return context.apply_rule(torch.linalg.pinv(context.context_x, rtol=1e-12) @ context.context_y)[None]

    return Algorithm(name="least squares", predict=predict_queries)


def ridge_regression() -> Algorithm:
    """Build ridge regression on the context, which minimises squared error + ``ridge`` * |rule|^2."""

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid, ridge: Hyperparameter) -> Trajectory:
        eye = torch.eye(context.context_x.shape[-1], dtype=torch.float64, device=context.context_x.device)
        return context.apply_rule(torch.linalg.solve(context.gram_matrix + ridge * eye, context.cross_moment))[None]

    return Algorithm(name="ridge regression", predict=predict_queries, hyperparameter_bounds={"ridge": (1e-3, 1e2)})


def averaging_estimator() -> Algorithm:
    """Build the averaging estimator, whose rule is the mean of input times target.

    It is correct for white inputs in the limit of many examples.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid) -> Trajectory:
        return context.apply_rule(context.cross_moment / context.num_context.clamp_min(1).double()[:, None, None])[None]

    return Algorithm(name="averaging", predict=predict_queries)


def nearest_neighbours() -> Algorithm:
    """Build k nearest neighbours, the mean target of the k nearest context inputs.

    The iteration is k, at most the context length.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid) -> Trajectory:
        pairs = context.context_x.shape[2]
        not_in_context = torch.arange(pairs, device=context.num_context.device) >= context.num_context[:, None]
        squared_distance = (context.context_x - context.query_x[:, :, None]).square().sum(-1)
        nearest = (
            squared_distance.masked_fill(not_in_context, torch.inf)
            .argsort(-1)[..., None]
            .expand(-1, -1, -1, context.context_y.shape[-1])
        )
        total = context.context_y.gather(2, nearest).cumsum(2)
        count = {k: context.num_context.clamp(min=1, max=k).double()[:, None] for k in iteration_grid}
        return torch.stack([total[:, :, min(k, pairs) - 1] / count[k] for k in iteration_grid])

    return Algorithm(
        name="nearest neighbours", predict=predict_queries, iteration_grid=NEIGHBOUR_COUNTS, iteration_unit="neighbour"
    )


def copy_query(features: slice) -> Algorithm:
    """Build a predictor that copies features of the query input.

    Args:
        features: the features that are copied.

    Returns:
        The algorithm, without hyperparameters.
    """
    return Algorithm(name="copying", predict=lambda context, iteration_grid: context.query_x[None, :, :, features])


def linear_extrapolation(features: slice) -> Algorithm:
    """Build linear extrapolation from the last context input through the query input.

    With an empty context the query input is copied.

    Args:
        features: the features that are extrapolated.

    Returns:
        The algorithm, without hyperparameters.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid) -> Trajectory:
        last = (context.num_context - 1).clamp_min(0)
        previous = context.context_x[:, torch.arange(len(last), device=last.device), last][..., features]
        query_x = context.query_x[..., features]
        return torch.where((context.num_context > 0)[:, None], 2 * query_x - previous, query_x)[None]

    return Algorithm(name="linear extrapolation", predict=predict_queries)


def last_pairs_least_squares(count: int) -> Algorithm:
    """Build least squares on the most recent context pairs; the minimum-norm solution if it is not unique.

    Args:
        count: number of pairs.

    Returns:
        The algorithm, without hyperparameters.
    """

    def predict_queries(context: ContextExamples, iteration_grid: IterationGrid) -> Trajectory:
        pair = torch.arange(context.context_x.shape[2], device=context.num_context.device)
        mask = (pair >= context.num_context[:, None] - count)[None, :, :, None].to(context.context_x)
        rule: LinearRule = torch.linalg.pinv(context.context_x * mask, rtol=1e-12) @ (context.context_y * mask)
        return context.apply_rule(rule)[None]

    return Algorithm(name=f"least squares on the last {count} pairs", predict=predict_queries)
