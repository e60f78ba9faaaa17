"""Held-out sequences on which a training replicate is evaluated."""

import torch

from mesascope.studies.base import Condition
from mesascope.tasks.base import Batch, Task

# plus the seed: every replicate is evaluated on its own sequences; training uses SeedSequence
EVALUATION_SEED = 2**40 + 17
MIN_EVALUATION_SEQUENCES = {"smoke": 0, "laptop": 4_096, "paper": 4_096}


def count_evaluation_sequences(condition: Condition, scale: str) -> int:
    """Return the number of held-out sequences from which losses are computed.

    Args:
        condition: The condition.
        scale: The name of the scale.

    Returns:
        The number that the condition states for the scale, else 4,096, or the analysed sequences if there are more or
        at smoke scale.
    """
    config = condition.scales[scale]
    stated = config.evaluation_sequences
    return max(config.sequences, MIN_EVALUATION_SEQUENCES[scale] if stated is None else stated)


def draw_evaluation_batches(task: Task, sequences: int, evaluation_sequences: int, seed: int) -> tuple[Batch, ...]:
    """Draw the held-out sequences of one replicate in chunks; the first chunk is the sequences that are analysed.

    Args:
        task: The task that held-out sequences come from.
        sequences: Number of analysed sequences, and maximum number of sequences in a chunk.
        evaluation_sequences: Number of sequences of all chunks together.
        seed: The training replicate.

    Returns:
        One batch per chunk.
    """
    generator = torch.Generator().manual_seed(EVALUATION_SEED + seed)
    starts = range(0, evaluation_sequences, sequences)
    return tuple(task.sample(min(sequences, evaluation_sequences - start), generator) for start in starts)
