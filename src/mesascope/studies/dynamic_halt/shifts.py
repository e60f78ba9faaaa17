"""Shifted distributions of the three tasks: sequences that differ from those of training in length or composition."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from mesascope.tasks.base import Task
from mesascope.tasks.expressions.list_ops import ListOps
from mesascope.tasks.expressions.logical_inference import LogicalInference
from mesascope.tasks.flip_flop import FlipFlop

TRAINING = "training distribution"
DENSE, SPARSE, DOUBLE_LENGTH = "dense", "sparse", "double length"
LONGER, WIDER = "longer", "wider"
MORE_OPERATORS = "more operators"
AnyTask = TypeVar("AnyTask", bound=Task)
DENSE_IGNORE, SPARSE_IGNORE = 0.1, 0.98  # of the paper's code


def list_distributions(task: AnyTask) -> dict[str, AnyTask]:
    """Return the training distribution of a task, and shifted ones.

    - Flip-flop: fewer and more ignored pairs, and sequences of twice the length.
    - ListOps: expressions of more tokens than in training, up to half as many again; and expressions of up to twice as
      many, all of whose lists have one or two arguments more than the largest number in training.
    - Logical inference: formulas with more operators than in training, up to twice as many.

    Args:
        task: of the training.

    Returns:
        Tasks by the name of the distribution, that of training first.

    Raises:
        ValueError: the task is another one.

    >>> list(list_distributions(FlipFlop()))
    ['training distribution', 'dense', 'sparse', 'double length']
    """
    return {TRAINING: task, **_list_shifts(task)}


def _list_shifts(task: Task) -> Mapping[str, Any]:
    if isinstance(task, FlipFlop):
        return {
            DENSE: replace(task, ignore=DENSE_IGNORE),
            SPARSE: replace(task, ignore=SPARSE_IGNORE),
            DOUBLE_LENGTH: replace(task, length=2 * task.length),
        }
    if isinstance(task, ListOps):
        longest, most = task.max_length, task.max_arguments
        return {
            LONGER: replace(task, min_length=longest + 1, max_length=longest * 3 // 2),
            WIDER: replace(task, min_arguments=most + 1, max_arguments=most + 2, max_length=2 * longest),
        }
    if isinstance(task, LogicalInference):
        most = task.max_operators
        return {MORE_OPERATORS: replace(task, min_operators=most + 1, max_operators=2 * most)}
    raise ValueError(f"the task must be FlipFlop, ListOps or LogicalInference, but got {type(task).__name__}")
