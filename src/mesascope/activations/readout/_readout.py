"""`Readout`: the linear maps around the recorded activations, so that analyses need no model."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mesascope.activations.readout._attention_inputs import AttentionInputs
from mesascope.activations.readout._output_head import Norm, OutputHead
from mesascope.activations.readout._output_projection import OutputProjection
from mesascope.activations.readout._unembedding import Unembedding
from mesascope.activations.sites import UnsupportedModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Readout:
    """Projections, norms, embeddings and output head of the model that was recorded.

    Attributes:
        num_heads, num_kv_heads: heads per layer with attention, taken from the first such layer.
        rows_sum_to_one: per recorded layer, True if every row of its attention weights sums to 1 on the trace input.
        projection_modules: per recorded layer, its output projection, or the reason why there is none.
        output_head: final norm, unembedding and soft cap, or the reason why there is none.
        final_norm: the final norm in closed form, ``None`` without one, or the reason why it is not known.
        non_additive_reason: why the output is not a sum of residual updates; empty where it is.
        attention_inputs: inputs of attention and embeddings, computed on first use.
        parameter_versions: version counter of each parameter, by which later training is detected.
    """

    num_heads: int
    num_kv_heads: int
    rows_sum_to_one: tuple[bool, ...]
    projection_modules: tuple[OutputProjection | str, ...]
    output_head: OutputHead | str
    final_norm: Norm | str | None
    non_additive_reason: str
    attention_inputs: AttentionInputs
    parameter_versions: tuple[tuple[nn.Parameter, int], ...]

    @property
    def num_layers(self) -> int:
        """Number of layers of the model, recorded or not."""
        return self.attention_inputs.num_layers

    @property
    def output_projection(self) -> Float[Tensor, "layer head d_head d_model"]:
        """The maps from ``z`` of each head to the stream: ``z`` times this, plus `output_bias`, is ``attn_out``.

        Raises:
            UnsupportedModel: If a layer has no such map (a gate or a norm follows), or layers differ in shape.
        """
        return self._output_weights[0]

    @property
    def output_bias(self) -> Float[Tensor, "layer d_model"]:
        """The part of each layer's ``attn_out`` that does not depend on ``z``.

        Raises:
            UnsupportedModel: As for `output_projection`.
        """
        return self._output_weights[1]

    @property
    def attention_norms(self) -> tuple[Norm | None, ...]:
        """The norm before each layer's attention in closed form; ``None`` where attention reads the stream itself.

        Raises:
            UnsupportedModel: If another operation separates the residual stream and attention.
            RuntimeError: If parameters were modified after the capture.
        """
        self._check_unmodified()
        return self.attention_inputs.attention_norms

    def apply_attention_norm(self, layer: int, resid: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """Return the attention input of a recorded layer for a given residual stream: the model's own norm, applied.

        Args:
            layer: index among the recorded layers.
            resid: residual stream before the layer.

        Returns:
            The input of attention, in the shape of ``resid``.

        Raises:
            UnsupportedModel: If another operation separates the residual stream and attention.
            RuntimeError: If parameters were modified after the capture.
        """
        self._check_unmodified()
        return self.attention_inputs.apply_norm(layer, resid)

    @property
    def value_projection(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        """The maps from attention input to values: attention input times this, plus `value_bias`, is ``value``.

        Computed on first use by running the model on unit vectors, and checked against the model's own values.

        Raises:
            UnsupportedModel: If values are not a linear function of the attention input, or layers differ in shape.
        """
        return self._value_weights[0]

    @property
    def value_bias(self) -> Float[Tensor, "layer kv_head d_head"]:
        """The values for an attention input of zeros.

        Raises:
            UnsupportedModel: As for `value_projection`.
        """
        return self._value_weights[1]

    def embed_tokens(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """Return what tokens add to the residual stream before the first layer, without positional embeddings.

        Args:
            tokens: token ids.

        Returns:
            Embeddings, times the model's embedding scale.

        Raises:
            UnsupportedModel: If more than a constant scale separates embedding and first layer, or inputs are vectors.
            RuntimeError: If parameters were modified after the capture.
        """
        self._check_unmodified()
        return self.attention_inputs.embed_tokens(tokens)

    @property
    def vocab_size(self) -> int:
        """Number of tokens that can be both read and predicted.

        Raises:
            UnsupportedModel: If tokens cannot be embedded, or the output is not linear in the output of the final norm.
        """
        d_out = self._unembedding(self._make_zero_stream()[None]).shape[-1]
        return min(self.attention_inputs.vocab_size, d_out)

    def get_unembedding_rows(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """Return the rows of the unembedding for some tokens, scales included, before any soft cap.

        Args:
            tokens: token ids.

        Returns:
            The direction after the final norm along which each token's logit is read.

        Raises:
            UnsupportedModel: If the output is not a linear function of the final norm's output.
        """
        return self._unembedding.get_rows(tokens)

    @property
    def unembedding_mean(self) -> Float[Tensor, " d_model"]:
        """The mean row of the unembedding over all tokens, on which no probability depends.

        Raises:
            UnsupportedModel: If the output is not a linear function of the final norm's output.
        """
        return self._unembedding.compute_mean_row()

    def compute_output(self, resid: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_out"]:
        """Compute the output from a residual stream (logit lens): final norm, unembedding, scale and soft cap.

        Args:
            resid: residual stream of any layer.

        Returns:
            Logits, or predicted vectors.

        Raises:
            UnsupportedModel: If the output is not computed from the last layer by a chain of modules.
        """
        return self._require_output_head().apply_softcap(self.compute_uncapped_output(resid))

    def compute_uncapped_output(self, resid: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_out"]:
        """Compute the output from a residual stream before the soft cap.

        Args:
            resid: residual stream of any layer.

        Returns:
            Logits, or predicted vectors, before the soft cap.

        Raises:
            UnsupportedModel: If the output is not computed from the last layer by a chain of modules.
        """
        return self._require_output_head()(resid)

    def attribute_logits(
        self, update: Float[Tensor, "*parts batch pos d_model"], resid_final: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "*parts batch pos d_out"]:
        """Compute the direct contribution of residual updates to the output (direct logit attribution).

        The final norm is frozen at ``resid_final``, so that the map is linear: the contributions of the embedding
        (``resid_pre[0]``) and of all updates, plus `readout_bias`, sum to the output before the soft cap.

        Args:
            update: parts of the final residual stream.
            resid_final: residual stream after the last layer.

        Returns:
            The contribution of each part to the output.

        Raises:
            UnsupportedModel: If the identity does not hold in this model.
        """
        return self._unembedding(self.apply_frozen_norm(update, resid_final))

    def apply_frozen_norm(
        self, update: Float[Tensor, "*parts batch pos d_model"], resid_final: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "*parts batch pos d_model"]:
        """Apply the final norm, frozen at ``resid_final``, to residual updates.

        Args:
            update: parts of the final residual stream.
            resid_final: residual stream after the last layer.

        Returns:
            The parts after the norm, before the unembedding.

        Raises:
            UnsupportedModel: If the output of this model is not a sum of residual updates.
        """
        output_head, norm = self._require_additive()
        if norm is None:
            return update
        scaled = resid_final * output_head.scales[0]
        with torch.no_grad():
            scale = norm.scale(scaled, output_head.modules[0](scaled))
        return norm.linear_part(update * output_head.scales[0]) / scale

    def logit_directions(
        self, rows: Float[Tensor, "place d_model"], resid_final: Float[Tensor, "place d_model"]
    ) -> Float[Tensor, "place d_model"]:
        """Compute directions of the residual stream whose dot product with an update is its logit contribution.

        The transpose of `attribute_logits`: for few logits at few positions, it needs no tensor of vocabulary size.

        Args:
            rows: rows of the unembedding, one per position, as `get_unembedding_rows` returns them.
            resid_final: residual stream after the last layer, at these positions.

        Returns:
            One direction per position.

        Raises:
            UnsupportedModel: If the output of this model is not a sum of residual updates.
        """
        output_head, norm = self._require_additive()
        if norm is None:
            return rows
        scaled = resid_final * output_head.scales[0]
        with torch.no_grad():
            scale = norm.scale(scaled, output_head.modules[0](scaled))
        return self.fold_norm(rows) / scale

    def fold_norm(self, rows: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """Fold the linear part of the final norm into rows of the unembedding.

        Args:
            rows: rows of the unembedding.

        Returns:
            Directions before the final norm, without the division by its scale.

        Raises:
            UnsupportedModel: If the final norm is of an unknown kind.
        """
        output_head = self._require_output_head()
        if isinstance(self.final_norm, str):
            raise UnsupportedModel(self.final_norm)
        return rows if self.final_norm is None else self.final_norm.apply_transposed(rows) * output_head.scales[0]

    @cached_property
    def readout_bias(self) -> Float[Tensor, " d_out"]:
        """The output before the soft cap that no part of the residual stream contributes.

        Raises:
            UnsupportedModel: If the output of this model is not a sum of residual updates.
        """
        output_head, norm = self._require_additive()
        zeros = self._make_zero_stream()
        if norm is None:
            return output_head(zeros[None, None])[0, 0]
        return output_head(norm.bias[None, None], 1)[0, 0]

    @cached_property
    def _unembedding(self) -> Unembedding:
        """The map after the final norm, if it is linear."""
        output_head, norm = self._require_output_head(), self.final_norm
        if isinstance(norm, str):
            raise UnsupportedModel(norm)
        return Unembedding(output_head, 0 if norm is None else 1, len(self._make_zero_stream()))

    def _make_zero_stream(self) -> Float[Tensor, " d_model"]:
        output_head = self._require_output_head()
        reference = next(p for module in output_head.modules for p in module.parameters())
        return reference.new_zeros(reference.shape[-1])

    def _require_output_head(self) -> OutputHead:
        if isinstance(self.output_head, str):
            raise UnsupportedModel(self.output_head)
        self._check_unmodified()
        return self.output_head

    def _require_additive(self) -> tuple[OutputHead, Norm | None]:
        """Return output head and final norm, if the output is a sum of residual updates."""
        output_head = self._require_output_head()
        if self.non_additive_reason or isinstance(self.final_norm, str):
            raise UnsupportedModel(self.non_additive_reason or str(self.final_norm))
        return output_head, self.final_norm

    @cached_property
    def _output_weights(self) -> tuple[Float[Tensor, "layer head d_head d_model"], Float[Tensor, "layer d_model"]]:
        """The output projections and their biases."""
        self._check_unmodified()
        missing = {n: each for n, each in enumerate(self.projection_modules) if isinstance(each, str)}
        if missing:
            raise UnsupportedModel(
                f"z must reach the stream through a linear map, but in recorded layers {list(missing)} it does not: "
                f"{next(iter(missing.values()))}"
            )
        weights = [each.compute_matrix() for each in self.projection_modules if isinstance(each, OutputProjection)]
        if len({matrix.shape for matrix, _ in weights}) > 1:
            raise UnsupportedModel(
                "output projections must have one shape, but layers differ; pass layers= that have the same shape"
            )
        return torch.stack([matrix for matrix, _ in weights]), torch.stack([bias for _, bias in weights])

    @cached_property
    def _value_weights(
        self,
    ) -> tuple[Float[Tensor, "layer kv_head d_model d_head"], Float[Tensor, "layer kv_head d_head"]]:
        """The value projections and their biases."""
        self._check_unmodified()
        projections = self.attention_inputs.value_projections
        if len({matrix.shape for matrix, _ in projections}) > 1:
            raise UnsupportedModel(
                "value projections must have one shape, but layers differ; pass layers= that have the same shape"
            )
        return torch.stack([matrix for matrix, _ in projections]), torch.stack([bias for _, bias in projections])

    def _check_unmodified(self) -> None:
        if any(p._version != version for p, version in self.parameter_versions):
            raise RuntimeError(
                "a readout needs unchanged parameters, but they were modified after the capture; capture again"
            )
