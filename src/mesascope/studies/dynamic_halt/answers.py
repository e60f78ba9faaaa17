"""Answers of models: predictions of the last scored token of every sequence, and how often they are right."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.tasks.base import Batch, Task
from mesascope.tasks.flip_flop import FlipFlop

CHUNK = 256  # sequences of a forward pass


def last_answers(batch: Batch) -> Int[Tensor, " batch"]:
    """Return the position of the last scored token of every sequence.

    Args:
        batch: sequences, each with a scored token.
    """
    positions = torch.arange(batch.weight.shape[1], device=batch.weight.device)
    return torch.where(batch.weight > 0, positions, 0).amax(1)


def select_answers(values: Tensor, batch: Batch) -> Tensor:
    """Return the values at the position of the last answer of every sequence.

    Args:
        values: (batch, pos, ...).
        batch: the sequences.

    Returns:
        the values, (batch, ...).
    """
    return values[torch.arange(len(batch), device=values.device), last_answers(batch)]


@torch.no_grad()
def predict_answers(model: PreTrainedModel, batch: Batch) -> Float[Tensor, "batch token"]:
    """Return the logits of the last answer of every sequence.

    Args:
        model: a decoder or a recurrent transformer.
        batch: the sequences.
    """
    chunks = (batch[start : start + CHUNK] for start in range(0, len(batch), CHUNK))
    return torch.cat([select_answers(model(chunk.inputs).logits, chunk) for chunk in chunks])


def find_correct(model: PreTrainedModel, batch: Batch) -> Bool[Tensor, " batch"]:
    """Return whether the last answer of every sequence is right: whether its token has the largest logit.

    Args:
        model: a decoder or a recurrent transformer.
        batch: the sequences.
    """
    return predict_answers(model, batch).argmax(-1) == select_answers(batch.targets, batch)


def score_baselines(task: Task, batch: Batch) -> Mapping[str, Float[Tensor, " batch"]]:
    """Return the probability that a baseline gives the last answer of every sequence.

    Args:
        task: the task of the sequences.
        batch: the sequences.

    Returns:
        probabilities by the name of the baseline; for flip-flop, the exact accuracy (closed form) for every sequence.
    """
    if isinstance(task, FlipFlop):
        exact = task.expected_accuracy()
        return {name: torch.full((len(batch),), value, dtype=torch.float64) for name, value in exact.items()}
    targets = select_answers(batch.targets, batch)[:, None]
    return {
        name: select_answers(value, batch).double().gather(1, targets)[:, 0].exp().cpu()
        for name, value in task.baselines(batch).items()
    }
