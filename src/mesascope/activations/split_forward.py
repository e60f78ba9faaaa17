"""Forward passes in which every component reads a residual stream of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mesascope.activations.forward import eval_no_grad, run_model
from mesascope.activations.gradients import enable_activation_gradients
from mesascope.activations.hooks._block_call import BlockCall
from mesascope.activations.hooks._module_hooks import attach_hooks
from mesascope.activations.recording._unedited_pass import UneditedPass
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import allclose, relative_difference
from mesascope.activations.validation.inputs import InputsLike

Stream = Float[Tensor, "rows pos d_model"]
ATTENTION_INPUTS = ("query", "key", "value")


@runtime_checkable
class StreamRouter(Protocol):
    """Chooses the residual stream that each component reads, and receives what each component adds, layer by layer."""

    def receive_embedding(self, stream: Stream) -> None:
        """Receive the residual stream before the first layer.

        Args:
            stream: the stream.
        """

    def attention_streams(self, layer: int) -> tuple[Sequence[Stream], Sequence[Sequence[int]]]:
        """Return residual streams, and the index of the stream that each query, key and value head reads.

        Args:
            layer: the layer, counted from 0.
        """
        ...

    def receive_heads(self, layer: int, z: Float[Tensor, "rows pos head d_head"]) -> None:
        """Receive what the heads of a layer compute.

        Args:
            layer: the layer, counted from 0.
            z: what its heads compute.
        """

    def mlp_stream(self, layer: int) -> Stream:
        """Return the residual stream that an MLP reads.

        Args:
            layer: the layer, counted from 0.
        """
        ...

    def receive_mlp(self, layer: int, update: Stream) -> None:
        """Receive the residual update of an MLP.

        Args:
            layer: the layer, counted from 0.
            update: the residual update.
        """

    def output_stream(self) -> Stream:
        """Return the residual stream that is mapped to the output."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class InputGradients:
    """Gradients of an objective with respect to the residual streams that the components of one layer read.

    The gradient goes through this component alone, and then through everything after it.

    Attributes:
        query: (batch, head, pos, d_model).
        key: (batch, kv_head, pos, d_model).
        value: (batch, kv_head, pos, d_model).
        mlp: (batch, pos, d_model); ``None`` in a layer without an MLP.
    """

    query: Float[Tensor, "batch head pos d_model"]
    key: Float[Tensor, "batch kv_head pos d_model"]
    value: Float[Tensor, "batch kv_head pos d_model"]
    mlp: Float[Tensor, "batch pos d_model"] | None


