"""Validation of hook points and of padding, once for each length and kind of padding that a model has received."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.forward import run_model
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import rounding_tolerance
from mesascope.activations.validation.identities import (
    ATTENTION_WEIGHTS,
    LONG_SEQUENCE,
    check_hooked_forward,
    run_recording_streams,
)
from mesascope.activations.validation.length_check import LengthCheck, LengthKey

MAX_PADS_BEFORE = 8  # padding before the positions that are used to validate new hook points


def validate_hook_points(
    model: PreTrainedModel,
    structure: ModelStructure,
    layers_by_site: Mapping[str, Sequence[int]],
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"] | None,
    *,
    has_output: bool = True,
) -> None:
    """Validate a new length or kind of padding on a whole sequence, and other new hook points on up to 256 inputs.

    The longest sequence is used. What a model does may depend on the length (a window, a sparse selection of keys), so
    that a shorter text cannot vouch for a longer one.

    Args:
        model: the model.
        structure: its structure, which holds what has been validated.
        layers_by_site: layers by site.
        inputs: tokens or vectors.
        mask: 1 where an input is not padding.
        has_output: the output is used, not residual streams alone.

    Raises:
        UnsupportedModel: a check fails.
    """
    row = longest_row(mask)
    row_input, row_mask = inputs[row : row + 1], None if mask is None else mask[row : row + 1]
    new_hook_points = _hook_points(layers_by_site) - structure.validated
    if _length_key(layers_by_site, inputs, mask, has_output=has_output) not in structure.validated_lengths:
        check_hooked_forward(model, structure, layers_by_site, row_input, row_mask)
        structure.note_length(_length_key(layers_by_site, inputs, mask, has_output=True))
    elif new_hook_points:
        has_chunks = structure.chunks is not None  # a part of the inputs may lack the second chunk
        part = slice(None) if has_chunks else _validation_window(row_mask, inputs.shape[1])
        part_mask = None if row_mask is None else row_mask[:, part]
        check_hooked_forward(model, structure, layers_by_site, row_input[:, part], part_mask)
    structure.validated.update(new_hook_points)
    if mask is not None:
        validate_padding(model, structure, inputs, mask)


def find_length_check(
    model: PreTrainedModel,
    structure: ModelStructure,
    layers_by_site: Mapping[str, Sequence[int]],
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"] | None,
    *,
    has_output: bool,
) -> LengthCheck | None:
    """Return the checks of a new length, for a capture that runs the longest sequence in a pass of its own.

    Args:
        model: the model, which calls each of its blocks once.
        structure: its structure, which holds what has been validated.
        layers_by_site: layers by site.
        inputs: tokens or vectors.
        mask: 1 where an input is not padding.
        has_output: the output is recorded, and is then compared at all positions; otherwise at the last one, and the
            residual stream after the last layer at all positions.

    Returns:
        The checks, which have to be made in the pass of this sequence; ``None`` if the length has been validated.
    """
    row = longest_row(mask)
    key = _length_key(layers_by_site, inputs, mask, has_output=has_output)
    if key in structure.validated_lengths:
        return None
    row_mask = None if mask is None else mask[row : row + 1]
    return LengthCheck(model, structure, layers_by_site, row, row_mask, key)


def _length_key(
    layers_by_site: Mapping[str, Sequence[int]],
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"] | None,
    *,
    has_output: bool,
) -> LengthKey:
    """Return what a length is validated with; in a long sequence, the output never at all positions."""
    has_weights = any(layers_by_site.get(site) for site in ATTENTION_WEIGHTS)
    return inputs.shape[1], mask is not None, has_weights, has_output and inputs.shape[1] <= LONG_SEQUENCE


def longest_row(mask: Int[Tensor, "batch pos"] | None) -> int:
    """Return the index of the sequence with the least padding.

    Args:
        mask: 1 where an input is not padding.

    Returns:
        The first such sequence; 0 without a mask.
    """
    return 0 if mask is None else int(mask.bool().sum(1).argmax())


def _hook_points(layers_by_site: Mapping[str, Sequence[int]]) -> set[tuple[str, int]]:
    return {(site, layer) for site, layers in layers_by_site.items() for layer in layers}


def _validation_window(row_mask: Int[Tensor, "1 pos"] | None, length: int) -> slice:
    """Return up to 256 positions that begin with the first input that is not padding, or shortly before it."""
    first = 0 if row_mask is None else int(row_mask[0].bool().int().argmax())
    start = max(0, first - MAX_PADS_BEFORE)
    return slice(start, min(length, max(start, first) + LONG_SEQUENCE - (first - start)))


def validate_padding(
    model: PreTrainedModel,
    structure: ModelStructure,
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"],
) -> None:
    """Check every new kind of padding: the most on the left, the most on the right, and gaps.

    Args:
        model: the model.
        structure: its structure, which holds what has been validated.
        inputs: tokens or vectors.
        mask: 1 where an input is not padding.

    Raises:
        UnsupportedModel: padding changes what the model computes at other positions.
    """
    is_token = mask.bool()
    left = is_token.int().argmax(1)
    right = is_token.flip(1).int().argmax(1)
    gaps = mask.shape[1] - left - right - is_token.sum(1)
    for amount in (left, right, gaps):
        amount = amount.masked_fill(~is_token.any(1), 0)
        row = int(amount.argmax())
        key = (mask.shape[1], int(left[row]), int(right[row]), int(gaps[row]))
        if amount[row] and key not in structure.validated_padding:
            _check_padding_invariance(model, structure, inputs[row : row + 1], mask[row : row + 1], row)
            structure.validated_padding.add(key)


def _check_padding_invariance(
    model: PreTrainedModel,
    structure: ModelStructure,
    inputs: Shaped[Tensor, "1 pos *d_in"],
    mask: Int[Tensor, "1 pos"],
    row: int,
) -> None:
    """Check on one sequence that padding does not change what the model computes at the other positions."""
    is_token, block = mask[0].bool(), structure.layers[-1].block
    padded, unpadded = (
        run_recording_streams(
            model, [block], partial(run_model, model, x, given, all_positions=x.shape[1] <= LONG_SEQUENCE)
        )
        for x, given in ((inputs, mask), (inputs[:, is_token], None))
    )
    compared = 0 if padded[0].shape[1] == len(is_token) and unpadded[0].shape[1] == int(is_token.sum()) else 1
    deviation = largest_deviation(padded[compared][0, is_token], unpadded[compared][0])
    if not deviation <= rounding_tolerance(unpadded[0]):
        raise UnsupportedModel(
            f"padding must not change the output at other positions, but that of {type(model).__name__} changes by "
            f"{deviation:.1e} (relative) in sequence {row}; pass sequences of one length"
        )


def largest_deviation(a: Float[Tensor, "pos width"], b: Float[Tensor, "pos width"]) -> float:
    """Return the largest difference at any position, relative to the largest entry at that position.

    Args:
        a: vectors by position.
        b: the reference.
    """
    size = b.double().abs().amax(-1).clamp(min=torch.finfo(b.dtype).tiny)
    return float(((a.double() - b.double()).abs().amax(-1) / size).max())
