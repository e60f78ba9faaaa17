"""Attribution patching: first-order estimates of all edits from one forward and backward pass."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.activations import Capture, Edit, InputsLike, PairedEdits, capture, get_site
from mesascope.activations.edits import apply_edit
from mesascope.activations.padding.masks import zero_padding
from mesascope.activations.sites import DECODER, ENCODER, split_stack
from mesascope.argument_types import validate_arguments
from mesascope.axes import to_data_array
from mesascope.interventions._batched import MAX_BATCH_POSITIONS, ProgressFn, compute_max_edits
from mesascope.interventions._edit_runner import EditRunner, make_edit_runner
from mesascope.interventions._sequence_means import count_sequences
from mesascope.interventions._sweep_runs import resolve_sweep_indices, restrict_edit, validate_sweep_axes
from mesascope.interventions.metric_arguments import resolve_metric
from mesascope.interventions.metrics import Metric
from mesascope.interventions.run_inputs import PreparedInputs, prepare_run
from mesascope.interventions.sweep import sweep

GRADIENT_SITES = {  # the site whose gradient gives that of each site, without the name of a stack
    "resid_pre": "resid_pre",
    "attn_out": "attn_out",
    "mlp_out": "mlp_out",
    "z": "attn_out",
    "cross_attn_out": "cross_attn_out",
    "cross_z": "cross_attn_out",
}
AGREEMENT_STATS = ("correlation", "same_sign", "relative_error")


@validate_arguments
def attribution_patch(
    model: nn.Module,
    inputs: InputsLike,
    edit: Edit,
    axes: Sequence[str] = ("layer", "head"),
    metric: Metric | str | Callable[[Tensor], Tensor] = "loss",
    *,
    attention_mask: Any = None,
    steps: int = 0,
    compare: bool = False,
    max_positions: int = MAX_BATCH_POSITIONS,
    progress: ProgressFn | None = None,
) -> xr.Dataset:
    """Estimate the effects that `sweep` measures to first order (attribution patching, Nanda 2023; Syed et al. 2023).

    The estimate at an index is the change of the activation by the edit, times the gradient of the metric there. One
    forward and backward pass serves all indices, but the estimate is exact only if everything after the site is linear:
    a saturated softmax has no gradient, and a large change leaves the range in which the gradient is accurate. So
    compare it with `sweep`, or average the gradient along the straight path from the original activation to the
    replacement value (integrated gradients, Sundararajan et al. 2017; for circuits, Hanna et al. 2024). All edits of a
    layer move along this path together, one layer at a time, so that the estimates of a layer sum to the effect of all
    its edits. This does not hold where the effect is discontinuous, for example where a router selects other experts.

    Args:
        model: any model that `capture` supports.
        inputs: as in `sweep`.
        edit: as in `sweep`, at resid_pre, attn_out, mlp_out or z; in an encoder-decoder, of one of its stacks, or at
            cross_attn_out or cross_z.
        axes: as in `sweep`.
        metric: as in `sweep`; ``kl_divergence`` and ``squared_distance`` have zero gradient at the unedited output.
        attention_mask: as in `sweep`, where positions and means with padding are described.
        steps: number of gradients that are averaged along the path, for each layer; with 0, the gradient is that of the
            unedited model.
        compare: also measure the effects with `sweep`, and report how well the estimates agree.
        max_positions: as in `sweep`, for the integrated gradients and for the comparison.
        progress: as in `sweep`, for the comparison.

    Returns:
        ``estimate`` by ``axes``, mean over sequences. With ``compare`` also ``effect``, ``error`` (estimate minus
        effect) and ``agreement`` over indices: the correlation, the fraction of estimates with the right sign weighted
        by the size of the effect, and the root mean square error divided by the root mean square effect.

    Raises:
        ValueError: If an argument is invalid, or the site or the metric has no gradient.
        IndexError: If an index of the edit is out of range.
        UnsupportedModel: If a layer lacks the site.

    >>> from mesascope.interventions import zero
    >>> from mesascope.ground_truth.models.vectors import build_planted_model
    >>> x = torch.randn(4, 6, 1, generator=torch.Generator().manual_seed(0))
    >>> model, metric = build_planted_model("previous"), lambda p: p[:, -1, 0]
    >>> found = attribution_patch(model, x, zero("z"), metric=metric, compare=True)
    >>> bool(abs(found["error"]).max() < 1e-6)
    True
    """
    axes = validate_sweep_axes(edit.site, axes, max_positions)
    stack, local = split_stack(edit.site)
    if local not in GRADIENT_SITES:
        raise ValueError(
            f"the edit must be at a site with a gradient ({', '.join(GRADIENT_SITES)}), but is at {edit.site}; "
            "use sweep"
        )
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, but got {steps}")
    if metric in ("kl_divergence", "squared_distance"):
        raise ValueError(
            f"{metric} cannot be the metric, because its gradient is 0 at the unedited output, its minimum; use sweep"
        )
    run = prepare_run(model, inputs, attention_mask, accepts_encoder_decoder=True)
    resolved_metric = resolve_metric(metric, run.inputs)
    assert isinstance(resolved_metric, Metric)
    edit_runner = make_edit_runner(model, run, edit.site, all_positions=not resolved_metric.last_position_only)
    edit, axis_indices = resolve_sweep_indices(edit_runner, edit, axes, resolved_metric)
    layers = edit_runner.edited_layers(edit)
    if steps:
        value, gradient = _integrate_gradients(edit_runner, edit, resolved_metric, steps, max_positions)
    else:
        sites = [local, f"{GRADIENT_SITES[local]}_grad"]
        activations = _capture_gradients(edit_runner, run, stack, sites, layers, resolved_metric)
        value, gradient = (
            dict(zip(layers, each, strict=True)) for each in (activations[local], _get_gradient(activations, local))
        )
    estimates = _estimate_effects(edit_runner, edit, axis_indices, value, gradient)
    sizes = [len(indices) for indices in axis_indices.values()]
    about = f"{resolved_metric.description}: first-order estimate of the change by the edit"
    estimate = to_data_array(
        estimates.reshape(sizes),
        *axis_indices,
        units=resolved_metric.units,
        description=about,
        coords=axis_indices,
    ).assign_attrs(headline=1)
    if not compare:
        return xr.Dataset({"estimate": estimate})
    measured = sweep(
        model,
        inputs,
        edit,
        axes,
        resolved_metric,
        attention_mask=attention_mask,
        max_positions=max_positions,
        progress=progress,
    )
    error = (estimate - measured["effect"]).assign_attrs(
        units=resolved_metric.units, description="estimate minus effect"
    )
    measured_somewhere = np.isfinite(estimate.values)  # not in columns of padding alone
    agreement = to_data_array(
        compute_agreement(estimate.values[measured_somewhere], measured["effect"].values[measured_somewhere]),
        "stat",
        units="1",
        description="agreement of estimate and measured effect over all edits; NaN where one of the two does not vary",
        coords={"stat": list(AGREEMENT_STATS)},
    )
    return measured.assign(estimate=estimate, error=error, agreement=agreement)


def _capture_gradients(
    edit_runner: EditRunner,
    run: PreparedInputs,
    stack: str | None,
    sites: Sequence[str],
    layers: Sequence[int],
    metric: Metric,
) -> Capture:
    """Return activations and gradients of some layers; of an encoder-decoder, those of one stack."""
    if isinstance(edit_runner, PairedEdits):
        assert run.pair is not None
        stack = stack or DECODER  # cross-attention
        pair = edit_runner.capture_run(run.pair, [f"{stack}.{site}" for site in sites], layers, metric)
        return pair.encoder if stack == ENCODER else pair.decoder
    return capture(edit_runner.model, run.inputs, sites, layers=layers, objective=metric, attention_mask=run.mask)


def _estimate_effects(
    edit_runner: EditRunner,
    edit: Edit,
    axis_indices: Mapping[str, Sequence[int]],
    value: Mapping[int, Tensor],
    gradient: Mapping[int, Tensor],
) -> Float[Tensor, " place"]:
    """Return the estimate at every index: change times gradient, mean over the sequences that count there."""
    rows, site_axes = range(len(edit_runner.inputs)), get_site(edit.site).axes_within_layer
    masks = edit_runner.find_masks(edit.site)
    edits = [restrict_edit(edit, tuple(axis_indices), index) for index in itertools.product(*axis_indices.values())]
    by_sequence = torch.zeros(len(edits), len(rows), dtype=torch.float64, device=edit_runner.inputs.device)
    for number, single_edit in enumerate(edits):
        for layer in edit_runner.edited_layers(single_edit):
            new = apply_edit(single_edit, value[layer], layer, rows, len(rows), *masks)
            if new is not None:
                product = zero_padding((new - value[layer]) * gradient[layer], site_axes, masks[0])
                by_sequence[number] += product.double().flatten(1).sum(1).to(by_sequence.device)
    return count_sequences(edit_runner, edits, axis_indices).average_by_edit(by_sequence)


def _integrate_gradients(
    edit_runner: EditRunner, edit: Edit, metric: Metric, steps: int, max_positions: int
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Return activation and mean gradient by layer, along the path from the activation to the replacement value.

    The gradient is taken at the midpoints of equal steps.
    """
    edit_runner.validate_sites({edit.site: edit_runner.edited_layers(edit)})
    rows, value, gradient = range(len(edit_runner.inputs)), {}, {}
    mask, masks = edit_runner.attention_mask, edit_runner.find_masks(edit.site)
    for layer in edit_runner.edited_layers(edit):
        activation = value[layer] = edit_runner.unedited_activation(edit.site, layer)
        new = apply_edit(edit, activation, layer, rows, len(rows), *masks)
        gradient[layer] = torch.zeros_like(activation)
        if new is None:
            continue
        fractions = ((torch.arange(steps) + 0.5) / steps).to(activation)
        for fraction_chunk in fractions.split(compute_max_edits(edit_runner, max_positions)):
            interpolated = activation + fraction_chunk.reshape(-1, *[1] * activation.ndim) * (new - activation)
            gradient[layer] += (
                edit_runner.activation_gradients(
                    edit.site, layer, interpolated, lambda output: metric(output, mask)
                ).sum(0)
                / steps
            )
    return value, gradient


