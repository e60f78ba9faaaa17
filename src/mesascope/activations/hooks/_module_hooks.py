"""The mechanism that records and edits: it wraps the model's own attention function, and hooks its modules.

Only this folder and ``structure`` depend on private conventions of transformers.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import AttentionWeightsMethod, LayerSpec, ModuleArgument, ResidualUpdate
from mesascope.activations.exclusive_use import guard_hook, run_uncompiled
from mesascope.activations.hooks._attention_patterns import (
    AttentionHooks,
    BufferAllocator,
    HookPointSet,
    SiteHook,
    run_hooked_attention,
)
from mesascope.activations.hooks._block_call import BlockCall
from mesascope.activations.hooks._block_counter import BlockCounter, count_block_calls
from mesascope.activations.hooks._module_arguments import first_tensor, read_argument, replace_argument, replace_output
from mesascope.activations.hooks.attention_interface import AttentionCall, route_attention
from mesascope.activations.sites import CROSS_PREFIX, GRADIENT_SUFFIX, UnsupportedModel, strip_gradient_suffix

LayerStartHook = Callable[[int, BlockCall], None]
AttentionCallHook = Callable[[int, AttentionCall], None]


@contextmanager
def attach_hooks(
    model: PreTrainedModel,
    layers: Sequence[LayerSpec],
    layers_by_site: Mapping[str, Sequence[int]],
    hook_fn: SiteHook,
    *,
    queries: Int[Tensor, " query"] | None = None,
    on_layer_start: LayerStartHook | None = None,
    on_attention_call: AttentionCallHook | None = None,
    allocate: BufferAllocator | None = None,
    first_layers: Collection[int] = (0,),
) -> Iterator[BlockCounter]:
    """Call a hook function with activations during every forward pass of the context, and use its replacements.

    Hooks and the attention function are restored on exit, also after an error.

    Args:
        model: any model whose layers are known.
        layers: the specification of every layer; of every call of a layer, if the model repeats its layers.
        layers_by_site: layers by site, as indices into ``layers``.
        hook_fn: the hook function ``hook_fn(site, layer, value)``; it returns a replacement, or ``None`` (unchanged).
        queries: the only positions whose rows of ``attn_scores`` and ``pattern`` are computed; their replacements are
            ignored then.
        on_layer_start: called as ``on_layer_start(layer, call)`` before a layer runs and before its hooks are called;
            the call can be repeated on another residual stream.
        on_attention_call: called as ``on_attention_call(layer, call)`` before a layer computes attention, but not
            before cross-attention.
        allocate: called as ``allocate(site, layer, like)``; returns a preallocated output buffer for a value like this,
            or ``None``.
        first_layers: the layers whose residual streams are computed from inputs alone; gradients end there.

    Yields:
        The counter of the calls of blocks in the latest forward pass.

    Raises:
        UnsupportedModel: a forward pass calls other layers than specified.
    """
    hook_points = {(site, layer) for site, chosen in layers_by_site.items() for layer in chosen}
    needs_graph = any(strip_gradient_suffix(site) for site in layers_by_site)
    attention_modules = [each.attention and model.get_submodule(each.attention) for each in layers]
    cross_modules = [each.cross and model.get_submodule(each.cross.module) for each in layers]

    def run_with_hooks(
        call: AttentionCall, number: int, method: AttentionWeightsMethod | None, prefix: str = ""
    ) -> tuple[Tensor, Tensor | None]:
        hooks = AttentionHooks(
            weights_method=method,
            layer=number,
            hook_points=hook_points,
            hook_fn=hook_fn,
            allocate=allocate,
            prefix=prefix,
        )
        return run_hooked_attention(call, hooks, queries)

    def intercept_attention(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        number = counter.current
        cross = layers[number].cross if number >= 0 else None
        if cross is not None and call.module is cross_modules[number]:
            return run_with_hooks(call, number, cross.weights_method, CROSS_PREFIX)
        if number < 0 or call.module is not attention_modules[number]:
            return call.run_original(call.query, call.key, call.value)
        if on_attention_call is not None:
            on_attention_call(number, call)
        return run_with_hooks(call, number, layers[number].weights_method)

    with (
        run_uncompiled(),
        route_attention(model, intercept_attention),
        count_block_calls(model, layers) as counter,
        ExitStack() as hooks,
    ):
        for number, layer in enumerate(layers):
            if on_layer_start is not None:
                start = counter.only_in(number, partial(_start_layer, model, layer, partial(on_layer_start, number)))
                block = model.get_submodule(layer.block)
                hooks.callback(block.register_forward_pre_hook(guard_hook(start), with_kwargs=True).remove)
            starts_graph = needs_graph and number in first_layers
            for module, hook, after in _hook_modules(model, layer, number, hook_points, hook_fn, starts_graph):
                hooks.callback(_register_hook(module, guard_hook(counter.only_in(number, hook)), after))
        yield counter


@contextmanager
def replace_forwards(modules: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward functions of modules; the originals are restored on exit.

    Args:
        modules: the modules.
        forwards: their new forward functions.
    """
    originals = [vars(block).get("forward") for block in modules]
    try:
        for block, forward in zip(modules, forwards, strict=True):
            block.forward = guard_hook(forward, instead=block.forward)
        yield
    finally:
        for block, forward in zip(modules, originals, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                block.forward = forward


def accepts_argument(model: PreTrainedModel, argument: str) -> bool:
    """Return whether the model's forward has a parameter of this name.

    Args:
        model: the model.
        argument: the name.

    Returns:
        ``True`` if it does.
    """
    return argument in inspect.signature(model.forward).parameters


def _start_layer(
    model: PreTrainedModel,
    layer: LayerSpec,
    on_start: Callable[[BlockCall], None],
    module: nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
) -> None:
    """Pre-forward hook: pass the call of a block on."""
    on_start(BlockCall(model=model, layer=layer, module=module, args=args, kwargs=kwargs))


def _hook_modules(
    model: PreTrainedModel,
    layer: LayerSpec,
    layer_index: int,
    hook_points: HookPointSet,
    hook_fn: SiteHook,
    starts_graph: bool,
) -> Iterator[tuple[nn.Module, Callable[..., Any], bool]]:
    """Yield the hooks for sites that are inputs or outputs of modules, each with its module; ``True`` for outputs."""
    block = model.get_submodule(layer.block)
    shape: list[int] = []
    call_hook = (
        partial(hook_fn, "resid_pre", layer_index) if ("resid_pre", layer_index) in hook_points else lambda value: None
    )
    yield block, partial(_hook_argument, layer.stream_argument, call_hook, shape), False
    if starts_graph:
        yield block, partial(_start_graph, layer.stream_argument), False
    if (f"resid_pre{GRADIENT_SUFFIX}", layer_index) in hook_points:
        call_gradient_hook = partial(hook_fn, f"resid_pre{GRADIENT_SUFFIX}", layer_index)
        hook = _hook_gradient_of_block if layer.is_repeated else _hook_argument_gradient
        yield block, partial(hook, layer.stream_argument, call_gradient_hook), False
    for site, between in _streams_within(layer).items():
        if (site, layer_index) in hook_points and between is not None:
            hook = partial(_observe_argument, between.argument, partial(hook_fn, site, layer_index), shape)
            yield model.get_submodule(between.module), hook, False
    if ("mlp_hidden", layer_index) in hook_points and layer.mlp_hidden is not None:
        reads = layer.mlp_hidden.input
        hook = partial(_hook_rows, reads.argument, partial(hook_fn, "mlp_hidden", layer_index), shape)
        yield model.get_submodule(reads.module), hook, False
    whole = ResidualUpdate(module=layer.block, gain=1.0)
    cross_out = layer.cross and layer.cross.attn_out
    updates = {"attn_out": layer.attn_out, "cross_attn_out": cross_out, "mlp_out": layer.mlp_out, "resid_post": whole}
    for site, write in updates.items():
        if (site, layer_index) in hook_points and write is not None:
            hook_output = partial(_hook_output, write, partial(hook_fn, site, layer_index), shape)
            yield model.get_submodule(write.module), hook_output, True
        if (site + GRADIENT_SUFFIX, layer_index) in hook_points and write is not None:
            call_gradient_hook = partial(
                _hook_output_gradient, write, partial(hook_fn, site + GRADIENT_SUFFIX, layer_index), shape
            )
            yield model.get_submodule(write.module), call_gradient_hook, True


def _streams_within(layer: LayerSpec) -> dict[str, ModuleArgument | None]:
    return {"resid_mid": layer.resid_mid, "cross_resid_mid": layer.cross and layer.cross.resid_mid}


def _register_hook(module: nn.Module, hook: Callable[..., Any], after: bool) -> Callable[[], None]:
    """Register a hook before or after the forward of a module, and return the function that removes it."""
    if after:
        return module.register_forward_hook(hook).remove
    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


def _hook_argument(
    argument: int | str,
    call_hook: Callable[[Tensor], Tensor | None],
    shape: list[int],
    module: nn.Module,
    args: tuple,
    kwargs: dict,
) -> tuple[tuple, dict[str, Any]] | None:
    """Pre-forward hook: note the shape of an argument, and replace it unless the hook function returns ``None``."""
    old = read_argument(argument, args, kwargs)
    shape[:] = old.shape
    new = call_hook(old)
    return None if new is None else replace_argument(argument, new, args, kwargs)


def _hook_rows(
    argument: int | str,
    call_hook: Callable[[Tensor], Tensor | None],
    shape: list[int],
    module: nn.Module,
    args: tuple,
    kwargs: dict,
) -> tuple[tuple, dict[str, Any]] | None:
    """Pre-forward hook: call the hook function with an argument as (batch, pos, width), and use its replacement."""
    old = read_argument(argument, args, kwargs)
    rows = old.detach() if torch.is_grad_enabled() else old
    new = call_hook(rows.reshape(*shape[:2], old.shape[-1]))
    return None if new is None else replace_argument(argument, new.reshape(old.shape), args, kwargs)


def _observe_argument(
    argument: int | str,
    call_hook: Callable[[Tensor], object],
    shape: list[int],
    module: nn.Module,
    args: tuple,
    kwargs: dict,
) -> None:
    """Pre-forward hook: call the hook function with an argument in the shape of the stream; never replace it."""
    call_hook(read_argument(argument, args, kwargs).reshape(shape))


def _start_graph(argument: int | str, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict[str, Any]]:
    """Pre-forward hook: make an argument a leaf that requires a gradient."""
    stream = read_argument(argument, args, kwargs)
    return replace_argument(argument, stream.detach().requires_grad_(), args, kwargs)


def _hook_argument_gradient(
    argument: int | str, call_hook: Callable[[Tensor], Tensor | None], module: nn.Module, args: tuple, kwargs: dict
) -> None:
    """Pre-forward hook: register the hook function for the gradient of an argument."""
    stream = read_argument(argument, args, kwargs)
    stream.register_hook(partial(_observe_gradient, call_hook))


def _hook_gradient_of_block(
    argument: int | str, call_hook: Callable[[Tensor], Tensor | None], module: nn.Module, args: tuple, kwargs: dict
) -> tuple[tuple, dict[str, Any]]:
    """Pre-forward hook: register the hook function for the gradient of an argument through this call alone.

    A model that repeats its blocks may also read the stream between them, to decide when to halt, for example.
    """
    stream = read_argument(argument, args, kwargs)
    seen_by_block = stream.view_as(stream)
    seen_by_block.register_hook(partial(_observe_gradient, call_hook))
    return replace_argument(argument, seen_by_block, args, kwargs)


def _hook_output_gradient(
    update: ResidualUpdate,
    call_hook: Callable[[Tensor], Tensor | None],
    shape: list[int],
    module: nn.Module,
    args: tuple,
    output: Any,
) -> None:
    """Forward hook: register the hook function for the gradient of a residual update, gain and shape included."""
    tensor, stream = first_tensor(output), tuple(shape)
    if tensor is None or not tensor.requires_grad:
        raise UnsupportedModel(f"{update.module} must return a tensor with a gradient, but does not; omit its gradient")
    tensor.register_hook(lambda gradient: _observe_gradient(call_hook, gradient.reshape(stream) / update.gain))


def _observe_gradient(call_hook: Callable[[Tensor], Tensor | None], gradient: Tensor) -> None:
    """Call a hook function with a gradient and leave the gradient unchanged."""
    call_hook(gradient)


def _hook_output(
    update: ResidualUpdate,
    call_hook: Callable[[Tensor], Tensor | None],
    shape: list[int],
    module: nn.Module,
    args: tuple,
    output: Any,
) -> Any:
    """Forward hook: call the hook function with a residual update, gain and shape included; return any replacement."""
    tensor = first_tensor(output)
    if tensor is None:
        raise UnsupportedModel(f"{update.module} must return a tensor, but returned {type(output).__name__}")

    tensor = tensor.detach() if torch.is_grad_enabled() else tensor
    old = tensor.reshape(shape) if update.flat else tensor
    old = old if update.gain == 1.0 else old * update.gain
    new = call_hook(old)
    if new is None:
        return None
    new = (new if update.gain == 1.0 else new / update.gain).reshape(tensor.shape)
    return replace_output(output, new)
