"""The one mechanism that records and edits: wrap the model's own attention function, and hook its modules.

Besides dispatch and anatomy this is the only file that knows conventions private to transformers.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.hooks.attention_call import Room, Touch, Wanted, attend
from mesascope.activations.hooks.attention_interface import Attended, dispatching
from mesascope.activations.layer_spec import Layer, Write
from mesascope.activations.sites import GRADIENT, UnsupportedModel, gradient_of

ORIGINAL = "mesascope_original"  # where a forward that was wrapped keeps what it wraps
Enter = Callable[[int, Callable[[Tensor], Tensor]], None]


@contextmanager
def attach(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    places: Mapping[str, Sequence[int]],
    touch: Touch,
    *,
    queries: Int[Tensor, " query"] | None = None,
    enter: Enter | None = None,
    room: Room | None = None,
) -> Iterator[None]:
    """While this lasts, every forward pass shows what is at some places, and takes what it gets in return.

    Args:
        model: any model whose layers are known.
        layers: where things are in it.
        places: site to the layers in which it is wanted.
        touch: called as ``touch(site, layer, value)``; returns ``value`` itself, or what replaces it.
        queries: the only positions whose rows of score and pattern are shown (and cannot be replaced then).
        enter: called as ``enter(layer, rerun)`` before a layer runs; ``rerun`` gives its queries for another stream.
        room: called as ``room(site, layer, like)``; where a value like this is to be made, so that it is not copied.

    Everything is restored on exit, also after an error.
    """
    wanted = {(site, layer) for site, chosen in places.items() for layer in chosen}
    numbers = {model.get_submodule(each.attention): n for n, each in enumerate(layers) if each.attention is not None}

    def see(call: Attended) -> tuple[Tensor, Tensor | None]:
        number = numbers.get(call.module)
        if number is None:
            return call.run(call.query, call.key, call.value)
        return attend(call, layers[number], number, wanted, touch, queries, room)

    with dispatching(model, see), ExitStack() as hooks:
        for number, layer in enumerate(layers):
            for handle in _hook_modules(model, layer, number, wanted, touch):
                hooks.callback(handle.remove)
            if enter is not None:
                block = model.get_submodule(layer.block)
                note = partial(_enter, model, layer, partial(enter, number))
                hooks.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield


@contextmanager
def running(blocks: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """While this lasts, modules run other forwards than their own; afterwards each is as it was."""
    own = [vars(block).get("forward") for block in blocks]
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = forward
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                block.forward = forward


def accepts(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's forward names this argument."""
    return argument in inspect.signature(model.forward).parameters


