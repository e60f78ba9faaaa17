"""Excess risk as a function of the number of in-context examples, with algorithms tuned in hindsight."""

from collections.abc import Sequence
from dataclasses import replace

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
        batch: ignored, except for its device.
        counts: numbers of in-context examples.
        algorithm_names: names of algorithms of the task; names that the task does not have are ignored.
        sequences: number of prompts for each number of examples.
        seed: seed of the prompts.

    Returns:
        ``excess`` by number of examples and predictor, in squared units of the terms.

    Raises:
        ValueError: the task is another one, or a number of examples is below 1.
    """
    if not isinstance(task, Regression) or task.layout != "joined":
        raise ValueError(f"the task must be Regression with layout='joined', but got {task!r}")
    if not counts or min(counts) < 1:
        raise ValueError(f"counts must be 1 or more each, but got {list(counts)}")
    algorithms = [one for one in task.candidate_algorithms() if one.name in algorithm_names]
    error = []
    for count in counts:
        task_at_count = replace(task, num_examples=count)
        drawn = task_at_count.sample(sequences, torch.Generator().manual_seed(seed + count))
        queries = predict_at_queries(model, task_at_count, drawn.to(batch.inputs.device))
        errors = [queries.mean_squared_error(queries.prediction), *(minimize_error(one, queries) for one in algorithms)]
        error.append([each - task.noise**2 for each in errors])
    named = {"_examples": list(counts), "predictor": ["model", *(one.name for one in algorithms)]}
    about = f"squared error minus the variance of the noise, by in-context examples; trained on {task.num_examples}"
    errors = to_data_array(
        torch.tensor(error),
        "_examples",
        "predictor",
        units="squared units of the terms",
        description=about,
        coords=named,
    )
    return xr.Dataset({"excess": errors.assign_attrs(view="curves", scale="log", headline=1)})


def minimize_error(algorithm: Algorithm, queries: PredictionsAtQueries) -> float:
    """Compute the minimum error of an algorithm on some prompts, over its hyperparameter and its iterations.

    Args:
        algorithm: an algorithm with at most one hyperparameter.
        queries: the prompts and their targets.

    Returns:
        the weighted mean squared error.
    """
    iterations = tuple(tick for tick in algorithm.iteration_grid if tick <= MAX_STEPS)
    grid = {
        name: torch.logspace(*_log10_bounds(bounds), GRID_SIZE)
        for name, bounds in algorithm.hyperparameter_bounds.items()
    }
    values = {name: each.double()[:, None, None, None, None] for name, each in grid.items()}
    path = algorithm.predict(queries.context, iterations, **values)
    error = ((path - queries.targets).square().sum(-1) * queries.weight).sum((-1, -2)) / queries.weight.sum()
    return float(torch.where(error.isfinite(), error, torch.inf).min())


def _log10_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = torch.tensor(bounds, dtype=torch.float64).log10().tolist()
    return low, high
