"""A count of the calls of blocks in a forward pass, which must be the specified ones."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations.exclusive_use import guard_hook
from mesascope.activations.sites import UnsupportedModel


class BlockCounter:
    """Counts the calls of blocks in every forward pass, and refuses a pass whose calls are not the specified ones.

    Args:
        model_name: the class name of the model.
        layers: the specification of every call of a block, in order.
    """

    def __init__(self, model_name: str, layers: Sequence[LayerSpec]) -> None:
        self._model_name, self._layers = model_name, layers
        self._called: set[int] = set()
        self.current = -1  # the index of the specification of the latest call; -1 before the first one

    def has_run(self, number: int) -> bool:
        """Return whether the forward pass has made a call.

        Args:
            number: the index of the specification of the call.
        """
        return number in self._called

    def count_iterations(self) -> list[int]:
        """Return the number of iterations so far, that which runs included, by chunk; one number without chunks."""
        counts = [0] * (1 + (self._layers[-1].chunk or 0))
        for number in self._called:
            counts[self._layers[number].chunk or 0] += self._starts_iteration(number)
        return counts

    def start_pass(self, *_: Any) -> None:
        """Begin a forward pass; a pre-forward hook of the model."""
        self._called, self.current = set(), -1

    def start_block(self, name: str) -> None:
        """Count a call of a block.

        Args:
            name: the name of the block.

        Raises:
            UnsupportedModel: the next call is specified to be another one, or there is none.
        """
        number = self.current + 1
        if not self._is_call_of(number, name):
            number = self._skip_iterations(number)
        if not self._is_call_of(number, name):
            self._refuse(f"calls {name} after {len(self._called)} calls of layers")
        self.current = number
        self._called.add(number)

    def end_pass(self, *_: Any) -> None:
        """End a forward pass; a forward hook of the model.

        Raises:
            UnsupportedModel: calls are lacking.
        """
        if not self._called or self._skip_iterations(self.current + 1) < len(self._layers):
            self._refuse(f"ends after {len(self._called)} calls of layers")

    def only_in(self, number: int, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return a hook that does nothing outside of one call of a block; the hook itself if it is called once.

        Args:
            number: the index of the specification of the call.
            hook: a hook of the block, or of a module that only the block calls.
        """
        if not self._layers[number].is_repeated:
            return hook

        @wraps(hook, assigned=())
        def call_hook(*args: Any, **kwargs: Any) -> Any:
            return hook(*args, **kwargs) if self.current == number else None

        return call_hook

    def _is_call_of(self, number: int, name: str) -> bool:
        return number < len(self._layers) and self._layers[number].block == name

    def _starts_iteration(self, number: int) -> bool:
        return self._is_call_of(number, self._layers[0].block)

    def _skip_iterations(self, number: int) -> int:
        """Return the first call from ``number`` on that must be made, if iterations that are not begun need not run."""
        if self._starts_iteration(number):
            while number < len(self._layers) and self._layers[number].is_optional:
                number += 1
        return number

    def _refuse(self, observed: str) -> None:
        num_blocks = len({layer.block for layer in self._layers})
        iterations, chunk = len(self._layers) // num_blocks, self._layers[-1].chunk
        times = "once" if iterations == 1 else f"in {iterations} iterations" if chunk is None else "in every chunk"
        raise UnsupportedModel(
            f"every forward pass must call the {num_blocks} layers of {self._model_name} {times}, in order, as "
            f"it did when it was traced, but one {observed}; a model whose calls depend on its inputs must return its "
            "halting_probabilities (iteration, batch, pos)"
        )


@contextmanager
def count_block_calls(model: PreTrainedModel, layers: Sequence[LayerSpec]) -> Iterator[BlockCounter]:
    """Count the calls of blocks in every forward pass of the context; enter it before hooks that need the count.

    Args:
        model: the model.
        layers: the specification of every call of a block, in order.

    Yields:
        The counter.
    """
    counter = BlockCounter(type(model).__name__, layers)
    with ExitStack() as hooks:
        hooks.callback(model.register_forward_pre_hook(guard_hook(counter.start_pass)).remove)
        hooks.callback(model.register_forward_hook(guard_hook(counter.end_pass)).remove)
        for name in dict.fromkeys(layer.block for layer in layers):
            hooks.callback(_count_calls(model.get_submodule(name), name, counter))
        yield counter


def _count_calls(block: nn.Module, name: str, counter: BlockCounter) -> Callable[[], None]:
    def count(module: nn.Module, args: tuple) -> None:
        counter.start_block(name)

    return block.register_forward_pre_hook(guard_hook(count)).remove
