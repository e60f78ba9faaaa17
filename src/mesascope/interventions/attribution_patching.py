"""Attribution patching: what every edit would do, to first order, from one pass forth and back."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.activations import Capture, Edit, Stem, capture
from mesascope.activations.edits import apply
from mesascope.axes import label
from mesascope.interventions.batched import room_for
from mesascope.interventions.metrics import Metric
from mesascope.interventions.sweep import POSITIONS, Progress, at, metric_of, placed, refuse_asked, sweep
from mesascope.tasks.base import Batch

GRADIENTS = {"resid_pre": "resid_pre", "attn_write": "attn_write", "mlp_write": "mlp_write", "head_out": "attn_write"}
AGREEMENT = ("correlation", "same_sign", "relative_error")


def attribution_patch(
    model: nn.Module,
    inputs: Tensor | Batch,
    edit: Edit,
    over: Sequence[str] = ("layer", "head"),
    metric: Metric | str | Callable[[Tensor], Tensor] = "loss",
    *,
    steps: int = 0,
    compare: bool = False,
    positions: int = POSITIONS,
    progress: Progress | None = None,
) -> xr.Dataset:
    """The first-order estimate of what :func:`sweep` measures (attribution patching, Nanda 2023; Syed et al. 2023).

    What an edit changes at a place, times the gradient of the metric there. One pass forth and back serves all places,
    but the estimate is exact only where everything after the place is linear: a saturated softmax has no gradient,
    and a large change leaves the neighbourhood that a gradient speaks of. So compare; or take the mean gradient along
    the way from what is there to what the edit puts there (integrated gradients; Sundararajan et al. 2017, for circuits
    Hanna et al. 2024). All places of a layer go that way together, one layer at a time, so that the estimates of a
    layer sum to the effect of all its edits; not where the effect jumps, as where a router picks other experts.

    Args:
        model: any model that capture supports.
        inputs: as in :func:`sweep`.
        edit: as in :func:`sweep`, at resid_pre, attn_write, mlp_write or head_out.
        over: as in :func:`sweep`.
        metric: as in :func:`sweep`; ``divergence`` and ``distance`` have no first order at the intact prediction.
        steps: how many gradients on the way are averaged, for each layer; none, and the gradient is that of the
            untouched model.
        compare: measure the real effects too, and tell where the two disagree.
        positions: as in :func:`sweep`, of the gradients on the way and of the comparison.
        progress: of the comparison, as in :func:`sweep`.

    Returns:
        ``estimate`` by the axes ``over``, mean over sequences; with ``compare`` also ``effect``, ``error`` (estimate
        minus effect) and ``agreement``: the correlation over places, the share of places with the same sign weighted
        by the size of the effect, and the error's root mean square in units of the effect's.

    Raises:
        ValueError, IndexError, UnsupportedModel: what is asked for is not there, or has no gradient.

    >>> from mesascope.interventions import zero
    >>> from mesascope.ground_truth.models.vectors import planted
    >>> x = torch.randn(4, 6, 1, generator=torch.Generator().manual_seed(0))
    >>> found = attribution_patch(planted("previous"), x, zero("head_out"), metric=lambda p: p[:, -1, 0], compare=True)
    >>> bool(abs(found["error"]).max() < 1e-6)
    True
    """
    over = refuse_asked(edit.site, over, positions)
    if edit.site not in GRADIENTS:
        raise ValueError(f"a gradient is had at {', '.join(GRADIENTS)}, but not at {edit.site}; use sweep")
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, but got {steps}")
    if metric in ("divergence", "distance"):
        raise ValueError(f"{metric} is at its minimum at the intact prediction, where its gradient is 0; use sweep")
    measured = metric_of(metric, inputs)
    assert isinstance(measured, Metric)
    stem = Stem(model, inputs, edit.site, everywhere=not measured.last)
    edit, places = placed(stem, edit, over, measured)
    layers = edit.layers(stem.layers)
    if steps:
        value, gradient = _along(stem, edit, measured, steps, positions)
    else:
        recorded = capture(
            model, inputs, [edit.site, f"{GRADIENTS[edit.site]}_grad"], layers=layers, objective=measured
        )
        value, gradient = (
            dict(zip(layers, each, strict=True)) for each in (recorded[edit.site], _gradient(recorded, edit.site))
        )
    rows = range(len(stem.inputs))
    estimates = []
    for place in itertools.product(*places.values()):
        alone, total = at(edit, over, place), 0.0
        for layer in alone.layers(stem.layers):
            new = apply(alone, value[layer], layer, rows, len(rows))
            if new is not None:
                total += float(((new - value[layer]) * gradient[layer]).double().sum())
        estimates.append(total / len(rows))
    sizes = [len(indices) for indices in places.values()]
    about = f"{measured.about}: change by the edit, to first order"
    estimate = label(
        np.array(estimates).reshape(sizes), *places, units=measured.units, about=about, coords=places
    ).assign_attrs(headline=1)
    if not compare:
        return xr.Dataset({"estimate": estimate})
    real = sweep(model, inputs, edit, over, measured, positions=positions, progress=progress)
    error = (estimate - real["effect"]).assign_attrs(units=measured.units, about="estimate minus effect")
    agreement = label(
        agreement_of(estimate.values.ravel(), real["effect"].values.ravel()),
        "stat",
        units="1",
        about="how far the first order and the real effect agree over places; NaN where one of them does not vary",
        coords={"stat": list(AGREEMENT)},
    )
    return real.assign(estimate=estimate, error=error, agreement=agreement)


def _along(
    stem: Stem, edit: Edit, metric: Metric, steps: int, positions: int
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """By layer, what is there, and the mean gradient of the metric on the way to what the edit puts there; points are
    the middles of so many equal steps.
    """
    stem.check({edit.site: edit.layers(stem.layers)})
    rows, value, gradient = range(len(stem.inputs)), {}, {}
    for layer in edit.layers(stem.layers):
        here = value[layer] = stem.seen(edit.site, layer)
        new = apply(edit, here, layer, rows, len(rows))
        gradient[layer] = torch.zeros_like(here)
        if new is None:
            continue
        shares = ((torch.arange(steps) + 0.5) / steps).to(here)
        for part in shares.split(room_for(stem, positions)):
            way = here + part.reshape(-1, *[1] * here.ndim) * (new - here)
            gradient[layer] += stem.slopes(edit.site, layer, way, metric).sum(0) / steps
    return value, gradient


def agreement_of(estimate: Float[np.ndarray, " place"], effect: Float[np.ndarray, " place"]) -> Float[np.ndarray, "3"]:
    """How far two sets of numbers agree: correlation, weighted share of the same sign, relative error.

    >>> agreement_of(np.array([1.0, 2.0, -3.0]), np.array([1.0, 2.0, -3.0])).round(6).tolist()
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


def _gradient(recorded: Capture, site: str) -> Float[Tensor, "layer batch pos *rest"]:
    """The gradient of the metric by a site."""
    gradient = recorded[f"{GRADIENTS[site]}_grad"]
    if site != "head_out":
        return gradient
    return torch.einsum("lbpm,lhdm->lbphd", gradient, recorded.frame.output_projection.to(gradient))
