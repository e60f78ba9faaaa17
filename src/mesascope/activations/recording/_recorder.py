"""The hook function of a capture: edits, stores and reduces activations."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mesascope.activations._layer_view import LayerReduction, LayerView, check_reduction_shape
from mesascope.activations._memory import allocate_tensor
from mesascope.activations.edits import Edit, EditHadNoEffect, apply_edit
from mesascope.activations.hooks._block_call import BlockCall
from mesascope.activations.hooks.attention_interface import AttentionCall
from mesascope.activations.recording._micro_batch import MicroBatch, Reduction
from mesascope.activations.sites import (
    FINAL_NORM,
    HALTING_SITES,
    OUTPUT_HEAD_SITES,
    OUTPUT_SITES,
    UnsupportedModel,
    get_site,
    strip_gradient_suffix,
)

LAST_FORWARD_SITE, LAST_BACKWARD_SITE = (
    "resid_post",
    "resid_pre_grad",
)  # last sites of a layer in the forward and the backward pass

COMPUTED_SITES = (
    "attn_scores",
    "pattern",
    "cross_attn_scores",
    "cross_pattern",
)  # computed by the hooks, so that the model cannot overwrite them


ApplyEditFn = Callable[..., Tensor | None]


class Recorder:
    """Hook function that edits, stores and reduces activations, micro-batch by micro-batch, in preallocated tensors.

    Args:
        sites: the sites to store.
        reduce: reductions by name.
        edits: edits, applied in order before anything is stored.
        layers: the layers to record, in order; calls of layers, in a model that repeats its layers.
        edited_layers: for each edit, the layers that it edits.
        batch_size: the number of sequences of the whole batch.
        layers_without_site: the layers that lack a site, by site; optional sites are not requested there.
        is_dynamic: whether some of the layers may not run, for some sequences; their entries are NaN.
        num_chunks: the number of chunks of positions; ``None`` in a model that processes all positions at once.
    """

    def __init__(
        self,
        *,
        sites: Sequence[str],
        reduce: Mapping[str, Reduction | LayerReduction],
        edits: Sequence[Edit],
        layers: Sequence[int],
        edited_layers: Sequence[Sequence[int]],
        batch_size: int,
        layers_without_site: Mapping[str, Collection[int]] | None = None,
        is_dynamic: bool = False,
        num_chunks: int | None = None,
    ) -> None:
        self.recorded: dict[str, Tensor] = {}
        shape = (batch_size,) if num_chunks is None else (batch_size, num_chunks)
        self.iterations_run = torch.zeros(shape, dtype=torch.long)
        self.micro_batch: MicroBatch  # set before each micro-batch
        self._stored_sites, self._edits, self._batch_size = tuple(sites), tuple(edits), batch_size
        self._site_reductions = {name: how for name, how in reduce.items() if isinstance(how, Reduction)}
        several = [how for how in reduce.values() if isinstance(how, LayerReduction)]
        self._backward_reductions = [how for how in several if any(map(strip_gradient_suffix, how.sites))]
        self._forward_reductions = [how for how in several if how not in self._backward_reductions]
        self._layers_without_site = layers_without_site or {}
        self._recorded_indices = {layer: slot for slot, layer in enumerate(layers)}
        self._edited_layers, self._is_dynamic = edited_layers, is_dynamic
        self._had_effect = [False] * len(edits)

    @property
    def _requested_sites(self) -> set[str]:
        """The sites that are recorded or reduced on their own."""
        return {*self._stored_sites, *(how.site for how in self._site_reductions.values())}

    @property
    def layers_by_site(self) -> dict[str, tuple[int, ...]]:
        """The layers of every site that needs a hook, sorted, by site."""
        requested = self._requested_sites.difference(OUTPUT_HEAD_SITES, HALTING_SITES)
        requested |= {name for how in (*self._forward_reductions, *self._backward_reductions) for name in how.sites}
        requested |= ({LAST_FORWARD_SITE} if self._forward_reductions or self._backward_reductions else set()) | (
            {LAST_BACKWARD_SITE} if self._backward_reductions else set()
        )
        layers_by_site = {
            name: set(self._recorded_indices) if "layer" in get_site(name).axes else {0} for name in requested
        }
        for name in {
            name for how in (*self._forward_reductions, *self._backward_reductions) for name in how.optional_sites
        } - requested:
            layers_by_site[name] = set(self._recorded_indices) - set(self._layers_without_site.get(name, ()))
        for edit, layers in zip(self._edits, self._edited_layers, strict=True):
            layers_by_site.setdefault(edit.site, set()).update(layers)
        return {name: tuple(sorted(layers)) for name, layers in sorted(layers_by_site.items())}

    @property
    def needs_gradients(self) -> bool:
        """True if any gradient is recorded."""
        return any(map(strip_gradient_suffix, self.layers_by_site))

    @property
    def needs_output(self) -> bool:
        """True if outputs are needed at every position, to be recorded or for a gradient."""
        return not self._requested_sites.isdisjoint(OUTPUT_HEAD_SITES) or self.needs_gradients

    @property
    def needs_final_norm(self) -> bool:
        """True if the output of the final norm is recorded."""
        return FINAL_NORM in self._requested_sites

    def on_layer_start(self, layer: int, call: BlockCall) -> None:
        """Store how to recompute the queries of a layer from another residual stream.

        Args:
            layer: the layer, counted from 0.
            call: the call of its block.
        """
        if layer in self._recorded_indices and self.reduces_layers:
            self.micro_batch.recompute_fns[layer] = call.compute_query

    def on_attention_call(self, layer: int, call: AttentionCall) -> None:
        """Store how to find the keys that a layer's queries can attend to.

        Args:
            layer: the layer, counted from 0.
            call: its attention call.
        """
        if layer in self._recorded_indices and self.reduces_layers:
            self.micro_batch.visible_keys_fns[layer] = call.visible_keys_fn()

    def __call__(
        self, site_name: str, layer: int, value: Float[Tensor, "batch *rest"]
    ) -> Float[Tensor, "batch *rest"] | None:
        """Record the activation after its edits, and return it if an edit had an effect; this is the hook function."""
        replacement = self.edit(site_name, layer, value)
        self.record(site_name, layer, value if replacement is None else replacement)
        return replacement

    def edit(
        self, site_name: str, layer: int, value: Float[Tensor, "batch *rest"], apply_fn: ApplyEditFn = apply_edit
    ) -> Float[Tensor, "batch *rest"] | None:
        """Return an activation after its edits, or ``None`` if none had an effect.

        Args:
            site_name: the name of the site.
            layer: the layer, counted from 0.
            value: the activation.
            apply_fn: applies one edit, with the arguments of `apply_edit`.
        """
        replacement = None
        for number, edit in enumerate(self._edits):
            if edit.site == site_name and layer in self._edited_layers[number]:
                rows, context = self.micro_batch.rows, self.micro_batch.context
                changed = apply_fn(edit, value, layer, rows, self._batch_size, context.mask, context.source_mask)
                if changed is not None:
                    value = replacement = changed
                    self._had_effect[number] = True
        return replacement

    def record(self, site_name: str, layer: int, value: Float[Tensor, "batch *rest"]) -> None:
        """Store and reduce an activation.

        Args:
            site_name: the name of the site.
            layer: the layer, counted from 0.
            value: the activation, after its edits.
        """
        if not self.records(site_name, layer):
            return
        with torch.no_grad():
            if "layer" in get_site(site_name).axes:
                self._store_and_reduce(site_name, value.detach(), self._recorded_indices[layer])
                self._collect_for_reductions(site_name, layer, value.detach())
            else:
                self._store_and_reduce(site_name, value.detach(), None)

    def records(self, site_name: str, layer: int) -> bool:
        """Return whether the activations of a site are recorded, by themselves or for reductions.

        Args:
            site_name: the name of the site.
            layer: the layer, counted from 0.
        """
        return layer in self._recorded_indices if "layer" in get_site(site_name).axes else True

    @property
    def reduces_layers(self) -> bool:
        """True if several sites of a layer are reduced together."""
        return bool(self._forward_reductions or self._backward_reductions)

    def record_output(self, output: Mapping[str, Any], normed: Sequence[Tensor], num_iterations: Sequence[int]) -> None:
        """Record the model's output for the micro-batch.

        Args:
            output: logits or predicted vectors, and the fields of a model that halts.
            normed: the outputs of the final norm, one for each time that it was called.
            num_iterations: the number of iterations that have run, by chunk; one number without chunks.

        Raises:
            UnsupportedModel: the output lacks a field, or the final norm was not called once, for every position.
        """
        if self.needs_final_norm:
            shapes = [tuple(each.shape[:-1]) for each in normed]
            if shapes != [tuple(output["logits"].shape[:2])]:
                raise UnsupportedModel(
                    "the final norm must be called once in a forward pass, for every position, but was called for "
                    f"{shapes or 'none'}; omit {FINAL_NORM}"
                )
            self._store_and_reduce(FINAL_NORM, normed[0], None)
        for name in OUTPUT_SITES:
            self._store_and_reduce(name, output["logits"].detach(), None)
        for name in HALTING_SITES.keys() & set(self._stored_sites):
            value = output.get(name)
            if value is None:
                raise UnsupportedModel(f"{name} must be in the output of the model, but is not; omit the site")
            batch_axis = get_site(name).axes.index("batch")
            self._store_value(name, value.detach().movedim(batch_axis, 0), None)
        rows = slice(self.micro_batch.rows.start, self.micro_batch.rows.stop)
        self.iterations_run[rows] = torch.tensor(num_iterations if self.iterations_run.ndim > 1 else num_iterations[0])

    def warn_without_effect(self) -> None:
        """Warn about every edit that had no effect in the whole run."""
        for edit, changed in zip(self._edits, self._had_effect, strict=True):
            if not changed:
                where = f" at {dict(edit.where)}" if edit.where else ""
                warnings.warn(f"an edit of {edit.site}{where} had no effect (bitwise)", EditHadNoEffect, stacklevel=3)

    def _collect_for_reductions(self, name: str, layer: int, value: Float[Tensor, "batch *rest"]) -> None:
        """Collect activations for reductions of several sites, run the complete ones, and free what is not needed."""
        backward_sites, forward_sites = (
            {site for how in some for site in (*how.sites, *how.optional_sites)}
            for some in (self._backward_reductions, self._forward_reductions)
        )
        pending = self.micro_batch.pending.setdefault(layer, {})
        if name in backward_sites | forward_sites:
            pending[name] = value.clone() if self._may_be_overwritten(name) else value
        if name == LAST_FORWARD_SITE:
            self._run_layer_reductions(self._forward_reductions, layer)
            for done in set(pending) - backward_sites:
                del pending[done]
            if not self._backward_reductions:
                self._forget_functions(layer)
        if name == LAST_BACKWARD_SITE:
            self._run_layer_reductions(self._backward_reductions, layer)
            del self.micro_batch.pending[layer]
            self._forget_functions(layer)

    def _forget_functions(self, layer: int) -> None:
        self.micro_batch.recompute_fns.pop(layer, None)
        self.micro_batch.visible_keys_fns.pop(layer, None)

    def _may_be_overwritten(self, name: str) -> bool:
        """Return whether the model may write to an activation in place: not if it was made here or a graph needs it."""
        return name not in COMPUTED_SITES and (
            self._edits != () or not self._backward_reductions or strip_gradient_suffix(name) is not None
        )

    def _run_layer_reductions(self, reductions: Sequence[LayerReduction], layer: int) -> None:
        for reduction in reductions:
            pending, context = self.micro_batch.pending[layer], self.micro_batch.context
            view = LayerView(
                layer=layer,
                recorded_index=self._recorded_indices[layer],
                sites={
                    name: pending[name] for name in (*reduction.sites, *reduction.optional_sites) if name in pending
                },
                rows=self.micro_batch.rows,
                recompute_fn=self.micro_batch.recompute_fns[layer],
                visible_keys_fn=self.micro_batch.visible_keys_fns.get(layer),
                mask_is_additive=layer not in self._layers_without_site.get("attn_scores", ()),
                inputs=context.inputs,
                mask=context.mask,
                queries=context.queries,
                batch=context.batch,
                readout=context.readout,
                parallel=context.parallel[layer],
                has_cross=context.has_cross[layer],
            )
            for name, result in reduction.fn(view).items():
                check_reduction_shape(name, reduction.axes[name], len(self.micro_batch.rows), result)
                self._store_value(name, result, self._recorded_indices[layer])

    def _store_and_reduce(self, name: str, value: Float[Tensor, "batch *rest"], layer_index: int | None) -> None:
        if name in self._stored_sites:
            self._store_value(name, value, layer_index)
        for wanted, reduction in self._site_reductions.items():
            if reduction.site == name:
                result = reduction.fn(value)
                check_reduction_shape(wanted, reduction.axes, len(value), result)
                self._store_value(wanted, result, layer_index)

    def get_buffer(
        self, name: str, layer: int, like: Shaped[Tensor, "batch *rest"]
    ) -> Shaped[Tensor, "batch *rest"] | None:
        """Return the buffer for a value that the hooks compute, so that it is not copied.

        Args:
            name: the name of the site.
            layer: the layer, counted from 0.
            like: a tensor of the shape, dtype and device of the value.

        Returns:
            The buffer, or ``None`` if the site is not stored or may be edited before.
        """
        if name not in self._stored_sites or layer not in self._recorded_indices or self._edits:
            return None
        return self._buffer_slice(name, like, self._recorded_indices[layer])

    def _store_value(self, name: str, value: Shaped[Tensor, "batch *rest"], layer_index: int | None) -> None:
        """Copy a value into its buffer, unless it was made there; store the output of a single micro-batch as it is."""
        if layer_index is None and name in self._stored_sites and len(self.micro_batch.rows) == self._batch_size:
            self.recorded[name] = value.detach()
            return
        buffer = self._buffer_slice(name, value, layer_index)
        if buffer.data_ptr() != value.data_ptr():
            buffer.copy_(value.detach())

    def _buffer_slice(
        self, name: str, value: Shaped[Tensor, "batch *rest"], layer_index: int | None
    ) -> Shaped[Tensor, "batch *rest"]:
        """Return the part of the tensor of all layers and sequences that stores a value."""
        lead = (self._batch_size,) if layer_index is None else (len(self._recorded_indices), self._batch_size)
        shape = (*lead, *value.shape[1:])
        if name not in self.recorded:
            self.recorded[name] = allocate_tensor(shape, value.dtype, value.device)
            if self._is_dynamic and layer_index is not None:
                self._fill_with_nan(name)
        if self.recorded[name].shape != shape:
            raise ValueError(
                f"{name} must have one shape in all layers and micro-batches, but got {tuple(value.shape[1:])} after "
                f"{tuple(self.recorded[name].shape[len(lead) :])}; pass layers= that agree"
            )
        rows = slice(self.micro_batch.rows.start, self.micro_batch.rows.stop)
        return self.recorded[name][rows if layer_index is None else (layer_index, rows)]

    def _fill_with_nan(self, name: str) -> None:
        """Mark all entries as not recorded: some iterations may not run."""
        if not self.recorded[name].is_floating_point():
            raise ValueError(
                f"the reduction {name} must return floating-point numbers, because iterations that do not run are NaN, "
                f"but returned {self.recorded[name].dtype}; convert them"
            )
        self.recorded[name].fill_(torch.nan)
