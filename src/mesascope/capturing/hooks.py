"""The one mechanism that records and edits: wrap the model's own attention function, and hook its modules.

Besides anatomy this is the only file that knows conventions private to transformers.
"""

import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from mesascope.capturing import weights
from mesascope.capturing.layer import Layer, Write
from mesascope.capturing.sites import GRADIENT, UnsupportedModel, gradient_of

ORIGINAL = "mesascope_original"  # where a forward that was wrapped keeps what it wraps
Touch = Callable[[str, int, Tensor], Tensor]
Enter = Callable[[int, Callable[[Tensor], Tensor]], None]
Wanted = set[tuple[str, int]]
Attend = Callable[..., tuple[Tensor, Tensor | None]]
_ATTACHED = itertools.count()


@dataclass(frozen=True, kw_only=True, eq=False)
class Attended:
    """One call of a model's attention function: what goes in, and the function itself.

    Attributes:
        module: who calls.
        kernel: which implementation runs, such as ``sdpa``.
        query: (batch, head, pos, d_head); key and value: (batch, kv_head, pos, d_head).
        mask: as the kernel wants it.
        rest, options: the other arguments.
    """

    module: nn.Module
    kernel: str
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    rest: tuple[Any, ...]
    options: Mapping[str, Any]

    def run(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """Let the model's own kernel compute."""
        original = own_attention(self.module, self.kernel)
        return original(self.module, query, key, value, self.mask, *self.rest, **self.options)

    def run_eager(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
        """The attention weights that the model's own eager function returns."""
        eager = own_attention(self.module, "eager")
        return eager(self.module, query, key, value, self.added(query, key), *self.rest, **self.options)[1]

    def run_unit(self, query: Tensor, key: Tensor) -> Tensor:
        """The attention weights by what the model's own eager function mixes unit values to: one per key."""
        unit = torch.eye(key.shape[2], dtype=query.dtype, device=query.device).expand(*key.shape[:2], -1, -1)
        eager = own_attention(self.module, "eager")
        return eager(self.module, query, key, unit, self.added(query, key), *self.rest, **self.options)[0].transpose(
            1, 2
        )

    def added(self, query: Tensor, key: Tensor) -> Tensor:
        """What the mask adds to the scores."""
        causal = self.options.get("is_causal")
        causal = getattr(self.module, "is_causal", True) if causal is None else causal
        return weights.additive(self.mask, query, key, bool(causal))

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Scaled scores, nothing masked."""
        scaling = self.options.get("scaling")
        return weights.scores(query, key, query.shape[-1] ** -0.5 if scaling is None else float(scaling))


@contextmanager
def attach(
    model: PreTrainedModel,
    layers: Sequence[Layer],
    places: Mapping[str, Sequence[int]],
    touch: Touch,
    *,
    queries: Int[Tensor, " query"] | None = None,
    enter: Enter | None = None,
) -> Iterator[None]:
    """While this lasts, every forward pass shows what is at some places, and takes what it gets in return.

    Args:
        model: any model whose layers are known.
        layers: where things are in it.
        places: site to the layers in which it is wanted.
        touch: called as ``touch(site, layer, value)``; returns ``value`` itself, or what replaces it.
        queries: the only positions whose rows of score and pattern are shown (and cannot be replaced then).
        enter: called as ``enter(layer, rerun)`` before a layer runs; ``rerun`` gives its queries for another stream.

    Everything is restored on exit, also after an error.
    """
    wanted = {(site, layer) for site, chosen in places.items() for layer in chosen}
    numbers = {model.get_submodule(each.attention): n for n, each in enumerate(layers) if each.attention is not None}

    def see(call: Attended) -> tuple[Tensor, Tensor | None]:
        number = numbers.get(call.module)
        if number is None:
            return call.run(call.query, call.key, call.value)
        return _attend(call, layers[number], number, wanted, touch, queries)

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
def dispatching(model: PreTrainedModel, see: Callable[[Attended], tuple[Tensor, Tensor | None]]) -> Iterator[None]:
    """While this lasts, attention of this model goes through ``see``, which lets the original compute.

    The wrapped function is registered under a name of ours, and its mask function with it: without that the causal
    mask would be dropped in silence.
    """
    number = next(_ATTACHED)
    before = [(config, config._attn_implementation_internal) for config in _configs(model)]
    names = {kernel: f"mesascope{number}_{kernel}" for _, kernel in before}
    try:
        for kernel, name in names.items():
            AttentionInterface.register(name, partial(_call, see, kernel))
            if kernel in ALL_MASK_ATTENTION_FUNCTIONS:
                AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[kernel])
        for config, kernel in before:
            config._attn_implementation_internal = names[kernel]
        yield
    finally:
        for config, kernel in before:
            config._attn_implementation_internal = kernel
        for name in names.values():
            AttentionInterface._global_mapping.pop(name, None)
            AttentionMaskInterface._global_mapping.pop(name, None)


def own_attention(module: nn.Module, kernel: str) -> Attend:
    """The function that this module would call for this kernel: its modelling file may have one of its own.

    Raises:
        UnsupportedModel: there is none.
    """
    files = [vars(sys.modules[kind.__module__]) for kind in type(module).__mro__]
    for file in files:
        interface = file.get("ALL_ATTENTION_FUNCTIONS")
        if isinstance(interface, AttentionInterface) and kernel in interface:
            return interface[kernel]
    if kernel in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[kernel]
    for file in files:
        if kernel == "eager" and "eager_attention_forward" in file:
            return file["eager_attention_forward"]
    raise UnsupportedModel(f"{type(module).__name__} must have a {kernel} attention function, but has none")


def accepts(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's forward names this argument."""
    return argument in inspect.signature(model.forward).parameters


def kernel_of(model: PreTrainedModel) -> str:
    """Which attention implementation the model runs."""
    return str(model.config._attn_implementation)


def first_tensor(output: Any) -> Tensor | None:
    """A module's output, or the first part of it."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) else None


def _call(
    see: Callable,
    kernel: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls in place of the kernel."""
    call = Attended(
        module=module, kernel=kernel, query=query, key=key, value=value, mask=attention_mask, rest=rest, options=options
    )
    return see(call)


def _attend(
    call: Attended,
    layer: Layer,
    number: int,
    wanted: Wanted,
    touch: Touch,
    queries: Int[Tensor, " query"] | None,
) -> tuple[Tensor, Tensor | None]:
    """Show what goes in, let the original compute, show what comes out; mix by hand only what was edited."""

    def show(site: str, value: Tensor) -> Tensor:
        return touch(site, number, value) if (site, number) in wanted else value

    query, key, value = show("query", call.query), show("key", call.key), show("value", call.value)
    out, returned = call.run(query, key, value)
    if queries is not None:
        with torch.no_grad():
            _show_rows(call, layer, (query.detach(), key.detach(), returned), queries, show, wanted, number)
    elif ("score", number) in wanted or ("pattern", number) in wanted:
        with torch.no_grad():
            pattern = _show_all(call, layer, (query.detach(), key.detach(), returned), show, wanted, number)
        if pattern is not None:
            out = weights.mix(pattern, value)
    return show("head_out", out), returned


def _show_all(
    call: Attended,
    layer: Layer,
    seen: tuple[Tensor, Tensor, Tensor | None],
    show: Callable[[str, Tensor], Tensor],
    wanted: Wanted,
    number: int,
) -> Tensor | None:
    """Show score and pattern; give the pattern if either was edited."""
    query, key, returned = seen
    pattern = before = attention_weights(call, layer, query, key, returned)
    if ("score", number) in wanted:
        score = weights.score_of(call.scores(query, key), call.added(query, key))
        shown = show("score", score)
        pattern = pattern if shown is score else weights.pattern_of_score(shown)
    pattern = show("pattern", pattern)
    return None if pattern is before else pattern


def _show_rows(
    call: Attended,
    layer: Layer,
    seen: tuple[Tensor, Tensor, Tensor | None],
    queries: Int[Tensor, " query"],
    show: Callable[[str, Tensor], Tensor],
    wanted: Wanted,
    number: int,
) -> None:
    """Show the rows of some queries; no other row is computed where the softmax of plain scores is the pattern."""
    query, key, returned = seen
    plain = layer.weights is not None and layer.weights.how == "plain"
    if ("score", number) in wanted or (("pattern", number) in wanted and plain):
        score, added = call.scores(query[:, :, queries], key), call.added(query, key)[:, :, queries]
        if ("score", number) in wanted:
            show("score", weights.score_of(score, added))
        if ("pattern", number) in wanted and plain:
            show("pattern", weights.pattern_of(score, added))
    if ("pattern", number) in wanted and not plain:
        show("pattern", attention_weights(call, layer, query, key, returned)[:, :, queries])


def attention_weights(call: Attended, layer: Layer, query: Tensor, key: Tensor, returned: Tensor | None) -> Tensor:
    """The attention weights of one call, in the way that was found to be right for its layer."""
    how = layer.weights.how if layer.weights else "returned"
    if how == "plain":
        return weights.pattern_of(call.scores(query, key), call.added(query, key))
    if how == "unit":
        return call.run_unit(query, key)
    found = returned if how == "returned" else call.run_eager(query, key, call.value)
    if found is None:
        raise UnsupportedModel(f"{layer.block} must give its attention weights, but the {call.kernel} kernel gave none")
    return found


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


def _configs(model: PreTrainedModel) -> list[Any]:
    """Every configuration by which some part of the model chooses its kernel, once."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [module.config for module in model.modules() if hasattr(module, "config")]
    while waiting:
        config = waiting.pop()
        if id(config) in found or not hasattr(config, "_attn_implementation_internal"):
            continue
        found[id(config)] = config
        waiting += [getattr(config, name) for name in config.sub_configs if getattr(config, name, None) is not None]
    return [config for config in found.values() if config._attn_implementation_internal is not None]
