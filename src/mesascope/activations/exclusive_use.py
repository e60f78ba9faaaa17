"""Exclusive use of a model: one thread at a time changes its hooks and its attention, and nothing is compiled."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import ref

import torch
from torch import nn

from mesascope.activations.validation.fingerprint import list_configs

_GUARD = threading.Lock()  # of the two values below
_LOCKS: dict[int, tuple[ref[object], Any]] = {}  # by id, since configurations have no hash
_UNCOMPILED: dict[str, Any] = {"users": 0, "stance": None}
_HELD = threading.local()  # ids of the models that this thread uses


@contextmanager
def exclusive_use(model: nn.Module) -> Iterator[None]:
    """Keep other threads from using this model, or one that shares a configuration with it, through this package.

    Inside the context, compiled parts run uncompiled, because the compiler would trace hooks. A thread may enter again.
    Forward passes that another thread runs on its own are not recorded (`guard_hook`).

    Args:
        model: the model.
    """
    in_use: list[int] = vars(_HELD).setdefault("models", [])
    if id(model) in in_use:
        yield
        return
    with ExitStack() as stack:
        for lock in _locks_of(model):
            stack.enter_context(lock)
        in_use.append(id(model))
        stack.callback(in_use.remove, id(model))
        stack.enter_context(run_uncompiled())
        yield


def guard_hook(hook: Callable[..., Any], instead: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """Return a hook that does nothing in forward passes of other threads, if this thread has a model in exclusive use.

    Threads that Python did not start are served: autograd runs its backward pass on a GPU in such threads.

    Args:
        hook: a module hook, or a function that replaces another one.
        instead: the function that other threads call; by default one that returns ``None``.

    Returns:
        The guarded hook, or the hook itself without exclusive use.
    """
    owner = current_owner()
    if owner is None:
        return hook

    @functools.wraps(hook, assigned=())
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if is_other_thread(owner):
            return None if instead is None else instead(*args, **kwargs)
        return hook(*args, **kwargs)

    return guarded


def current_owner() -> threading.Thread | None:
    """Return the running thread if it has a model in exclusive use, or ``None``."""
    return threading.current_thread() if vars(_HELD).get("models") else None


def is_other_thread(owner: threading.Thread | None) -> bool:
    """Return whether the running code belongs to another thread of Python than the owner.

    Args:
        owner: the thread that attached hooks; ``None`` if they serve all threads.
    """
    current = threading.current_thread()
    return owner is not None and current is not owner and not isinstance(current, threading._DummyThread)


def _locks_of(model: nn.Module) -> list[Any]:
    """Return the locks of a model and of all its configurations, in one order for all threads."""
    with _GUARD:
        return [_lock_of(thing) for thing in sorted((model, *list_configs(model)), key=id)]


def _lock_of(thing: object) -> Any:
    entry = _LOCKS.get(id(thing))
    if entry is None or entry[0]() is not thing:
        _LOCKS[id(thing)] = entry = (ref(thing), threading.RLock())
        _forget_deleted()
    return entry[1]


def _forget_deleted() -> None:
    for number in [number for number, (thing, _) in _LOCKS.items() if thing() is None]:
        del _LOCKS[number]


@contextmanager
def run_uncompiled() -> Iterator[None]:
    """Run compiled functions uncompiled until the last user has left: the compiler's stance belongs to all threads."""
    with _GUARD:
        if _UNCOMPILED["users"] == 0:
            _UNCOMPILED["stance"] = torch.compiler.set_stance("force_eager")
        _UNCOMPILED["users"] += 1
    try:
        yield
    finally:
        with _GUARD:
            _UNCOMPILED["users"] -= 1
            if _UNCOMPILED["users"] == 0:
                _UNCOMPILED["stance"].__exit__(None, None, None)
