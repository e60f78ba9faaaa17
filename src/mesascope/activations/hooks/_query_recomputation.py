"""Recomputation of a layer's queries from another residual stream."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations.hooks._module_arguments import replace_argument
from mesascope.activations.hooks.attention_interface import AttentionCall, route_attention
from mesascope.activations.sites import UnsupportedModel

ORIGINAL_FORWARD = "mesascope_original"  # attribute of a wrapped forward that stores the original


class _QueryReachedError(Exception):
    """A layer has called its attention function; the rest of its forward pass is skipped."""

    def __init__(self, query: Tensor) -> None:
        super().__init__()
        self.query = query


def offer_query_recomputation(
    model: PreTrainedModel,
    layer: LayerSpec,
    on_layer_start: Callable[[Callable[[Tensor], Tensor]], None],
    module: nn.Module,
    args: tuple,
    kwargs: dict,
) -> None:
    """Offer, before a layer runs, to recompute its queries from another residual stream; a pre-forward hook.

    Args:
        model: the model.
        layer: the specification of the layer.
        on_layer_start: called with a function from a residual stream to queries.
        module: the block of the layer.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    on_layer_start(partial(_recompute_query, model, layer, module, args, kwargs))


def _recompute_query(
    model: PreTrainedModel, layer: LayerSpec, module: nn.Module, args: tuple, kwargs: dict, stream: Tensor
) -> Tensor:
    given, named = replace_argument(layer.stream_argument, stream, args, kwargs)
    forward = getattr(module.forward, ORIGINAL_FORWARD, module.forward)
    with route_attention(model, _stop_at_query):
        try:
            forward(*given, **named)
        except _QueryReachedError as reached:
            return reached.query
    raise UnsupportedModel(
        f"{layer.block} must call its attention function to recompute queries, but did not; omit the layer"
    )


def _stop_at_query(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
    raise _QueryReachedError(call.query)
