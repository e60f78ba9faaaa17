"""Validation of the types of arguments by their annotations, with one line for each invalid one."""

import inspect
import math
import sys
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cache, partial, wraps
from numbers import Integral, Real
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    ParamSpec,
    TypeGuard,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import jaxtyping
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# arguments whose functions say more: what to pass in place of a wrapper, or an example
_VALIDATED_BY_FUNCTION = {"model", "inputs", "layers", "queries", "attention_mask"}
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1  # what a tensor can hold
# errors that a user's function raises if it does not fit its arguments
CODE_ERRORS = (RuntimeError, TypeError, LookupError, AttributeError, NotImplementedError)
MAX_SHOWN = 80  # characters of a value in a message
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_Check = Callable[[object], bool]
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
    named = [
        name
        for name, one in inspect.signature(function).parameters.items()
        if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
    ]

    @wraps(function)
    def validated(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        checks = _read_argument_checks(function)
        for name, value in zip(named, args, strict=False):
            if name in checks:
                _validate_value(name, value, *checks[name])
        for name, value in kwargs.items():
            if name in checks:
                _validate_value(name, value, *checks[name])
        return function(*args, **kwargs)

    return validated


def validate_fields(instance: Any) -> None:
    """Validate the types of the fields of a dataclass, as `validate_arguments` does those of arguments.

    Args:
        instance: An instance of a dataclass.

    Raises:
        ValueError: A field has another type.
    """
    checks = _read_checks(type(instance))
    for one in fields(instance):
        if one.name in checks:
            _validate_value(one.name, getattr(instance, one.name), *checks[one.name])


def validate_call(function: Callable[..., object], arguments: Mapping[str, object], names: Mapping[str, str]) -> None:
    """Validate the types of the arguments of a function, as `validate_arguments` does.

    Args:
        function: The function.
        arguments: The arguments by name.
        names: What the message calls an argument, where this is not its name.

    Raises:
        ValueError: An argument has another type.
    """
    for name, check in _read_argument_checks(function).items():
        if name in arguments:
            _validate_value(names.get(name, name), arguments[name], *check)


def validate_type(name: str, value: object, hint: Any) -> None:
    """Validate the type of a value.

    Args:
        name: The name of the argument.
        value: Its value.
        hint: Its annotation.

    Raises:
        ValueError: The value has another type, is not a number (NaN), or is on the meta device.
    """
    _validate_value(name, value, _compile_check(hint), hint)


def validate_tensor(name: str, value: "Tensor") -> None:
    """Check that a tensor has values, which are stored one by one.

    Args:
        name: The name of the argument.
        value: A tensor.

    Raises:
        ValueError: It is on the meta device, or sparse.
    """
    if value.is_meta:
        raise ValueError(f"{name} must have values, but got a tensor on the meta device; load or compute it first")
    if str(value.layout) != "torch.strided":
        raise ValueError(f"{name} must be dense, but got a tensor with the layout {value.layout}; pass its to_dense()")


def is_tensor(value: Any) -> "TypeGuard[Tensor]":
    """Return whether a value is a tensor; torch is not imported for values that cannot be one.

    Args:
        value: Any value.
    """
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def describe_value(value: object) -> str:
    """Return a value in one short line: numbers and short texts as they are, arrays by shape, others by class.

    Args:
        value: Any value.

    >>> describe_value(np.ones((2, 3)))
    'a float64 ndarray of shape (2, 3)'
    """
    if is_tensor(value) or isinstance(value, np.ndarray):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"{_add_article(f'{dtype} {type(value).__name__}')} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(describe_value, list(value)[:3])) or 'no keys'}"
    if isinstance(value, list | tuple | set | frozenset):
        parts = [describe_value(one) for one in list(value)[:8]]
        return f"[{', '.join(parts)}{', ...' if len(value) > len(parts) else ''}]"
    text = (
        repr(value) if isinstance(value, str | bytes | Real | type(None)) else f"an instance of {type(value).__name__}"
    )
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def summarize_error(error: Exception) -> str:
    """Return the class of an error and the first line of its message.

    Args:
        error: The error.

    >>> summarize_error(KeyError("z"))
    "KeyError: 'z'"
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _validate_value(name: str, value: object, check: _Check, hint: Any) -> None:
    if is_tensor(value):
        validate_tensor(name, value)
    if not check(value):
        raise ValueError(f"{name} must be {_describe_hint(hint)}, but got {describe_value(value)}")
    if isinstance(value, Integral) and not (0 if name == "seed" else MIN_INTEGER) <= int(value) <= MAX_INTEGER:
        least = "0" if name == "seed" else "-2^63"
        raise ValueError(f"{name} must be from {least} to 2^63 - 1, but got {describe_value(value)}")


@cache
def _read_argument_checks(function: Any) -> Mapping[str, tuple[_Check, Any]]:
    return {name: check for name, check in _read_checks(function).items() if name not in _VALIDATED_BY_FUNCTION}


@cache
def _read_checks(function: Any) -> Mapping[str, tuple[_Check, Any]]:
    """Return a check and the annotation of every annotated argument or field, by name."""
    hints = _resolve_annotations(function)
    return {name: (_compile_check(hint), hint) for name, hint in hints.items() if name != "return"}


def _resolve_annotations(function: Any) -> Mapping[str, Any]:
    """Return the annotations by name; those that only a type checker can resolve are left out."""
    try:
        return get_type_hints(function)
    except TypeError:  # a callable object, whose class has the annotations
        return {}
    except (NameError, AttributeError):
        scope = {"__module__": getattr(function, "__module__", __name__)}
        each = {}
        for name, hint in inspect.get_annotations(function).items():
            with suppress(NameError, AttributeError):
                each |= get_type_hints(type("Single", (), {**scope, "__annotations__": {name: hint}}))
        return each


def _compile_check(hint: Any) -> _Check:
    """Return a function that says whether a value matches an annotation; it is called in every call."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _compile_union(get_args(hint))
    if origin is Literal:
        choices = get_args(hint)
        return lambda value: isinstance(value, str | int) and value in choices
    kind = origin or hint
    if isinstance(kind, type) and issubclass(kind, jaxtyping.AbstractArray):
        return _compile_array_check(kind)
    if kind is Sequence and (classes := _element_classes(hint)):
        return partial(_has_elements, classes)
    if kind in _CHECKS:
        return _CHECKS[kind]
    is_protocol = getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False)
    if not isinstance(kind, type) or is_protocol or kind is Any:
        return lambda value: True  # nothing that can be checked
    return lambda value: isinstance(value, kind)


