"""Arguments of a module call, by position or keyword."""

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
