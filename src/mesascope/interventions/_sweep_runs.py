"""Runs of one edit at many indices: validation of axes and indices, the runs, and the dataset."""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as with_other

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mesascope.activations import Edit, EditHadNoEffect
from mesascope.activations import get_site as site_of
from mesascope.argument_types import describe_value
from mesascope.axes import to_data_array
from mesascope.interventions._batched import ProgressFn, run_batched_edits
from mesascope.interventions._edit_runner import EditRunner
from mesascope.interventions._sequence_means import SequenceMeans, count_sequences
from mesascope.interventions.metrics import Metric

SweepIndex = tuple[int, ...]


def validate_sweep_axes(site: str, axes: Sequence[str], max_positions: int) -> tuple[str, ...]:
    """Validate the axes of a sweep, and return them as a tuple.

    Args:
        site: site of the edit.
        axes: axes whose indices are edited one at a time.
        max_positions: maximum of sequences times length over a batch of edits.

    Raises:
        ValueError: If the site lacks an axis, an axis is named twice, none is named, or ``max_positions`` is below 1.
    """
    if max_positions < 1:
        raise ValueError(f"max_positions must be 1 or more, but got {max_positions}")
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    site_axes = [axis for axis in site_of(site).axes if axis != "batch"]
    unknown = [axis for axis in axes if axis not in (*site_axes, "iteration")]
    if unknown or not axes or len(set(axes)) < len(axes):
        raise ValueError(
            f"axes must name axes of {site} ({', '.join(site_axes)}) once each, but got {describe_value(axes)}"
        )
    return axes


def resolve_sweep_indices(
    edit_runner: EditRunner, edit: Edit, axes: Sequence[str], metric: Metric | Callable[[Tensor], Metric]
) -> tuple[Edit, dict[str, list[int]]]:
    """Resolve the layers of an edit and the indices along every swept axis.

    Args:
        edit_runner: holds the model and its inputs; nothing is run.
        edit: the edit; layers that lack its site are excluded unless it names them.
        axes: axes whose indices are edited one at a time.
        metric: called on zeros to validate it.

    Returns:
        The edit with its layers named, and the indices by axis, counted from 0.

    Raises:
        ValueError: If the layers differ in shape, there are none, an index is named twice, or the edit does not fit.
        IndexError: If an index is out of range.
        UnsupportedModel: If a named layer lacks the site.
    """
    if "layer" not in edit.where:
        num_layers = edit_runner.axis_sizes["layer"]
        layers = sorted({call % num_layers for call in edit_runner.layers_with_site(edit.site)})
        edit = with_other(edit, where={"layer": layers, **edit.where})
    if "iteration" in axes and "iteration" not in edit_runner.axis_sizes:
        raise ValueError(
            "the axis iteration needs a model that repeats its layers, but each layer is run once; omit it"
        )
    sizes = _resolve_axis_sizes(edit_runner, edit)
    for axis in {*axes, *edit.where}:
        indices = edit.edited_indices(axis, sizes[axis])
        if not indices or len(set(indices)) < len(indices):
            raise ValueError(f"where[{axis!r}] must select one or more indices, each once, but selects {indices}")
    if isinstance(metric, Metric):
        metric(edit_runner.zeros_like_output(), edit_runner.attention_mask)
    return edit, {axis: edit.edited_indices(axis, sizes[axis]) for axis in axes}


def _resolve_axis_sizes(edit_runner: EditRunner, edit: Edit) -> dict[str, int]:
    """Return the sizes of the axes of the edited site, which all edited layers share."""
    layers = edit_runner.edited_layers(edit)
    if not layers:
        raise ValueError(
            f"an edit needs a layer, but none is selected or has {edit.site}; select layers that have the site"
        )
    edit_runner.validate_edit(edit)
    shapes = sorted({tuple(edit_runner.site_shape(edit.site, layer)) for layer in layers})
    if len(shapes) > 1:
        raise ValueError(
            f"layers must have the same shape to be swept together, but those of {edit.site} have shapes {shapes}; "
            "select some with where={'layer': ...}"
        )
    return dict(zip(site_of(edit.site).axes_within_layer, shapes[0], strict=True)) | edit_runner.axis_sizes


