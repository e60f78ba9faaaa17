"""What a measure must know of a model, so that it needs no model: projections, read-out, head counts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.capturing.anatomy import softcap
from mesascope.capturing.layer import Layer, Write
from mesascope.capturing.rounding import close, distance
from mesascope.capturing.sites import UnsupportedModel
from mesascope.capturing.tail import Norm, Tail, find_norm, find_tail
from mesascope.capturing.trace import Call, Trace


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """One layer's map from head outputs to what attention writes: a module that is linear, times a gain."""

    module: nn.Module
    gain: float
    heads: int
    width: int

    @torch.no_grad()
    def matrix(self) -> tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, " d_model"]]:
        """The map and its bias, by running it on unit vectors; exact where the module holds the matrix itself."""
        like = next(self.module.parameters())
        eye = torch.eye(self.heads * self.width, dtype=like.dtype, device=like.device)[None]
        bias = self.module(torch.zeros_like(eye[:, :1]))[0, 0]
        found = self.module(eye)[0] - bias
        held = [kept for p in self.module.parameters(recurse=False) if p.ndim == 2 for kept in (p.T, p)]
        exact = [p for p in held if p.shape == found.shape and close(p, found, bias.abs().max().item())]
        found = (exact[0] if exact else found).unflatten(0, (self.heads, self.width))
        return found.detach() * self.gain, bias.detach() * self.gain


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """The linear surroundings of what was recorded.

    Attributes:
        num_heads, num_kv_heads: per layer with attention; the first such layer counts.
        softmax: per recorded layer, whether every row of its attention weights sums to 1 (found on a probe).
        projections: per recorded layer, the map behind the heads, or why there is none.
        tail: the read-out, or why there is none.
        norm: the final norm as numbers, ``None`` without one, or why it is not known.
        additive: why the prediction is not a sum of parts; empty where it is.
        versions: of the parameters used here, so that later training is noticed.
    """

    num_heads: int
    num_kv_heads: int
    softmax: tuple[bool, ...]
    projections: tuple[Projection | str, ...]
    tail: Tail | str
    norm: Norm | str | None
    additive: str
    versions: tuple[tuple[nn.Parameter, int], ...]

    @property
    def output_projection(self) -> Float[Tensor, "layer head d_head d_model"]:
        """The maps from each head's output to the stream: ``head_out`` times this, plus bias, is ``attn_write``.

        Raises:
            UnsupportedModel: a layer has no such map (a gate or a norm stands between), or layers differ in shape.
        """
        return self._matrices[0]

    @property
    def output_bias(self) -> Float[Tensor, "layer d_model"]:
        """What each layer's attention writes whatever its heads give; raises as `output_projection` does."""
        return self._matrices[1]

    def readout(self, resid: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_out"]:
        """The prediction that the model would make from this stream: final norm, output map, scale and cap.

        Raises:
            UnsupportedModel: the way from the last layer to the prediction is not a chain of modules.
        """
        tail = self._tail()
        return tail.capped(tail(resid))

    def attribute(
        self, write: Float[Tensor, "*parts batch pos d_model"], resid_final: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "*parts batch pos d_out"]:
        """What a part of the stream contributes to the prediction, through the final norm frozen at ``resid_final``.

        Linear in ``write``: the embedding (``resid_pre[0]``), all writes and `readout_bias` sum to the prediction
        before any cap.

        Args:
            write: parts of the final stream.
            resid_final: the stream after the last layer.

        Raises:
            UnsupportedModel: the identity does not hold in this model.
        """
        return self._linear(self.freeze(write, resid_final))

    def freeze(
        self, write: Float[Tensor, "*parts batch pos d_model"], resid_final: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "*parts batch pos d_model"]:
        """A part of the stream after the final norm frozen at ``resid_final``, before the output map."""
        tail, norm = self._additive()
        if norm is None:
            return write
        scaled = resid_final * tail.scales[0]
        with torch.no_grad():
            size = norm.size(scaled, tail.modules[0](scaled))
        return norm.direction(write * tail.scales[0]) / size

    @cached_property
    def readout_bias(self) -> Float[Tensor, " d_out"]:
        """What is predicted, before any cap, without any part of the stream; raises as `attribute` does."""
        tail, norm = self._additive()
        width = self._width()
        if norm is None:
            return tail(width[None, None])[0, 0]
        return tail(norm.bias[None, None], 1)[0, 0]

    def _linear(self, x: Float[Tensor, "*parts d_model"]) -> Float[Tensor, "*parts d_out"]:
        """The linear part of what follows the norm."""
        tail, norm = self._additive()
        start = 0 if norm is None else 1
        return tail(x, start) - tail(torch.zeros_like(x[..., :1, :]), start)

    def _width(self) -> Float[Tensor, " d_model"]:
        """Zeros of the width of the stream."""
        tail = self._tail()
        like = next(p for module in tail.modules for p in module.parameters())
        return like.new_zeros(like.shape[-1])

    def _tail(self) -> Tail:
        """The read-out, if there is one and the model is as it was."""
        if isinstance(self.tail, str):
            raise UnsupportedModel(self.tail)
        self._refuse_trained()
        return self.tail

    def _additive(self) -> tuple[Tail, Norm | None]:
        """The read-out and its norm, if the prediction is a sum of parts."""
        tail = self._tail()
        if self.additive or isinstance(self.norm, str):
            raise UnsupportedModel(self.additive or str(self.norm))
        return tail, self.norm

    @cached_property
    def _matrices(self) -> tuple[Float[Tensor, "layer head d_head d_model"], Float[Tensor, "layer d_model"]]:
        """The output projections and their biases."""
        self._refuse_trained()
        missing = {n: each for n, each in enumerate(self.projections) if isinstance(each, str)}
        if missing:
            raise UnsupportedModel(
                f"head outputs must reach the stream through a linear map, but in layers {list(missing)} of those "
                f"recorded they do not: {next(iter(missing.values()))}"
            )
        found = [each.matrix() for each in self.projections if isinstance(each, Projection)]
        if len({matrix.shape for matrix, _ in found}) > 1:
            raise UnsupportedModel("output projections must have one shape, but layers differ; pass layers= that agree")
        return torch.stack([matrix for matrix, _ in found]), torch.stack([bias for _, bias in found])

    def _refuse_trained(self) -> None:
        """Refuse a model that was changed after the capture."""
        if any(p._version != version for p, version in self.versions):
            raise RuntimeError(
                "a frame must be used before its model is changed, but parameters were written to after the capture; "
                "capture again"
            )


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
    projections = tuple(_projection(model, layers[n], trace) for n in chosen)
    used = [each.module for each in projections if isinstance(each, Projection)]
    used += [] if isinstance(tail, str) else tail.modules
    frame = Frame(
        num_heads=attending[0].heads,
        num_kv_heads=attending[0].kv_heads,
        softmax=tuple(_softmax(layers[n]) for n in chosen),
        projections=projections,
        tail=tail,
        norm=norm,
        additive="",
        versions=tuple((p, p._version) for module in used for p in module.parameters()),
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


def _projection(model: PreTrainedModel, layer: Layer, trace: Trace) -> Projection | str:
    """The map behind one layer's heads, tried on the probe, or why there is none."""
    if layer.projection is None or layer.attn_write is None:
        return layer.missing.get("projection", "what attention writes is not known")
    heads = next(each.output for each in trace.attentions if each.name == layer.attention)
    module = model.get_submodule(layer.projection)
    found = Projection(module=module, gain=layer.attn_write.gain, heads=heads.shape[-2], width=heads.shape[-1])
    matrix, bias = found.matrix()
    write = _written(layer.attn_write, trace, (*heads.shape[:2], -1))
    again = torch.einsum("bphd,hdm->bpm", heads, matrix) + bias
    if not close(again, write):
        return f"the output projection is not linear: it misses what attention writes by {distance(again, write):.1e}"
    return found


def _why_not_additive(frame: Frame, layers: Sequence[Layer], trace: Trace) -> str:
    """Why embedding, writes and bias do not sum to the prediction on the probe; empty if they do."""
    silent = {n: layer.missing["attn_write"] for n, layer in enumerate(layers) if layer.attn_write is None}
    if silent:
        return f"what layers {list(silent)} write to the stream is not known: {next(iter(silent.values()))}"
    if isinstance(frame.tail, str) or isinstance(frame.norm, str):
        return str(frame.tail if isinstance(frame.tail, str) else frame.norm)
    (first,), (last,) = trace.of(layers[0].block), trace.of(layers[-1].block)
    writes = [write for layer in layers for write in (layer.attn_write, layer.mlp_write) if write is not None]
    parts = [first.inputs[layers[0].stream_at], *(_written(write, trace, last.result.shape) for write in writes)]
    total, largest = frame.readout_bias, 0.0
    for part in parts:
        share = frame.attribute(part, last.result)
        total, largest = total + share, max(largest, share.abs().max().item())
    prediction = frame.tail(last.result)
    if close(total, prediction, largest):
        return ""
    return f"embedding, writes and bias miss the prediction by {distance(total, prediction):.1e} of it"


def _written(write: Write, trace: Trace, stream: tuple[int, ...]) -> Float[Tensor, "batch pos d_model"]:
    """What was written on the probe."""
    (call,) = trace.of(write.module)
    return call.result.reshape(stream) * write.gain