def first_tensor(output: Any) -> Tensor | None:
    """A module's output, or the first part of it."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) else None


class _ReachedError(Exception):
    """A layer has come to its attention function; nothing after it is wanted."""

    def __init__(self, query: Tensor) -> None:
        super().__init__()
        self.query = query


def _enter(
    model: PreTrainedModel,
    layer: Layer,
    enter: Callable[[Callable[[Tensor], Tensor]], None],
    module: nn.Module,
    args: tuple,
    kwargs: dict,
) -> None:
    """Before a layer runs: offer to run it again on another stream, as far as its queries."""

    def stop(call: Attended) -> tuple[Tensor, Tensor | None]:
        raise _ReachedError(call.query)

    def rerun(stream: Tensor) -> Tensor:
        given, named = _replaced(layer.stream_at, stream, args, kwargs)
        forward = getattr(module.forward, ORIGINAL, module.forward)
        with dispatching(model, stop):
            try:
                forward(*given, **named)
            except _ReachedError as reached:
                return reached.query
        raise UnsupportedModel(f"{layer.block} must attend, so that its queries can be had, but it did not")

    enter(rerun)


def _hook_modules(model: PreTrainedModel, layer: Layer, number: int, wanted: Wanted, touch: Touch) -> Iterator[Any]:
    """Hooks for the sites of one layer that lie between modules."""
    block = model.get_submodule(layer.block)
    shape: list[int] = []
    show = partial(touch, "resid_pre", number) if ("resid_pre", number) in wanted else lambda value: value
    yield block.register_forward_pre_hook(partial(_show_argument, layer.stream_at, show, shape), with_kwargs=True)
    if number == 0 and any(gradient_of(site) for site, _ in wanted):
        yield block.register_forward_pre_hook(partial(_root, layer.stream_at), with_kwargs=True)
    if (f"resid_pre{GRADIENT}", number) in wanted:
        show_gradient = partial(touch, f"resid_pre{GRADIENT}", number)
        hook = partial(_show_gradient_by_argument, layer.stream_at, show_gradient)
        yield block.register_forward_pre_hook(hook, with_kwargs=True)
    whole = Write(module=layer.block, gain=1.0)
    for site, write in (("attn_write", layer.attn_write), ("mlp_write", layer.mlp_write), ("resid_post", whole)):
        if (site, number) in wanted and write is not None:
            show_output = partial(_show_output, write, partial(touch, site, number), shape)
            yield model.get_submodule(write.module).register_forward_hook(show_output)
        if (site + GRADIENT, number) in wanted and write is not None:
            show_gradient = partial(_show_gradient, write, partial(touch, site + GRADIENT, number), shape)
            yield model.get_submodule(write.module).register_forward_hook(show_gradient)


def _show_argument(
    at: int | str, show: Callable[[Tensor], Tensor], shape: list[int], module: nn.Module, args: tuple, kwargs: dict
) -> tuple[tuple, dict[str, Any]] | None:
    """Show one argument of a module, note its shape, and pass on what it was replaced by."""
    old = args[at] if isinstance(at, int) else kwargs[at]
    shape[:] = old.shape
    new = show(old)
    return None if new is old else _replaced(at, new, args, kwargs)


def _replaced(at: int | str, new: Tensor, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Arguments with another tensor in one place."""
    if isinstance(at, int):
        return (*args[:at], new, *args[at + 1 :]), kwargs
    return args, kwargs | {at: new}


def _root(at: int | str, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict[str, Any]]:
    """Let graphs begin at one argument of a module."""
    stream = args[at] if isinstance(at, int) else kwargs[at]
    return _replaced(at, stream.detach().requires_grad_(), args, kwargs)


def _show_gradient_by_argument(
    at: int | str, show: Callable[[Tensor], Tensor], module: nn.Module, args: tuple, kwargs: dict
) -> None:
    """Show the gradient by one argument of a module when it comes."""
    stream = args[at] if isinstance(at, int) else kwargs[at]
    stream.register_hook(partial(_seen, show))


def _show_gradient(
    write: Write, show: Callable[[Tensor], Tensor], shape: list[int], module: nn.Module, args: tuple, output: Any
) -> None:
    """Show the gradient by what a module writes, gain and shape of the stream included, when it comes."""
    given, stream = first_tensor(output), tuple(shape)
    if given is None or not given.requires_grad:
        raise UnsupportedModel(f"{write.module} must give a tensor that has a gradient, but does not")
    given.register_hook(lambda gradient: _seen(show, gradient.reshape(stream) / write.gain))


def _seen(show: Callable[[Tensor], Tensor], gradient: Tensor) -> None:
    """Show a gradient, and leave it as it is."""
    show(gradient)


def _show_output(
    write: Write, show: Callable[[Tensor], Tensor], shape: list[int], module: nn.Module, args: tuple, output: Any
) -> Any:
    """Show what a module gives, times its gain and in the shape of the stream; pass on what it was replaced by."""
    given = first_tensor(output)
    if given is None:
        raise UnsupportedModel(f"{write.module} must give a tensor, but gave {type(output).__name__}")
    given = given.detach() if torch.is_grad_enabled() else given
    old = given.reshape(shape) if write.flat else given
    old = old if write.gain == 1.0 else old * write.gain
    new = show(old)
    if new is old:
        return None
    new = (new if write.gain == 1.0 else new / write.gain).reshape(given.shape)
    if isinstance(output, Tensor):
        return new
    if isinstance(output, MutableMapping):
        changed = copy(output)
        changed[next(iter(output))] = new
        return changed
    return [new, *output[1:]] if isinstance(output, list) else (new, *output[1:])
