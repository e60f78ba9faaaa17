"""Means over the sequences of a sweep that an edit reaches: those with an input, and not padding, where it acts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from mesascope.activations import Edit
from mesascope.activations import get_site as site_of
from mesascope.activations.padding.masks import POSITION_AXES, SOURCE_AXIS
from mesascope.axes import to_data_array
from mesascope.interventions._edit_runner import EditRunner


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceMeans:
    """Means over the sequences that count at each index of a sweep.

    Attributes:
        axis_indices: indices by swept axis.
        counted: by edit, True for the sequences that have an input at an edited position; ``None`` without padding,
            where all count.
    """

    axis_indices: Mapping[str, Sequence[int]]
    counted: Bool[Tensor, "edit batch"] | None

    @property
    def axes(self) -> tuple[str, ...]:
        """The swept axes along which other sequences count: none without padding."""
        positions = (*POSITION_AXES, SOURCE_AXIS)
        return tuple(axis for axis in self.axis_indices if self.counted is not None and axis in positions)

    def average_by_edit(self, values: Float[Tensor, "edit batch"]) -> Float[Tensor, " edit"]:
        """Return the mean of every edit over its sequences; NaN where none counts.

        Args:
            values: one number per edit and sequence.
        """
        if self.counted is None:
            return values.mean(1)
        counted = self.counted.to(values.device)
        return values.where(counted, 0.0).sum(1) / counted.sum(1)

    def average(self, values: Float[Tensor, " batch"]) -> Float[Tensor, " edit"] | float:
        """Return the mean of unedited values over the sequences of every edit; one number without padding.

        Args:
            values: one number per sequence.
        """
        if self.counted is None:
            return float(values.mean())
        return self.average_by_edit(values.expand(len(self.counted), -1))

    def label(self, values: Tensor | float, units: str, description: str) -> xr.DataArray:
        """Label numbers that depend on the counted sequences only.

        Args:
            values: one number, or one per edit.
            units: their unit.
            description: one sentence.

        Returns:
            The numbers by the swept axes of positions; one number if there are none or no padding.
        """
        if not isinstance(values, Tensor):
            return to_data_array(values, units=units, description=description)
        by_index = values.reshape([len(indices) for indices in self.axis_indices.values()])
        first = tuple(slice(None) if axis in self.axes else 0 for axis in self.axis_indices)
        coords = {axis: self.axis_indices[axis] for axis in self.axes}
        return to_data_array(by_index[first], *self.axes, units=units, description=description, coords=coords)

    def label_counts(self) -> dict[str, xr.DataArray]:
        """Return the number of sequences that count, by name; empty without padding."""
        if self.counted is None:
            return {}
        about = "number of sequences with an input, not padding, at an edited position; the others are left out"
        return {"num_sequences": self.label(self.counted.sum(1), "sequences", about)}


def count_sequences(
    edit_runner: EditRunner,
    edits: Sequence[Edit],
    axis_indices: Mapping[str, Sequence[int]],
    receiver: Edit | None = None,
) -> SequenceMeans:
    """Find the sequences that count under each edit: those with an input at an edited position.

    Args:
        edit_runner: holds the sequences and their mask.
        edits: the edits of a sweep.
        axis_indices: indices by swept axis.
        receiver: a further edit whose positions the sequences must have.

    Returns:
        The means over these sequences.
    """
    ends = [edits[0], *([] if receiver is None else [receiver])]
    if all(mask is None for end in ends for mask in edit_runner.find_masks(end.site)):
        return SequenceMeans(axis_indices=axis_indices, counted=None)
    counted = torch.stack([_find_reached_sequences(edit, edit_runner) for edit in edits])
    counted = counted if receiver is None else counted & _find_reached_sequences(receiver, edit_runner)
    return SequenceMeans(axis_indices=axis_indices, counted=counted)


def _find_reached_sequences(edit: Edit, edit_runner: EditRunner) -> Bool[Tensor, " batch"]:
    reached = torch.ones(len(edit_runner.inputs), dtype=torch.bool, device=edit_runner.inputs.device)
    mask, source_mask = edit_runner.find_masks(edit.site)
    for axis in site_of(edit.site).axes:
        own = mask if axis in POSITION_AXES else source_mask if axis == SOURCE_AXIS else None
        if own is not None:
            reached = reached & own[:, edit.edited_indices(axis, own.shape[1])].bool().any(1)
    return reached
