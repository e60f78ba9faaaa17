"""Path patching: effect of a sender on the metric through one receiver, with other components frozen."""

from collections.abc import Callable, Sequence
from dataclasses import replace as with_other
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn

from mesascope.activations import BatchedEdits, Edit, InputsLike, PairedEdits
from mesascope.argument_types import validate_arguments
from mesascope.interventions._batched import MAX_BATCH_POSITIONS, ProgressFn
from mesascope.interventions._edit_runner import EditRunner, capture_source_run, make_edit_runner
from mesascope.interventions._recovery import add_recovered_fraction, compute_target_metric
from mesascope.interventions._sweep_runs import resolve_sweep_indices, run_sweep, validate_sweep_axes
from mesascope.interventions.edits import IndexByAxis, replace
from mesascope.interventions.frozen_paths._paired_path import PairedPath
from mesascope.interventions.frozen_paths._patching_path import FROZEN_SITES, PatchingPath
from mesascope.interventions.metric_arguments import resolve_directed_metric
from mesascope.interventions.metrics import Metric
from mesascope.interventions.run_inputs import prepare_pair


@validate_arguments
def path_patch(
    model: nn.Module,
    inputs: InputsLike,
    source: InputsLike,
    metric: Metric | str | Callable[[Tensor], Tensor],
    site: str = "z",
    axes: Sequence[str] = ("layer", "head"),
    *,
    receiver: str = "output",
    receiver_where: IndexByAxis | None = None,
    through: str = "residual",
    where: IndexByAxis | None = None,
    attention_mask: Any = None,
    source_attention_mask: Any = None,
    max_positions: int = MAX_BATCH_POSITIONS,
    progress: ProgressFn | None = None,
) -> xr.Dataset:
    """Run ``inputs`` with a receiver's activation as it is when one sender has its activation from ``source``.

    Each sender takes three forward passes of ``inputs`` (Wang et al. 2022, appendix B; Goldowsky-Dill et al. 2023): one
    unedited; one in which the sender has its activation from ``source``, components off the path are frozen at their
    unedited activations, and the receiver's activation is recorded; and one in which only the receiver has the recorded
    activation, and the metric is measured. Padding is treated as in `patch`; a sequence counts if it has an input
    at the positions of the sender and of the receiver.

    In an encoder-decoder, sites name their stacks. A sender in the encoder reaches the decoder through cross-attention,
    which ``residual`` and ``mlp`` freeze (``cross_attn_out`` as ``attn_out``): its receiver is then in cross-attention,
    such as ``cross_value``, and only residual streams, MLPs with ``mlp``, lie between.

    Args:
        model: any model that `capture` supports.
        inputs: the run that is patched.
        source: the run that the senders' activations come from: as many sequences of the same length, or padded to
            it in the same columns.
        metric: a metric that differs between the two runs, as in `patch`.
        site: site of the senders.
        axes: axes of the site; each index along them is one sender.
        receiver: a site, or ``output``; with ``output``, the metric is measured in the second pass.
        receiver_where: index of the receiver by axis, such as ``{"layer": 9, "head": [6, 9]}``; one layer.
        through: components that the path may pass between sender and receiver. ``residual``: only the residual stream;
            attn_out and mlp_out of the layers between the two are frozen. ``mlp``: also MLPs; attn_out is frozen, as in
            Wang et al. ``all``: everything; nothing is frozen.
        where: index of the senders by axis; layers that do not precede the receiver, or lack the site, are excluded
            unless it names them.
        attention_mask: (batch, pos), 1 where one of ``inputs`` is not padding; both masks are needed if either run has
            padding.
        source_attention_mask: the same for ``source``.
        max_positions: as in `sweep`.
        progress: called with the number of finished senders and the number of all senders.

    Returns:
        A dataset as from `patch`; ``changed`` is 1 where any bit of the sender's activation differs between the runs.

    Raises:
        ValueError: If a sender does not precede the receiver, the two runs differ in shape, or the metric is the same
            on both.
        IndexError: If an index is out of range.
        UnsupportedModel: If a component that must be frozen is not known. Every error is raised before the first
            patched pass.

    >>> from mesascope.interventions import logit_difference
    >>> from mesascope.ground_truth.models.tokens import build_planted_language_model
    >>> first, second = torch.randperm(39, generator=torch.Generator().manual_seed(0))[:32].add(1).view(2, 1, 16)
    >>> clean, other = (torch.cat([half[:, :1] * 0, half, half], 1) for half in (first, second))
    >>> metric = logit_difference(first[:, 0], second[:, 0])  # the next token at the first occurrence
    >>> induction = {"layer": 1, "kv_head": 5}
    >>> model = build_planted_language_model()
    >>> found = path_patch(model, clean, other, metric, receiver="key", receiver_where=induction)
    >>> int(abs(found["effect"]).sel(layer=0).argmax("head"))  # the previous-token head
    3
    """
    run, other = prepare_pair(
        model, inputs, source, attention_mask, source_attention_mask, accepts_encoder_decoder=True
    )
    axes = validate_sweep_axes(site, axes, max_positions)
    resolved_metric = resolve_directed_metric(metric, run.inputs)
    receiver_edit = _parse_receiver(receiver, receiver_where, through)
    edit_runner = make_edit_runner(model, run, site, all_positions=not resolved_metric.last_position_only)
    patching_path = _find_path(edit_runner, receiver_edit, through)
    senders = Edit(site=site, where=dict(where or {}), fn=torch.clone)
    senders = with_other(senders, where={**senders.where, "layer": _find_sender_layers(patching_path, senders, axes)})
    identity_edit, axis_indices = resolve_sweep_indices(edit_runner, senders, axes, resolved_metric)
    layers = edit_runner.edited_layers(identity_edit)
    patching_path.select_activations(site, layers)
    source_activations, with_output = capture_source_run(edit_runner, other, site, layers)
    target = compute_target_metric(resolved_metric, edit_runner, with_output["output"], other.mask)
    if through == "residual":
        patching_path.validate_stream(site, layers)
    edit = replace(site, source_activations, identity_edit.where)
    edit_runner.validate_edit(edit)
    results = run_sweep(
        edit_runner,
        edit,
        axis_indices,
        resolved_metric,
        max_positions,
        progress,
        patching_path.compute_outputs,
        target=target,
        receiver=receiver_edit,
    )
    about = (
        f"{resolved_metric.description}: change through the path to {_describe_receiver(receiver_edit)} "
        f"(through={through})"
    )
    results["effect"] = results["effect"].assign_attrs(description=about)
    return add_recovered_fraction(results, resolved_metric)