def restrict_edit(edit: Edit, axes: Sequence[str], index: SweepIndex) -> Edit:
    """Restrict an edit to one index along the swept axes.

    Args:
        edit: the edit.
        axes: swept axes.
        index: index along each.

    Returns:
        The restricted edit.
    """
    return with_other(edit, where={**edit.where, **dict(zip(axes, index, strict=True))})


def run_sweep(
    edit_runner: EditRunner,
    edit: Edit,
    axis_indices: Mapping[str, Sequence[int]],
    metric: Metric,
    max_positions: int,
    progress: ProgressFn | None,
    run_edits: Callable[[Sequence[Edit]], Tensor] | None = None,
    target: Float[Tensor, " batch"] | None = None,
    receiver: Edit | None = None,
) -> xr.Dataset:
    """Run an edit at every index and return the results by index.

    Args:
        edit_runner: holds the model and its inputs.
        edit: edit from `resolve_sweep_indices`, or another that has been validated at its indices.
        axis_indices: indices by axis, from `resolve_sweep_indices`.
        metric: one number per sequence.
        max_positions: as in `mesascope.interventions.sweep`.
        progress: as in `mesascope.interventions.sweep`.
        run_edits: as in `run_batched_edits`.
        target: the metric of each sequence in another run.
        receiver: a further edit; with padding, only sequences that have an input at its positions count.

    Returns:
        ``effect``, ``value`` and ``changed`` by index, and ``intact``; with padding also ``num_sequences``, and
        ``intact`` by position; with a target also ``target``.

    Raises:
        UnsupportedModel: If the output for one sequence depends on the other sequences in the batch.
    """
    edit_runner.validate_sites({edit.site: edit_runner.edited_layers(edit)})
    edits = [restrict_edit(edit, tuple(axis_indices), index) for index in itertools.product(*axis_indices.values())]
    edited_values, had_effect = run_batched_edits(
        edit_runner, edits, metric, max_positions=max_positions, progress=progress, run_edits=run_edits
    )
    changed = torch.tensor(had_effect)
    means = count_sequences(edit_runner, edits, axis_indices, receiver)
    intact = means.average(metric(edit_runner.unedited_output, edit_runner.attention_mask))
    value = torch.where(changed.to(edited_values.device), means.average_by_edit(edited_values), intact)
    if not changed.any():
        line = f"none of {len(edits)} edits of {edit.site} had any effect (bitwise)"
        warnings.warn(line, EditHadNoEffect, stacklevel=3)
    results = _build_dataset(metric, means, intact, value, changed)
    if target is not None:
        about = f"{metric.description}; on the source run"
        results["target"] = means.label(means.average(target.to(value.device)), metric.units, about)
    return results


def _build_dataset(
    metric: Metric, means: SequenceMeans, intact: Tensor | float, value: Tensor, changed: Tensor
) -> xr.Dataset:
    axis_indices = means.axis_indices
    sizes = [len(indices) for indices in axis_indices.values()]

    def label_values(numbers: Tensor, units: str, about: str) -> xr.DataArray:
        return to_data_array(numbers.reshape(sizes), *axis_indices, units=units, description=about, coords=axis_indices)

    return xr.Dataset(
        {
            "effect": label_values(
                value - intact, metric.units, f"{metric.description}: change by the edit"
            ).assign_attrs(headline=1),
            "value": label_values(value, metric.units, f"{metric.description}; with the edit"),
            "changed": label_values(changed.to(torch.int8), "1", "1 if the edit changed any bit of the activation"),
            "intact": means.label(intact, metric.units, f"{metric.description}; without an edit"),
            **means.label_counts(),
        }
    )
