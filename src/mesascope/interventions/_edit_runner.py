"""Batched edited passes for any model: with one stack of layers, or with an encoder and a decoder."""

from torch import nn

from mesascope.activations import BatchedEdits, Capture, EncoderDecoderCapture, PairedEdits, capture
from mesascope.interventions.run_inputs import PreparedInputs

EditRunner = BatchedEdits | PairedEdits


def make_edit_runner(
    model: nn.Module, run: PreparedInputs, site: str, *, all_positions: bool = True, accepts_iterations: bool = False
) -> EditRunner:
    """Return the runner of edits at one site.

    Args:
        model: the model.
        run: its inputs.
        site: the site to edit, which names its stack in an encoder-decoder.
        all_positions: outputs are needed at every position; an encoder-decoder always computes them.
        accepts_iterations: accept a model that repeats its layers.

    Raises:
        UnsupportedModel: the model cannot be captured.
        ValueError: a site of an encoder-decoder names no stack.
    """
    if run.pair is not None:
        return PairedEdits(run.model, run.pair, site)
    return BatchedEdits(
        model,
        run.inputs,
        site,
        attention_mask=run.mask,
        all_positions=all_positions,
        accepts_iterations=accepts_iterations,
    )


def capture_source_run(
    edit_runner: EditRunner, run: PreparedInputs, site: str, layers: list[int]
) -> tuple[Capture | EncoderDecoderCapture, Capture]:
    """Record a site and the output of the run that activations are taken from.

    Args:
        edit_runner: the runner of the other run.
        run: the inputs of the run.
        site: the site.
        layers: the layers to record.

    Returns:
        The capture, and the part of it that has the output.
    """
    if isinstance(edit_runner, PairedEdits):
        assert run.pair is not None
        acts = edit_runner.capture_run(run.pair, [site, "output"], layers)
        return acts, acts.decoder
    acts = capture(edit_runner.model, run.inputs, [site, "output"], layers=layers, attention_mask=run.mask)
    return acts, acts
