"""Construction of a `Readout` from one traced forward pass."""

from collections.abc import Sequence
from functools import partial
from weakref import ref

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations.forward import run_model
from mesascope.activations.readout._attention_inputs import AttentionInputs
from mesascope.activations.readout._deferred import Deferred
from mesascope.activations.readout._layer_attention_input import LayerAttentionInput
from mesascope.activations.readout._norm import Norm
from mesascope.activations.readout._output_head import (
    OutputHead,
    find_final_norm,
    find_head_of_average,
    find_output_head,
)
from mesascope.activations.readout._output_projection import (
    OutputProjection,
    TracedProjection,
    compute_residual_update,
    locate_cross_projection,
    locate_output_projection,
)
from mesascope.activations.readout._output_readout import OutputReadout
from mesascope.activations.readout._readout import Readout
from mesascope.activations.readout._stack_inputs import StackInputs
from mesascope.activations.readout._value_projection import BatchedStream
from mesascope.activations.sites import ENCODER, UnsupportedModel
from mesascope.activations.structure._find_layers import get_logit_softcap
from mesascope.activations.structure._trace import ModuleCall, Trace
from mesascope.activations.tolerances import allclose, bitwise_equal, relative_difference
from mesascope.activations.validation.fingerprint import Fingerprint, fingerprint_tensors

ENCODER_HAS_NO_HEAD = "an encoder has no output head: cross-attention of the decoder reads its states"
UPDATES_PER_CHUNK = 8  # residual updates whose logits are in memory together


def build_readout(
    model: PreTrainedModel,
    layers: Sequence[LayerSpec],
    layer_indices: Sequence[int],
    trace: Trace,
    weights: Fingerprint,
    stack: StackInputs | None = None,
) -> Readout:
    """Build the readout of some layers of a model.

    What does not hold in the model is stored as a reason; the readout raises it on first use. Many captures use no
    readout, so that all that runs modules is found on first use, on the tensors of the trace, but the output head.

    Args:
        model: the model.
        layers: specification of each layer.
        layer_indices: indices of the recorded layers.
        trace: traced forward pass of the model.
        weights: fingerprint of the weights of the model.
        stack: the stack of an encoder-decoder that the layers are in; ``None`` in a model with one stack.

    Returns:
        The readout.
    """
    attention_layers = [layer for layer in layers if layer.attention is not None]
    last_call = trace.block_call(layers[-1])
    is_encoder = stack is not None and stack.name == ENCODER
    output_head = ENCODER_HAS_NO_HEAD if is_encoder else _try_find_output_head(model, trace, last_call)
    head_modules = () if isinstance(output_head, str) else output_head.modules
    final_norm = Deferred(partial(_try_find_final_norm, output_head, last_call), head_modules)
    own = [locate_output_projection(model, layers[number], trace) for number in layer_indices]
    cross = [locate_cross_projection(model, layers[number], trace) for number in layer_indices]
    return Readout(
        num_heads=attention_layers[0].num_heads if attention_layers else 0,
        num_kv_heads=attention_layers[0].num_kv_heads if attention_layers else 0,
        rows_sum_to_one=tuple(_rows_sum_to_one(layers[n]) for n in layer_indices),
        projection_search=_defer_check(own),
        cross_projection_search=_defer_check(cross),
        output_head=output_head,
        final_norm_search=final_norm,
        resid_vector=last_call.output_tensor[0, 0],
        additivity_check=Deferred(
            partial(_find_non_additive_reason, output_head, final_norm, layers, trace), head_modules
        ),
        attention_inputs=_build_attention_inputs(model, layers, layer_indices, trace, stack),
        weights=weights,
        head_weights=fingerprint_tensors(() if isinstance(output_head, str) else output_head.tensors()),
    )


def _defer_check(located: Sequence[TracedProjection | str]) -> Deferred[tuple[OutputProjection | str, ...]]:
    modules = [each.projection.module for each in located if not isinstance(each, str)]
    return Deferred(lambda: tuple(each if isinstance(each, str) else each.check() for each in located), modules)


def _try_find_output_head(model: PreTrainedModel, trace: Trace, last_call: ModuleCall) -> OutputHead | str:
    find_head = find_output_head if trace.max_iterations is None else find_head_of_average
    try:
        return find_head(model, trace, last_call, get_logit_softcap(model))
    except UnsupportedModel as refusal:
        return str(refusal)


def _try_find_final_norm(output_head: OutputHead | str, last_call: ModuleCall) -> Norm | str | None:
    if isinstance(output_head, str):
        return output_head
    try:
        return find_final_norm(output_head, last_call.output_tensor)
    except UnsupportedModel as refusal:
        return str(refusal)


