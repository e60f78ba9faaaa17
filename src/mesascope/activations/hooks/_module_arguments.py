"""Arguments and outputs of a module call."""

from collections.abc import Mapping, MutableMapping
from copy import copy
from typing import Any

from torch import Tensor


def read_argument(argument: int | str, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Return one of the arguments of a call.

    Args:
        argument: position or keyword.
        args: positional arguments.
        kwargs: keyword arguments.
    """
    return args[argument] if isinstance(argument, int) else kwargs[argument]


def replace_argument(
    argument: int | str, new: Tensor, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Return the arguments of a call with one of them replaced.

    Args:
        argument: position or keyword.
        new: its replacement.
        args: positional arguments.
        kwargs: keyword arguments.
    """
    if isinstance(argument, int):
        return (*args[:argument], new, *args[argument + 1 :]), kwargs
    return args, kwargs | {argument: new}


def first_tensor(output: Any) -> Tensor | None:
    """Return a module's output, or the first element of a tuple, list or mapping.

    Args:
        output: the output.

    Returns:
        The tensor, or ``None`` if it is not a tensor.
    """
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) else None


def replace_output(output: Any, new: Tensor) -> Any:
    """Return a module's output with its tensor, or the first element of its tuple, list or mapping, replaced.

    Args:
        output: the output.
        new: the replacement.
    """
    if isinstance(output, Tensor):
        return new
    if isinstance(output, MutableMapping):
        changed = copy(output)
        changed[next(iter(output))] = new
        return changed
    return [new, *output[1:]] if isinstance(output, list) else (new, *output[1:])
