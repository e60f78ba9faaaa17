"""Activations and ablations by PyTorch's own hooks, to compare with."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def record_outputs(modules: Iterable[nn.Module], run: Callable[[], Any]) -> Tensor:
    """Outputs of modules in one forward pass."""
    return _record(modules, run, lambda inputs, output: output)


def record_inputs(modules: Iterable[nn.Module], run: Callable[[], Any]) -> Tensor:
    """First inputs of modules in one forward pass."""
    return _record(modules, run, lambda inputs, output: inputs[0])


def _record(modules: Iterable[nn.Module], run: Callable[[], Any], choose: Callable[[Any, Any], Tensor]) -> Tensor:
    recorded: list[Tensor] = []
    with ExitStack() as hooks, torch.no_grad():
        for module in modules:
            handle = module.register_forward_hook(
                lambda _, inputs, output: recorded.append(choose(inputs, output).clone())
            )
            hooks.callback(handle.remove)
        run()
    return torch.stack(recorded)


@contextmanager
def change_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace the first input of a module inside the block; `change` receives a copy."""
    handle = module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0].clone()), *inputs[1:]))
    try:
        yield
    finally:
        handle.remove()
