"""Interception of `torch.nn.functional.scaled_dot_product_attention` in the forward pass of a plain module."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mesascope.activations.exclusive_use import guard_hook
from mesascope.activations.sites import UnsupportedModel

PARAMETERS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")  # that can be positional


@dataclass(frozen=True, kw_only=True, eq=False)
class SdpaArguments:
    """The arguments of one call of `scaled_dot_product_attention`.

    Attributes:
        module: the innermost module that was running.
        query: queries (batch, head, pos, d_head).
        key: keys (batch, kv_head, pos, d_head).
        value: values (batch, kv_head, pos, d_head).
        options: the other arguments, by name.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    options: Mapping[str, Any]

    def run(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Call the function with other queries, keys and values.

        Args:
            query: queries (batch, head, pos, d_head).
            key: keys (batch, kv_head, pos, d_head).
            value: values (batch, kv_head, pos, d_head).

        Returns:
            ``z`` (batch, head, pos, d_head).
        """
        return functional.scaled_dot_product_attention(query, key, value, **self.options)

    @property
    def mask(self) -> Tensor | None:
        """The mask (batch or 1, head or 1, query, key), also where ``is_causal`` is no square; ``None`` without one."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        mask: Tensor | None = self.options.get("attn_mask")
        if mask is None and self.options.get("is_causal", False) and queries != keys:
            mask = torch.ones(queries, keys, dtype=torch.bool, device=self.query.device).tril()
        if mask is None:
            return None
        mask = mask[(None,) * (4 - mask.ndim)]
        return mask.expand(*mask.shape[:2], queries, keys)


SdpaHandler = Callable[[SdpaArguments], Tensor]


@dataclass(eq=False)
class SdpaRoute:
    """The function that receives calls, and the modules that are running.

    Attributes:
        handle: receives every call, and returns ``z`` (batch, head, pos, d_head).
        running: the modules that are running, outermost first.
        input_shape: batch and positions of the inputs of the model in this forward pass.
        paused: calls are not intercepted, because they belong to an attention call that already is.
    """

    handle: SdpaHandler
    running: list[nn.Module] = field(default_factory=list)
    input_shape: tuple[int, ...] | None = None
    paused: bool = False

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Context manager: do not intercept calls."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before


class _SdpaMode(TorchFunctionMode):
    """Passes calls of `scaled_dot_product_attention` in this thread to a route."""

    def __init__(self, route: SdpaRoute) -> None:
        super().__init__()
        self._route = route

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self._route.paused or not self._route.running:
            return func(*args, **kwargs)
        if func is functional.multi_head_attention_forward:  # inside it, no mode is active
            return _replace_global(func, "scaled_dot_product_attention", self._intercept)(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            return self._intercept(*args, **kwargs)
        return func(*args, **kwargs)

    def _intercept(self, *args: Any, **kwargs: Any) -> Tensor:
        route, given = self._route, dict(zip(PARAMETERS, args, strict=False)) | kwargs
        query, key, value = (given.pop(name) for name in PARAMETERS[:3])
        arguments = SdpaArguments(module=route.running[-1], query=query, key=key, value=value, options=given)
        _check_without_dropout(arguments)
        if not _has_standard_axes(arguments, route.input_shape):
            return functional.scaled_dot_product_attention(*args, **kwargs)
        return route.handle(arguments)


def _replace_global(function: Any, name: str, value: Any) -> Callable[..., Any]:
    """Return a copy of a Python function that sees another value of a global name; the original does not change."""
    copy = FunctionType(
        function.__code__, {**function.__globals__, name: value}, function.__name__, function.__defaults__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _has_standard_axes(arguments: SdpaArguments, input_shape: tuple[int, ...] | None) -> bool:
    """Return whether the axes of a call are batch, head, pos and d_head, as far as sizes tell."""
    tensors = (arguments.query, arguments.key, arguments.value)
    return all(
        tensor.ndim == 4 and (input_shape is None or (tensor.shape[0], tensor.shape[2]) == input_shape)
        for tensor in tensors
    )


def _check_without_dropout(arguments: SdpaArguments) -> None:
    if arguments.options.get("dropout_p", 0.0):
        raise UnsupportedModel(
            f"attention must have no dropout in evaluation mode, but {type(arguments.module).__name__} calls "
            f"scaled_dot_product_attention with dropout_p={arguments.options['dropout_p']}; pass 0.0 unless "
            "self.training"
        )


@contextmanager
def intercept_sdpa(model: nn.Module, handle: SdpaHandler) -> Iterator[SdpaRoute]:
    """Intercept the calls of `scaled_dot_product_attention` that modules of a model make in this thread.

    Args:
        model: the model.
        handle: receives every call, and returns ``z`` (batch, head, pos, d_head).

    Yields:
        The route.
    """
    route = SdpaRoute(handle)
    with ExitStack() as stack:
        for module in model.modules():
            start, end = partial(_start_module, route), partial(_end_module, route)
            stack.callback(module.register_forward_pre_hook(guard_hook(start)).remove)
            stack.callback(module.register_forward_hook(guard_hook(end), always_call=True).remove)
        note = guard_hook(partial(_note_input_shape, route))
        stack.callback(model.register_forward_pre_hook(note, with_kwargs=True).remove)
        stack.enter_context(_SdpaMode(route))
        yield route


def _note_input_shape(route: SdpaRoute, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    inputs = args[0] if args else kwargs["input_ids"]
    route.running, route.input_shape = [model], tuple(inputs.shape[:2])


def _start_module(route: SdpaRoute, module: nn.Module, args: tuple) -> None:
    route.running.append(module)


def _end_module(route: SdpaRoute, module: nn.Module, args: tuple, output: Any) -> None:
    while route.running and route.running.pop() is not module:
        pass  # modules inside it that an error has left
