"""Making the frame of a model from one forward pass on a probe."""

from collections.abc import Sequence
from dataclasses import replace
from weakref import ref

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations.layer_spec import Layer
from mesascope.activations.readout.attention_inputs import Read, Reading, Stream
from mesascope.activations.readout.output_head import Norm, Tail, find_norm, find_tail
from mesascope.activations.readout.output_projection import find_projection, written
from mesascope.activations.readout.readout import Frame
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure.find_layers import softcap
from mesascope.activations.structure.trace import Call, Trace
from mesascope.activations.tolerances import close, distance, same

PARTS = 8  # writes whose logits are in memory together


def make_frame(model: PreTrainedModel, layers: Sequence[Layer], chosen: Sequence[int], trace: Trace) -> Frame:
    """The frame of some layers of a model; what does not hold is kept as the reason, and refused when asked for.

    Args:
        model: the model.
        layers: where things are in it.
        chosen: the layers to be recorded.
        trace: of a probe.
    """
    attending = [layer for layer in layers if layer.attention is not None]
    (last,) = trace.of(layers[-1].block)
    tail = _tail(model, trace, last)
    norm = tail if isinstance(tail, str) else _norm(tail, last)
    projections = tuple(find_projection(model, layers[n], trace) for n in chosen)
    frame = Frame(
        num_heads=attending[0].heads,
        num_kv_heads=attending[0].kv_heads,
        softmax=tuple(_softmax(layers[n]) for n in chosen),
        projections=projections,
        tail=tail,
        norm=norm,
        additive="",
        reading=_reading(model, layers, chosen, trace),
        versions=tuple((p, p._version) for p in model.parameters()),
    )
    return replace(frame, additive=_why_not_additive(frame, layers, trace))


def _tail(model: PreTrainedModel, trace: Trace, last: Call) -> Tail | str:
    """The read-out, or why there is none."""
    try:
        return find_tail(model, trace, last, softcap(model))
    except UnsupportedModel as refusal:
        return str(refusal)


def _norm(tail: Tail, last: Call) -> Norm | str | None:
    """The final norm, or why it is not known."""
    try:
        return find_norm(tail, last.result)
    except UnsupportedModel as refusal:
        return str(refusal)


def _softmax(layer: Layer) -> bool:
    """Whether the rows of a layer's attention weights sum to 1."""
    return layer.weights is not None and layer.weights.softmax


def _why_not_additive(frame: Frame, layers: Sequence[Layer], trace: Trace) -> str:
    """Why embedding, writes and bias do not sum to the prediction on the probe; empty if they do."""
    silent = {n: layer.missing["attn_write"] for n, layer in enumerate(layers) if layer.attn_write is None}
    if silent:
        return f"what layers {list(silent)} write to the stream is not known: {next(iter(silent.values()))}"
    if isinstance(frame.tail, str) or isinstance(frame.norm, str):
        return str(frame.tail if isinstance(frame.tail, str) else frame.norm)
    (first,), (last,) = trace.of(layers[0].block), trace.of(layers[-1].block)
    writes = [write for layer in layers for write in (layer.attn_write, layer.mlp_write) if write is not None]
    parts = [first.inputs[layers[0].stream_at], *(written(write, trace, last.result.shape) for write in writes)]
    total, largest = frame.readout_bias, 0.0
    for some in torch.stack(parts).split(PARTS):
        shares = frame.attribute(some, last.result)
        total, largest = total + shares.sum(0), max(largest, shares.abs().max().item())
    prediction = frame.tail(last.result)
    if close(total, prediction, largest):
        return ""
    return f"embedding, writes and bias miss the prediction by {distance(total, prediction):.1e} of it"


def _reading(model: PreTrainedModel, layers: Sequence[Layer], chosen: Sequence[int], trace: Trace) -> Reading:
    """Where the attention of some layers reads."""
    first = layers[0]
    (entered,), (whole,) = trace.of(first.block), trace.of("")
    return Reading(
        held=ref(model),
        probe=whole.inputs[model.main_input_name],
        reads=tuple(_read(model, layers[number], trace) for number in chosen),
        entrance=(model.get_submodule(first.block), first.stream_at),
        stream=entered.inputs[first.stream_at],
        depth=len(layers),
    )


def _read(model: PreTrainedModel, layer: Layer, trace: Trace) -> Read | str:
    """Where one layer's attention reads, or why that is not known."""
    if layer.attention is None:
        return layer.missing["value"]
    (block,) = trace.of(layer.block)
    stream = block.inputs[layer.stream_at]
    attention = next(each for each in trace.attentions if each.name == layer.attention)
    around = [call for call in trace.within(block) if call.start < attention.start and attention.end < call.end]
    given = [(call, at) for call in around for at, x in call.inputs.items() if _alike(x, stream)]
    if not given:
        return f"no module around the attention of {layer.block} reads something of the shape of the stream"
    reader, at = given[0]
    normed = reader.inputs[at]
    norm = None if same(normed, stream) else _between(trace, block, reader, stream, normed)
    if isinstance(norm, str):
        return norm
    return Read(
        attention=model.get_submodule(attention.name),
        reader=model.get_submodule(reader.name),
        at=at,
        norm=norm and model.get_submodule(norm.name),
        stream=stream,
        normed=normed,
        value=attention.call.value,
    )


def _between(trace: Trace, block: Call, reader: Call, stream: Stream, normed: Stream) -> Call | str:
    """The one module that makes of the stream what attention reads."""
    for call in trace.within(block):
        if call.end < reader.start and call.output is not None and same(call.output, normed) and call.reads(stream):
            return call
    return f"no single module of {block.name} makes of the stream what attention reads"


def _alike(x: Tensor, stream: Stream) -> bool:
    """Whether something has the shape and the precision of the stream."""
    return x.shape == stream.shape and x.dtype == stream.dtype
