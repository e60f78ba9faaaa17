"""Accuracy with fewer steps than a model would take, and with as many steps as it takes for another sequence."""

import copy

import torch
import xarray as xr
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.analyses.base import analysis
from mesascope.axes import to_data_array
from mesascope.models.recurrent.config import RecurrentConfig
from mesascope.studies.dynamic_halt.answers import CHUNK, find_correct
from mesascope.tasks.base import Batch, Task

OWN, OTHER = "own steps", "steps of another sequence"
MAX_LOSS = 0.01  # of the accuracy: at this distance two accuracies are called equal; ours


@analysis(
    title="Accuracy with a limit on steps",
    description=f"""
        Accuracy when all sequences stop after the same number of steps at the latest, by this limit; the state after
        the last step has all the remaining weight. Own steps: without a limit. Steps of another sequence: each sequence
        is stopped after as many steps as the model takes for another one, which is drawn at random; the accuracy is its
        expectation over all pairs of sequences. If every sequence gets the steps that it needs, own steps are better,
        at the same mean cost. Enough steps: the smallest limit at which the accuracy is within {MAX_LOSS:g} of that
        without a limit. Steps taken without a limit are those of halting; a model without halting takes the maximum.
    """,
    input="model",
    steps="last",
)
def step_limits(model: PreTrainedModel, task: Task, batch: Batch) -> xr.Dataset:
    """Compute the accuracy of a model by the largest number of steps.

    Args:
        model: a recurrent transformer in which all positions of a sequence take the same number of steps: with
            ``halt="none"``, or with ``halt="global"`` and ``mask="full"``.
        task: its task.
        batch: sequences of the task.

    Returns:
        ``accuracy_by_limit``; ``accuracy`` with own steps and those of another sequence; ``mean_steps`` and
        ``enough_steps``.

    Raises:
        ValueError: positions of a sequence may take different numbers of steps.
    """
    config = model.config
    if not isinstance(config, RecurrentConfig) or not takes_equal_steps(config):
        raise ValueError(
            "all positions of a sequence must take the same number of steps, but those of this model may not; choose "
            "a recurrent transformer with halt='none', or with halt='global' and mask='full'"
        )
    limits = torch.arange(1, config.max_iterations + 1)
    correct = torch.stack([find_correct(limit_steps(model, int(limit)), batch).cpu() for limit in limits])
    steps = _count_own_steps(model, batch)
    by_limit = correct.double().mean(1)
    own = float(by_limit[-1])
    enough = int(limits[by_limit >= own - MAX_LOSS][0])
    about = "fraction of sequences whose last answer is right"
    return xr.Dataset(
        {
            "accuracy_by_limit": to_data_array(
                by_limit,
                "_limit",
                units="1",
                description=f"{about}, by the largest number of steps",
                coords={"_limit": limits.tolist()},
            ).assign_attrs(view="curves"),
            "accuracy": to_data_array(
                [own, _expect_exchanged(correct, steps)],
                "stat",
                units="1",
                description=about,
                coords={"stat": [OWN, OTHER]},
            ),
            "mean_steps": to_data_array(
                steps.double().mean(), units="steps", description="steps taken, mean over sequences"
            ),
            "enough_steps": to_data_array(
                enough,
                units="steps",
                description=f"smallest limit at which the accuracy is within {MAX_LOSS:g} of that without a limit",
            ),
        }
    )


def takes_equal_steps(config: RecurrentConfig) -> bool:
    """Return whether all positions of a sequence take the same number of steps.

    Args:
        config: of a recurrent transformer.
    """
    return config.halt == "none" or (config.halt == "global" and config.mask == "full" and config.chunk_length is None)


def limit_steps(model: PreTrainedModel, limit: int) -> PreTrainedModel:
    """Return a copy of a recurrent transformer that takes at most a number of steps.

    Args:
        model: the model; it is left as it is.
        limit: number of steps, at least 1.
    """
    limited = copy.deepcopy(model)
    limited.config.max_iterations = limit
    return limited


@torch.no_grad()
def _count_own_steps(model: PreTrainedModel, batch: Batch) -> Int[Tensor, " batch"]:
    """Return the number of steps of every sequence, which all its positions take."""
    if model.config.halt == "none":
        return torch.full((len(batch),), model.config.max_iterations)
    starts = range(0, len(batch), CHUNK)
    return torch.cat([model(batch.inputs[start : start + CHUNK]).num_steps.amax(1).cpu() for start in starts]).long()


def _expect_exchanged(correct: Bool[Tensor, "limit batch"], steps: Int[Tensor, " batch"]) -> float:
    """Return the expected accuracy if each sequence takes the steps of one that is drawn at random."""
    limits = torch.arange(1, len(correct) + 1)
    frequency = (steps.clamp_min(1) == limits[:, None]).double().mean(1)  # a sequence takes a step at least
    return float(frequency @ correct.double().mean(1))
