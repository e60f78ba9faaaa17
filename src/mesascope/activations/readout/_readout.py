"""`Readout`: the linear maps around the recorded activations, so that analyses need no model."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations.readout._attention_inputs import AttentionInputs
from mesascope.activations.readout._deferred import Deferred
from mesascope.activations.readout._norm import Norm
from mesascope.activations.readout._output_projection import OutputProjection
from mesascope.activations.readout._output_readout import OutputReadout, check_same_weights
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.validation.fingerprint import model_tensors


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Readout(OutputReadout):
    """Projections, norms, embeddings and output head of the model that was recorded.

    The output head is described in `OutputReadout`.

    Attributes:
        num_heads, num_kv_heads: heads per layer with attention, taken from the first such layer.
        rows_sum_to_one: per recorded layer, True if every row of its attention weights sums to 1 on the trace input.
        projection_search: finds `projection_modules`.
        cross_projection_search: finds `cross_projection_modules`.
        attention_inputs: inputs of attention and embeddings, computed on first use.
    """

    num_heads: int
    num_kv_heads: int
    rows_sum_to_one: tuple[bool, ...]
    projection_search: Deferred[tuple[OutputProjection | str, ...]]
    cross_projection_search: Deferred[tuple[OutputProjection | str, ...]]
    attention_inputs: AttentionInputs

    def __repr__(self) -> str:
        """Return its sizes, without the weights."""
        head = self.output_head if isinstance(self.output_head, str) else "final norm and output head"
        width, heads = self.resid_vector.shape[-1], f"{self.num_heads} heads of {self.num_layers} layers"
        return f"Readout of {heads}, width {width}: {head}"

    def __getstate__(self) -> NoReturn:
        """Refuse to be pickled.

        Raises:
            TypeError: Always: what is found on first use is found by running the model.
        """
        raise TypeError("a readout cannot be pickled, since it runs its model; pickle the capture, which leaves it out")

    def without_numbers(self) -> "Readout":
        """Return a readout of the same modules whose numbers are read from the weights on first use."""
        return replace(self, attention_inputs=replace(self.attention_inputs))

    def find_all(self) -> None:
        """Find what is otherwise found on first use, such as before hooks are attached to the modules that it runs."""
        for search in (
            self.final_norm_search,
            self.additivity_check,
            self.projection_search,
            self.cross_projection_search,
        ):
            search.get()

    @property
    def projection_modules(self) -> tuple[OutputProjection | str, ...]:
        """Per recorded layer, its output projection, or the reason why there is none.

        Raises:
            RuntimeError: parameters were modified after the capture.
        """
        self._check_unmodified()
        return self.projection_search.get()

    @property
    def cross_projection_modules(self) -> tuple[OutputProjection | str, ...]:
        """Per recorded layer, that of its cross-attention.

        Raises:
            RuntimeError: parameters were modified after the capture.
        """
        self._check_unmodified()
        return self.cross_projection_search.get()

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
    def cross_output_projection(self) -> Float[Tensor, "layer head d_head d_model"]:
        """The maps from ``cross_z`` to the stream: times this, plus `cross_output_bias`, it is ``cross_attn_out``.

        Raises:
            UnsupportedModel: As for `output_projection`.
        """
        return self._cross_output_weights[0]

    @property
    def cross_output_bias(self) -> Float[Tensor, "layer d_model"]:
        """The part of each layer's ``cross_attn_out`` that does not depend on ``cross_z``.

        Raises:
            UnsupportedModel: As for `output_projection`.
        """
        return self._cross_output_weights[1]

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

    def _check_unmodified(self) -> None:
        check_same_weights(self.weights, model_tensors(self.attention_inputs.model))

    @cached_property
    def _output_weights(self) -> tuple[Float[Tensor, "layer head d_head d_model"], Float[Tensor, "layer d_model"]]:
        """The output projections and their biases."""
        return self._compute_projections("z", self.projection_modules)

    @cached_property
    def _cross_output_weights(
        self,
    ) -> tuple[Float[Tensor, "layer head d_head d_model"], Float[Tensor, "layer d_model"]]:
        """The output projections of cross-attention and their biases."""
        return self._compute_projections("cross_z", self.cross_projection_modules)

    def _compute_projections(
        self, site: str, modules: tuple[OutputProjection | str, ...]
    ) -> tuple[Float[Tensor, "layer head d_head d_model"], Float[Tensor, "layer d_model"]]:
        missing = {n: each for n, each in enumerate(modules) if isinstance(each, str)}
        if missing:
            raise UnsupportedModel(
                f"{site} must reach the stream through a linear map, but in recorded layers {list(missing)} it does "
                f"not: {next(iter(missing.values()))}"
            )
        weights = [each.compute_matrix() for each in modules if isinstance(each, OutputProjection)]
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