def _parse_receiver(receiver: str, receiver_where: IndexByAxis | None, through: str) -> Edit | None:
    """Return the receiver as an edit without effect; ``None`` for the output.

    Raises:
        ValueError: If the site, the axis or ``through`` does not exist.
    """
    if through not in FROZEN_SITES:
        raise ValueError(f"through must be one of {', '.join(FROZEN_SITES)}, but got {through!r}")
    if receiver != "output":
        return Edit(site=receiver, where=dict(receiver_where or {}), fn=torch.clone)
    if receiver_where:
        raise ValueError(
            "receiver_where must be omitted if the receiver is the output, which has no indices to select, but got "
            f"{dict(receiver_where)}"
        )
    return None


def _find_path(edit_runner: EditRunner, receiver: Edit | None, through: str) -> PatchingPath | PairedPath:
    """Return the paths to a receiver."""
    if isinstance(edit_runner, PairedEdits):
        return PairedPath(edit_runner=edit_runner, receiver=receiver, through=through)
    layer = _get_receiver_layer(receiver, edit_runner)
    return PatchingPath(edit_runner=edit_runner, receiver=receiver, receiver_layer=layer, through=through)


def _get_receiver_layer(receiver: Edit | None, edit_runner: BatchedEdits) -> int:
    """Return the one layer of the receiver; the number of layers for the output."""
    if receiver is None:
        return edit_runner.num_layers
    layers = receiver.edited_layers(edit_runner.num_layers)
    if len(layers) != 1:
        raise ValueError(
            f"a receiver must be in one layer, but {receiver.site} is selected in {len(layers)}; pass "
            "receiver_where={'layer': ...}"
        )
    return layers[0]


def _find_sender_layers(patching_path: PatchingPath | PairedPath, senders: Edit, axes: Sequence[str]) -> list[int]:
    """Return the layers of the senders: those named, or all that have the site and precede the receiver."""
    site, edit_runner, is_named = senders.site, patching_path.edit_runner, "layer" in senders.where
    candidates = edit_runner.edited_layers(senders) if is_named else edit_runner.layers_with_site(site)
    layers = [layer for layer in candidates if patching_path.precedes_receiver(site, layer)]
    if len(layers) < len(candidates) and (is_named or not layers):
        late_layers = [layer for layer in candidates if layer not in layers]
        late = f"in layers {late_layers}" if layers else "in all selected layers"
        raise ValueError(
            f"a sender must precede its receiver, but {site} {late} does not precede "
            f"{_describe_receiver(patching_path.receiver)}; choose earlier senders or a later receiver"
        )
    if "layer" not in axes and len(layers) > 1:
        raise ValueError(
            f"a sender must be in one layer, but {site} is selected in layers {layers} at once; add layer to axes"
        )
    return layers


def _describe_receiver(receiver: Edit | None) -> str:
    """Describe the receiver in words."""
    if receiver is None:
        return "the output"
    return f"{receiver.site} at " + ", ".join(f"{axis} {index}" for axis, index in receiver.where.items())
