"""Batches of a training: the batch of step n is a pure function of the seed and n."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from mesascope.tasks.base import Batch, Task
from mesascope.train._config import TrainingConfig

INIT_STREAM, DATA_STREAM, UNTRAINED_STREAM = 0, 1, 2  # independent random streams of one seed
# batches per sample() call, most of which is overhead: 0.13 ms per batch instead of 1.6 ms (affine task)
_BATCHES_PER_DRAW = 16


def sample_batch(task: Task, training: TrainingConfig, seed: int, step: int) -> Batch:
    """Return the batch of one step, a pure function of the configuration, the seed and the step.

    Args:
        task: Samples the sequences.
        training: The training configuration.
        seed: The training replicate.
        step: Updates taken before this one.

    Returns:
        The batch, on the CPU.
    """
    return next(sample_batches(task, training, seed, step))


def sample_batches(task: Task, training: TrainingConfig, seed: int, start: int = 0) -> Iterator[Batch]:
    """Iterate over the batches of the steps from ``start`` to the last.

    Args:
        task: Samples the sequences.
        training: The training configuration.
        seed: The training replicate.
        start: The first step.

    Returns:
        An iterator over batches on the CPU, sliced from larger samples.
    """
    size = training.batch_size
    for draw in range(start // _BATCHES_PER_DRAW, -(-training.steps // _BATCHES_PER_DRAW)):
        sampled = task.sample(
            size * _BATCHES_PER_DRAW, torch.Generator().manual_seed(derive_seed(seed, DATA_STREAM, draw))
        )
        for step in range(max(start, draw * _BATCHES_PER_DRAW), min(training.steps, (draw + 1) * _BATCHES_PER_DRAW)):
            first = step % _BATCHES_PER_DRAW * size
            yield sampled[first : first + size]


def prefetch_batches(batch_stream: Iterator[Batch]) -> Iterator[Batch]:
    """Prefetch batches in a background thread, so that a GPU does not wait for the CPU.

    Args:
        batch_stream: The batches to prefetch.

    Returns:
        An iterator over the same batches.
    """
    # the same number of torch threads as in the main thread: it can change the last bit of a sum
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as pool:
        next_batch = pool.submit(next, batch_stream, None)
        while (batch := next_batch.result()) is not None:
            next_batch = pool.submit(next, batch_stream, None)
            yield batch


def derive_untrained_seed(seed: int, draw: int) -> int:
    """Derive the seed of the weights of a further untrained model, which is not that of any training.

    Args:
        seed: The training replicate with which it is compared.
        draw: The number of the model.

    Returns:
        A seed of 64 bits.
    """
    return derive_seed(seed, UNTRAINED_STREAM, draw)


def derive_seed(*path: int) -> int:
    """Derive a seed for torch generators from a path of integers.

    Args:
        *path: The replicate, the stream, and further numbers.

    Returns:
        A seed of 64 bits.
    """
    return int(np.random.SeedSequence(path).generate_state(1, np.uint64)[0])
