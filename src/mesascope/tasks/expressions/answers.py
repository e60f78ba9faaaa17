"""Answers at the end of a sequence: their loss, and the log-probabilities of baselines."""

from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.tasks.base import Batch

MIN_PROBABILITY = 1e-12  # of answers that a baseline excludes, so that their logarithm is finite


def answer_loss(prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> Float[Tensor, "batch pos"]:
    """Compute the cross-entropy of the targets, in nats.

    Args:
        prediction: logits.
        batch: the sequences that were predicted.

    Returns:
        The cross-entropy at every position.
    """
    return -prediction.log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]


def log_answer_probabilities(
    inputs: Int[Tensor, "batch pos"],
    answers: Mapping[tuple[int, int], int],
    choices: Iterable[int],
    vocab_size: int,
) -> Float[Tensor, "batch pos token"]:
    """Return the log-probabilities of a baseline that knows some answers and guesses the others.

    Args:
        inputs: tokens.
        answers: the token that is predicted, by row and position.
        choices: tokens that have the same probability everywhere else.
        vocab_size: number of tokens.
    """
    probabilities = torch.zeros(*inputs.shape, vocab_size)
    possible = list(choices)
    probabilities[..., possible] = 1 / len(possible)
    for (row, position), token in answers.items():
        probabilities[row, position] = 0
        probabilities[row, position, token] = 1
    return probabilities.clamp_min(MIN_PROBABILITY).log().to(inputs.device)
