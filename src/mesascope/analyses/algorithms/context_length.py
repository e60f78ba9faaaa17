"""Excess risk as a function of the number of in-context examples, with algorithms tuned in hindsight."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import xarray as xr
from transformers import PreTrainedModel

from mesascope.analyses.algorithms.agreement import PredictionsAtQueries, predict_at_queries
from mesascope.analyses.base import analysis
from mesascope.axes import to_data_array
from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.regression import Regression

GRID_SIZE = 9  # of a hyperparameter
MAX_STEPS = 512  # of an iterative algorithm
COMPARED_ALGORITHMS = ("ridge regression", "gradient descent", "preprocessed gradient descent", "lasso")


@analysis(
    title="Excess risk vs context length",
    description=f"""
        Mean squared error minus the variance of the noise, on new prompts with different numbers of in-context
        examples. The model was trained on prompts of one length. It is compared with algorithms of the task whose
        hyperparameter and number of steps (up to {MAX_STEPS}) minimise their error on the same test prompts. Tuning in
        hindsight makes them oracle bounds, which no learner without access to the answers reaches.
    """,
    input="model",
    steps="last",
)
def excess_risk_vs_context_length(
    model: PreTrainedModel,
    task: Task,
    batch: Batch,
    counts: Sequence[int] = (2, 4, 8, 12, 16),
    algorithm_names: Sequence[str] = COMPARED_ALGORITHMS,
    sequences: int = 512,
    seed: int = 0,
) -> xr.Dataset:
    """Compute the excess risk of the model and of tuned algorithms for several numbers of in-context examples.

    Args:
        model: a model that accepts prompts of other lengths than in training.
        task: a regression task with the joined layout (one pair per position).
        batch: ignored.
        counts: numbers of in-context examples.
        algorithm_names: names of algorithms of the task; names that the task does not have are ignored.
        sequences: number of prompts for each number of examples.
        seed: seed of the prompts.

    Returns:
        ``excess`` by number of examples and predictor, in squared units of the terms; and ``at_edge``, which is 1 where
        the best hyperparameter or number of steps is at the edge of its grid.

    Raises:
        ValueError: the task is another one, or a number of examples is below 1.
    """
    if not isinstance(task, Regression) or task.layout != "joined":
        raise ValueError(f"the task must be Regression with layout='joined', but got {task!r}")
    if not counts or min(counts) < 1:
        raise ValueError(f"counts must be 1 or more each, but got {list(counts)}")
    tasks = {count: replace(task, num_examples=count) for count in counts}
    risks = {
        count: measure_excess_risks(model, tasks[count], algorithm_names, sequences, seed + count) for count in counts
    }
    about = f"squared error minus the variance of the noise, by in-context examples; trained on {task.num_examples}"
    return label_excess_risks("_examples", risks, about)


def label_excess_risks(
    axis: str, risks: Mapping[Any, Mapping[str, tuple[float, bool]]], description: str
) -> xr.Dataset:
    """Label excess risks and whether the best hyperparameters are at the edge of their grid.

    Args:
        axis: name of the axis of the keys of ``risks``.
        risks: results of :func:`measure_excess_risks`, by a number such as the number of in-context examples.
        description: of the excess risk.

    Returns:
        ``excess`` and ``at_edge`` with the axes ``axis`` and ``predictor``.
    """
    coords = {axis: list(risks), "predictor": list(next(iter(risks.values())))}
    excess, at_edge = (
        torch.tensor([[float(one[n]) for one in row.values()] for row in risks.values()]) for n in (0, 1)
    )
    edge = "1 if the best hyperparameter or number of steps is at the edge of its grid"
    units = "squared units of the terms"
    labelled = to_data_array(excess, axis, "predictor", units=units, description=description, coords=coords)
    return xr.Dataset(
        {
            "excess": labelled.assign_attrs(view="curves", scale="log", headline=1),
            "at_edge": to_data_array(at_edge, axis, "predictor", units="1", description=edge, coords=coords),
        }
    )


def measure_excess_risks(
    model: PreTrainedModel, task: Regression, algorithm_names: Sequence[str], sequences: int, seed: int
) -> dict[str, tuple[float, bool]]:
    """Return the mean squared error minus the variance of the noise, of a model and of algorithms tuned in hindsight.

    Args:
        model: a model that accepts prompts of the task.
        task: a regression task.
        algorithm_names: names of algorithms of the task; names that the task does not have are ignored.
        sequences: number of prompts.
        seed: of the prompts.

    Returns:
        the excess risk of ``model`` and of each algorithm, in squared units of the targets; and whether its best
        hyperparameters are at the edge of their grid.
    """
    drawn = task.sample(sequences, torch.Generator().manual_seed(seed))
    queries = predict_at_queries(model, task, drawn.to(model.device))
    algorithms = [one for one in task.candidate_algorithms() if one.name in algorithm_names]
    errors = {"model": (queries.mean_squared_error(queries.prediction), False)}
    errors |= {one.name: minimize_error(one, queries) for one in algorithms}
    noise_variance = task.noise**2 if task.noisy_query else 0.0
    return {name: (error - noise_variance, at_edge) for name, (error, at_edge) in errors.items()}


def minimize_error(algorithm: Algorithm, queries: PredictionsAtQueries) -> tuple[float, bool]:
    """Compute the minimum error of an algorithm on some prompts, over its hyperparameter and its iterations.

    Args:
        algorithm: an algorithm with at most one hyperparameter.
        queries: the prompts and their targets.

    Returns:
        the weighted mean squared error; and whether the best hyperparameter is the smallest or largest of its grid, or
        the best number of steps the largest.
    """
    iterations = tuple(tick for tick in algorithm.iteration_grid if tick <= MAX_STEPS)
    grid = {
        name: torch.logspace(*_log10_bounds(bounds), GRID_SIZE)
        for name, bounds in algorithm.hyperparameter_bounds.items()
    }
    values = {name: each.double()[:, None, None, None, None] for name, each in grid.items()}
    path = algorithm.predict(queries.context, iterations, **values)
    error = ((path - queries.targets).square().sum(-1) * queries.weight).sum((-1, -2)) / queries.weight.sum()
    error = torch.where(error.isfinite(), error, torch.inf).reshape(len(iterations), -1)
    tick, value = divmod(int(error.argmin()), error.shape[1])
    last_step = len(iterations) > 1 and tick == len(iterations) - 1
    return float(error.min()), last_step or (bool(grid) and value in (0, GRID_SIZE - 1))


def _log10_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = torch.tensor(bounds, dtype=torch.float64).log10().tolist()
    return low, high