class SplitForward(UneditedPass):
    """Forward passes in which components read residual streams of their own, and the gradients by these streams.

    Args:
        model: any model that `capture` supports, with attention in every layer and heads that add to the stream through
            a linear output projection.
        inputs: tokens, vectors, a batch of a task, or the output of a tokenizer with its attention mask.
        attention_mask: (batch, pos), 1 where an input is not padding.
        all_positions: compute outputs at every position; otherwise at the last position only, if the model class can
            and no sequence ends with padding.

    Raises:
        UnsupportedModel: the model has no such components.
    """

    def __init__(
        self, model: nn.Module, inputs: InputsLike, *, attention_mask: Any = None, all_positions: bool = True
    ) -> None:
        super().__init__(model, inputs, "z", attention_mask=attention_mask, all_positions=all_positions)
        self._check_components()
        every_layer = range(self.num_layers)
        sites: dict[str, Sequence[int]] = dict.fromkeys(("resid_pre", *ATTENTION_INPUTS, "z", "attn_out"), every_layer)
        self.validate_sites(sites | {"mlp_out": self._layers_with_mlp})
        self.request_sites({"attn_out": every_layer, "mlp_out": self._layers_with_mlp, "resid_post": every_layer[-1:]})

    @property
    def _layers_with_mlp(self) -> list[int]:
        return [layer for layer in range(self.num_layers) if self.has_mlp(layer)]

    def num_heads(self, layer: int) -> int:
        """Return the number of query heads of a layer.

        Args:
            layer: the layer, counted from 0.
        """
        return self._structure.layers[layer].num_heads

    def num_kv_heads(self, layer: int) -> int:
        """Return the number of key-value heads of a layer.

        Args:
            layer: the layer, counted from 0.
        """
        return self._structure.layers[layer].num_kv_heads

    def has_mlp(self, layer: int) -> bool:
        """Return whether a layer has an MLP.

        Args:
            layer: the layer, counted from 0.
        """
        return self._structure.layers[layer].mlp_out is not None

    def output_projection(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        """Return the maps from what the heads of a layer compute to what they add to the residual stream.

        Args:
            layer: the layer, counted from 0.

        Raises:
            UnsupportedModel: there is no such map.
        """
        projection = self._structure.readout(self.model, range(self.num_layers)).projection_modules[layer]
        if isinstance(projection, str):
            raise UnsupportedModel(f"heads of layer {layer} must add to the stream linearly, but {projection}")
        return projection.compute_matrix()[0]

    def mlp_stream(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """Return the residual stream that an MLP reads in the unedited pass.

        Args:
            layer: the layer, counted from 0.
        """
        stream = self.unedited_activation("resid_pre", layer)
        return stream if self.is_parallel(layer) else stream + self.unedited_activation("attn_out", layer)

    def run(
        self, router: StreamRouter, inputs: Tensor, mask: Int[Tensor, "rows pos"] | None
    ) -> Float[Tensor, "rows predicted d_out"]:
        """Run the model on streams that a router chooses.

        Args:
            router: chooses the streams, and receives what is added to them.
            inputs: inputs, which give the residual stream before the first layer.
            mask: 1 where an input is not padding.

        Returns:
            The output of the model for the router's last residual stream.
        """
        mlp_streams: dict[int, Tensor] = {}

        def start_layer(number: int, call: BlockCall) -> None:
            if number == 0:
                router.receive_embedding(call.stream)
            streams, index_by_input = router.attention_streams(number)
            query, key, value = _mix_attention_inputs(call, streams, index_by_input)
            router.receive_heads(number, call.compute_heads(streams[0], query, key, value))
            mlp_streams[number] = router.mlp_stream(number) if self.has_mlp(number) else streams[0]

        def route(site: str, number: int, value: Tensor) -> Tensor | None:
            if site == "resid_pre":
                return mlp_streams.pop(number)
            if site == "attn_out":
                return torch.zeros_like(value)
            if site == "mlp_out":
                router.receive_mlp(number, value)
                return None
            return router.output_stream()

        every_layer = range(self.num_layers)
        sites = {"resid_pre": every_layer, "attn_out": every_layer, "resid_post": [self.num_layers - 1]}
        sites["mlp_out"] = self._layers_with_mlp
        with (
            eval_no_grad(self.model),
            attach_hooks(self.model, self._structure.layers, sites, route, on_layer_start=start_layer),
        ):
            return run_model(self.model, inputs, mask, all_positions=self._all_positions)

    def output_from_stream(self, stream: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch predicted d_out"]:
        """Return the output of the model if its last residual stream is replaced.

        Args:
            stream: the residual stream that is mapped to the output.
        """
        last = self.num_layers - 1
        with (
            eval_no_grad(self.model),
            attach_hooks(self.model, self._structure.layers, {"resid_post": [last]}, lambda *_: stream),
        ):
            return run_model(self.model, self.inputs, self.attention_mask, all_positions=self._all_positions)

    def input_gradients(
        self, embedding: Float[Tensor, "batch pos d_model"], objective: Callable[[Tensor], Tensor]
    ) -> tuple[list[InputGradients], Float[Tensor, "batch pos d_model"]]:
        """Return the gradients of an objective with respect to the stream that each component reads.

        In every layer, the gradients of its components and that of the stream after it sum to that of the stream before
        it, which is checked.

        Args:
            embedding: the residual stream before the first layer, which replaces that of the inputs.
            objective: a function from outputs (batch, predicted, d_out) to one number per sequence (batch).

        Returns:
            The gradients, by layer; and that with respect to the stream that is mapped to the output.

        Raises:
            UnsupportedModel: the gradients do not sum to the gradient of the stream.
        """
        calls: list[BlockCall] = []
        recorded: dict[tuple[str, int], Tensor] = {}

        def observe(site: str, number: int, value: Tensor) -> Tensor | None:
            if site == "resid_pre":
                return embedding
            if site in ATTENTION_INPUTS:
                value.register_hook(lambda gradient: recorded.__setitem__((f"{site}_grad", number), gradient))
            else:
                recorded[site, number] = value
            return None

        last, every_layer = self.num_layers - 1, range(self.num_layers)
        sites: dict[str, Sequence[int]] = dict.fromkeys((*ATTENTION_INPUTS, "resid_pre_grad", "attn_out"), every_layer)
        sites |= {"resid_pre": [0], "attn_out_grad": [last], "mlp_out_grad": self._layers_with_mlp}
        layers = self._structure.layers
        with (
            eval_no_grad(self.model),
            enable_activation_gradients(self.model, layers, activation_checkpointing=False),
        ):
            with attach_hooks(self.model, layers, sites, observe, on_layer_start=lambda _, call: calls.append(call)):
                output = run_model(self.model, self.inputs, self.attention_mask, all_positions=self._all_positions)
            objective(output).sum().backward()
            streams = [embedding, *(call.stream.detach() for call in calls[1:])]
            by_layer = [
                self._pull_back(number, call, stream, recorded)
                for number, (call, stream) in enumerate(zip(calls, streams, strict=True))
            ]
        after = recorded["mlp_out_grad" if self.has_mlp(last) else "attn_out_grad", last]
        self._check_sums(by_layer, [recorded["resid_pre_grad", number] for number in every_layer] + [after])
        return by_layer, after

    def _pull_back(
        self, number: int, call: BlockCall, stream: Tensor, recorded: dict[tuple[str, int], Tensor]
    ) -> InputGradients:
        """Return the gradients by the streams that the components of one layer read."""
        leaf = stream.detach().requires_grad_()
        by_input = {
            site: _pull_back_heads(value, recorded[f"{site}_grad", number], leaf)
            for site, value in zip(ATTENTION_INPUTS, call.compute_attention_inputs(leaf), strict=True)
        }
        mlp = None
        if self.has_mlp(number):
            read = stream if self.is_parallel(number) else stream + recorded["attn_out", number]
            leaf = read.detach().requires_grad_()
            (mlp,) = torch.autograd.grad(call.compute_mlp_output(leaf), leaf, recorded["mlp_out_grad", number])
        return InputGradients(**by_input, mlp=mlp)

    def _check_sums(self, by_layer: Sequence[InputGradients], by_stream: Sequence[Tensor]) -> None:
        for number, parts in enumerate(by_layer):
            total = sum((getattr(parts, site).sum(1) for site in ATTENTION_INPUTS), by_stream[number + 1])
            total = total if parts.mlp is None else total + parts.mlp
            if not allclose(total, by_stream[number]):
                raise UnsupportedModel(
                    "the gradients of the components of a layer must sum to that of the residual stream before it, but "
                    f"in layer {number} of {type(self.model).__name__} they deviate by "
                    f"{relative_difference(total, by_stream[number]):.1e} (relative); other modules read the stream"
                )

    def _check_components(self) -> None:
        """Raise an error if a layer has no attention, or heads whose updates are not known."""
        for number, layer in enumerate(self._structure.layers):
            needed = [*ATTENTION_INPUTS, "z", "attn_out", "projection"]
            lacking = next((site for site in needed if site in layer.missing), None)
            if layer.attention is None or lacking is not None:
                reason = layer.missing[lacking] if lacking is not None else "it has no attention"
                raise UnsupportedModel(
                    "every layer must have attention whose heads add to the residual stream through a linear "
                    f"projection, but layer {number} of {type(self.model).__name__} lacks "
                    f"{lacking or 'attention'} ({reason}); use patch or path_patch"
                )


def _mix_attention_inputs(
    call: BlockCall, streams: Sequence[Tensor], index_by_input: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Return queries, keys and values, each head computed from its own stream."""
    computed = [call.compute_attention_inputs(stream) for stream in streams]
    mixed = []
    for number, indices in enumerate(index_by_input):
        first = indices[0]
        result = computed[first][number]
        if any(index != first for index in indices):
            result = result.clone(memory_format=torch.preserve_format)
            for head, index in enumerate(indices):
                result[:, head] = computed[index][number][:, head]
        mixed.append(result)
    return mixed


def _pull_back_heads(
    value: Float[Tensor, "batch head pos d_head"], gradient: Float[Tensor, "batch head pos d_head"], leaf: Stream
) -> Float[Tensor, "batch head pos d_model"]:
    """Return the gradient by a stream through each head alone."""
    by_head = []
    for head in range(value.shape[1]):
        of_head = torch.zeros_like(gradient)
        of_head[:, head] = gradient[:, head]
        by_head.append(torch.autograd.grad(value, leaf, of_head, retain_graph=True)[0])
    return torch.stack(by_head, 1)
