"""The function that makes a plain PyTorch module a model."""

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.backends import mha
from transformers import PreTrainedModel

from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.wrapping._wrapped_module import MODULE_NAME, ForwardFn, UntrainedFn, WrappedModule
from mesascope.argument_types import describe_value, validate_arguments


@validate_arguments
def wrap(
    module: nn.Module,
    *,
    forward: ForwardFn | None = None,
    layers: Iterable[nn.Module] | None = None,
    attention: str | None = None,
    context_length: int | None = None,
    untrained: UntrainedFn | None = None,
) -> WrappedModule:
    """Return a plain PyTorch module as a model for `capture`, edits, interventions, analyses and `inspect`.

    The structure is found by tracing, as in any other model, and every site is checked: the outputs with and without
    hooks are bitwise equal, and attention weights reproduce ``z``. Queries, keys, values, scores, patterns and ``z``
    are available where attention is computed by ``torch.nn.functional.scaled_dot_product_attention`` or by modules of
    transformers inside the module. Where a module computes attention in its own operations, these sites are refused.

    Args:
        module: the module; its weights are shared, not copied. Capture runs it in evaluation mode.
        forward: function from the module and the inputs to outputs (batch, pos, d_out) at every position. Inputs are
            tokens (batch, pos) or vectors (batch, pos, d_in). For padded inputs, it must have a parameter
            ``attention_mask`` (batch, pos). By default ``module(inputs)``; of a mapping its ``logits``, of a tuple its
            first element.
        layers: the blocks, in the order in which they are called. By default the elements of the one `nn.ModuleList`
            that contains the attention modules; needed for blocks in another container, and if no attention is found.
        attention: name of the attention module within a block, such as ``attn``, for modules that compute attention in
            their own operations. It makes ``attn_out`` and ``mlp_out`` available there.
        context_length: the largest number of positions, if there is one.
        untrained: function from a seed to the same module with random weights, for the control of `inspect`.

    Returns:
        The model. Its attribute ``module`` is the module.

    Raises:
        UnsupportedModel: the module is a model of transformers, and no layers are given; or it contains
            `nn.MultiheadAttention` with its fast path.
        ValueError: a layer is not inside the module, or another argument is wrong.

    >>> import torch
    >>> from mesascope import capture
    >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    >>> torch.backends.mha.set_fastpath_enabled(False)
    >>> encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    >>> capture(wrap(encoder), torch.randn(1, 5, 8), ["pattern"])["pattern"].shape
    torch.Size([2, 1, 2, 5, 5])
    >>> torch.backends.mha.set_fastpath_enabled(True)
    """
    name = type(module).__name__
    if isinstance(module, PreTrainedModel) and layers is None:
        raise UnsupportedModel(
            f"wrap needs a plain torch.nn.Module, but {name} is a model of transformers; pass it to capture as it is, "
            "or pass its blocks as layers= if its attention is its own"
        )
    if mha.get_fastpath_enabled() and any(isinstance(part, nn.MultiheadAttention) for part in module.modules()):
        raise UnsupportedModel(
            f"nn.MultiheadAttention must run without its fast path, which skips hooks, but {name} contains it with the "
            "fast path enabled; call torch.backends.mha.set_fastpath_enabled(False) first"
        )
    if context_length is not None and context_length < 1:
        raise ValueError(f"context_length must be 1 or more, but got {context_length}")
    forward_fn = forward or _run_module
    block_names = None if layers is None else _name_blocks(module, layers)
    if attention is not None:
        _validate_attention(module, block_names, attention)
    return WrappedModule(
        module,
        forward_fn,
        block_names=block_names,
        attention_name=attention,
        context_length=context_length,
        accepts_mask=_accepts_mask(module, forward),
        untrained_fn=untrained,
    )


def _run_module(module: nn.Module, inputs: Tensor, **mask: Tensor) -> Any:
    return module(inputs, **mask)


def _accepts_mask(module: nn.Module, forward: ForwardFn | None) -> bool:
    parameters = inspect.signature(forward or module.forward).parameters
    return "attention_mask" in parameters


def _name_blocks(module: nn.Module, layers: Iterable[nn.Module]) -> tuple[str, ...]:
    """Return the names of blocks within the wrapper."""
    is_iterable = isinstance(layers, Iterable) and not isinstance(layers, Tensor)
    blocks = list(layers) if is_iterable else [layers]
    if not blocks or not all(isinstance(block, nn.Module) for block in blocks):
        given = describe_value(blocks) if blocks else "none"
        raise ValueError(f"layers must be modules, such as module.blocks, but got {given}")
    names = {id(part): f"{MODULE_NAME}.{path}" for path, part in module.named_modules() if path}
    outside = [type(block).__name__ for block in blocks if id(block) not in names]
    if outside:
        raise ValueError(
            f"layers must be modules inside {type(module).__name__}, but the {outside[0]} given is not; pass its blocks"
        )
    chosen = tuple(names[id(block)] for block in blocks)
    if len(set(chosen)) < len(chosen):
        raise ValueError(
            f"layers must be different modules, but {chosen[0]} was given more than once; give every block once, since "
            "repeated calls are found"
        )
    return chosen


def _validate_attention(module: nn.Module, block_names: tuple[str, ...] | None, attention: str) -> None:
    if block_names is None:
        raise ValueError(
            f"attention={attention!r} needs the blocks that contain it, but layers= is not given; pass both"
        )
    for name in block_names:
        path = f"{name.removeprefix(f'{MODULE_NAME}.')}.{attention}"
        try:
            module.get_submodule(path)
        except AttributeError:
            raise ValueError(
                f"attention must name a module of every block, but {path} does not exist; give its name within a block"
            ) from None
