"""Recording of the forward pass of an encoder-decoder."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._layer_view import LayerReduction
from mesascope.activations._memory import check_memory, site_bytes, site_shape
from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.edits import Edit, validate_edit
from mesascope.activations.encoder_decoder._captured import EncoderDecoderCapture
from mesascope.activations.encoder_decoder._inputs import SourceAndTarget
from mesascope.activations.encoder_decoder._prepare import prepare_source_and_target
from mesascope.activations.encoder_decoder._recording import StackRecorders
from mesascope.activations.encoder_decoder._request import LayersLike, StackRequest, split_request
from mesascope.activations.encoder_decoder._structure import read_stacks
from mesascope.activations.encoder_decoder._validation import validate_pair_hook_points
from mesascope.activations.encoder_decoder.batches import split_batch
from mesascope.activations.forward import eval_no_grad
from mesascope.activations.gradients import ObjectiveFn
from mesascope.activations.hooks.attention_interface import attn_implementation as read_attn_implementation
from mesascope.activations.hooks.attention_interface import use_attn_implementation
from mesascope.activations.padding.validate_edits import validate_edit_padding
from mesascope.activations.readout._output_readout import find_final_norm_module
from mesascope.activations.recording._captured import Capture
from mesascope.activations.recording._micro_batch import Reduction, reduction_axes
from mesascope.activations.recording._recorder import Recorder
from mesascope.activations.sites import DECODER, ENCODER, STACKS, get_site, merge_gradient_sites, split_stack
from mesascope.activations.validation.arguments import (
    stored_layers_by_site,
    validate_gradients_unedited,
    validate_halting_sites,
    validate_memory_sites,
    validate_names,
    validate_objective,
)
from mesascope.activations.validation.identities import check_sites_available


def capture_encoder_decoder(
    model: PreTrainedModel,
    inputs: Any,
    sites: Sequence[str],
    *,
    baselines: Mapping[str, Tensor] | None = None,
    edits: Sequence[Edit] = (),
    attention_mask: Any = None,
    batch_size: int | None = None,
    reduce: Mapping[str, Reduction | LayerReduction] | None = None,
    layers: LayersLike = None,
    check: bool = True,
    objective: ObjectiveFn | None = None,
    attn_implementation: Literal["eager"] | None = None,
) -> EncoderDecoderCapture:
    """Run an encoder-decoder in evaluation mode and record its activations, as `capture` does.

    Args:
        model: the model.
        inputs: the source and the target.
        sites: names of the sites to record.
        baselines: outputs of baselines on the same inputs.
        edits: edits, applied in order before anything is recorded.
        attention_mask: the mask of source and target in one sequence.
        batch_size: sequences per forward pass.
        reduce: reductions of sites.
        layers: the layers to record.
        check: compare the longest sequences with and without hooks before the run.
        objective: replaces the loss in gradients.
        attn_implementation: ``eager``, or ``None`` for the implementation that the model has.

    Returns:
        The recorded sites and reductions.

    Raises:
        UnsupportedModel: the model, or a layer, lacks a site, or a check fails.
        ValueError: a name is ambiguous, or two arguments exclude each other.
    """
    pair = prepare_source_and_target(model, inputs, attention_mask)
    name, reduce, baselines = type(model).__name__, dict(reduce or {}), dict(baselines or {})
    validate_names(sites, reduce, torch.zeros(1, 1, dtype=torch.long))
    local_sites = [split_stack(site)[1] for site in (*sites, *(edit.site for edit in edits))]
    validate_halting_sites(name, local_sites, None)
    validate_memory_sites(name, local_sites, None)
    with eval_no_grad(model), use_attn_implementation(model, attn_implementation):
        ran = read_attn_implementation(model)
        structure = read_stacks(model, pair)
        stacks = {each: structure.stack(each) for each in STACKS}
        requests = split_request(stacks, sites, reduce, edits, layers)
        num_bytes = 0
        recorders: dict[str, Recorder] = {}
        for each in STACKS:
            recorders[each], stack_bytes = _prepare_stack(
                f"the {each} of {name}", stacks[each], requests[each], pair, batch_size
            )
            num_bytes += stack_bytes
        check_memory(num_bytes, pair.target.device)
        readouts = {each: stacks[each].readout(model, requests[each].layers) for each in STACKS}
        for each in STACKS:
            if recorders[each].reduces_layers:  # their functions may use the readout, while hooks are attached
                readouts[each].find_all()
        validate_gradients_unedited([each.needs_gradients for each in recorders.values()], edits)
        validate_objective(objective, batch_size, pair.target_mask)
        run = StackRecorders(
            structure=structure,
            recorders=recorders,
            readouts=readouts,
            batches=split_batch(inputs, pair),
            final_norm=find_final_norm_module(name, readouts[DECODER]) if recorders[DECODER].needs_final_norm else None,
            objective=objective,
        )
        if check:
            validate_pair_hook_points(model, structure, merge_gradient_sites(run.layers_by_site), pair)
        run.run(model, pair, batch_size or len(pair))
    for each in STACKS:
        recorders[each].warn_without_effect()
    captures = {
        each: _collect(model, ran, each, run, requests[each], pair, baselines if each == DECODER else {})
        for each in STACKS
    }
    return EncoderDecoderCapture(encoder=captures[ENCODER], decoder=captures[DECODER])


def _prepare_stack(
    name: str, structure: ModelStructure, request: StackRequest, pair: SourceAndTarget, batch_size: int | None
) -> tuple[Recorder, int]:
    """Return the recorder of one stack, whose sites and edits are valid, and the memory that it needs in bytes."""
    is_encoder = structure.stack is not None and structure.stack.name == ENCODER
    x, mask = pair.side(ENCODER if is_encoder else DECODER)
    source = 0 if is_encoder else pair.source.shape[1]
    edited_layers = [edit.edited_layers(structure.num_blocks) for edit in request.edits]
    recorder = Recorder(
        sites=request.sites,
        reduce=request.reduce,
        edits=request.edits,
        layers=request.layers,
        edited_layers=edited_layers,
        batch_size=len(pair),
        layers_without_site=structure.layers_without_site,
    )
    check_sites_available(name, structure.layers, merge_gradient_sites(recorder.layers_by_site))
    for edit, layers in zip(request.edits, edited_layers, strict=True):
        shapes = {n: site_shape(structure, n, edit.site, *x.shape[:2], source=source) for n in layers}
        validate_edit(edit, shapes, min(batch_size or len(pair), len(pair)), structure.trace.logits)
        validate_edit_padding(edit, x, mask, None if is_encoder else pair.source_mask)
    stored = stored_layers_by_site(request.sites, request.layers)
    return recorder, site_bytes(structure, stored, *x.shape[:2], source=source)


def _collect(
    model: PreTrainedModel,
    implementation: str,
    stack: str,
    run: StackRecorders,
    request: StackRequest,
    pair: SourceAndTarget,
    baselines: Mapping[str, Tensor],
) -> Capture:
    """Return the capture of one stack."""
    is_encoder = stack == ENCODER
    x, mask = pair.side(stack)
    return Capture(
        sites=run.recorders[stack].recorded,
        axes={site: get_site(site).axes for site in request.sites} | reduction_axes(request.reduce),
        inputs=x,
        batch=run.batches[stack],
        baselines=dict(baselines),
        attention_mask=mask,
        layers=tuple(request.layers),
        queries=tuple(range(x.shape[1])),
        readout=run.readouts[stack],
        attn_implementation=implementation,
        model=model,
        stack=stack,
        source_mask=None if is_encoder else pair.source_mask,
        source_length=None if is_encoder else pair.source.shape[1],
        prefix_length=pair.prefix_length,
    )
