"""Interception of a model's own attention function, through transformers' attention interface."""

import itertools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from mesascope.activations.exclusive_use import current_owner, is_other_thread
from mesascope.activations.hooks import _attention_math as attention_math
from mesascope.activations.hooks._sdpa_interception import SdpaArguments, intercept_sdpa
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.validation.fingerprint import list_configs
from mesascope.activations.wrapping._wrapped_module import WrappedConfig, WrappedModule

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
_NAME_COUNTER = itertools.count()
OWN_ATTENTION = "own"  # attn_implementation of a wrapped module without parts of transformers
_RETIRED_NAMES: deque[str] = deque()  # a forward pass of another thread may have read a name that has just been left
MAX_RETIRED_NAMES = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionCall:
    """One call of a model's attention function: its arguments, and the function itself.

    Attributes:
        module: the module that calls the function.
        attn_implementation: the attention implementation, such as ``sdpa``.
        query: queries (batch, head, pos, d_head).
        key: keys (batch, kv_head, pos, d_head).
        value: values (batch, kv_head, pos, d_head).
        mask: the mask, in the form that the implementation takes.
        extra_args: further positional arguments.
        extra_kwargs: further keyword arguments.
    """

    module: nn.Module
    attn_implementation: str
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    extra_args: tuple[Any, ...]
    extra_kwargs: Mapping[str, Any]

    def run_original(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the model's own attention function.

        Args:
            query: queries (batch, head, pos, d_head).
            key: keys (batch, kv_head, pos, d_head).
            value: values (batch, kv_head, pos, d_head).

        Returns:
            ``z`` (batch, pos, head, d_head), and attention weights or ``None``.

        Raises:
            UnsupportedModel: there is no such function.
        """
        original = find_attention_function(self.module, self.attn_implementation)
        return original(self.module, query, key, value, self.mask, *self.extra_args, **self.extra_kwargs)

    def run_eager(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
        """Return the attention weights of the model's own eager attention function.

        Args:
            query: queries (batch, head, pos, d_head).
            key: keys (batch, kv_head, pos, d_head).
            value: values (batch, kv_head, pos, d_head).

        Returns:
            Attention weights (batch, head, query, key), or ``None`` if the function returns none.

        Raises:
            UnsupportedModel: there is no such function.
        """
        eager = find_attention_function(self.module, "eager")
        return eager(
            self.module, query, key, value, self.additive_mask(query, key), *self.extra_args, **self.extra_kwargs
        )[1]

    def run_one_hot(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the attention weights as the output of the model's own eager attention function for one-hot values.

        Args:
            query: queries (batch, head, pos, d_head).
            key: keys (batch, kv_head, pos, d_head).

        Returns:
            Attention weights (batch, head, query, key).

        Raises:
            UnsupportedModel: there is no such function.
        """
        one_hot = torch.eye(key.shape[2], dtype=query.dtype, device=query.device).expand(*key.shape[:2], -1, -1)
        eager = find_attention_function(self.module, "eager")
        return eager(
            self.module, query, key, one_hot, self.additive_mask(query, key), *self.extra_args, **self.extra_kwargs
        )[0].transpose(1, 2)

    def additive_mask(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the additive form of the mask.

        Args:
            query: queries, which give shape and precision.
            key: keys, which give the number of positions.

        Returns:
            A tensor that broadcasts to (batch, head, query, key).
        """
        return attention_math.to_additive_mask(self.mask, query, key, self._is_causal)

    def score_bias(self, query: Tensor, key: Tensor) -> Tensor:
        """Return what the model adds to the scaled scores: the additive mask, and a bias by position if there is one.

        Args:
            query: queries, which give shape and precision.
            key: keys, which give the number of positions.

        Returns:
            A tensor that broadcasts to (batch, head, query, key).
        """
        mask, bias = self.additive_mask(query, key), self.extra_kwargs.get("position_bias")
        return mask if bias is None else mask + bias.to(mask)

    @property
    def _is_causal(self) -> bool:
        causal = self.extra_kwargs.get("is_causal")
        return bool(getattr(self.module, "is_causal", True) if causal is None else causal)

    def visible_keys_fn(self) -> Callable[[], Bool[Tensor, "#batch #head query key"]]:
        """Return a function that computes where queries can attend to keys; it keeps the mask only."""
        queries, keys = self.query.shape[2], self.key.shape[2]
        arguments = (self.mask, queries, keys, self._is_causal, self.query.device)
        return partial(attention_math.find_visible_keys, *arguments)

    def scaled_scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Return the scaled scores, without the mask and without a bias by position.

        Args:
            query: queries (batch, head, pos, d_head).
            key: keys (batch, kv_head, pos, d_head).

        Returns:
            Scores (batch, head, query, key).
        """
        scaling = self.extra_kwargs.get("scaling")
        return attention_math.scaled_dot_products(
            query, key, query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SdpaCall(AttentionCall):
    """One call of PyTorch's `scaled_dot_product_attention` by a module that is not part of transformers.

    Attributes:
        arguments: its arguments.
    """

    arguments: SdpaArguments

    def run_original(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run PyTorch's function.

        Args:
            query: queries (batch, head, pos, d_head).
            key: keys (batch, kv_head, pos, d_head).
            value: values (batch, kv_head, pos, d_head).

        Returns:
            ``z`` (batch, pos, head, d_head), and ``None``.
        """
        return self.arguments.run(query, key, value).transpose(1, 2), None

    def run_eager(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
        """Return ``None``: PyTorch's function returns no attention weights.

        Args:
            query: queries (batch, head, pos, d_head).
            key: keys (batch, kv_head, pos, d_head).
            value: values (batch, kv_head, pos, d_head).
        """
        return None

    def run_one_hot(self, query: Tensor, key: Tensor) -> Tensor:
        """Refuse: the weights of PyTorch's function are the softmax of the scaled scores.

        Args:
            query: queries (batch, head, pos, d_head).
            key: keys (batch, kv_head, pos, d_head).

        Raises:
            UnsupportedModel: always.
        """
        raise UnsupportedModel("a module that calls scaled_dot_product_attention must need no eager function, but does")


AttentionInterceptor = Callable[[AttentionCall], tuple[Tensor, Tensor | None]]


@contextmanager
def route_attention(model: PreTrainedModel, intercept_attention: AttentionInterceptor) -> Iterator[None]:
    """Route the model's attention calls through ``intercept_attention``.

    Args:
        model: the model. In a wrapped module, PyTorch's `scaled_dot_product_attention` is routed, too.
        intercept_attention: receives every `AttentionCall`, and returns what the attention function would return.
    """
    with ExitStack() as stack:
        if isinstance(model, WrappedModule):
            intercept_attention = stack.enter_context(_route_sdpa(model, intercept_attention))
        stack.enter_context(_route_attention_interface(model, intercept_attention))
        yield


@contextmanager
def _route_sdpa(model: WrappedModule, intercept_attention: AttentionInterceptor) -> Iterator[AttentionInterceptor]:
    """Route PyTorch's function; yield the interceptor for calls of transformers, inside of which it is not routed."""

    def intercept_call(arguments: SdpaArguments) -> Tensor:
        call = SdpaCall(
            module=arguments.module,
            attn_implementation=OWN_ATTENTION,
            query=arguments.query,
            key=arguments.key,
            value=arguments.value,
            mask=arguments.mask,
            extra_args=(),
            extra_kwargs={
                "is_causal": bool(arguments.options.get("is_causal", False)),
                "scaling": arguments.options.get("scale"),
            },
            arguments=arguments,
        )
        return intercept_attention(call)[0].transpose(1, 2)

    with intercept_sdpa(model, intercept_call) as route:

        def intercept_interface(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
            with route.pause():
                return intercept_attention(call)

        yield intercept_interface


@contextmanager
def _route_attention_interface(model: PreTrainedModel, intercept_attention: AttentionInterceptor) -> Iterator[None]:
    """Route calls of transformers' attention interface.

    The wrapped function is registered under a new name, and its mask function with it: otherwise transformers would
    drop the causal mask without an error.
    """
    number, route = next(_NAME_COUNTER), _Route(intercept_attention, current_owner())
    before = [(config, config._attn_implementation_internal) for config in _attention_configs(model)]
    names = {kernel: f"mesascope{number}_{kernel}" for _, kernel in before}
    try:
        for kernel, name in names.items():
            AttentionInterface.register(name, partial(_intercept_call, route, kernel))
            if kernel in ALL_MASK_ATTENTION_FUNCTIONS:
                AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[kernel])
        for config, kernel in before:
            config._attn_implementation_internal = names[kernel]
        yield
    finally:
        for config, kernel in before:
            config._attn_implementation_internal = kernel
        route.intercept = None
        _RETIRED_NAMES.extend(names.values())
        while len(_RETIRED_NAMES) > MAX_RETIRED_NAMES:
            retired = _RETIRED_NAMES.popleft()
            AttentionInterface._global_mapping.pop(retired, None)
            AttentionMaskInterface._global_mapping.pop(retired, None)


def find_attention_function(module: nn.Module, implementation: str) -> AttentionFunction:
    """Return the attention function that a module would call, which its modelling file may define.

    Args:
        module: the attention module.
        implementation: the attention implementation, such as ``sdpa``.

    Raises:
        UnsupportedModel: there is none.
    """
    files = [vars(sys.modules[kind.__module__]) for kind in type(module).__mro__]
    for file in files:
        interface = file.get("ALL_ATTENTION_FUNCTIONS")
        if isinstance(interface, AttentionInterface) and implementation in interface:
            return interface[implementation]
    if implementation in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[implementation]
    for file in files:
        if implementation == "eager" and "eager_attention_forward" in file:
            return file["eager_attention_forward"]
    raise UnsupportedModel(f"{type(module).__name__} must have a {implementation} attention function, but has none")


def attn_implementation(model: PreTrainedModel) -> str:
    """Return the attention implementation of a model.

    Args:
        model: the model.

    Returns:
        Its name, such as ``sdpa``; in a wrapped module, that of the models of transformers inside it, or ``own``.
    """
    if not isinstance(model, WrappedModule):
        return str(model.config._attn_implementation)
    inner = [config for config in _attention_configs(model) if not isinstance(config, WrappedConfig)]
    return ", ".join(sorted({str(config._attn_implementation) for config in inner})) or OWN_ATTENTION


@contextmanager
def use_attn_implementation(model: PreTrainedModel, implementation: Literal["eager"] | None) -> Iterator[None]:
    """Run a model with its own eager attention function, as after ``model.set_attn_implementation("eager")``.

    Enter it in exclusive use. Forward passes that another thread runs on its own meanwhile are eager, too.

    Args:
        model: the model; what it had before is restored on exit.
        implementation: ``eager``, or ``None`` to leave the model as it is.

    Raises:
        UnsupportedModel: transformers cannot exchange the attention function of the model, or of a part of it.
    """
    before = [
        (config, config._attn_implementation_internal)
        for config in _attention_configs(model)
        if implementation not in (None, config._attn_implementation_internal)
    ]
    if before or (implementation is not None and isinstance(model, WrappedModule)):
        _validate_exchangeable(model, implementation)
    try:
        for config, _ in before:
            config._attn_implementation_internal = implementation
        yield
    finally:
        for config, kernel in before:
            config._attn_implementation_internal = kernel


def _validate_exchangeable(model: PreTrainedModel, implementation: str | None) -> None:
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    fixed = [type(part).__name__ for part in parts if not part._can_set_attn_implementation()]
    if isinstance(model, WrappedModule):
        fixed = [str(model.config.name_or_path)]
    if fixed:
        raise UnsupportedModel(
            f"attn_implementation={implementation!r} needs an attention function that transformers can exchange, but "
            f"{fixed[0]} has its own; omit it"
        )


@dataclass(eq=False)
class _Route:
    """The function that receives attention calls, ``None`` after its context, and the only thread that it serves."""

    intercept: Callable[[AttentionCall], tuple[Tensor, Tensor | None]] | None
    owner: threading.Thread | None


def _intercept_call(
    route: _Route,
    implementation: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *extra_args: Any,
    **extra_kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Build an `AttentionCall` from the arguments of an attention function, and intercept it."""
    call = AttentionCall(
        module=module,
        attn_implementation=implementation,
        query=query,
        key=key,
        value=value,
        mask=attention_mask,
        extra_args=extra_args,
        extra_kwargs=extra_kwargs,
    )
    if route.intercept is None or is_other_thread(route.owner):
        return call.run_original(query, key, value)
    return route.intercept(call)


def _attention_configs(model: PreTrainedModel) -> list[Any]:
    """Return every configuration that selects the attention implementation of a part of the model."""
    return [
        config for config in list_configs(model) if getattr(config, "_attn_implementation_internal", None) is not None
    ]
