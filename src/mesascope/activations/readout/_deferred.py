"""Properties of a model that are found on first use, as they would have been found at the capture."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Generic, TypeVar

import torch
from torch import nn

_Found = TypeVar("_Found")
AUTOCAST_DEVICES = ("cpu", "cuda")


class Deferred(Generic[_Found]):
    """A value that is found when it is first read, and then stored; copies of a readout share it.

    It is found in evaluation mode, without gradients, and under the autocast of the capture.

    Args:
        find: finds the value.
        modules: the modules that it runs.
    """

    def __init__(self, find: Callable[[], _Found], modules: Sequence[nn.Module]) -> None:
        self._find: Callable[[], _Found] | None = find
        self._modules = tuple(modules)
        self._autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in AUTOCAST_DEVICES
        ]
        self._found: list[_Found] = []

    def get(self) -> _Found:
        """Return the value; the first call finds it."""
        find = self._find
        if find is not None and not self._found:
            with ExitStack() as stack:
                stack.enter_context(torch.no_grad())
                for kind, enabled, dtype in self._autocast:
                    if enabled != torch.is_autocast_enabled(kind) or dtype != torch.get_autocast_dtype(kind):
                        stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled))
                for part in {part for module in self._modules for part in module.modules() if part.training}:
                    stack.callback(setattr, part, "training", True)
                    part.training = False
                self._found.append(find())
            self._find, self._modules = None, ()
        return self._found[0]
