"""Outputs of one module during a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mesascope.activations.exclusive_use import guard_hook
from mesascope.activations.hooks._module_arguments import first_tensor


@contextmanager
def collect_outputs(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """Collect the outputs of a module during a forward pass, and leave them unchanged.

    Args:
        module: the module; nothing is collected without one.

    Yields:
        Copies of its outputs so far, since later modules may work in place.
    """
    outputs: list[Tensor] = []

    def collect(module: nn.Module, args: tuple, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            outputs.append(tensor.detach().clone())

    if module is None:
        yield outputs
        return
    handle = module.register_forward_hook(guard_hook(collect))
    try:
        yield outputs
    finally:
        handle.remove()
