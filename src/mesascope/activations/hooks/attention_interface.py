"""Where a model's attention is computed: its own function, wrapped so that each call is seen and may be redirected."""

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from mesascope.activations.hooks import attention_math
from mesascope.activations.sites import UnsupportedModel

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
        return attention_math.additive(self.mask, query, key, bool(causal))

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Scaled scores, nothing masked."""
        scaling = self.options.get("scaling")
        return attention_math.scores(query, key, query.shape[-1] ** -0.5 if scaling is None else float(scaling))


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


def kernel_of(model: PreTrainedModel) -> str:
    """Which attention implementation the model runs."""
    return str(model.config._attn_implementation)


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
