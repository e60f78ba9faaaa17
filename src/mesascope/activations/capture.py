"""Recording of a model's forward pass, site by site, in bounded memory."""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product

import torch
import xarray as xr
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._arguments import (
    prepare_inputs,
    select_layers,
    select_query_positions,
    stored_layers_by_site,
    validate_model,
    validate_names,
)
from mesascope.activations._cache import cache_structure, cached_readout, cached_structure, is_validated, mark_validated
from mesascope.activations._checks import (
    check_hooked_forward,
    check_output_unchanged,
    check_padding_invariance,
    check_sites_available,
)
from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations._layer_view import LayerReduction
from mesascope.activations._memory import allocate_tensor, check_memory, site_bytes, site_shape
from mesascope.activations._recorder import BatchContext, MicroBatch, Recorder, Reduction
from mesascope.activations.edits import Edit, validate_edit
from mesascope.activations.forward import eval_no_grad, first_position_id, run_model
from mesascope.activations.gradients import ObjectiveFn, backpropagate_loss, enable_activation_gradients
from mesascope.activations.hooks._module_hooks import attach_hooks
from mesascope.activations.hooks.attention_interface import attn_implementation
from mesascope.activations.readout._build import build_readout
from mesascope.activations.readout._readout import Readout
from mesascope.activations.sites import SITES, UnsupportedModel, strip_gradient_suffix
from mesascope.activations.structure._find_layers import find_layers
from mesascope.activations.structure._trace import Trace, trace_forward
from mesascope.axes import to_data_array
from mesascope.tasks.base import Batch

TRACE_LENGTH = 8  # positions of the first sequence that are traced to find the model structure
VALIDATION_LENGTH = 256  # positions of the first sequence that are used for validation
DEFAULT_SITES = ("resid_pre", "resid_post", "output")