def _has_elements(classes: tuple[type, ...], value: Any) -> bool:
    return _is_plain_sequence(value) and all(isinstance(one, classes) for one in value)


def _compile_union(hints: Sequence[Any]) -> _Check:
    classes = tuple(one for one in hints if type(one) is type and one not in _CHECKS)  # checked with one call
    others = [_compile_check(one) for one in hints if one not in classes]
    return lambda value: isinstance(value, classes) or any(check(value) for check in others)


def _element_classes(hint: Any) -> tuple[type, ...]:
    """Return the class of the elements of a sequence, if it is text or of this package; functions check others."""
    package = __name__.partition(".")[0]
    return tuple(
        one for one in get_args(hint) if one is str or getattr(one, "__module__", "").startswith(f"{package}.")
    )


def _compile_array_check(hint: Any) -> _Check:
    """Check class, dtype and number of axes; isinstance would also compare sizes of axes that a caller has bound."""
    axes = hint.dim_str.split()
    num_fixed = sum("*" not in axis and axis != "..." for axis in axes)
    dtypes = hint.dtypes if isinstance(hint.dtypes, tuple) else None  # Shaped has all

    def check(value: Any) -> bool:
        return (
            isinstance(value, hint.array_type)
            and (dtypes is None or str(value.dtype).removeprefix("torch.") in dtypes)
            and (value.ndim >= num_fixed if num_fixed < len(axes) else value.ndim == num_fixed)
        )

    return check


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)


def _is_sequence(value: object, excluded: tuple[type, ...] = (Mapping, bytes)) -> bool:
    return isinstance(value, list | tuple) or (
        isinstance(value, Collection) and not isinstance(value, excluded) and getattr(value, "ndim", 1) > 0
    )


def _is_plain_sequence(value: Any) -> bool:
    return not is_tensor(value) and _is_sequence(value, (Mapping, bytes, np.ndarray))


_CHECKS: Mapping[Any, _Check] = {
    float: _is_number,
    int: lambda value: isinstance(value, Integral) and not isinstance(value, bool),
    bool: lambda value: isinstance(value, bool | np.bool_),
    Sequence: _is_sequence,
    list: _is_plain_sequence,
    tuple: _is_plain_sequence,
}


def _describe_hint(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_describe_hint, get_args(hint))))
    if origin is Literal:
        choices = [str(one) for one in get_args(hint)]
        return " or ".join(choices) if len(choices) < 3 else f"one of {', '.join(choices)}"
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        is_single = isinstance(hint.dtypes, tuple) and len(hint.dtypes) == 1
        dtypes = hint.dtypes[0] if is_single else hint.dtype.__name__.lower().replace("shaped", "")
        name = f"{dtypes} {hint.array_type.__name__}".strip()
        return f"{_add_article(name)} with the axes ({hint.dim_str.strip()})"
    if classes := _element_classes(hint) if origin is Sequence else ():
        return "a Sequence of texts" if classes[0] is str else f"a Sequence of {classes[0].__name__}"
    return _NAMES.get(hint, _add_article(getattr(origin or hint, "__name__", str(hint))))


def _add_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"
