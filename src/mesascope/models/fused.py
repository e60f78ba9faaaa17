"""A fused attention sublayer for training on short sequences on a CPU.

On a CPU small matrix products are bound by memory: at 20 positions, splitting heads, two batched products and a softmax
take longer than all linear layers. One kernel (``attention.cpp``) computes norm, projections, attention and residual
sum sequence by sequence, so that intermediate values stay in the processor's cache. It is compiled once per size, in
seconds, if a C++ compiler is available, and stored in the user's cache directory. Without a compiler, or for
configurations that the kernel does not support, models train with :class:`mesascope.models.layers.DecoderBlock`, which
computes the same numbers up to rounding. The kernel is used in training only, never when activations are captured.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface

from mesascope.models._fused_kernel import KernelSize, load_kernel
from mesascope.models.config import DecoderConfig
from mesascope.models.layers import FUSED_SUBLAYERS, DecoderBlock, HiddenStates
from mesascope.models.transformer import Decoder

FUSED_ATTENTION = "mesascope_fused"
MAX_FUSED_POSITIONS, MAX_FUSED_WIDTH = (
    64,
    256,
)  # positions, d_model: beyond these, matrix products of a library are as fast
VECTOR_WIDTH = 8  # floats in a SIMD vector; the width of a head must be a multiple


@contextmanager
def fused_attention(model: Decoder, length: int) -> Iterator[bool]:
    """Run the attention of a model with the fused kernel inside the context, if it is supported and can be compiled.

    Args:
        model: the decoder.
        length: number of positions.

    Yields:
        True if the kernel is used.
    """
    config = model.config
    supported = _is_supported(config, length) and model.device.type == "cpu" and model.dtype == torch.float32
    # all blocks have one size
    if not supported or _has_hooks(model) or load_kernel(_kernel_size(model.layers[0], length)) is None:
        yield False
        return
    previous = config._attn_implementation_internal
    config._attn_implementation_internal = FUSED_ATTENTION
    try:
        yield True
    finally:
        config._attn_implementation_internal = previous


def _is_supported(config: DecoderConfig, length: int) -> bool:
    """Return True if the kernel supports the configuration."""
    heads = config.num_attention_heads
    return (
        config.model_type == DecoderConfig.model_type  # other models attend to chunks or padded sequences
        and config.attention == "softmax"
        and config.mask == "causal"
        and config.norm_position != "output"
        and config.positions != "rotary"
        and config.num_key_value_heads == heads
        and config.hidden_size // heads % VECTOR_WIDTH == 0
        and config.hidden_size <= MAX_FUSED_WIDTH
        and length <= MAX_FUSED_POSITIONS
    )


def _has_hooks(model: Decoder) -> bool:
    """Return True if a module has forward hooks, which the kernel would not call."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _kernel_size(block: nn.Module, length: int) -> KernelSize:
    assert isinstance(block, DecoderBlock)
    attention = block.attention
    heads = attention.q_proj.out_features // attention.head_dim
    return KernelSize(H=heads, D=attention.head_dim, L=length, NORM=_norm_parameters(block)[0])


def _norm_parameters(block: DecoderBlock) -> tuple[int, Tensor | None, Tensor | None, float]:
    """Return the norm before the projections: its kind as in `KernelSize.NORM`, gain, shift and epsilon."""
    norm = block.attention_norm
    if block.post or isinstance(norm, nn.Identity):
        return 0, None, None, 0.0
    if isinstance(norm, nn.LayerNorm):
        return 1, norm.weight, norm.bias, norm.eps
    assert isinstance(norm, nn.RMSNorm)
    assert norm.eps is not None
    return 2, norm.weight, None, norm.eps


class _FusedSublayer(torch.autograd.Function):
    """The autograd function x + out(attention(projections(norm(x)))), with query, key and value projections stacked."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "batch pos d_model"],
        gain: Float[Tensor, "d_model"] | None,
        shift: Float[Tensor, "d_model"] | None,
        maps: Float[Tensor, "three_d_model d_model"],
        biases: Float[Tensor, "three_d_model"],
        out: Float[Tensor, "d_model d_model"],
        out_bias: Float[Tensor, "d_model"],
        size: KernelSize,
        scaling: float,
        eps: float,
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the residual stream after the sublayer."""
        x, y = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        compiled = load_kernel(size)
        assert compiled is not None
        (batch, length, width), rest = x.shape, (len(x), scaling, eps)
        qkv, mixed = x.new_empty(batch, length, 3 * width), torch.empty_like(y)
        weights = x.new_empty(batch, size.H, length, compiled.weights_stride)
        maps_transposed, out_transposed = maps.T.contiguous(), out.T.contiguous()
        arguments = x, gain, shift, maps_transposed, biases, out_transposed, out_bias
        compiled.forward(*map(_data_pointer, (*arguments, qkv, weights, mixed, y)), *rest, torch.get_num_threads())
        ctx.save_for_backward(x, gain, shift, maps, out, qkv, weights, mixed)
        ctx.rest = compiled, rest
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  the decorator hides the parameter names
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the residual stream and the parameters."""
        grad_output = gradients[0].contiguous()  # bound to a name, so that its memory stays alive while the kernel runs
        (compiled, rest), (x, gain, shift, *_) = ctx.rest, ctx.saved_tensors
        grad_x, parts = torch.empty_like(x), x.new_empty(compiled.num_parts, compiled.part_size)
        pointers = map(_data_pointer, (*ctx.saved_tensors, grad_output, grad_x, parts))
        compiled.backward(*pointers, *rest, torch.get_num_threads())
        width = x.shape[-1]
        sizes = (3 * width * width, 3 * width, width * width, width, width, width)
        maps, biases, out, out_bias, grad_gain, grad_shift = parts.sum(0).split(sizes)
        grad_projections = maps.unflatten(0, (-1, width)), biases, out.unflatten(0, (-1, width)), out_bias
        return (
            grad_x,
            None if gain is None else grad_gain,
            None if shift is None else grad_shift,
            *grad_projections,
            None,
            None,
            None,
        )


def _data_pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def run_fused_sublayer(block: DecoderBlock, x: HiddenStates) -> HiddenStates:
    """Compute the residual stream after the attention sublayer, before any post-norm.

    Args:
        block: the block whose attention is computed.
        x: residual stream.

    Returns:
        The residual stream with the attention output added.
    """
    (_, gain, shift, eps), attention = _norm_parameters(block), block.attention
    projections = attention.q_proj, attention.k_proj, attention.v_proj
    maps, biases = torch.cat([each.weight for each in projections]), torch.cat([each.bias for each in projections])
    output = attention.o_proj.weight, attention.o_proj.bias
    size = _kernel_size(block, x.shape[1])
    return _FusedSublayer.apply(x, gain, shift, maps, biases, *output, size, attention.scaling, eps)


FUSED_SUBLAYERS[FUSED_ATTENTION] = run_fused_sublayer
AttentionMaskInterface.register(FUSED_ATTENTION, lambda *_, **__: None)  # the kernel applies the causal mask itself