class NotRecorded(KeyError):  # noqa: N818  a KeyError by its base, which is no part of the name
    """A capture does not contain the requested site or reduction."""

    def __str__(self) -> str:
        """Return the message without the quotes that KeyError adds."""
        return str(self.args[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Capture:
    """Recorded activations of one run of a model.

    Attributes:
        sites: every recorded site and reduction, by name; axes as in :data:`SITES` and in ``axes``.
        axes: the axis names of each of them.
        inputs: the model inputs.
        batch: the batch of a task that was captured, if any.
        baselines: outputs of baselines on the same inputs, as passed to `capture`.
        attention_mask: 1 where an input is not padding; ``None`` without padding.
        layers: the recorded layers of the model, in order.
        queries: the query positions of the rows of ``attn_scores`` and ``pattern``.
        readout: the readout: output projections, unembedding and head counts.
        attn_implementation: the attention implementation that ran, such as ``sdpa``.
        model: the model; the readout needs it alive.
    """

    sites: Mapping[str, Tensor]
    axes: Mapping[str, tuple[str, ...]]
    inputs: Shaped[Tensor, "batch pos *d_in"]
    batch: Batch | None
    baselines: Mapping[str, Tensor] = field(default_factory=dict)
    attention_mask: Int[Tensor, "batch pos"] | None
    layers: tuple[int, ...]
    queries: tuple[int, ...]
    readout: Readout
    attn_implementation: str
    model: PreTrainedModel

    def __getitem__(self, name: str) -> Tensor:
        """Return a recorded site or reduction.

        Raises:
            NotRecorded: it was not recorded.
        """
        if name not in self.sites:
            raise NotRecorded(f"{name!r} was not recorded; recorded are {', '.join(self.sites)}; pass it to capture")
        return self.sites[name]

    def __contains__(self, name: object) -> bool:
        """Return whether a site or reduction was recorded."""
        return name in self.sites

    def head_out(self) -> Float[Tensor, "layer batch head pos d_model"]:
        """Return what each head writes to the residual stream after its output projection: ``z`` @ W_O, head by head.

        Summed over heads, plus `Readout.output_bias`, it equals ``attn_out``.

        Returns:
            The output of every head of every recorded layer, (layer, batch, head, pos, d_model).

        Raises:
            NotRecorded: ``z`` was not recorded.
            UnsupportedModel: ``z`` does not reach the residual stream through a linear map.
        """
        heads, projection = self["z"], self.readout.output_projection
        layers, batch, length, num_heads, _ = heads.shape
        outputs = allocate_tensor((layers, batch, num_heads, length, projection.shape[-1]), heads.dtype, heads.device)
        for layer, row in product(range(layers), range(batch)):
            torch.bmm(heads[layer, row].transpose(0, 1), projection[layer], out=outputs[layer, row])
        return outputs

    def to_xarray(self, name: str) -> xr.DataArray:
        """Return a recorded site or reduction as a labelled array; layers are numbered as in the model.

        Args:
            name: a recorded site or reduction.

        Returns:
            The array, on the CPU.

        Raises:
            NotRecorded: it was not recorded.
        """
        values, axes = self[name], self.axes[name]
        about = SITES[name].description if name in SITES else f"{name}, reduced during the forward pass"
        values = values.float() if values.dtype == torch.bfloat16 else values
        coords: dict[Hashable, Sequence[int]] = {"layer": list(self.layers)} if "layer" in axes else {}
        coords |= {"query": list(self.queries)} if "query" in axes else {}
        return to_data_array(values, *axes, units="1", description=about, coords=coords)


def capture(
    model: nn.Module,
    inputs: Tensor | Batch,
    sites: Sequence[str] = DEFAULT_SITES,
    *,
    baselines: Mapping[str, Tensor] | None = None,
    edits: Sequence[Edit] = (),
    attention_mask: Tensor | None = None,
    batch_size: int | None = None,
    reduce: Mapping[str, Reduction | LayerReduction] | None = None,
    layers: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
    objective: ObjectiveFn | None = None,
    check: bool = True,
) -> Capture:
    """Run a model in evaluation mode and record its activations.

    Sites that end in ``_grad`` are gradients of the loss summed over positions: cross-entropy of the next token, or the
    loss on the targets of the batch (squared error if they are vectors), or ``objective`` summed over sequences. Only
    these sites need a backward pass.

    Args:
        model: a decoder of this package, or any transformers causal language model that computes its attention through
            transformers' attention interface.
        inputs: tokens (batch, pos), vectors (batch, pos, d_in), or a batch of a task.
        sites: names of the sites to record, from :data:`SITES`; ``logits`` is a second name of ``output``, for models
            that map tokens to logits.
        baselines: outputs of baselines on the same inputs, stored in the capture.
        edits: edits, applied in order before anything is recorded.
        attention_mask: (batch, pos), 1 where an input is not padding; padding may be on the left or on the right.
        batch_size: sequences per forward pass; all at once by default.
        reduce: reductions of sites, computed layer by layer during the run, by the name of their result.
        layers: the layers to record; all by default.
        queries: the query positions whose rows of ``attn_scores`` and ``pattern`` are recorded; all by default.
        objective: a function from outputs (batch, pos, d_out) to (batch) that replaces the loss in gradients, such as a
            metric of :mod:`mesascope.interventions`. It needs all sequences in one forward pass.
        check: compare the first sequence (its first 256 positions) with and without hooks before the run, and check all
            identities. The result is cached until a weight or the attention implementation changes.

    Returns:
        The recorded sites and reductions.

    Raises:
        UnsupportedModel: the model, or a layer, lacks a site, or a check fails.
        NotEnoughMemory: the recorded sites do not fit into memory.
        ValueError: a site or an index does not exist, or two arguments exclude each other.

    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(d_in=1, d_out=1, hidden_size=8, num_attention_heads=2))
    >>> capture(model, torch.ones(4, 6, 1), ["pattern"])["pattern"].shape
    torch.Size([3, 4, 2, 6, 6])
    """
    model = validate_model(model)
    x, mask = prepare_inputs(model, inputs, attention_mask)
    batch = inputs.to(model.device) if isinstance(inputs, Batch) else None
    reduce = dict(reduce or {})
    validate_names(sites, reduce, x)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, but got {batch_size}")
    if objective is not None and batch_size is not None:
        raise ValueError("an objective needs the whole batch, but batch_size splits it; omit objective or batch_size")
    query_positions = select_query_positions(queries, x.shape[1], edits)
    with eval_no_grad(model):
        model_trace, layer_specs = read_structure(model, x, mask)
        selected_layers = select_layers(layers, len(layer_specs))
        recorder = Recorder(
            sites=sites,
            reduce=reduce,
            edits=edits,
            layers=selected_layers,
            num_layers=len(layer_specs),
            batch_size=len(x),
            layers_without_site=_layers_without_site(layer_specs),
        )
        _validate_gradients_unedited(recorder, edits)
        layers_by_site = {strip_gradient_suffix(name) or name: at for name, at in recorder.layers_by_site.items()}
        check_sites_available(type(model).__name__, layer_specs, layers_by_site)
        stored = stored_layers_by_site(sites, selected_layers)
        check_memory(site_bytes(model_trace, layer_specs, stored, len(x), x.shape[1], len(query_positions)), x.device)
        for edit in edits:
            shapes = {
                n: site_shape(model_trace, layer_specs[n], edit.site, *x.shape[:2])
                for n in edit.edited_layers(len(layer_specs))
            }
            validate_edit(edit, shapes, min(batch_size or len(x), len(x)), model_trace.logits)
        if check:
            validate_hook_points(model, layer_specs, layers_by_site, x, mask)
        readout = cached_readout(
            model, selected_layers, lambda: build_readout(model, layer_specs, selected_layers, model_trace)
        )
        _run_micro_batches(
            model,
            layer_specs,
            recorder,
            _RunInputs(x=x, mask=mask, batch=batch, queries=query_positions, readout=readout, objective=objective),
            batch_size or len(x),
        )
    recorder.warn_without_effect()
    return Capture(
        sites=recorder.recorded,
        axes={name: SITES[name].axes for name in sites} | _reduction_axes(reduce),
        inputs=x,
        batch=inputs if isinstance(inputs, Batch) else None,
        baselines=dict(baselines or {}),
        attention_mask=mask,
        layers=tuple(selected_layers),
        queries=tuple(query_positions.tolist()),
        readout=readout,
        attn_implementation=attn_implementation(model),
        model=model,
    )


def estimate_capture_bytes(
    model: nn.Module, inputs: Tensor | Batch, sites: Sequence[str] = DEFAULT_SITES, layers: Sequence[int] | None = None
) -> int:
    """Return the memory that a capture of these sites needs; only the trace input of 8 positions is run.

    Args:
        model: the model.
        inputs: tokens (batch, pos), vectors (batch, pos, d_in), or a batch of a task.
        sites: names of the sites to record.
        layers: the layers to record; all by default.

    Returns:
        The size of all recorded sites in bytes.

    Raises:
        UnsupportedModel: the model structure cannot be found.
        ValueError: a site or a layer does not exist.
    """
    model = validate_model(model)
    x, mask = prepare_inputs(model, inputs, None)
    validate_names(sites, {}, x)
    with eval_no_grad(model):
        model_trace, layer_specs = read_structure(model, x, mask)
    selected_layers = select_layers(layers, len(layer_specs))
    stored = stored_layers_by_site(sites, selected_layers)
    return site_bytes(model_trace, layer_specs, stored, *x.shape[:2])


def attention_layers(model: nn.Module, inputs: Tensor | Batch) -> list[int]:
    """Return the layers that have attention, counted from 0; only the trace input of 8 positions is run.

    Hybrid models have layers without attention.

    Args:
        model: the model.
        inputs: tokens (batch, pos), vectors (batch, pos, d_in), or a batch of a task.

    Returns:
        The indices of the layers with attention, in order.

    Raises:
        UnsupportedModel: the model structure cannot be found.
    """
    model = validate_model(model)
    x, mask = prepare_inputs(model, inputs, None)
    with eval_no_grad(model):
        _, layer_specs = read_structure(model, x, mask)
    return [number for number, layer in enumerate(layer_specs) if layer.attention is not None]


def read_structure(
    model: PreTrainedModel, inputs: Shaped[Tensor, "batch pos *d_in"], mask: Int[Tensor, "batch pos"] | None = None
) -> tuple[Trace, tuple[LayerSpec, ...]]:
    """Trace a model on the first inputs of the first sequence that are not padding, and find its layers.

    Args:
        model: the model.
        inputs: tokens or vectors, on the model's device.
        mask: 1 where an input is not padding.

    Returns:
        The trace of up to 8 positions, and the specification of every layer.

    Raises:
        UnsupportedModel: the structure cannot be found, or tracing changes the output.
        ValueError: the mask hides the whole first sequence.
    """
    row = inputs[0] if mask is None else inputs[0, mask[0].bool()]
    trace_input = row[None, :TRACE_LENGTH]
    if trace_input.shape[1] == 0:
        raise ValueError("the first sequence must not be all padding, but the attention mask hides all of it")
    if mask is not None:
        first_position_id(model, row[0])
    cached = cached_structure(model, trace_input)
    if cached is not None:
        return cached
    expected = run_model(model, trace_input)
    try:
        model_trace = trace_forward(model, lambda: run_model(model, trace_input))
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UnsupportedModel(
            f"a model must run with its attention function wrapped, but {type(model).__name__} fails: {error}; its "
            "modelling file may branch on the name of the attention implementation"
        ) from error
    layers = find_layers(model, model_trace)
    check_output_unchanged(type(model).__name__, expected, model_trace.logits)
    return cache_structure(model, trace_input, (model_trace, layers))


@dataclass(frozen=True, kw_only=True, eq=False)
class _RunInputs:
    """Values that all micro-batches of a run share."""

    x: Shaped[Tensor, "batch pos *d_in"]
    mask: Int[Tensor, "batch pos"] | None
    batch: Batch | None
    queries: Int[Tensor, " query"]
    readout: Readout
    objective: ObjectiveFn | None


def _run_micro_batches(
    model: PreTrainedModel, layer_specs: Sequence[LayerSpec], recorder: Recorder, run: _RunInputs, batch_size: int
) -> None:
    """Run all sequences in micro-batches, each with a backward pass if a gradient is recorded."""
    needs_gradients = recorder.needs_gradients
    queries = run.queries if len(run.queries) < run.x.shape[1] else None
    parallel = tuple(layer.parallel for layer in layer_specs)
    for start in range(0, len(run.x), batch_size):
        rows = slice(start, min(start + batch_size, len(run.x)))
        x, mask = run.x[rows], None if run.mask is None else run.mask[rows]
        batch = None if run.batch is None else run.batch[rows]
        context = BatchContext(
            inputs=x, mask=mask, queries=run.queries, readout=run.readout, batch=batch, parallel=parallel
        )
        recorder.micro_batch = MicroBatch(rows=range(rows.start, rows.stop), context=context)
        with enable_activation_gradients(model, layer_specs) if needs_gradients else nullcontext():
            with attach_hooks(
                model,
                layer_specs,
                recorder.layers_by_site,
                recorder,
                queries=queries,
                on_layer_start=recorder.on_layer_start,
                allocate=recorder.get_buffer,
            ):
                output = run_model(model, x, mask, all_positions=recorder.needs_output)
            recorder.record_output(output)
            if needs_gradients:
                backpropagate_loss(output, x, mask, batch, run.objective)
        del output


def validate_hook_points(
    model: PreTrainedModel,
    layer_specs: Sequence[LayerSpec],
    layers_by_site: Mapping[str, Sequence[int]],
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"] | None,
) -> None:
    """Validate hook points once per model and set of hook points, and invariance to padding in every padded run.

    Args:
        model: the model.
        layer_specs: the specification of every layer.
        layers_by_site: layers by site.
        inputs: tokens or vectors; the first 256 positions are used.
        mask: 1 where an input is not padding.

    Raises:
        UnsupportedModel: a check fails.
    """
    inputs, mask = inputs[:, :VALIDATION_LENGTH], None if mask is None else mask[:, :VALIDATION_LENGTH]
    if not is_validated(model, layers_by_site):
        check_hooked_forward(model, layer_specs, layers_by_site, inputs, mask)
        mark_validated(model, layers_by_site)
    check_padding_invariance(model, inputs, mask)


def _layers_without_site(layer_specs: Sequence[LayerSpec]) -> dict[str, list[int]]:
    """Return the layers without each site or its gradient, by site."""
    return {
        name: [
            number for number, layer in enumerate(layer_specs) if (strip_gradient_suffix(name) or name) in layer.missing
        ]
        for name in SITES
    }


def _reduction_axes(reduce: Mapping[str, Reduction | LayerReduction]) -> dict[str, tuple[str, ...]]:
    """Return the axes of every result of the reductions."""
    single = {name: how.stacked_axes for name, how in reduce.items() if isinstance(how, Reduction)}
    several = [how.axes for how in reduce.values() if isinstance(how, LayerReduction)]
    return single | {name: ("layer", *axes) for each in several for name, axes in each.items()}


def _validate_gradients_unedited(recorder: Recorder, edits: Sequence[Edit]) -> None:
    # Activation checkpointing runs a layer again, without edits, when its gradient is computed.
    if edits and recorder.needs_gradients:
        raise ValueError("gradients must be of the unedited model, but edits were given; omit either")
