"""Digest of functions and classes that are defined in a notebook or an interpreter, which have no file."""

import hashlib
import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any


def is_interactive(value: Any) -> bool:
    """Return whether a value is a function or a class that is defined in an interpreter.

    Args:
        value: any value.
    """
    defined_here = isinstance(value, FunctionType | MethodType | type) and value.__module__ == "__main__"
    return defined_here and not Path(getattr(sys.modules["__main__"], "__file__", "")).is_file()


def describe_definition(value: FunctionType | MethodType | type) -> str:
    """Return a digest of a definition and of what it depends on; running the same cell again does not change it.

    Compiled code stands for the source, which an interpreter may not keep. Functions and classes of the interpreter
    that a definition names are followed; of other global variables, the values count.

    Args:
        value: the function or class.

    Returns:
        16 hexadecimal digits.
    """
    pending: list[Any] = [getattr(value, "__func__", value)]
    found: dict[int, Any] = {}
    texts: list[str] = []
    while pending:
        one = pending.pop()
        if id(one) in found:
            continue
        found[id(one)] = one
        if is_interactive(one):
            parts, text = _split_definition(one)
            pending += parts
        else:
            text = _describe_value(one)
        texts.append(text)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _split_definition(value: FunctionType | type) -> tuple[list[Any], str]:
    """Return what a definition depends on, and its own code."""
    if isinstance(value, type):
        own = {name: one for name, one in vars(value).items() if not name.startswith("__") or callable(one)}
        return [*value.__bases__, *_list_functions(own)], f"class {value.__qualname__} {sorted(own)}"
    names = sorted(_iterate_names(value.__code__))
    used = [value.__globals__[name] for name in names if name in value.__globals__]
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return [*used, *cells, *defaults], f"def {value.__qualname__} {_describe_code(value.__code__)}"


def _list_functions(members: dict[str, Any]) -> list[Any]:
    """Return the functions and values of a class, in the order of their names."""
    unwrapped = [getattr(members[name], "__func__", members[name]) for name in sorted(members)]
    return [function for one in unwrapped for function in ([one.fget] if isinstance(one, property) else [one])]


def _iterate_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _iterate_names(constant)


def _describe_code(code: CodeType) -> str:
    """Return instructions, names and constants of compiled code, without the cell and the lines that it came from."""
    constants = [_describe_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {constants}"


def _describe_value(value: Any) -> str:
    """Return a text that changes with a value; the name of a module, function or class that is installed."""
    if isinstance(value, ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, FunctionType | type):
        return f"{value.__module__}.{value.__qualname__}"
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception:  # no rule says what an object raises that cannot be pickled
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
