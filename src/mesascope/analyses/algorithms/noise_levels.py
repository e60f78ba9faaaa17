"""Excess risk as a function of the noise of the targets, with algorithms tuned in hindsight."""

from collections.abc import Sequence
from dataclasses import replace

import xarray as xr
from transformers import PreTrainedModel

from mesascope.analyses.algorithms.context_length import (
    COMPARED_ALGORITHMS,
    label_excess_risks,
    measure_excess_risks,
)
from mesascope.analyses.base import analysis
from mesascope.tasks.base import Batch, Task
from mesascope.tasks.regression import Regression


@analysis(
    title="Excess risk vs noise",
    description="""
        Mean squared error minus the variance of the noise, on new prompts whose targets have more or less noise than in
        training. The model is the same at every level. It is compared with algorithms of the task whose hyperparameter
        and number of steps minimise their error on the same prompts of the same level, so that they are oracle bounds.
    """,
    input="model",
    steps="last",
)
def excess_risk_vs_noise(
    model: PreTrainedModel,
    task: Task,
    batch: Batch,
    factors: Sequence[float] = (0.5, 1.0, 1.5),
    algorithm_names: Sequence[str] = COMPARED_ALGORITHMS,
    sequences: int = 512,
    seed: int = 0,
) -> xr.Dataset:
    """Compute the excess risk of the model and of tuned algorithms at several noise levels.

    Args:
        model: a model of the task.
        task: a regression task with noise.
        batch: ignored.
        factors: standard deviations of the noise, over that of the task.
        algorithm_names: names of algorithms of the task; names that the task does not have are ignored.
        sequences: number of prompts at each level.
        seed: seed of the prompts.

    Returns:
        ``excess`` by noise (a factor on that of training) and predictor, in squared units of the targets; and
        ``at_edge``, which is 1 where the best hyperparameter or number of steps is at the edge of its grid.

    Raises:
        ValueError: the task is another one or has no noise, or a factor is below 0.
    """
    if not isinstance(task, Regression) or not task.noise:
        raise ValueError(f"the task must be Regression with noise, but got {task!r}")
    if not factors or min(factors) < 0:
        raise ValueError(f"factors must be 0 or more each, but got {list(factors)}")
    levels = [replace(task, noise=factor * task.noise) for factor in factors]
    risks = {
        factor: measure_excess_risks(model, level, algorithm_names, sequences, seed + index)
        for index, (factor, level) in enumerate(zip(factors, levels, strict=True))
    }
    about = f"squared error minus the variance of the noise, by noise; trained with {task.noise:g}"
    return label_excess_risks("_noise", risks, about)
