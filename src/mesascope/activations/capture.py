"""Recording of a model's forward pass, site by site, in bounded memory."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mesascope.activations._layer_view import LayerReduction
from mesascope.activations._memory import check_memory, site_bytes, site_shape
from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.chunks._layout import find_layout
from mesascope.activations.edits import Edit, validate_edit
from mesascope.activations.encoder_decoder._capture import capture_encoder_decoder
from mesascope.activations.encoder_decoder._captured import EncoderDecoderCapture
from mesascope.activations.encoder_decoder._request import LayersLike
from mesascope.activations.forward import eval_no_grad
from mesascope.activations.gradients import ObjectiveFn
from mesascope.activations.hooks.attention_interface import attn_implementation as read_attn_implementation
from mesascope.activations.hooks.attention_interface import use_attn_implementation
from mesascope.activations.padding.validate_edits import validate_edit_padding
from mesascope.activations.readout._output_readout import find_final_norm_module
from mesascope.activations.recording._captured import Capture
from mesascope.activations.recording._iterations import select_calls, split_calls
from mesascope.activations.recording._micro_batch import Reduction, reduction_axes
from mesascope.activations.recording._recorder import Recorder
from mesascope.activations.recording._run import RunInputs, run_micro_batches
from mesascope.activations.sites import MEMORY_SITES, get_site, merge_gradient_sites
from mesascope.activations.structure._read_structure import read_structure
from mesascope.activations.validation.arguments import (
    select_iterations,
    select_layers,
    select_query_positions,
    stored_layers_by_site,
    validate_gradients_unedited,
    validate_halting_sites,
    validate_memory_sites,
    validate_model,
    validate_names,
    validate_objective,
)
from mesascope.activations.validation.hook_points import find_length_check, validate_hook_points, validate_padding
from mesascope.activations.validation.identities import check_sites_available
from mesascope.activations.validation.inputs import InputsLike, is_encoder_decoder, prepare_inputs
from mesascope.activations.validation.token_rows import is_text, tokenize_texts
from mesascope.argument_types import validate_arguments
from mesascope.models.encoder_decoder.model import EncoderDecoder
from mesascope.tasks.base import Batch

DEFAULT_SITES = ("resid_pre", "resid_post", "output")


class CaptureOptions(TypedDict, total=False):
    """The keyword arguments of `capture`."""

    tokenizer: PreTrainedTokenizerBase | None
    baselines: Mapping[str, Tensor] | None
    edits: Edit | Sequence[Edit]
    attention_mask: Tensor | Sequence[Sequence[int]] | None
    batch_size: int | None
    reduce: Mapping[str, Reduction | LayerReduction] | None
    layers: LayersLike
    iterations: Sequence[int] | None
    queries: Sequence[int] | None
    objective: ObjectiveFn | None
    attn_implementation: Literal["eager"] | None
    check: bool


@overload  # an EncoderDecoderCapture; `Any`, since overloads that overlap must agree
def capture(
    model: EncoderDecoder,
    inputs: InputsLike,
    sites: Sequence[str] = DEFAULT_SITES,
    **options: Unpack[CaptureOptions],
) -> Any: ...
@overload
def capture(
    model: nn.Module,
    inputs: Mapping[str, Any],
    sites: Sequence[str] = DEFAULT_SITES,
    **options: Unpack[CaptureOptions],
) -> Any: ...
@overload
def capture(
    model: nn.Module,
    inputs: InputsLike,
    sites: Sequence[str] = DEFAULT_SITES,
    **options: Unpack[CaptureOptions],
) -> Capture: ...
@validate_arguments
def capture(
    model: nn.Module,
    inputs: InputsLike,
    sites: Sequence[str] = DEFAULT_SITES,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    baselines: Mapping[str, Tensor] | None = None,
    edits: Edit | Sequence[Edit] = (),
    attention_mask: Tensor | Sequence[Sequence[int]] | None = None,
    batch_size: int | None = None,
    reduce: Mapping[str, Reduction | LayerReduction] | None = None,
    layers: LayersLike = None,
    iterations: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
    objective: ObjectiveFn | None = None,
    attn_implementation: Literal["eager"] | None = None,
    check: bool = True,
) -> Capture | EncoderDecoderCapture:
    """Run a model in evaluation mode and record its activations.

    Sites that end in ``_grad`` are gradients of the loss summed over positions: cross-entropy of the next token, or the
    loss on the targets of the batch (squared error if they are vectors), or ``objective`` summed over sequences. Only
    these sites need a backward pass.

    In an encoder-decoder, both stacks are recorded: names of sites may begin with ``encoder.`` or ``decoder.``, and
    those without are recorded in both. The decoder also has the sites of :data:`CROSS_SITES`.

    Args:
        model: a model of this package, or any causal language model or sequence-to-sequence model of transformers that
            computes its attention through transformers' attention interface.
        inputs: tokens (batch, pos), vectors (batch, pos, d_in), a batch of a task, or the output of a tokenizer with
            its attention mask. Lists of tokens of unequal length are padded on the right. With ``tokenizer``, a text or
            a sequence of texts. For a sequence-to-sequence model, a mapping with ``input_ids`` or ``inputs_embeds``,
            ``attention_mask``, ``decoder_input_ids`` or ``decoder_inputs_embeds``, and ``decoder_attention_mask``; with
            ``prefix``, vectors (slot, d_model) that precede the source.
        sites: names of the sites to record, from :data:`SITES`; ``logits`` is a second name of ``output``, for models
            that map tokens to logits. Models that halt also have those of :data:`HALTING_SITES`, encoder-decoders those
            of :data:`CROSS_SITES`, and models with chunks those of :data:`CROSS_SITES` (of attention to the memory) and
            :data:`MEMORY_SITES`.
        tokenizer: the tokenizer of the model, for text.
        baselines: outputs of baselines on the same inputs, stored in the capture.
        edits: edits, applied in order before anything is recorded.
        attention_mask: (batch, pos), 1 where an input is not padding; padding may be on the left or on the right.
        batch_size: sequences per forward pass; all at once by default.
        reduce: reductions of sites, computed layer by layer during the run, by the name of their result.
        layers: the layers to record; all by default. In an encoder-decoder, layers of both stacks, or a mapping from
            ``encoder`` and ``decoder`` to layers, of which ``None`` are all; a stack that it lacks is not recorded.
        iterations: the iterations to record, in a model that repeats its layers; all by default. Sites and reductions
            of layers have the axes ``layer`` and ``iteration`` then, and are NaN where an iteration did not run.
        queries: the query positions whose rows of ``attn_scores`` and ``pattern`` are recorded; all by default.
        objective: a function from outputs (batch, pos, d_out) to (batch) that replaces the loss in gradients, such as a
            metric of :mod:`mesascope.interventions`. It needs all sequences in one forward pass; with padding, it must
            have a parameter ``attention_mask``.
        attn_implementation: ``eager`` runs the model with its eager attention function, and records the weights that
            this function returns. By default the model keeps its own implementation, and where that returns no weights
            (``sdpa``), ``pattern`` is a second computation. With ``eager`` a capture of ``pattern`` is faster; its
            output is bitwise that of the model's own eager pass, and differs from that of ``sdpa`` by rounding.
        check: compare the longest sequence with and without hooks before the run, and check all identities, once for
            every new hook point, length and kind of padding. Results are cached until the model changes.

    Returns:
        The recorded sites and reductions: a `Capture`, or an `EncoderDecoderCapture`, which has one of each stack.

    Raises:
        UnsupportedModel: the model, or a layer, lacks a site, or a check fails.
        NotEnoughMemory: the recorded sites do not fit into memory.
        ValueError: a site or an index does not exist, or two arguments exclude each other.

    >>> import torch
    >>> from mesascope.models.transformer import Decoder, DecoderConfig
    >>> model = Decoder(DecoderConfig(d_in=1, d_out=1, hidden_size=8, num_attention_heads=2))
    >>> capture(model, torch.ones(4, 6, 1), ["pattern"])["pattern"].shape
    torch.Size([3, 4, 2, 6, 6])
    """
    model = validate_model(model)
    if is_encoder_decoder(model):
        _refuse_options(model, tokenizer=tokenizer, iterations=iterations, queries=queries)
        return capture_encoder_decoder(
            model,
            inputs,
            sites,
            baselines=baselines,
            edits=(edits,) if isinstance(edits, Edit) else edits,
            attention_mask=attention_mask,
            batch_size=batch_size,
            reduce=reduce,
            layers=layers,
            check=check,
            objective=objective,
            attn_implementation=attn_implementation,
        )
    if isinstance(layers, Mapping):
        raise ValueError(
            f"layers by stack need an encoder-decoder, but {type(model).__name__} has one stack; pass a list"
        )
    if is_text(inputs):
        inputs = tokenize_texts(inputs, tokenizer)
    x, mask = prepare_inputs(model, inputs, attention_mask)
    batch = inputs.to(x.device) if isinstance(inputs, Batch) else None
    reduce = dict(reduce or {})
    validate_names(sites, reduce, x)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, but got {batch_size}")
    validate_objective(objective, batch_size, mask)
    edits = (edits,) if isinstance(edits, Edit) else edits
    query_positions = select_query_positions(queries, x.shape[1], edits)
    with eval_no_grad(model), use_attn_implementation(model, attn_implementation):
        ran = read_attn_implementation(model)
        structure = read_structure(model, x, mask)
        name, num_layers, num_iterations = type(model).__name__, structure.num_blocks, structure.num_iterations
        layout = find_layout(model, structure.chunks, len(structure.layers), x, mask)
        _validate_special_sites(name, structure, sites, reduce, edits)
        selected_layers = select_layers(layers, num_layers)
        selected_iterations = select_iterations(name, iterations, num_iterations)
        selected_calls = select_calls(selected_layers, selected_iterations, num_layers)
        has_chunks = structure.chunks is not None
        edited_layers = [edit.edited_layers(num_layers, num_iterations, has_chunks=has_chunks) for edit in edits]
        recorder = Recorder(
            sites=sites,
            reduce=reduce,
            edits=edits,
            layers=selected_calls,
            edited_layers=edited_layers,
            batch_size=len(x),
            layers_without_site=structure.layers_without_site,
            is_dynamic=structure.is_dynamic,
            num_chunks=None if layout is None else layout.num_chunks,
        )
        validate_gradients_unedited([recorder.needs_gradients], edits)
        layers_by_site = merge_gradient_sites(recorder.layers_by_site)
        in_layers = {site: at for site, at in layers_by_site.items() if site not in MEMORY_SITES}
        check_sites_available(name, structure.layers, in_layers)
        stored = stored_layers_by_site(sites, selected_calls)
        check_memory(site_bytes(structure, stored, len(x), x.shape[1], len(query_positions)), x.device)
        for edit, calls in zip(edits, edited_layers, strict=True):
            shapes = {n: site_shape(structure, n, edit.site, *x.shape[:2]) for n in calls}
            validate_edit(edit, shapes, min(batch_size or len(x), len(x)), structure.trace.logits)
            validate_edit_padding(edit, x, mask)
        length_check = None
        if check:
            runs_alone = min(batch_size or len(x), len(x)) == 1 and len(query_positions) == x.shape[1]
            is_plain = not edits and not recorder.needs_gradients and not structure.is_repeated
            if runs_alone and is_plain:
                length_check = find_length_check(
                    model, structure, layers_by_site, x, mask, has_output=recorder.needs_output
                )
            if length_check is None:
                validate_hook_points(model, structure, layers_by_site, x, mask, has_output=recorder.needs_output)
            elif mask is not None:
                validate_padding(model, structure, x, mask)
        readout = structure.readout(model, selected_calls)
        if recorder.reduces_layers:  # their functions may use the readout, while hooks are attached
            readout.find_all()
        run_micro_batches(
            model,
            structure.layers,
            recorder,
            RunInputs(
                x=x,
                mask=mask,
                batch=batch,
                queries=query_positions,
                readout=readout,
                final_norm=find_final_norm_module(name, readout) if recorder.needs_final_norm else None,
                objective=objective,
                chunks=structure.chunks,
                length_check=length_check,
            ),
            batch_size or len(x),
        )
    recorder.warn_without_effect()
    recorded, axes = recorder.recorded, {name: get_site(name).axes for name in sites} | reduction_axes(reduce)
    if selected_iterations is not None:
        _validate_recorded(recorded, axes, selected_iterations)
        recorded, axes = split_calls(recorded, axes, len(selected_iterations))
    return Capture(
        sites=recorded,
        axes=axes,
        inputs=x,
        batch=inputs if isinstance(inputs, Batch) else None,
        baselines=dict(baselines or {}),
        attention_mask=mask,
        layers=tuple(selected_layers),
        iterations=None if selected_iterations is None else tuple(selected_iterations),
        iterations_run=None if selected_iterations is None else recorder.iterations_run,
        num_blocks=None if selected_iterations is None else num_layers,
        halts=structure.is_dynamic,
        chunks=None if layout is None else layout.chunk_of_position,
        queries=tuple(query_positions.tolist()),
        readout=readout,
        attn_implementation=ran,
        model=model,
    )


def estimate_capture_bytes(
    model: nn.Module, inputs: InputsLike, sites: Sequence[str] = DEFAULT_SITES, layers: Sequence[int] | None = None
) -> int:
    """Return the memory in bytes that a capture needs; only the trace input of 8 positions is run.

    Args:
        model: the model.
        inputs: tokens (batch, pos), vectors (batch, pos, d_in), or a batch of a task.
        sites: names of the sites to record.
        layers: the layers to record; all by default.

    Raises:
        UnsupportedModel: the model structure cannot be found.
        ValueError: a site or a layer does not exist.
    """
    model = validate_model(model)
    x, mask = prepare_inputs(model, inputs, None)
    validate_names(sites, {}, x)
    with eval_no_grad(model):
        structure = read_structure(model, x, mask)
    _validate_special_sites(type(model).__name__, structure, sites, {}, ())
    iterations = select_iterations(type(model).__name__, None, structure.num_iterations)
    selected_layers = select_layers(layers, structure.num_blocks)
    stored = stored_layers_by_site(sites, select_calls(selected_layers, iterations, structure.num_blocks))
    return site_bytes(structure, stored, *x.shape[:2])


def attention_layers(model: nn.Module, inputs: InputsLike) -> list[int]:
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
        structure = read_structure(model, x, mask)
    blocks = structure.layers[: structure.num_blocks]
    return [number for number, layer in enumerate(blocks) if layer.attention is not None]


def _validate_special_sites(
    model_name: str,
    structure: ModelStructure,
    sites: Sequence[str],
    reduce: Mapping[str, Reduction | LayerReduction],
    edits: Sequence[Edit],
) -> None:
    """Check that the model has the requested sites of halting and of a memory."""
    validate_halting_sites(model_name, sites, structure.trace.max_iterations)
    reduced = [how.site for how in reduce.values() if isinstance(how, Reduction)]
    validate_memory_sites(model_name, [*sites, *reduced, *(edit.site for edit in edits)], structure.chunks)


def _refuse_options(model: nn.Module, **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(
            f"{given[0]}= must be omitted for an encoder-decoder, but was given for {type(model).__name__}"
        )


def _validate_recorded(
    recorded: Mapping[str, Tensor], axes: Mapping[str, tuple[str, ...]], iterations: Sequence[int]
) -> None:
    lacking = [name for name in axes if name not in recorded]
    if lacking:
        raise ValueError(
            f"iterations must run for some sequence, but those of {lacking[0]}, {list(iterations)}, run for none; pass "
            "earlier iterations"
        )
