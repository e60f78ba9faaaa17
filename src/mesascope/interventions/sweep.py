"""Sweeps of one edit over layers, heads and positions, and activation patching; many edits per forward pass."""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as with_other

import torch
import xarray as xr
from torch import Tensor, nn

from mesascope.activations import BatchedEdits, Edit, EditHadNoEffect, capture
from mesascope.activations import get_site as site_of
from mesascope.axes import to_data_array
from mesascope.interventions._batched import MAX_BATCH_POSITIONS, ProgressFn, run_batched_edits
from mesascope.interventions._recovery import add_recovered_fraction, compute_target_metric, validate_same_shape
from mesascope.interventions.edits import IndexByAxis, replace
from mesascope.interventions.metrics import Metric, kl_divergence, loss, squared_distance
from mesascope.tasks.base import Batch

METRIC_NAMES = ("divergence", "distance", "loss")

SweepIndex = tuple[int, ...]


def sweep(
    model: nn.Module,
    inputs: Tensor | Batch,
    edit: Edit,
    axes: Sequence[str] = ("layer", "head"),
    metric: Metric | str | Callable[[Tensor], Tensor] = "loss",
    *,
    max_positions: int = MAX_BATCH_POSITIONS,
    progress: ProgressFn | None = None,
) -> xr.Dataset:
    """Apply an edit at one index after another and measure the effect of each on a metric.

    Edits run together along the batch axis, as many as fit; layers before the first edited one are not computed again
    (`mesascope.activations.BatchedEdits`). An edit that changes no bit has exactly the unedited value.

    Args:
        model: any model that `capture` supports.
        inputs: tokens (batch, pos), vectors, or a batch of a task; of one length, without padding.
        edit: the edit, such as ``zero("z")`` or ``mean("mlp_out", activations)``; its ``where`` limits the indices.
            Layers that lack its site are excluded unless it names them.
        axes: axes of the site whose indices are edited one at a time; along all other axes, the whole site is edited.
        metric: ``loss``; ``divergence`` (tokens) or ``distance`` (vectors) from the unedited output; one of
            `mesascope.interventions.metrics`; or a function from (batch, pos, d_out) to (batch).
        max_positions: maximum of sequences times length over all edits that run as one batch. One edit and an unedited
            copy always run together: pass fewer sequences if these do not fit in memory.
        progress: called with the number of finished edits and the number of all edits.

    Returns:
        By ``axes``: ``value`` (the metric with the edit, mean over sequences), ``effect`` (``value`` minus the unedited
        metric) and ``changed`` (1 where the edit changed any bit of the activation); and ``intact``, the metric without
        an edit.

    Raises:
        ValueError: If an argument is invalid.
        IndexError: If an index of the edit is out of range.
        UnsupportedModel: If a layer lacks the site. Every error is raised before the first edited pass.

    >>> from mesascope.interventions import zero
    >>> from mesascope.ground_truth.models.vectors import build_planted_model
    >>> from mesascope.tasks.affine import Affine
    >>> batch = Affine().sample(8, torch.Generator().manual_seed(0))
    >>> found = sweep(build_planted_model("previous"), batch, zero("z"), metric="distance")
    >>> found["effect"].dims, int(found["effect"].sel(layer=0).argmax("head"))
    (('layer', 'head'), 0)
    """
    axes = validate_sweep_axes(edit.site, axes, max_positions)
    metric_or_factory = resolve_metric(metric, inputs)
    edit_runner = BatchedEdits(
        model,
        inputs,
        edit.site,
        all_positions=not (isinstance(metric_or_factory, Metric) and metric_or_factory.last_position_only),
    )
    edit, axis_indices = resolve_sweep_indices(edit_runner, edit, axes, metric_or_factory)
    resolved_metric = (
        metric_or_factory if isinstance(metric_or_factory, Metric) else metric_or_factory(edit_runner.unedited_output)
    )
    return run_sweep(edit_runner, edit, axis_indices, resolved_metric, max_positions, progress)


