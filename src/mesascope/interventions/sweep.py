"""Sweeps of one edit over layers, heads and positions, and activation patching; many edits per forward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import xarray as xr
from torch import Tensor, nn

from mesascope.activations import Edit, InputsLike
from mesascope.argument_types import validate_arguments
from mesascope.interventions._batched import MAX_BATCH_POSITIONS, ProgressFn
from mesascope.interventions._edit_runner import make_edit_runner
from mesascope.interventions._sweep_runs import resolve_sweep_indices, run_sweep, validate_sweep_axes
from mesascope.interventions.metric_arguments import resolve_metric
from mesascope.interventions.metrics import Metric
from mesascope.interventions.run_inputs import prepare_run


@validate_arguments
def sweep(
    model: nn.Module,
    inputs: InputsLike,
    edit: Edit,
    axes: Sequence[str] = ("layer", "head"),
    metric: Metric | str | Callable[[Tensor], Tensor] = "loss",
    *,
    attention_mask: Any = None,
    max_positions: int = MAX_BATCH_POSITIONS,
    progress: ProgressFn | None = None,
) -> xr.Dataset:
    """Apply an edit at one index after another and measure the effect of each on a metric.

    Edits run together along the batch axis, as many as fit; layers before the first edited one are not computed again
    (`mesascope.activations.BatchedEdits`). An edit that changes no bit has exactly the unedited value.

    With padding (``attention_mask``), positions are columns of the padded inputs, as in `capture`: pad on the left to
    align the ends of the sequences, so that ``pos`` -1 is the last position of all, or on the right to align their
    beginnings. Padding is neither edited nor measured. At each index, the means are over the sequences that have an
    input at an edited position: ``num_sequences``. Where ``pos``, ``query`` or ``key`` is swept, they
    differ by position, so ``intact`` has that axis too; the numbers of a column without any input are NaN.

    In an encoder-decoder, the edit names its stack (``encoder.z``, ``cross_pattern``), and layers are counted in it.
    The metric is of the target: ``loss`` is that of its next token, and ``attention_mask`` its mask.

    Args:
        model: any model that `capture` supports.
        inputs: tokens (batch, pos), vectors, a batch of a task, or the output of a tokenizer with its attention mask.
        edit: the edit, such as ``zero("z")`` or ``mean("mlp_out", activations)``; its ``where`` limits the indices.
            Layers that lack its site are excluded unless it names them.
        axes: axes of the site whose indices are edited one at a time; along all other axes, the whole site is edited.
            In a model that repeats its layers, ``iteration`` is one of them.
        metric: ``loss``; ``kl_divergence`` (tokens) or ``squared_distance`` (vectors) from the unedited output; one of
            `mesascope.interventions.metrics`; or a function from (batch, pos, d_out) to (batch), which needs a
            parameter ``attention_mask`` if there is padding.
        attention_mask: (batch, pos), 1 where an input is not padding; padding may be on the left or on the right.
        max_positions: maximum of sequences times length over all edits that run as one batch. One edit and an unedited
            copy always run together: pass fewer sequences if these do not fit in memory.
        progress: called with the number of finished edits and the number of all edits.

    Returns:
        By ``axes``: ``value`` (the metric with the edit, mean over sequences), ``effect`` (``value`` minus the unedited
        metric) and ``changed`` (1 where the edit changed any bit of the activation); and ``intact``, the metric without
        an edit; with padding also ``num_sequences``.

    Raises:
        ValueError: If an argument is invalid, or the metric or the source of the edit does not fit the padding.
        IndexError: If an index of the edit is out of range.
        UnsupportedModel: If a layer lacks the site. Every error is raised before the first edited pass.

    >>> import torch
    >>> from mesascope.interventions import zero
    >>> from mesascope.ground_truth.models.vectors import build_planted_model
    >>> from mesascope.tasks.affine import Affine
    >>> batch = Affine().sample(8, torch.Generator().manual_seed(0))
    >>> found = sweep(build_planted_model("previous"), batch, zero("z"), metric="squared_distance")
    >>> found["effect"].dims, int(found["effect"].sel(layer=0).argmax("head"))
    (('layer', 'head'), 0)
    """
    axes = validate_sweep_axes(edit.site, axes, max_positions)
    run = prepare_run(model, inputs, attention_mask, accepts_encoder_decoder=True)
    metric_or_factory = resolve_metric(metric, run.inputs)
    edit_runner = make_edit_runner(
        model,
        run,
        edit.site,
        all_positions=not (isinstance(metric_or_factory, Metric) and metric_or_factory.last_position_only),
        accepts_iterations=True,
    )
    edit, axis_indices = resolve_sweep_indices(edit_runner, edit, axes, metric_or_factory)
    resolved_metric = (
        metric_or_factory if isinstance(metric_or_factory, Metric) else metric_or_factory(edit_runner.unedited_output)
    )
    return run_sweep(edit_runner, edit, axis_indices, resolved_metric, max_positions, progress)
