"""Recording of both stacks of an encoder-decoder in one forward pass."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.encoder_decoder._forward import run_pair_forward
from mesascope.activations.encoder_decoder._inputs import SourceAndTarget
from mesascope.activations.encoder_decoder._structure import EncoderDecoderStructure
from mesascope.activations.gradients import ObjectiveFn, backpropagate_loss, enable_activation_gradients
from mesascope.activations.hooks._block_call import BlockCall
from mesascope.activations.hooks._module_hooks import attach_hooks
from mesascope.activations.hooks._module_outputs import collect_outputs
from mesascope.activations.hooks.attention_interface import AttentionCall
from mesascope.activations.readout._readout import Readout
from mesascope.activations.recording._micro_batch import BatchContext, MicroBatch
from mesascope.activations.recording._recorder import Recorder
from mesascope.activations.sites import DECODER, ENCODER, STACKS
from mesascope.tasks.base import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class StackRecorders:
    """The recorders of both stacks; a hook function that passes each activation on to the recorder of its stack.

    Attributes:
        structure: the structure of the model.
        recorders: by stack.
        readouts: by stack.
        batches: by stack, its part of the batch of a task that is captured.
        final_norm: the module of the final norm of the decoder, if its output is recorded.
        objective: replaces the loss in gradients.
    """

    structure: EncoderDecoderStructure
    recorders: Mapping[str, Recorder]
    readouts: Mapping[str, Readout]
    batches: Mapping[str, Batch | None]
    final_norm: nn.Module | None
    objective: ObjectiveFn | None = None

    @property
    def needs_gradients(self) -> bool:
        """True if any gradient is recorded."""
        return any(recorder.needs_gradients for recorder in self.recorders.values())

    @property
    def layers_by_site(self) -> dict[str, list[int]]:
        """The layers of every site that needs a hook, counted through both stacks."""
        return self.structure.count_through(
            {
                f"{name}.{site}": layers
                for name in STACKS
                for site, layers in self.recorders[name].layers_by_site.items()
            }
        )

    def __call__(self, site: str, number: int, value: Tensor) -> Tensor | None:
        """Record an activation, and return its replacement, if an edit had an effect; this is the hook function."""
        recorder, layer = self._find(number)
        return recorder(site, layer, value)

    def on_layer_start(self, number: int, call: BlockCall) -> None:
        """Pass the call of a block on.

        Args:
            number: the layer, counted through both stacks.
            call: the call.
        """
        recorder, layer = self._find(number)
        recorder.on_layer_start(layer, call)

    def on_attention_call(self, number: int, call: AttentionCall) -> None:
        """Pass a call of self-attention on.

        Args:
            number: the layer, counted through both stacks.
            call: the call.
        """
        recorder, layer = self._find(number)
        recorder.on_attention_call(layer, call)

    def get_buffer(self, site: str, number: int, like: Tensor) -> Tensor | None:
        """Return the buffer for a value that the hooks compute.

        Args:
            site: the name of the site.
            number: the layer, counted through both stacks.
            like: a tensor of the shape, dtype and device of the value.
        """
        recorder, layer = self._find(number)
        return recorder.get_buffer(site, layer, like)

    def run(self, model: PreTrainedModel, inputs: SourceAndTarget, batch_size: int) -> None:
        """Run all sequences in micro-batches, each with a backward pass if a gradient is recorded.

        Args:
            model: the model.
            inputs: the source and the target.
            batch_size: sequences per micro-batch.
        """
        for start in range(0, len(inputs), batch_size):
            rows = range(start, min(start + batch_size, len(inputs)))
            with enable_activation_gradients(model, self.structure.layers) if self.needs_gradients else nullcontext():
                self._run_micro_batch(model, inputs[rows.start : rows.stop], rows)

    def _run_micro_batch(self, model: PreTrainedModel, part: SourceAndTarget, rows: range) -> None:
        for name in STACKS:
            context = self._context(name, part, slice(rows.start, rows.stop))
            self.recorders[name].micro_batch = MicroBatch(rows=rows, context=context)
        with (
            attach_hooks(
                model,
                self.structure.layers,
                self.layers_by_site,
                self,
                on_layer_start=self.on_layer_start,
                on_attention_call=self.on_attention_call,
                allocate=self.get_buffer,
                first_layers=[self.structure.first_layer(name) for name in STACKS],
            ),
            collect_outputs(self.final_norm) as normed,
        ):
            output = run_pair_forward(model, part)
        self.recorders[DECODER].record_output(output, normed, [1])
        if self.needs_gradients:
            batch = self.recorders[DECODER].micro_batch.context.batch
            backpropagate_loss(output["logits"], part.target, part.target_mask, batch, self.objective)

    def _find(self, number: int) -> tuple[Recorder, int]:
        """Return the recorder of a layer, and the index of the layer in its stack."""
        stack, layer = self.structure.locate_layer(number)
        return self.recorders[stack], layer

    def _context(self, name: str, part: SourceAndTarget, rows: slice) -> BatchContext:
        layers, batch = self.structure.stack(name).layers, self.batches[name]
        x, mask = part.side(name)
        return BatchContext(
            inputs=x,
            mask=mask,
            queries=torch.arange(x.shape[1]),
            batch=None if batch is None else batch[rows],
            readout=self.readouts[name],
            parallel=tuple(layer.parallel for layer in layers),
            has_cross=tuple(layer.cross is not None for layer in layers),
            source_mask=None if name == ENCODER else part.source_mask,
        )
