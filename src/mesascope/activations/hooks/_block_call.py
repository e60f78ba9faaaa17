"""A call of a layer's block, which can be repeated on another residual stream."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations.exclusive_use import guard_hook
from mesascope.activations.hooks._module_arguments import first_tensor, read_argument, replace_argument, replace_output
from mesascope.activations.hooks.attention_interface import AttentionCall, route_attention
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.validation.quantized_gradients import validate_quantized_gradients

ORIGINAL_FORWARD = "mesascope_original"  # attribute of a wrapped forward that stores the original
Stream = Float[Tensor, "batch pos d_model"]


class _ResultReachedError(Exception):
    """The result has been computed; the rest of the forward pass of the layer is skipped."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockCall:
    """A call of a layer's block: its arguments, and parts of its computation from another residual stream.

    Each part runs the block again up to its result, differentiably where gradients are enabled, without its hooks.

    Attributes:
        model: the model.
        layer: the specification of the layer.
        module: the block.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """

    model: PreTrainedModel
    layer: LayerSpec
    module: nn.Module
    args: tuple
    kwargs: dict[str, Any]

    @property
    def stream(self) -> Stream:
        """The residual stream that the block was called with."""
        return read_argument(self.layer.stream_argument, self.args, self.kwargs)

    def compute_query(self, stream: Stream) -> Float[Tensor, "batch head pos d_head"]:
        """Return the queries that the layer computes from a residual stream.

        Args:
            stream: the residual stream.
        """
        return self.compute_attention_inputs(stream)[0]

    def compute_attention_inputs(self, stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries, keys and values that the layer computes from a residual stream.

        Args:
            stream: the residual stream.

        Returns:
            Queries (batch, head, pos, d_head), keys and values (batch, kv_head, pos, d_head).
        """

        def stop_at_inputs(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
            raise _ResultReachedError((call.query, call.key, call.value))

        with route_attention(self.model, stop_at_inputs):
            return self._run(stream, "its attention function")

    def compute_heads(
        self, stream: Stream, query: Tensor, key: Tensor, value: Tensor
    ) -> Float[Tensor, "batch pos head d_head"]:
        """Return what the heads of the layer compute from queries, keys and values.

        Args:
            stream: any residual stream.
            query: queries (batch, head, pos, d_head).
            key: keys (batch, kv_head, pos, d_head).
            value: values (batch, kv_head, pos, d_head).
        """

        def stop_at_heads(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
            raise _ResultReachedError(call.run_original(query, key, value)[0])

        with route_attention(self.model, stop_at_heads):
            return self._run(stream, "its attention function")

    def compute_mlp_output(self, stream: Stream) -> Stream:
        """Return the residual update of the layer's MLP for the residual stream that the MLP reads.

        The block runs on this stream, with attention that adds zeros to it.

        Args:
            stream: the residual stream that the MLP reads.
        """
        attention, mlp = self.layer.attn_out, self.layer.mlp_out
        assert attention is not None
        assert mlp is not None

        def stop_at_mlp(module: nn.Module, args: tuple, output: Any) -> None:
            tensor = first_tensor(output)
            assert tensor is not None
            shaped = tensor.reshape(stream.shape) if mlp.flat else tensor
            raise _ResultReachedError(shaped if mlp.gain == 1.0 else shaped * mlp.gain)

        with ExitStack() as hooks:
            modules = [self.model.get_submodule(update.module) for update in (attention, mlp)]
            for module, hook in zip(modules, (_return_zeros, stop_at_mlp), strict=True):
                hooks.callback(module.register_forward_hook(guard_hook(hook)).remove)
            return self._run(stream, "its MLP")

    def _run(self, stream: Stream, part: str) -> Any:
        if torch.is_grad_enabled() and stream.requires_grad:
            validate_quantized_gradients(self.model)
        args, kwargs = replace_argument(self.layer.stream_argument, stream, self.args, self.kwargs)
        forward = getattr(self.module.forward, ORIGINAL_FORWARD, self.module.forward)
        try:
            forward(*args, **kwargs)
        except _ResultReachedError as reached:
            return reached.result
        raise UnsupportedModel(f"{self.layer.block} must call {part} to be repeated, but did not; omit the layer")


def _return_zeros(module: nn.Module, args: tuple, output: Any) -> Any:
    tensor = first_tensor(output)
    assert tensor is not None
    return replace_output(output, torch.zeros_like(tensor))
