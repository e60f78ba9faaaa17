"""The error by how many examples a prompt shows, beside algorithms whose numbers are the best in hindsight."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import xarray as xr
from transformers import PreTrainedModel

from mesascope.analyses.algorithms.agreement import Asked, asked
from mesascope.analyses.instrument import instrument
from mesascope.axes import label
from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.regression import Regression

VALUES = 9  # of a parameter
MOST_STEPS = 512  # of an algorithm
BESIDE = ("ridge regression", "gradient descent", "preprocessed gradient descent", "lasso")


@instrument(title="Error by the number of examples", steps="last", order=12)
def excess_by_examples(
    model: PreTrainedModel,
    task: Task,
    batch: Batch,
    counts: Sequence[int] = (2, 4, 8, 12, 16),
    beside: Sequence[str] = BESIDE,
    sequences: int = 512,
    seed: int = 0,
) -> xr.Dataset:
    """Mean squared error minus the variance of the noise, on fresh prompts that show so many examples. The model was
    trained on prompts of one length, and must do with others. Beside it algorithms of the task, each with the
    parameter and the number of steps (up to 512) that make its error least on these very prompts: what it can do at
    best, which no learner of it has.

    Args:
        model: a model that reads prompts of other lengths, too.
        task: of regression, joined: a pair at each position.
        batch: is not looked at.
        counts: how many examples.
        beside: algorithms of the task by name; those it does not have are left out.
        sequences: of each number of examples.
        seed: of the prompts.

    Raises:
        ValueError: the task is another one, or a number of examples is none.
    """
    if not isinstance(task, Regression) or task.layout != "joined":
        raise ValueError("the number of examples can be chosen for Regression of layout joined, but got another task")
    if not counts or min(counts) < 1:
        raise ValueError(f"counts must be 1 or more each, but got {list(counts)}")
    algorithms = [one for one in task.algorithms() if one.name in beside]
    error = []
    for count in counts:
        here = replace(task, examples_shown=count)
        drawn = here.sample(sequences, torch.Generator().manual_seed(seed + count))
        there = asked(model, here, drawn.to(batch.inputs.device))
        found = [there.loss(there.prediction), *(best(one, there) for one in algorithms)]
        error.append([each - task.noise**2 for each in found])
    named = {"_examples": list(counts), "predictor": ["model", *(one.name for one in algorithms)]}
    about = f"squared error minus that of the noise, by examples in the prompt; trained on {task.examples_shown}"
    found = label(
        torch.tensor(error), "_examples", "predictor", units="squared units of the terms", about=about, coords=named
    )
    return xr.Dataset({"excess": found.assign_attrs(view="curves", scale="log", headline=1)})


def best(algorithm: Algorithm, there: Asked) -> float:
    """The least error that an algorithm has on some prompts, over its parameters and steps.

    Args:
        algorithm: with one parameter, or none.
        there: the prompts and their answers.
    """
    ticks = tuple(tick for tick in algorithm.ticks if tick <= MOST_STEPS)
    grid = {name: torch.logspace(*_exponents(bounds), VALUES) for name, bounds in algorithm.parameters.items()}
    values = {name: each.double()[:, None, None, None, None] for name, each in grid.items()}
    path = algorithm.predict(there.shown, ticks, **values)
    wrong = ((path - there.targets).square().sum(-1) * there.weight).sum((-1, -2)) / there.weight.sum()
    return float(torch.where(wrong.isfinite(), wrong, torch.inf).min())


def _exponents(bounds: tuple[float, float]) -> tuple[float, float]:
    """Of ten, between which a parameter lies."""
    low, high = torch.tensor(bounds, dtype=torch.float64).log10().tolist()
    return low, high
