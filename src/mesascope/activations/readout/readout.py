"""What a measure must know of a model, so that it needs no model: projections, read-out, head counts."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mesascope.activations.readout.attention_inputs import Reading
from mesascope.activations.readout.output_head import Norm, Tail
from mesascope.activations.readout.output_projection import Projection
from mesascope.activations.readout.unembedding import OutputMap
from mesascope.activations.sites import UnsupportedModel


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
        reading: what attention reads, and the embedding; found when asked for.
        versions: of the parameters of the model, so that later training is noticed.
    """

    num_heads: int
    num_kv_heads: int
    softmax: tuple[bool, ...]
    projections: tuple[Projection | str, ...]
    tail: Tail | str
    norm: Norm | str | None
    additive: str
    reading: Reading
    versions: tuple[tuple[nn.Parameter, int], ...]

    @property
    def num_layers(self) -> int:
        """How many layers the model has, recorded or not."""
        return self.reading.depth

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

    @property
    def attention_norms(self) -> tuple[Norm | None, ...]:
        """The norm before each layer's attention as numbers, ``None`` where attention reads the stream itself.

        Raises:
            UnsupportedModel: something else stands between the stream and attention.
        """
        self._refuse_trained()
        return self.reading.norms

    def normed(self, layer: int, resid: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """What the attention of the ``layer``-th recorded layer reads of a stream: the model's own norm, applied.

        Raises:
            UnsupportedModel: something else stands between the stream and attention.
        """
        self._refuse_trained()
        return self.reading.normed(layer, resid)

    @property
    def value_projection(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        """The maps from what attention reads to its values: ``normed`` times this, plus `value_bias`, is ``value``.

        Found by running the model on unit vectors when first asked for, and checked against its own values.

        Raises:
            UnsupportedModel: values do not follow linearly from what attention reads, or layers differ in shape.
        """
        return self._value_maps[0]

    @property
    def value_bias(self) -> Float[Tensor, "layer kv_head d_head"]:
        """The values of a stream of zeros, behind the norm; raises as `value_projection` does."""
        return self._value_maps[1]

    def embedding(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """What tokens put into the stream before the first layer, scale included, positions apart.

        Raises:
            UnsupportedModel: more than a scale stands between the embedding and the first layer, or inputs are vectors.
        """
        self._refuse_trained()
        return self.reading.embedding(tokens)

    @property
    def vocabulary(self) -> int:
        """How many tokens are both read and predicted; raises as `embedding` and `unembedding` do."""
        predicted = self._output_map(self._width()[None]).shape[-1]
        return min(self.reading.vocabulary, predicted)

    def unembedding(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """The rows of the output map behind the final norm, scales included, for some tokens; before any cap.

        Raises:
            UnsupportedModel: the prediction does not follow linearly from the final norm.
        """
        return self._output_map.rows(tokens)

    @property
    def unembedding_mean(self) -> Float[Tensor, " d_model"]:
        """The mean of those rows over all tokens: no probability depends on it; raises as `unembedding` does."""
        return self._output_map.mean_row()

    def readout(self, resid: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_out"]:
        """The prediction that the model would make from this stream: final norm, output map, scale and cap.

        Raises:
            UnsupportedModel: the way from the last layer to the prediction is not a chain of modules.
        """
        return self._tail().capped(self.uncapped(resid))

    def uncapped(self, resid: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_out"]:
        """The same before any cap."""
        return self._tail()(resid)

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
        return self._output_map(self.freeze(write, resid_final))

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

    def toward(
        self, rows: Float[Tensor, "place d_model"], resid_final: Float[Tensor, "place d_model"]
    ) -> Float[Tensor, "place d_model"]:
        """Directions of the stream whose product with a write is what rows of the output map read of it.

        The same as `attribute`, turned round: for few logits at few places, nothing of the size of the vocabulary.

        Args:
            rows: of the output map, such as `unembedding` gives, one for each place.
            resid_final: the stream after the last layer, at these places.

        Raises:
            UnsupportedModel: the identity does not hold in this model.
        """
        tail, norm = self._additive()
        if norm is None:
            return rows
        scaled = resid_final * tail.scales[0]
        with torch.no_grad():
            size = norm.size(scaled, tail.modules[0](scaled))
        return self.folded(rows) / size

    def folded(self, rows: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """Rows of the output map with the final norm's linear part folded in: all but the division by its size.

        Raises:
            UnsupportedModel: the final norm is of no known kind.
        """
        tail = self._tail()
        if isinstance(self.norm, str):
            raise UnsupportedModel(self.norm)
        return rows if self.norm is None else self.norm.transposed(rows) * tail.scales[0]

    @cached_property
    def readout_bias(self) -> Float[Tensor, " d_out"]:
        """What is predicted, before any cap, without any part of the stream; raises as `attribute` does."""
        tail, norm = self._additive()
        width = self._width()
        if norm is None:
            return tail(width[None, None])[0, 0]
        return tail(norm.bias[None, None], 1)[0, 0]

    @cached_property
    def _output_map(self) -> OutputMap:
        """What follows the final norm, if it is linear."""
        tail, norm = self._tail(), self.norm
        if isinstance(norm, str):
            raise UnsupportedModel(norm)
        return OutputMap(tail, 0 if norm is None else 1, len(self._width()))

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

    @cached_property
    def _value_maps(
        self,
    ) -> tuple[Float[Tensor, "layer kv_head d_model d_head"], Float[Tensor, "layer kv_head d_head"]]:
        """The value projections and their biases."""
        self._refuse_trained()
        found = self.reading.values
        if len({matrix.shape for matrix, _ in found}) > 1:
            raise UnsupportedModel("value projections must have one shape, but layers differ; pass layers= that agree")
        return torch.stack([matrix for matrix, _ in found]), torch.stack([bias for _, bias in found])

    def _refuse_trained(self) -> None:
        """Refuse a model that was changed after the capture."""
        if any(p._version != version for p, version in self.versions):
            raise RuntimeError(
                "a frame must be used before its model is changed, but parameters were written to after the capture; "
                "capture again"
            )
