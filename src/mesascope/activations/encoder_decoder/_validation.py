"""Validation of hook points and of padding in encoder-decoders, once for each length and kind of padding."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations.encoder_decoder._forward import run_pair
from mesascope.activations.encoder_decoder._inputs import SourceAndTarget
from mesascope.activations.encoder_decoder._structure import EncoderDecoderStructure
from mesascope.activations.exclusive_use import guard_hook
from mesascope.activations.hooks._module_arguments import first_tensor
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import rounding_tolerance
from mesascope.activations.validation.hook_points import largest_deviation, longest_row
from mesascope.activations.validation.identities import check_hooked_run
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
    blocks = [model.get_submodule(each.layers[-1].block) for each in (structure.encoder, structure.decoder)]
    deviation = _find_deviation(model, blocks, one, ("source", "target"))
    if deviation is not None:
        side = "target" if _find_deviation(model, blocks, one, ("source",)) is None else "source"
        raise UnsupportedModel(
            f"padding of the {side} must not change what is computed at other positions, but in "
            f"{type(model).__name__} it changes by {deviation:.1e} (relative) in sequence {row}; pad on the other "
            "side, or pass sequences of one length"
        )


def _find_deviation(
    model: PreTrainedModel, blocks: Sequence[nn.Module], one: SourceAndTarget, sides: Sequence[str]
) -> float | None:
    """Return by how much the padding of some sides changes the streams of a sequence; ``None`` for rounding."""
    real = {"source": one.real_source(0), "target": one.real_target(0)}
    everything = dict.fromkeys(real, slice(None))
    if isinstance(model, EncoderDecoder):  # its source has a fixed length: what stands at padding must not matter
        other, chosen = _replace_padding(model, one, sides), real
    else:
        trimmed = {side: getattr(one, side)[:, real[side]] for side in sides}
        other = replace(one, **trimmed, **{f"{side}_mask": None for side in sides})
        chosen = {side: everything[side] if side in sides else real[side] for side in real}
    padded, unpadded = (_record_streams(model, blocks, each) for each in (one, other))
    for before, after, side in zip(unpadded, padded, real, strict=True):
        deviation = largest_deviation(after[0, real[side]], before[0, chosen[side]])
        if not deviation <= rounding_tolerance(before):
            return deviation
    return None


def _replace_padding(model: EncoderDecoder, one: SourceAndTarget, sides: Sequence[str]) -> SourceAndTarget:
    """Return the inputs with other tokens at the padding of some sides."""
    tokens = model.config.vocab_size or 1
    real = {"source": one.real_source(0), "target": one.real_target(0)}
    given = {side: getattr(one, side) for side in sides}
    return replace(one, **{side: torch.where(real[side], x, (x + 1) % tokens) for side, x in given.items()})


def _record_streams(model: PreTrainedModel, blocks: Sequence[nn.Module], inputs: SourceAndTarget) -> list[Tensor]:
    """Return the residual streams after some blocks."""
    streams: dict[nn.Module, Tensor] = {}

    def record(module: nn.Module, args: tuple, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            streams[module] = tensor.clone()

    handles = [block.register_forward_hook(guard_hook(record)) for block in blocks]
    try:
        run_pair(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [streams[block] for block in blocks]