def patch(
    model: nn.Module,
    inputs: Tensor | Batch,
    source: Tensor | Batch,
    metric: Metric | str | Callable[[Tensor], Tensor],
    site: str = "resid_pre",
    axes: Sequence[str] = ("layer", "pos"),
    *,
    where: IndexByAxis | None = None,
    max_positions: int = MAX_BATCH_POSITIONS,
    progress: ProgressFn | None = None,
) -> xr.Dataset:
    """Run ``inputs`` with activations from ``source``, at one index of a site after another (activation patching).

    With corrupted ``inputs`` and a clean ``source``, this finds the patches that restore the answer (denoising). The
    other way round, it finds the patches that break it (noising). The two sets of indices need not be the same.

    Args:
        model: any model that `capture` supports.
        inputs: the run that is patched.
        source: the run that is patched in: as many sequences of the same length.
        metric: a metric that differs between the two runs, such as ``logit_difference(correct, incorrect)``: one of
            `mesascope.interventions.metrics`, or a function from (batch, pos, d_out) to (batch). A distance from the
            unedited output is not allowed, since any perturbation would count as recovery.
        site: name of the site.
        axes: axes of the site whose indices are patched one at a time.
        where: index by axis, which limits the patches; layers that lack the site are excluded unless it names them.
        max_positions: as in `sweep`.
        progress: called with the number of finished patches and the number of all patches.

    Returns:
        A dataset as from `sweep`, with ``recovered``, the fraction of the metric's difference between ``inputs`` (0)
        and ``source`` (1) that the patch recovers, and ``target``, the metric on ``source``.

    Raises:
        ValueError: If the two runs differ in shape, the metric is the same on both, or as in `sweep`.
        IndexError: As in `sweep`.
        UnsupportedModel: As in `sweep`.
    """
    validate_same_shape(inputs, source)
    axes = validate_sweep_axes(site, axes, max_positions)
    resolved_metric = resolve_directed_metric(metric, inputs)
    edit_runner = BatchedEdits(model, inputs, site, all_positions=not resolved_metric.last_position_only)
    identity_edit, axis_indices = resolve_sweep_indices(
        edit_runner, Edit(site=site, where=dict(where or {}), fn=torch.clone), axes, resolved_metric
    )
    source_activations = capture(
        model, source, [site, "output"], layers=identity_edit.edited_layers(edit_runner.num_layers)
    )
    target = compute_target_metric(resolved_metric, edit_runner.unedited_output, source_activations["output"])
    results = run_sweep(
        edit_runner,
        replace(site, source_activations, identity_edit.where),
        axis_indices,
        resolved_metric,
        max_positions,
        progress,
    )
    return add_recovered_fraction(results, resolved_metric, target)


def resolve_directed_metric(metric: Metric | str | Callable[[Tensor], Tensor], inputs: Tensor | Batch) -> Metric:
    """Return the metric of a patch, which must not be a distance from the unedited output.

    Args:
        metric: a metric, or a function from (batch, pos, d_out) to (batch).
        inputs: the run that is patched.

    Returns:
        The metric.

    Raises:
        ValueError: If the metric is given by name, or is not defined for the model's output.
    """
    if isinstance(metric, str):
        raise ValueError(
            f"patch needs a metric that differs between the runs, such as logit_difference, but got {metric!r}"
        )
    resolved_metric = resolve_metric(metric, inputs)
    assert isinstance(resolved_metric, Metric)
    return resolved_metric


def resolve_metric(
    metric: Metric | str | Callable[[Tensor], Tensor], inputs: Tensor | Batch
) -> Metric | Callable[[Tensor], Metric]:
    """Return the metric for a name or a function.

    Args:
        metric: a metric, one of the names in `METRIC_NAMES`, or a function from (batch, pos, d_out) to (batch).
        inputs: tokens, vectors, or a batch of a task.

    Returns:
        The metric; for a distance from the unedited output, a function from that output to the metric.

    Raises:
        ValueError: If there is no such name, or the metric is not defined for the model's output.
    """
    vectors = (inputs.targets if isinstance(inputs, Batch) else inputs).is_floating_point()
    output_kind = metric.output_kind if isinstance(metric, Metric) else "tokens" if metric == "divergence" else ""
    if output_kind and vectors == (output_kind == "tokens"):
        name = metric.name if isinstance(metric, Metric) else metric
        raise ValueError(
            f"{name} needs a model that predicts {output_kind}, but this one predicts "
            f"{'vectors' if vectors else 'tokens'}"
        )
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        name = getattr(metric, "__name__", "metric")
        return Metric(name=name, units="units of the metric", description=f"{name}, a user-defined function", fn=metric)
    if metric not in METRIC_NAMES:
        raise ValueError(
            f"a metric must be one of {', '.join(METRIC_NAMES)}, a Metric or a function, but got {metric!r}"
        )
    return {"divergence": kl_divergence, "distance": squared_distance}.get(metric) or loss(inputs)