def compute_agreement(
    estimate: Float[np.ndarray, " place"], effect: Float[np.ndarray, " place"]
) -> Float[np.ndarray, "3"]:
    """Compute how well estimates agree with measured effects.

    Args:
        estimate: first-order estimates.
        effect: measured effects.

    Returns:
        Correlation (NaN where one of the two does not vary), fraction of estimates with the right sign weighted by
        ``abs(effect)``, and root mean square error divided by root mean square effect.

    >>> compute_agreement(np.array([1.0, 2.0, -3.0]), np.array([1.0, 2.0, -3.0])).round(6).tolist()
    [1.0, 1.0, 0.0]
    """
    size, varies = np.abs(effect).sum(), min(np.ptp(estimate), np.ptp(effect)) > 0
    return np.array(
        [
            np.corrcoef(estimate, effect)[0, 1] if varies else np.nan,
            (np.abs(effect) * (np.sign(estimate) == np.sign(effect))).sum() / size if size else np.nan,
            np.sqrt(((estimate - effect) ** 2).sum() / (effect**2).sum()) if size else np.nan,
        ]
    )


def _get_gradient(activations: Capture, site: str) -> Float[Tensor, "layer batch pos *rest"]:
    """Return the gradient of the metric at the site; for ``z``, the gradient at ``attn_out`` through W_O."""
    gradient, readout = activations[f"{GRADIENT_SITES[site]}_grad"], activations.readout
    if site not in ("z", "cross_z"):
        return gradient
    projection = readout.output_projection if site == "z" else readout.cross_output_projection
    return torch.einsum("lbpm,lhdm->lbphd", gradient, projection.to(gradient))
