"""The matrix of least norm that separates some entries from others by a margin of 1."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from torch import Tensor

TokenMatrix = Float[Tensor, "token token"]
MatrixEntry = tuple[int, int]


def solve_max_margin(ordered: Sequence[tuple[MatrixEntry, MatrixEntry]], size: int) -> TokenMatrix:
    """Return the matrix of least norm in which given entries exceed others by 1.

    It is a least-distance problem, solved by non-negative least squares (Lawson and Hanson 1974, chapter 23).

    Args:
        ordered: pairs of entries; the first must exceed the second.
        size: rows and columns of the matrix.

    Raises:
        ValueError: no matrix satisfies the constraints.

    >>> solve_max_margin([((0, 0), (1, 0))], 2).round(decimals=9).tolist()
    [[0.5, 0.0], [-0.5, 0.0]]
    """
    system = np.vstack([_entry_differences(ordered, size).T, np.ones(len(ordered))])
    target = np.append(np.zeros(size * size), 1.0)
    weights, distance = nnls(system, target)
    if distance < 1e-9:
        raise ValueError("orders must not contradict each other, but no matrix satisfies all of these; remove some")
    residual = system @ weights - target
    return torch.from_numpy(-residual[:-1] / residual[-1]).view(size, size)


def _entry_differences(
    ordered: Sequence[tuple[MatrixEntry, MatrixEntry]], size: int
) -> Float[np.ndarray, "pair entry"]:
    differences = np.zeros((len(ordered), size, size))
    for row, (high, low) in enumerate(ordered):
        differences[row][high] += 1
        differences[row][low] -= 1
    return differences.reshape(len(ordered), -1)
