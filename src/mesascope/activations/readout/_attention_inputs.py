"""Inputs of attention and the value projections, found by running the model on a trace input, never from names."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NoReturn
from weakref import ReferenceType

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.exclusive_use import exclusive_use, guard_hook
from mesascope.activations.forward import eval_no_grad, run_model
from mesascope.activations.hooks._module_arguments import read_argument
from mesascope.activations.hooks.attention_interface import AttentionCall, route_attention
from mesascope.activations.readout._layer_attention_input import LayerAttentionInput
from mesascope.activations.readout._norm import Norm, identify_norm
from mesascope.activations.readout._value_projection import (
    BatchedStream,
    BatchedValues,
    ValueProjection,
    build_value_projection,
    validate_linear,
)
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import allclose, relative_difference

UNIT_VECTOR_BATCH_SIZE = 32  # per forward pass, when values are computed for unit vectors


class _StopForward(Exception):  # noqa: N818  not an error: all that is needed has been recorded
    """Ends a forward pass early."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionInputs:
    """The inputs of attention in the recorded layers; what is derived from them is computed on first use.

    Attributes:
        model_ref: weak reference to the model.
        trace_input: the input for which the structure of the model was found.
        layer_inputs: per recorded layer, its attention input, or the reason why it is not known.
        entry_point: module of the model's first layer, and the argument that is the residual stream.
        first_resid_pre: residual stream before the first layer on the trace input.
        num_layers: number of layers of the model.
        run_fn: runs the model with inputs like the trace input.
    """

    model_ref: ReferenceType[PreTrainedModel]
    trace_input: Shaped[Tensor, "batch pos *d_in"]
    layer_inputs: tuple[LayerAttentionInput | str, ...]
    entry_point: tuple[nn.Module, int | str]
    first_resid_pre: BatchedStream
    num_layers: int
    run_fn: Callable[[PreTrainedModel, Tensor], object] = run_model

    def __getstate__(self) -> NoReturn:
        """Refuse to be pickled.

        Raises:
            TypeError: Always: the values are computed by running the model.
        """
        raise TypeError("a readout cannot be pickled, since it runs its model; pickle the capture, which leaves it out")

    @cached_property
    def attention_norms(self) -> tuple[Norm | None, ...]:
        """The norm before each layer's attention, in closed form; ``None`` without a norm.

        Raises:
            UnsupportedModel: If the input of attention is not known, or the norm is of an unknown kind.
        """
        return tuple(
            None
            if read.norm is None
            else identify_norm(read.norm, read.resid_pre.flatten(0, 1), "the norm before attention")
            for read in self._require_layer_inputs()
        )

    @property
    def model(self) -> PreTrainedModel:
        """The model.

        Raises:
            RuntimeError: If the model has been deleted.
        """
        model = self.model_ref()
        if model is None:
            raise RuntimeError(
                "a readout needs its model, but the model has been deleted; keep a reference to the capture"
            )
        return model

    def apply_norm(self, layer: int, resid: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """Return the attention input of a layer for a given residual stream: the model's own norm, applied.

        Args:
            layer: index among the recorded layers.
            resid: residual stream before the layer.

        Returns:
            The input of attention, in the shape of ``resid``.

        Raises:
            UnsupportedModel: If the input of attention is not known.
        """
        norm = self._require_layer_inputs()[layer].norm
        with torch.no_grad():
            return resid if norm is None else norm(resid)

    @cached_property
    def value_projections(self) -> tuple[ValueProjection, ...]:
        """Each layer's map from the attention input to the values, and its bias, found by running unit vectors.

        Raises:
            UnsupportedModel: If the values are not a linear function of the attention input.
        """
        by_module = {read.attention_module: read for read in self._require_layer_inputs()}
        layer_inputs = list(by_module.values())  # a module that is called in several iterations has one projection
        d_model, length = self.first_resid_pre.shape[-1], self.trace_input.shape[1]
        units = torch.eye(
            d_model + 1, d_model, dtype=self.first_resid_pre.dtype, device=self.first_resid_pre.device
        ).roll(1, 0)
        unit_sequences = torch.cat([units, units.new_zeros(-len(units) % length, d_model)]).unflatten(0, (-1, length))
        layer_values: list[list[Tensor]] = [[] for _ in layer_inputs]
        for part in unit_sequences.split(UNIT_VECTOR_BATCH_SIZE):
            for each, value in zip(
                layer_values, self._compute_values(layer_inputs, [part] * len(layer_inputs)), strict=True
            ):
                each.append(value.transpose(1, 2).flatten(0, 1))
        projections = [build_value_projection(torch.cat(each)[: d_model + 1]) for each in layer_values]
        values = self._compute_values(layer_inputs, [read.normed for read in layer_inputs])
        rescaled_values = self._compute_values(layer_inputs, [-2 * read.normed for read in layer_inputs])
        for layer, (read, value_map, value, rescaled_value) in enumerate(
            zip(layer_inputs, projections, values, rescaled_values, strict=True)
        ):
            validate_linear(layer, value_map, ((read.normed, value), (-2 * read.normed, rescaled_value)))
        by_attention = dict(zip(by_module, projections, strict=True))
        return tuple(by_attention[read.attention_module] for read in self._require_layer_inputs())

    def embed_tokens(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """Return what each token adds to the residual stream before the first layer, without positional embeddings.

        Args:
            tokens: token ids.

        Returns:
            Embeddings, times the model's embedding scale.

        Raises:
            UnsupportedModel: If the inputs are vectors, or more than a constant scale separates embedding and stream.
        """
        with torch.no_grad():
            return self._get_embedding_module()(tokens.to(self.trace_input.device)) * self._embedding_scale

    @property
    def vocab_size(self) -> int:
        """Number of tokens that can be embedded.

        Raises:
            UnsupportedModel: If tokens are not embedded by a `torch.nn.Embedding`.
        """
        return self._get_embedding_module().num_embeddings

    @cached_property
    def _embedding_scale(self) -> float:
        """The constant factor of the embeddings, from two inputs that differ only in their tokens."""
        if self.trace_input.is_floating_point():
            raise UnsupportedModel("token embeddings need a model of tokens, but the inputs of this model are vectors")
        embed = self._get_embedding_module()
        other_tokens = (self.trace_input + 1) % embed.weight.shape[0]
        with torch.no_grad():
            difference = embed(other_tokens) - embed(self.trace_input)
        resid_difference = self._compute_first_resid_pre(other_tokens) - self._compute_first_resid_pre(self.trace_input)
        size = difference.double().square().sum().item()
        fitted = (difference.double() * resid_difference.double()).sum().item() / size if size else 0.0
        for scale in (1.0, float(f"{fitted:.4g}"), fitted):
            if allclose(difference * scale, resid_difference, self.first_resid_pre.abs().max().item()):
                return scale
        raise UnsupportedModel(
            "the first layer must receive the token embeddings times a constant, but "
            f"{type(self.model).__name__} changes them further: the best constant leaves a difference of "
            f"{relative_difference(difference * fitted, resid_difference):.1e}"
        )

    def _get_embedding_module(self) -> nn.Embedding:
        embed = self.model.get_input_embeddings()
        if not isinstance(embed, nn.Embedding):
            raise UnsupportedModel(
                f"tokens must be embedded by a torch.nn.Embedding, but {type(self.model).__name__} uses "
                f"{type(embed).__name__}"
            )
        return embed

    def _require_layer_inputs(self) -> list[LayerAttentionInput]:
        """Return the attention inputs of all recorded layers, or raise if one is not known."""
        missing = {layer: why for layer, why in enumerate(self.layer_inputs) if isinstance(why, str)}
        if missing:
            raise UnsupportedModel(
                f"the input of attention must be known, but in recorded layers {list(missing)} it is not: "
                f"{next(iter(missing.values()))}"
            )
        return [read for read in self.layer_inputs if isinstance(read, LayerAttentionInput)]

    def _compute_values(
        self, layer_inputs: Sequence[LayerAttentionInput], attention_inputs: Sequence[BatchedStream]
    ) -> list[BatchedValues]:
        """Return the values of some layers, from one forward pass in which their attention reads the given inputs."""
        attention_modules = {read.attention_module for read in layer_inputs}
        values: dict[nn.Module, Tensor] = {}

        def intercept_attention(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
            if call.module in attention_modules:
                values[call.module] = call.value.clone()
            if len(values) == len(attention_modules):
                raise _StopForward
            return call.run_original(call.query, call.key, call.value)

        rows = self.trace_input[:1].repeat_interleave(len(attention_inputs[0]), dim=0)
        model = self.model
        with exclusive_use(model), route_attention(model, intercept_attention), ExitStack() as hooks:
            for read, x in zip(layer_inputs, attention_inputs, strict=True):
                hook = guard_hook(partial(_replace_argument, read.argument, x))
                hooks.callback(read.input_module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            self._run_until_stopped(rows)
        return [values[read.attention_module] for read in layer_inputs]

    def _compute_first_resid_pre(self, tokens: Int[Tensor, "batch pos"]) -> BatchedStream:
        module, argument = self.entry_point
        recorded: list[Tensor] = []

        def record_argument(_: nn.Module, args: tuple, kwargs: dict) -> None:
            recorded.append(read_argument(argument, args, kwargs).clone())
            raise _StopForward

        with exclusive_use(self.model):
            handle = module.register_forward_pre_hook(guard_hook(record_argument), with_kwargs=True)
            try:
                self._run_until_stopped(tokens)
            finally:
                handle.remove()
        return recorded[0]

    def _run_until_stopped(self, inputs: Shaped[Tensor, "batch pos *d_in"]) -> None:
        with eval_no_grad(self.model):
            try:
                self.run_fn(self.model, inputs)
            except _StopForward:
                return
        raise UnsupportedModel(
            f"{type(self.model).__name__} must call every hooked module in every run, but did not; capture again"
        )


def _replace_argument(
    argument: int | str, value: Tensor, _: nn.Module, args: tuple, kwargs: dict
) -> tuple[tuple, dict]:
    """Replace one argument of a module (forward pre-hook)."""
    if isinstance(argument, int):
        return (*args[:argument], value, *args[argument + 1 :]), kwargs
    return args, kwargs | {argument: value}
