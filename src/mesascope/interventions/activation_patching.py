"""Activation patching: one index of a site after another takes its activation from another run."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from mesascope.activations import Edit, InputsLike
from mesascope.argument_types import validate_arguments
from mesascope.interventions._batched import MAX_BATCH_POSITIONS, ProgressFn
from mesascope.interventions._edit_runner import capture_source_run, make_edit_runner
from mesascope.interventions._recovery import add_recovered_fraction, compute_target_metric
from mesascope.interventions._sweep_runs import resolve_sweep_indices, run_sweep, validate_sweep_axes
from mesascope.interventions.edits import IndexByAxis, replace
from mesascope.interventions.metric_arguments import resolve_directed_metric
from mesascope.interventions.metrics import Metric
from mesascope.interventions.run_inputs import prepare_pair


@validate_arguments
def patch(
    model: nn.Module,
    inputs: InputsLike,
    source: InputsLike,
    metric: Metric | str | Callable[[Tensor], Tensor],
    site: str = "resid_pre",
    axes: Sequence[str] = ("layer", "pos"),
    *,
    where: IndexByAxis | None = None,
    attention_mask: Any = None,
    source_attention_mask: Any = None,
    max_positions: int = MAX_BATCH_POSITIONS,
    progress: ProgressFn | None = None,
) -> xr.Dataset:
    """Run ``inputs`` with activations from ``source``, at one index of a site after another (activation patching).

    With corrupted ``inputs`` and a clean ``source``, this finds the patches that restore the answer (denoising). The
    other way round, it finds the patches that break it (noising). The two sets of indices need not be the same.

    With padding, positions are columns of the padded inputs, and means are over the sequences that have an input at an
    edited position, as in `sweep`; ``target`` then has the axes of ``intact``. Where the edited columns of ``inputs``
    have an input, the source must have one, too. A pair of unequal length can therefore be patched only in columns that
    are real in both (``where={"pos": ...}``), such as the last ones of prompts that are padded on the left.

    In an encoder-decoder, the site names its stack (``encoder.z``, ``cross_value``), and sources and targets of the two
    runs must have the same lengths.

    Args:
        model: any model that `capture` supports.
        inputs: the run that is patched.
        source: the run that is patched in: as many sequences of the same length, or padded to
            it in the same columns.
        metric: a metric that differs between the two runs, such as ``logit_difference(correct, incorrect)``: one of
            `mesascope.interventions.metrics`, or a function from (batch, pos, d_out) to (batch). A distance from the
            unedited output is not allowed, since any perturbation would count as recovery.
        site: name of the site.
        axes: axes of the site whose indices are patched one at a time.
        where: index by axis, which limits the patches; layers that lack the site are excluded unless it names them.
        attention_mask: (batch, pos), 1 where one of ``inputs`` is not padding; both masks are needed if either run has
            padding.
        source_attention_mask: the same for ``source``.
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
    run, other = prepare_pair(
        model, inputs, source, attention_mask, source_attention_mask, accepts_encoder_decoder=True
    )
    axes = validate_sweep_axes(site, axes, max_positions)
    resolved_metric = resolve_directed_metric(metric, run.inputs)
    edit_runner = make_edit_runner(model, run, site, all_positions=not resolved_metric.last_position_only)
    identity_edit, axis_indices = resolve_sweep_indices(
        edit_runner, Edit(site=site, where=dict(where or {}), fn=torch.clone), axes, resolved_metric
    )
    layers = edit_runner.edited_layers(identity_edit)
    source_activations, with_output = capture_source_run(edit_runner, other, site, layers)
    target = compute_target_metric(resolved_metric, edit_runner, with_output["output"], other.mask)
    edit = replace(site, source_activations, identity_edit.where)
    edit_runner.validate_edit(edit)
    results = run_sweep(edit_runner, edit, axis_indices, resolved_metric, max_positions, progress, target=target)
    return add_recovered_fraction(results, resolved_metric)
