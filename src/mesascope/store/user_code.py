"""Digest of the code of a user that determines a result: definitions in files or a notebook, not in this package."""

import ast
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import FunctionType, MethodType, ModuleType

from mesascope.store._interactive_code import describe_definition, is_interactive

PACKAGE = Path(__file__).parents[1]
INSTALLED = {"site-packages", "dist-packages"}  # folders of installed packages, whose versions are recorded


def hash_user_code(*values: object) -> str:
    """Return a digest of the definitions that values depend on, if a user's own files have any.

    A definition is a top-level statement of a file. Those that it names are followed, in the same file and in others,
    so that a change of another part of the file leaves the digest as it is. Comments and layout do not count. Functions
    and classes of a notebook or an interpreter have no file; their compiled code counts.

    Args:
        *values: Functions, classes, and dataclasses, mappings and sequences of such.

    Returns:
        16 hexadecimal digits; empty if everything is defined in this package or in installed ones.
    """
    definitions = [one for value in values for one in _find_definitions(value)]
    pending = [origin for one in definitions for origin in _locate(one)]
    found = {("interpreter", describe_definition(one)): "" for one in definitions if is_interactive(one)}
    while pending:
        module, name = pending.pop()
        if (module.__name__, name) in found:
            continue
        nodes = _select_definitions(module, name)
        found[module.__name__, name] = "\n".join(map(ast.dump, nodes))
        pending += _follow_names(module, nodes)
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16] if found else ""


def _find_definitions(value: object) -> Iterator[FunctionType | MethodType | type]:
    """Yield the functions and classes that define a value and its parts."""
    if isinstance(value, partial):
        yield from _find_definitions((value.func, value.args, value.keywords))
    elif isinstance(value, type):
        yield from value.__mro__
    elif isinstance(value, FunctionType | MethodType):
        yield value
    elif isinstance(value, Mapping):
        yield from _find_definitions(tuple(value.values()))
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _find_definitions(item)
    elif is_dataclass(value):
        yield from _find_definitions(type(value))
        for field in fields(value):
            yield from _find_definitions(getattr(value, field.name, None))
    elif not isinstance(value, ModuleType):
        yield from _find_definitions(type(value))


def _locate(value: FunctionType | MethodType | type) -> Iterator[tuple[ModuleType, str]]:
    """Yield the user's module and the top-level name that define a function or class, if a file does."""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is not None and _is_users(module):
        yield module, value.__qualname__.partition(".")[0]


def _is_users(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] in sys.stdlib_module_names:
        return False
    path = Path(file).resolve()
    return path.suffix == ".py" and PACKAGE not in path.parents and not INSTALLED & set(path.parts)


def _select_definitions(module: ModuleType, name: str) -> list[ast.stmt]:
    """Return the top-level statements that define a name; the whole module if there are none."""
    body = _parse(module)
    return [node for node in body if name in _defined_names(node)] or body


def _parse(module: ModuleType) -> list[ast.stmt]:
    return _parse_source(Path(str(module.__file__)).read_bytes())


@lru_cache(maxsize=64)
def _parse_source(content: bytes) -> list[ast.stmt]:
    return ast.parse(content).body


def _defined_names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}


def _imported_names(body: list[ast.stmt]) -> dict[str, tuple[str, str]]:
    """Return module and name of what a file imports with ``from MODULE import NAME``, by the name that it has there."""
    imports = [node for node in body if isinstance(node, ast.ImportFrom)]
    return {one.asname or one.name: (node.module or "", one.name) for node in imports for one in node.names}


def _follow_names(module: ModuleType, nodes: list[ast.stmt]) -> Iterator[tuple[ModuleType, str]]:
    """Yield the definitions that statements name: in the same module, or in another one of the user."""
    body = _parse(module)
    own, imported = set().union(*map(_defined_names, body)), _imported_names(body)
    for node in (one for each in nodes for one in ast.walk(each) if isinstance(one, ast.Name)):
        value = getattr(module, node.id, None)
        source, name = imported.get(node.id, ("", ""))
        if node.id in own:
            yield module, node.id
        elif isinstance(value, ModuleType):
            yield from [(value, "")] if _is_users(value) else []
        elif source in sys.modules and _is_users(sys.modules[source]):
            yield sys.modules[source], name