def _rows_sum_to_one(layer: LayerSpec) -> bool:
    return layer.weights_method is not None and layer.weights_method.rows_sum_to_one


def _find_non_additive_reason(
    output_head: OutputHead | str, final_norm: Deferred[Norm | str | None], layers: Sequence[LayerSpec], trace: Trace
) -> str:
    """Return why embedding, residual updates and bias do not sum to the output; empty if they do."""
    if trace.max_iterations is not None:
        return "the output is read from a weighted average of the states after all iterations, not from the last one"
    missing = {n: layer.missing["attn_out"] for n, layer in enumerate(layers) if layer.attn_out is None}
    if missing:
        return f"attn_out is not available in layers {list(missing)}: {next(iter(missing.values()))}"
    norm = final_norm.get()
    if isinstance(output_head, str) or isinstance(norm, str):
        return str(output_head if isinstance(output_head, str) else norm)
    first, last = trace.block_call(layers[0]), trace.block_call(layers[-1])
    updates = [
        compute_residual_update(update, trace, trace.block_call(layer))
        for layer in layers
        for update in (layer.attn_out, layer.cross and layer.cross.attn_out, layer.mlp_out)
        if update is not None
    ]
    parts = [first.inputs[layers[0].stream_argument], *updates]
    additive = OutputReadout(
        output_head=output_head,
        final_norm_search=final_norm,
        resid_vector=last.output_tensor[0, 0],
        additivity_check=Deferred(str, ()),
        weights=(),
        head_weights=(),
    )
    total, largest = additive.readout_bias, 0.0
    for chunk in torch.stack(parts).split(UPDATES_PER_CHUNK):
        contributions = additive.attribute_logits(chunk, last.output_tensor)
        total, largest = total + contributions.sum(0), max(largest, contributions.abs().max().item())
    output = output_head(last.output_tensor)
    if allclose(total, output, largest):
        return ""
    return (
        "embedding, residual updates and bias must sum to the output, but differ by "
        f"{relative_difference(total, output):.1e}"
    )


def _build_attention_inputs(
    model: PreTrainedModel,
    layers: Sequence[LayerSpec],
    layer_indices: Sequence[int],
    trace: Trace,
    stack: StackInputs | None,
) -> AttentionInputs:
    first = layers[0]
    first_call, (model_call,) = trace.block_call(first), trace.calls_of("")
    return AttentionInputs(
        model_ref=ref(model),
        trace_input=model_call.inputs[model.main_input_name] if stack is None else stack.trace_input,
        run_fn=run_model if stack is None else stack.run_fn,
        layer_inputs=tuple(_find_attention_input(model, layers[number], trace) for number in layer_indices),
        entry_point=(model.get_submodule(first.block), first.stream_argument),
        first_resid_pre=first_call.inputs[first.stream_argument],
        num_layers=len(layers),
    )


def _find_attention_input(model: PreTrainedModel, layer: LayerSpec, trace: Trace) -> LayerAttentionInput | str:
    """Return the input of one layer's attention, or the reason why it is not known."""
    if layer.attention is None:
        return layer.missing["value"]
    block = trace.block_call(layer)
    stream = block.inputs[layer.stream_argument]
    attention = trace.attention_within(block, layer.attention)
    enclosing_calls = [
        call for call in trace.calls_within(block) if call.start < attention.start and attention.end < call.end
    ]
    candidates = [
        (call, argument)
        for call in enclosing_calls
        for argument, x in call.inputs.items()
        if _matches_stream(x, stream)
    ]
    if not candidates:
        return f"no module around the attention of {layer.block} has an input of the shape of the residual stream"
    input_call, at = candidates[0]
    normed = input_call.inputs[at]
    norm = None if bitwise_equal(normed, stream) else _find_norm_call(trace, block, input_call, stream, normed)
    if isinstance(norm, str):
        return norm
    return LayerAttentionInput(
        attention_module=model.get_submodule(attention.name),
        input_module=model.get_submodule(input_call.name),
        argument=at,
        norm=norm and model.get_submodule(norm.name),
        resid_pre=stream,
        normed=normed,
        value=attention.call.value,
    )


def _find_norm_call(
    trace: Trace, block: ModuleCall, input_call: ModuleCall, stream: BatchedStream, normed: BatchedStream
) -> ModuleCall | str:
    """Return the call that alone maps the residual stream to the attention input, or a reason."""
    for call in trace.calls_within(block):
        if (
            call.end < input_call.start
            and call.output is not None
            and bitwise_equal(call.output, normed)
            and call.reads_tensor(stream)
        ):
            return call
    return f"no single module of {block.name} maps the residual stream to the attention input"


def _matches_stream(x: Tensor, stream: BatchedStream) -> bool:
    return x.shape == stream.shape and x.dtype == stream.dtype
