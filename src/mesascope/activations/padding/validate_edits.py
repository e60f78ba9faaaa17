"""Validation of edits of padded sequences: their positions, and the padding of the run that their source comes from."""

from collections.abc import Sequence
from operator import index as number

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from mesascope.activations.edits import AxisIndex, Edit
from mesascope.activations.padding.masks import POSITION_AXES, SOURCE_AXIS, pads_the_end
from mesascope.activations.padding.source_inputs import SourceInputs
from mesascope.activations.sites import get_site

ROTARY_SITES = ("query", "key")  # they depend on the position of their token


def validate_edit_padding(
    edit: Edit,
    inputs: Shaped[Tensor, "batch pos *d_in"],
    mask: Int[Tensor, "batch pos"] | None,
    source_mask: Int[Tensor, "batch source"] | None = None,
) -> None:
    """Check that an edit can be applied to padded sequences, and that the padding of its source fits theirs.

    Args:
        edit: the edit, whose indices and shapes are valid.
        inputs: the inputs of the run that is edited.
        mask: 1 where one of them is not padding; ``None`` without padding.
        source_mask: of the source of an encoder-decoder, to which cross-attention attends.

    Raises:
        ValueError: positions are counted from the end of a sequence that ends with padding, or the source has padding
            where the run has none.
    """
    if pads_the_end(mask):
        _validate_no_end_positions(edit, POSITION_AXES)
    if pads_the_end(source_mask):
        _validate_no_end_positions(edit, (SOURCE_AXIS,))
    if SOURCE_AXIS in get_site(edit.site).axes and edit.source_inputs is not None:
        _validate_same_source(edit, edit.source_inputs, source_mask)
    source = edit.source_inputs
    if source is None or (mask is None and source.mask is None):
        return
    real = torch.ones(inputs.shape[:2], dtype=torch.bool, device=inputs.device) if mask is None else mask.bool()
    _validate_same_mask(edit, source, inputs, real)
    if not {*POSITION_AXES} & {*get_site(edit.site).axes}:
        return
    rows = edit.edited_indices("batch", len(real))
    source_rows = source.row_mask.to(real.device)
    source_rows = source_rows if edit.shared_source else source_rows[rows]
    if {"query", "key"} & {*get_site(edit.site).axes}:
        _validate_same_keys(edit, real[rows], source_rows, rows)
    else:
        _validate_source_positions(edit, real[rows], source_rows, rows)


def _validate_same_source(edit: Edit, source: SourceInputs, source_mask: Int[Tensor, "batch source"] | None) -> None:
    """Raise if cross-attention of a run and of the source of its edit attends to sources of other lengths."""
    theirs = source.row_source_mask
    if theirs is None and source_mask is None:
        return
    same = theirs is not None and source_mask is not None and torch.equal(theirs.to(source_mask.device), source_mask)
    if edit.shared_source or not same:
        raise ValueError(
            f"the source of an edit of {edit.site} must have the padding of the run on the side of the encoder, "
            "because cross-attention to sequences of other lengths has other keys, but it has another one, or is a "
            "mean; pass sources of one length, or edit cross_z"
        )


def _validate_no_end_positions(edit: Edit, axes: Sequence[str]) -> None:
    for axis in axes:
        if axis in edit.where and counts_from_end(edit.where[axis]):
            raise ValueError(
                f"where[{axis!r}] must not count from the end of sequences that end with padding, but got "
                f"{edit.where[axis]}; pad on the left, or pass columns counted from 0"
            )


def counts_from_end(where: AxisIndex) -> bool:
    """Return whether an index of positions counts from the end of the sequences.

    Args:
        where: the index.
    """
    if isinstance(where, slice):
        return any(bound is not None and bound < 0 for bound in (where.start, where.stop))
    try:
        return number(where) < 0  # pyright: ignore[reportArgumentType] raises TypeError for a sequence
    except (TypeError, ValueError):
        return any(number(one) < 0 for one in where)  # pyright: ignore[reportGeneralTypeIssues]


def _validate_same_mask(
    edit: Edit, source: SourceInputs, inputs: Shaped[Tensor, "batch pos *d_in"], real: Bool[Tensor, "batch pos"]
) -> None:
    """Raise if the same inputs were captured with another mask, which was then forgotten on one side."""
    own = SourceInputs(inputs=source.inputs, mask=source.mask).row_mask
    same_inputs = source.inputs.shape == inputs.shape and torch.equal(source.inputs.to(inputs.device), inputs)
    if same_inputs and not torch.equal(own.to(real.device), real):
        raise ValueError(
            f"the source of an edit of {edit.site} must have the attention mask of the run, but was captured from the "
            "same inputs with another mask; pass the same attention_mask to both"
        )


def _validate_same_keys(
    edit: Edit, real: Bool[Tensor, "row pos"], source: Bool[Tensor, "source pos"], rows: list[int]
) -> None:
    """Raise if sequences of a run and of its source attend to other keys."""
    if edit.shared_source:
        if not (real.all() and source.all()):
            raise ValueError(
                f"a mean of {edit.site} needs sequences of one length, because those of other lengths attend to other "
                "keys, but some are padded; group the sequences by length, or edit z"
            )
        return
    others = (real != source).any(1).nonzero()[:, 0].tolist()
    if others:
        raise ValueError(
            f"the source of an edit of {edit.site} must have the same padding as the run, because sequences of other "
            f"lengths attend to other keys, but sequence {rows[others[0]]} has another length or side; pad pairs "
            "alike, or edit z"
        )


def _validate_source_positions(
    edit: Edit, real: Bool[Tensor, "row pos"], source: Bool[Tensor, "source pos"], rows: list[int]
) -> None:
    """Raise if the source has padding where the run has none, or rotary sites stand at other positions."""
    columns = edit.edited_indices("pos", real.shape[1])
    available = source.any(0, keepdim=True) if edit.shared_source else source
    missing = (real & ~available)[:, columns].nonzero().tolist()
    if missing:
        row, column = missing[0]
        raise ValueError(
            f"the source of an edit of {edit.site} must have an input wherever the run has one, but has padding at "
            f"column {columns[column]}, where sequence {rows[row]} of the run has none; pass pairs of one length, or "
            "select columns that are real in both with where={'pos': ...}"
        )
    if edit.site not in ROTARY_SITES:
        return
    position, source_position = (each.int().cumsum(1) - 1 for each in (real, source))
    low = source_position.masked_fill(~source, real.shape[1])
    high = source_position.masked_fill(~source, -1)
    if edit.shared_source:
        low, high = low.amin(0, keepdim=True), high.amax(0, keepdim=True)
    moved = (real & ((low != position) | (high != position)))[:, columns].nonzero().tolist()
    if moved:
        row, column = moved[0]
        raise ValueError(
            f"the source of an edit of {edit.site} must have the same positions as the run, because of rotary "
            f"embeddings, but column {columns[column]} of sequence {rows[row]} is another position there; pad on the "
            "right, or group the sequences by length"
        )