def validate_sweep_axes(site: str, axes: Sequence[str], max_positions: int) -> tuple[str, ...]:
    """Validate the axes of a sweep.

    Args:
        site: site of the edit.
        axes: axes whose indices are edited one at a time.
        max_positions: maximum of sequences times length over a batch of edits.

    Returns:
        The axes, as a tuple.

    Raises:
        ValueError: If the site lacks an axis, an axis is named twice, none is named, or ``max_positions`` is below 1.
    """
    if max_positions < 1:
        raise ValueError(f"max_positions must be 1 or more, but got {max_positions}")
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    site_axes = [axis for axis in site_of(site).axes if axis != "batch"]
    unknown = [axis for axis in axes if axis not in site_axes]
    if unknown or not axes or len(set(axes)) < len(axes):
        raise ValueError(f"axes must name axes of {site} ({', '.join(site_axes)}) once each, but got {list(axes)}")
    return axes


def resolve_sweep_indices(
    edit_runner: BatchedEdits, edit: Edit, axes: Sequence[str], metric: Metric | Callable[[Tensor], Metric]
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
        edit = with_other(edit, where={"layer": edit_runner.layers_with_site(edit.site), **edit.where})
    layers = edit.edited_layers(edit_runner.num_layers)
    if not layers:
        raise ValueError(f"an edit needs a layer, but none is selected or has {edit.site}; name layers that have it")
    edit_runner.validate_edit(edit)
    shapes = sorted({tuple(edit_runner.site_shape(edit.site, layer)) for layer in layers})
    if len(shapes) > 1:
        raise ValueError(
            f"layers must have the same shape to be swept together, but those of {edit.site} have shapes {shapes}; "
            "select some with where={'layer': ...}"
        )
    sizes = dict(zip(site_of(edit.site).axes_within_layer, shapes[0], strict=True)) | {"layer": edit_runner.num_layers}
    for axis in {*axes, *edit.where}:
        indices = edit.edited_indices(axis, sizes[axis])
        if not indices or len(set(indices)) < len(indices):
            raise ValueError(f"where[{axis!r}] must select indices once each, but selects {indices}")
    if isinstance(metric, Metric):
        metric(edit_runner.zeros_like_output())
    return edit, {axis: edit.edited_indices(axis, sizes[axis]) for axis in axes}


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
    edit_runner: BatchedEdits,
    edit: Edit,
    axis_indices: Mapping[str, Sequence[int]],
    metric: Metric,
    max_positions: int,
    progress: ProgressFn | None,
    run_edits: Callable[[Sequence[Edit]], Tensor] | None = None,
) -> xr.Dataset:
    """Run an edit at every index and return the results by index.

    Args:
        edit_runner: holds the model and its inputs.
        edit: edit from `resolve_sweep_indices`.
        axis_indices: indices by axis, from `resolve_sweep_indices`.
        metric: one number per sequence.
        max_positions: as in `sweep`.
        progress: as in `sweep`.
        run_edits: as in `run_batched_edits`.

    Returns:
        ``effect``, ``value`` and ``changed`` by index, and ``intact``.

    Raises:
        UnsupportedModel: If the output for one sequence depends on the other sequences in the batch.
    """
    edit_runner.validate_sites({edit.site: edit.edited_layers(edit_runner.num_layers)})
    intact = float(metric(edit_runner.unedited_output).mean())
    sweep_indices = list(itertools.product(*axis_indices.values()))
    edited_values, had_effect = run_batched_edits(
        edit_runner,
        [restrict_edit(edit, tuple(axis_indices), indices) for indices in sweep_indices],
        metric,
        max_positions=max_positions,
        progress=progress,
        run_edits=run_edits,
    )
    changed = torch.tensor(had_effect)
    value = torch.where(changed.to(edited_values.device), edited_values.mean(1), intact).cpu()
    if not changed.any():
        line = f"none of {len(sweep_indices)} edits of {edit.site} had any effect (bitwise)"
        warnings.warn(line, EditHadNoEffect, stacklevel=3)
    return _build_dataset(metric, intact, value, changed, axis_indices)


def _build_dataset(
    metric: Metric, intact: float, value: Tensor, changed: Tensor, axis_indices: Mapping[str, Sequence[int]]
) -> xr.Dataset:
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
            "intact": to_data_array(intact, units=metric.units, description=f"{metric.description}; without an edit"),
        }
    )
