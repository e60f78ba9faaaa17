"""Runs of all sequences in micro-batches."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from jaxtyping import Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import ChunkSpec, LayerSpec
from mesascope.activations.chunks._joiner import ChunkJoiner
from mesascope.activations.chunks._layout import find_layout
from mesascope.activations.forward import run_forward, run_model
from mesascope.activations.gradients import ObjectiveFn, backpropagate_loss, enable_activation_gradients
from mesascope.activations.hooks._block_counter import BlockCounter
from mesascope.activations.hooks._module_hooks import attach_hooks
from mesascope.activations.hooks._module_outputs import collect_outputs
from mesascope.activations.readout._readout import Readout
from mesascope.activations.recording._micro_batch import BatchContext, MicroBatch
from mesascope.activations.recording._recorder import Recorder
from mesascope.activations.validation.length_check import LengthCheck
from mesascope.tasks.base import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class RunInputs:
    """Values that all micro-batches of a run share.

    Attributes:
        x: the inputs of all sequences.
        mask: 1 where an input is not padding.
        batch: the batch of a task that is captured.
        queries: the query positions of the rows of ``attn_scores`` and ``pattern``.
        readout: the readout of the model.
        final_norm: the module of the final norm, if its output is recorded.
        objective: replaces the loss in gradients.
        chunks: the chunks of a model that processes its positions chunk by chunk.
        length_check: the checks of a new length, made in the pass that runs their sequence alone.
    """

    x: Shaped[Tensor, "batch pos *d_in"]
    mask: Int[Tensor, "batch pos"] | None
    batch: Batch | None
    queries: Int[Tensor, " query"]
    readout: Readout
    final_norm: nn.Module | None
    objective: ObjectiveFn | None
    chunks: ChunkSpec | None = None
    length_check: LengthCheck | None = None


def run_micro_batches(
    model: PreTrainedModel, layer_specs: Sequence[LayerSpec], recorder: Recorder, run: RunInputs, batch_size: int
) -> None:
    """Run all sequences in micro-batches, each with a backward pass if a gradient is recorded.

    Args:
        model: the model.
        layer_specs: the specification of every layer.
        recorder: the hook function; it stores what is recorded.
        run: values that all micro-batches share.
        batch_size: sequences per micro-batch.
    """
    for start in range(0, len(run.x), batch_size):
        rows = range(start, min(start + batch_size, len(run.x)))
        _run_micro_batch(model, layer_specs, recorder, run, rows)


def _run_micro_batch(
    model: PreTrainedModel, layer_specs: Sequence[LayerSpec], recorder: Recorder, run: RunInputs, rows: range
) -> None:
    context = _slice_context(run, slice(rows.start, rows.stop), layer_specs)
    recorder.micro_batch = MicroBatch(rows=rows, context=context)
    x, mask, needs_gradients = context.inputs, context.mask, recorder.needs_gradients
    layout = find_layout(model, run.chunks, len(layer_specs), x, mask)
    joiner = None if layout is None else ChunkJoiner(recorder=recorder, layout=layout)
    check = run.length_check if run.length_check is not None and list(rows) == [run.length_check.row] else None
    with enable_activation_gradients(model, layer_specs) if needs_gradients else nullcontext():
        with (
            _attach(model, layer_specs, recorder, run, check)
            if joiner is None
            else _attach_to_chunks(model, layer_specs, joiner, run) as counter,
            collect_outputs(run.final_norm) as normed,
            nullcontext() if check is None else check.record(),
        ):
            output = run_forward(model, x, mask, all_positions=recorder.needs_output)
        if check is not None:
            run_plain = partial(run_model, model, x, mask, all_positions=recorder.needs_output)
            check.compare(output["logits"], counter, run_plain)
        if joiner is not None:
            joiner.record_joined(gradients=False)
        recorder.record_output(output, normed, counter.count_iterations())
        if needs_gradients:
            backpropagate_loss(output["logits"], x, mask, context.batch, run.objective)
            if joiner is not None:
                joiner.record_joined(gradients=True)


def _attach(
    model: PreTrainedModel,
    layer_specs: Sequence[LayerSpec],
    recorder: Recorder,
    run: RunInputs,
    check: LengthCheck | None,
) -> AbstractContextManager[BlockCounter]:
    """Attach the hooks of a model that processes all positions at once."""
    return attach_hooks(
        model,
        layer_specs,
        recorder.layers_by_site if check is None else check.layers_by_site,
        recorder if check is None else check.join(recorder),
        queries=run.queries if len(run.queries) < run.x.shape[1] else None,
        on_layer_start=recorder.on_layer_start,
        on_attention_call=recorder.on_attention_call,
        allocate=recorder.get_buffer,
    )


def _attach_to_chunks(
    model: PreTrainedModel, layer_specs: Sequence[LayerSpec], joiner: ChunkJoiner, run: RunInputs
) -> AbstractContextManager[BlockCounter]:
    """Attach the hooks of a model that processes its positions chunk by chunk."""
    return attach_hooks(
        model,
        joiner.layout.expand_layers(layer_specs, run.chunks and run.chunks.update),
        joiner.layers_by_site,
        joiner,
        on_layer_start=joiner.on_layer_start,
        on_attention_call=joiner.on_attention_call,
        first_layers=joiner.layout.first_calls,
    )


def _slice_context(run: RunInputs, rows: slice, layer_specs: Sequence[LayerSpec]) -> BatchContext:
    return BatchContext(
        inputs=run.x[rows],
        mask=None if run.mask is None else run.mask[rows],
        queries=run.queries,
        batch=None if run.batch is None else run.batch[rows],
        readout=run.readout,
        parallel=tuple(layer.parallel for layer in layer_specs),
        has_cross=tuple(layer.cross is not None for layer in layer_specs),
    )
