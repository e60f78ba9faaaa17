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
        self._num_blocks = sum(not layer.iteration for layer in layers)
        self.num_calls = 0

    @property
    def current(self) -> int:
        """The index of the specification of the latest call; -1 before the first one."""
        return self.num_calls - 1

    @property
    def num_iterations(self) -> int:
        """The number of iterations so far; that which runs is one of them."""
        return -(-self.num_calls // self._num_blocks)

    def start_pass(self, *_: Any) -> None:
        """Begin a forward pass; a pre-forward hook of the model."""
        self.num_calls = 0

    def start_block(self, name: str) -> None:
        """Count a call of a block.

        Args:
            name: the name of the block.

        Raises:
            UnsupportedModel: the next call is specified to be another one, or there is none.
        """
        if self.num_calls >= len(self._layers) or self._layers[self.num_calls].block != name:
            self._refuse(f"calls {name} after {self.num_calls} calls of layers")
        self.num_calls += 1

    def end_pass(self, *_: Any) -> None:
        """End a forward pass; a forward hook of the model.

        Raises:
            UnsupportedModel: calls are lacking.
        """
        remaining = self._layers[self.num_calls :]
        is_complete = not remaining or (remaining[0].is_optional and self.num_calls % self._num_blocks == 0)
        if not is_complete or self.num_calls == 0:
            self._refuse(f"ends after {self.num_calls} calls of layers")

    def only_in(self, number: int, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return a hook that does nothing outside of one call of a block; the hook itself without iterations.

        Args:
            number: the index of the specification of the call.
            hook: a hook of the block, or of a module that only the block calls.
        """
        if self._layers[number].iteration is None:
            return hook

        @wraps(hook, assigned=())
        def call_hook(*args: Any, **kwargs: Any) -> Any:
            return hook(*args, **kwargs) if self.current == number else None

        return call_hook

    def _refuse(self, observed: str) -> None:
        iterations = len(self._layers) // self._num_blocks
        times = "once" if iterations == 1 else f"in {iterations} iterations"
        raise UnsupportedModel(
            f"every forward pass must call the {self._num_blocks} layers of {self._model_name} {times}, in order, as "
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
