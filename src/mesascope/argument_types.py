"""Validation of the types of arguments by their annotations, with one line for each invalid one."""

import inspect
import math
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import cache, wraps
from numbers import Integral, Real
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import jaxtyping
import numpy as np
from torch import Tensor

# arguments whose functions say more: what to pass in place of a wrapper, or an example
_VALIDATED_BY_FUNCTION = {"model", "inputs", "layers", "queries", "attention_mask"}
MAX_SHOWN = 80  # characters of a value in a message
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_NAMES = {int: "an integer", float: "a number", bool: "True or False", str: "a text", type(None): "None"}


def validate_arguments(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Validate the arguments of a function before it is called.

    The classes, choices and dtypes in its annotations are checked, and the number of axes of a tensor; elements of
    collections are not. Models, inputs and indices are left to the function, which says more about them.

    Args:
        function: A function with annotations.

    Returns:
        A function that raises a ValueError of one line for an argument of another type.

    >>> @validate_arguments
    ... def double(x: int) -> int:
    ...     return 2 * x
    >>> double("2")
    Traceback (most recent call last):
    ...
    ValueError: x must be an integer, but got '2'
    """
    signature = inspect.signature(function)
    named = [
        name for name, one in signature.parameters.items() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]

    @wraps(function)
    def validated(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        hints = _read_hints(function)
        for name, value in (*zip(named, args, strict=False), *kwargs.items()):
            if name in hints and name not in _VALIDATED_BY_FUNCTION:
                validate_type(name, value, hints[name])
        return function(*args, **kwargs)

    return validated


def validate_fields(instance: Any) -> None:
    """Validate the types of the fields of a dataclass, as `validate_arguments` does those of arguments.

    Args:
        instance: An instance of a dataclass.

    Raises:
        ValueError: A field has another type.
    """
    hints = _read_hints(type(instance))
    for one in fields(instance):
        if one.name in hints:
            validate_type(one.name, getattr(instance, one.name), hints[one.name])


def validate_first_argument(name: str, function: Callable[..., object], value: object) -> None:
    """Validate the type of the first argument of a function.

    Args:
        name: What the message calls the argument.
        function: The function.
        value: The argument.

    Raises:
        ValueError: The value has another type.
    """
    for hint in list(_read_hints(function).values())[:1]:
        validate_type(name, value, hint)


def validate_type(name: str, value: object, hint: Any) -> None:
    """Validate the type of a value.

    Args:
        name: The name of the argument.
        value: Its value.
        hint: Its annotation.

    Raises:
        ValueError: The value has another type, is not a number (NaN), or is on the meta device.
    """
    if isinstance(value, Tensor) and value.is_meta:
        raise ValueError(f"{name} must have values, but got a tensor on the meta device; load or compute it first")
    if not _matches(value, hint):
        raise ValueError(f"{name} must be {_describe_hint(hint)}, but got {describe_value(value)}")


def describe_value(value: object) -> str:
    """Return a value in one short line: numbers and short texts as they are, arrays by shape, others by class.

    Args:
        value: Any value.

    >>> describe_value(np.ones((2, 3)))
    'a float64 ndarray of shape (2, 3)'
    """
    if isinstance(value, Tensor | np.ndarray):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {dtype} {type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(describe_value, list(value)[:3])) or 'no keys'}"
    if isinstance(value, list | tuple | set | frozenset):
        shown = [describe_value(one) for one in list(value)[:8]]
        return f"[{', '.join(shown)}{', ...' if len(value) > len(shown) else ''}]"
    text = (
        repr(value) if isinstance(value, str | bytes | Real | type(None)) else f"an instance of {type(value).__name__}"
    )
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


@cache
def _read_hints(function: Any) -> Mapping[str, Any]:
    try:
        return {name: hint for name, hint in get_type_hints(function).items() if name != "return"}
    except NameError:  # annotations that only a type checker can resolve
        return {}


def _matches(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_matches(value, one) for one in get_args(hint))
    if origin is Literal:
        return isinstance(value, str | int) and value in get_args(hint)
    if hint is float:
        return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    kind = origin or hint
    if kind in (Sequence, list, tuple):
        excluded = (Mapping, bytes) if kind is Sequence else (Mapping, bytes, Tensor, np.ndarray)
        return isinstance(value, Collection) and not isinstance(value, excluded) and getattr(value, "ndim", 1) > 0
    if not isinstance(kind, type) or (
        getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False)
    ):
        return True  # nothing that can be checked
    return isinstance(value, kind)


def _describe_hint(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_describe_hint, get_args(hint))))
    if origin is Literal:
        choices = [str(one) for one in get_args(hint)]
        return " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        dtypes = hint.dtypes[0] if len(hint.dtypes) == 1 else hint.dtype.__name__.lower()
        return f"a {dtypes} {hint.array_type.__name__} with the axes ({hint.dim_str.strip()})"
    return _NAMES.get(hint, f"a {getattr(origin or hint, '__name__', hint)}")
