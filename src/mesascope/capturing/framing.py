"""Making the frame of a model from one forward pass on a probe."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from mesascope.capturing.anatomy import softcap
from mesascope.capturing.frame import Frame
from mesascope.capturing.layer import Layer
from mesascope.capturing.projection import find_projection, written
from mesascope.capturing.reads import find_reading
from mesascope.capturing.rounding import close, distance
from mesascope.capturing.sites import UnsupportedModel
from mesascope.capturing.tail import Norm, Tail, find_norm, find_tail
from mesascope.capturing.trace import Call, Trace


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
        reading=find_reading(model, layers, chosen, trace),
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
    for part in parts:
        share = frame.attribute(part, last.result)
        total, largest = total + share, max(largest, share.abs().max().item())
    prediction = frame.tail(last.result)
    if close(total, prediction, largest):
        return ""
    return f"embedding, writes and bias miss the prediction by {distance(total, prediction):.1e} of it"
