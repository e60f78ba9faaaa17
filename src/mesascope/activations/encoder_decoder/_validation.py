"""Validation of hook points and of padding in encoder-decoders, once for each length and kind of padding."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations.encoder_decoder._forward import run_pair
from mesascope.activations.encoder_decoder._inputs import SourceAndTarget
from mesascope.activations.encoder_decoder._structure import EncoderDecoderStructure
from mesascope.activations.sites import ENCODER, STACKS, UnsupportedModel
from mesascope.activations.tolerances import rounding_tolerance
from mesascope.activations.validation.hook_points import largest_deviation, longest_row
from mesascope.activations.validation.identities import check_hooked_run, run_recording_streams
from mesascope.models.encoder_decoder.model import EncoderDecoder


def validate_pair_hook_points(
    model: PreTrainedModel,
    structure: EncoderDecoderStructure,
    layers_by_site: Mapping[str, Sequence[int]],
    inputs: SourceAndTarget,
) -> None:
    """Validate new hook points, lengths and kinds of padding on the sequences with the longest source and target.

    Args:
        model: the model.
        structure: its structure, which holds what has been validated.
        layers_by_site: layers by site, counted through both stacks.
        inputs: the source and the target.

    Raises:
        UnsupportedModel: a check fails.
    """
    lengths = (inputs.source.shape[1], inputs.target.shape[1])
    masked = (inputs.source_mask is not None, inputs.target_mask is not None)
    points: set[tuple[object, ...]] = {("output", *lengths, *masked)}
    points |= {(site, layer, *lengths, *masked) for site, layers in layers_by_site.items() for layer in layers}
    if not points <= structure.validated:
        for row in sorted({longest_row(inputs.source_mask), longest_row(inputs.target_mask)}):
            one = inputs[row : row + 1]
            masks = [one.source_mask] * len(structure.encoder.layers) + [one.target_mask] * len(
                structure.decoder.layers
            )
            check_hooked_run(model, structure.layers, layers_by_site, partial(run_pair, model, one), masks)
    structure.validated.update(points)
    for side, mask in (("source", inputs.source_mask), ("target", inputs.target_mask)):
        if mask is not None:
            _validate_padding(model, structure, inputs, side, mask)


def _validate_padding(
    model: PreTrainedModel,
    structure: EncoderDecoderStructure,
    inputs: SourceAndTarget,
    side: str,
    mask: Int[Tensor, "batch _"],
) -> None:
    """Check every new kind of padding of one side: the most on the left, the most on the right, and gaps."""
    real = mask.bool()
    left, right = real.int().argmax(1), real.flip(1).int().argmax(1)
    gaps = mask.shape[1] - left - right - real.sum(1)
    lengths = (inputs.source.shape[1], inputs.target.shape[1])
    for amount in (left, right, gaps):
        row = int(amount.argmax())
        key = (side, *lengths, int(left[row]), int(right[row]), int(gaps[row]))
        if amount[row] and key not in structure.validated:
            _check_padding(model, structure, inputs[row : row + 1], row)
            structure.validated.add(key)


def _check_padding(model: PreTrainedModel, structure: EncoderDecoderStructure, one: SourceAndTarget, row: int) -> None:
    """Check on one sequence that padding does not change what the model computes at the other positions."""
    blocks = [structure.stack(stack).layers[-1].block for stack in STACKS]
    deviation = _find_deviation(model, blocks, one, STACKS)
    if deviation is not None:
        side = "target" if _find_deviation(model, blocks, one, (ENCODER,)) is None else "source"
        raise UnsupportedModel(
            f"padding of the {side} must not change what is computed at other positions, but in "
            f"{type(model).__name__} it changes by {deviation:.1e} (relative) in sequence {row}; pad on the other "
            "side, or pass sequences of one length"
        )


def _find_deviation(
    model: PreTrainedModel, blocks: Sequence[str], one: SourceAndTarget, stacks: Sequence[str]
) -> float | None:
    """Return by how much the padding of some stacks changes the streams of a sequence; ``None`` for rounding."""
    real = {stack: one.find_real(stack, 0) for stack in STACKS}
    has_fixed_length = isinstance(model, EncoderDecoder)  # so that other tokens stand at padding, instead of none
    other = one
    for stack in stacks:
        x, name = one.side(stack)[0], "source" if stack == ENCODER else "target"
        if has_fixed_length:
            other_tokens = (x + 1) % (model.config.vocab_size or 1)
            other = replace(other, **{name: torch.where(real[stack], x, other_tokens)})
        else:
            other = replace(other, **{name: x[:, real[stack]], f"{name}_mask": None})
    _, *padded = run_recording_streams(model, blocks, partial(run_pair, model, one))
    _, *unpadded = run_recording_streams(model, blocks, partial(run_pair, model, other))
    for stack, before, after in zip(STACKS, unpadded, padded, strict=True):
        is_trimmed = stack in stacks and not has_fixed_length
        expected = before[0] if is_trimmed else before[0, real[stack]]
        deviation = largest_deviation(after[0, real[stack]], expected)
        if not deviation <= rounding_tolerance(before):
            return deviation
    return None
