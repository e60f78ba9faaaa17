"""One edit after the other over layers, heads and positions, many in each forward pass."""

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as with_other

import torch
import xarray as xr
from torch import Tensor, nn

from mesascope.activations import Edit, NothingChanged, Stem, capture
from mesascope.activations import site as site_of
from mesascope.axes import label
from mesascope.interventions.batched import POSITIONS, Progress, branched
from mesascope.interventions.edits import Where, replace
from mesascope.interventions.metrics import Metric, distance, divergence, loss
from mesascope.interventions.recovery import refuse_unlike, targeted, with_share
from mesascope.tasks.base import Batch

NAMES = ("divergence", "distance", "loss")

Place = tuple[int, ...]


def sweep(
    model: nn.Module,
    inputs: Tensor | Batch,
    edit: Edit,
    over: Sequence[str] = ("layer", "head"),
    metric: Metric | str | Callable[[Tensor], Tensor] = "loss",
    *,
    positions: int = POSITIONS,
    progress: Progress | None = None,
) -> xr.Dataset:
    """What every one of many edits does to a metric: the same edit in one place after the other.

    Edits run side by side along the batch axis, as many at once as there is room for; layers before the first edited
    one are not computed again (:class:`mesascope.activations.Stem`). An edit that changes no bit has the intact value,
    exactly.

    Args:
        model: any model that capture supports.
        inputs: tokens (batch, pos), vectors, or a batch of a task; of one length, without padding.
        edit: what is done, such as ``zero("head_out")`` or ``mean("mlp_write", recorded)``; its ``where`` limits the
            places. Layers that lack its site are left out unless it names them.
        over: the axes of the site whose places are edited one at a time; all other axes are edited at once.
        metric: ``loss``, ``divergence`` (tokens) or ``distance`` (vectors) from the intact prediction, one of
            :mod:`mesascope.interventions.metrics`, or a function from (batch, pos, d_out) to (batch).
        positions: sequences times length of all edits that run as one; one edit and an untouched copy always do, so
            pass fewer sequences where these do not fit.
        progress: hears how many edits are done, and how many there are.

    Returns:
        ``value`` (the metric with the edit, mean over sequences), ``effect`` (its difference from the intact one) and
        ``changed`` (1 where the edit changed a bit), by the axes ``over``; and ``intact``.

    Raises:
        ValueError, IndexError, UnsupportedModel: what is asked for is not there; before any edited pass.

    >>> from mesascope.interventions import zero
    >>> from mesascope.ground_truth.models.vectors import planted
    >>> from mesascope.tasks.affine import Affine
    >>> batch = Affine().sample(8, torch.Generator().manual_seed(0))
    >>> found = sweep(planted("previous"), batch, zero("head_out"), metric="distance")
    >>> found["effect"].dims, int(found["effect"].sel(layer=0).argmax("head"))
    (('layer', 'head'), 0)
    """
    over = refuse_asked(edit.site, over, positions)
    chosen = metric_of(metric, inputs)
    stem = Stem(model, inputs, edit.site, everywhere=not (isinstance(chosen, Metric) and chosen.last))
    edit, places = placed(stem, edit, over, chosen)
    measured = chosen if isinstance(chosen, Metric) else chosen(stem.prediction)
    return swept(stem, edit, places, measured, positions, progress)


def patch(
    model: nn.Module,
    inputs: Tensor | Batch,
    source: Tensor | Batch,
    metric: Metric | str | Callable[[Tensor], Tensor],
    site: str = "resid_pre",
    over: Sequence[str] = ("layer", "pos"),
    *,
    where: Where | None = None,
    positions: int = POSITIONS,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Activation patching: run ``inputs`` with what was at a site on ``source``, in one place after the other.

    With ``inputs`` corrupted and ``source`` clean, places that bring the answer back are found (denoising); the other
    way round, places that it cannot do without (noising). The two need not be the same places.

    Args:
        model: any model that capture supports.
        inputs: what is run.
        source: what is patched in: as many sequences, of the same length.
        metric: a direction in which the two runs differ, such as ``logit_difference(right, wrong)``: one of
            :mod:`mesascope.interventions.metrics`, or a function from (batch, pos, d_out) to (batch). A distance from
            the intact prediction has none: whatever disturbs it would count as bringing the answer back.
        site: where.
        over: the axes of the site whose places are patched one at a time.
        where: limits the places; layers that lack the site are left out unless it names them.
        positions: as in :func:`sweep`.
        progress: hears how many patches are done, and how many there are.

    Returns:
        as :func:`sweep`, with ``recovered``: the share of the way from the metric on ``inputs`` (0) to the one on
        ``source`` (1); and ``target``, the metric of what the model predicts on ``source``.

    Raises:
        ValueError: the two differ in shape, or the metric is the same on both; else as :func:`sweep`.
    """
    refuse_unlike(inputs, source)
    over = refuse_asked(site, over, positions)
    measured = directed(metric, inputs)
    stem = Stem(model, inputs, site, everywhere=not measured.last)
    blank, places = placed(stem, Edit(site=site, where=dict(where or {}), fn=torch.clone), over, measured)
    recorded = capture(model, source, [site, "prediction"], layers=blank.layers(stem.layers))
    target = targeted(measured, stem.prediction, recorded["prediction"])
    found = swept(stem, replace(site, recorded, blank.where), places, measured, positions, progress)
    return with_share(found, measured, target)


def directed(metric: Metric | str | Callable[[Tensor], Tensor], inputs: Tensor | Batch) -> Metric:
    """A metric along which two runs can lie apart; refuse a distance from one of them."""
    if isinstance(metric, str):
        raise ValueError(f"a patch needs a metric with a direction, such as logit_difference, but got {metric!r}")
    measured = metric_of(metric, inputs)
    assert isinstance(measured, Metric)
    return measured


def metric_of(
    metric: Metric | str | Callable[[Tensor], Tensor], inputs: Tensor | Batch
) -> Metric | Callable[[Tensor], Metric]:
    """What is measured; what compares with the intact prediction is made when that is known.

    Raises:
        ValueError: there is none of this name.
    """
    vectors = (inputs.targets if isinstance(inputs, Batch) else inputs).is_floating_point()
    of = metric.of if isinstance(metric, Metric) else "tokens" if metric == "divergence" else ""
    if of and vectors == (of == "tokens"):
        name = metric.name if isinstance(metric, Metric) else metric
        raise ValueError(f"{name} is of {of}, but this model predicts {'vectors' if vectors else 'tokens'}")
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        name = getattr(metric, "__name__", "metric")
        return Metric(name=name, units="units of the metric", about=f"{name}, a function of the user's", fn=metric)
    if metric not in NAMES:
        raise ValueError(f"a metric must be one of {', '.join(NAMES)}, a Metric or a function, but got {metric!r}")
    return {"divergence": divergence, "distance": distance}.get(metric) or loss(inputs)


def refuse_asked(site: str, over: Sequence[str], positions: int) -> tuple[str, ...]:
    """The axes that are gone through; refuse those that the site does not have, or that are no places, and no room."""
    if positions < 1:
        raise ValueError(f"positions must be 1 or more, but got {positions}")
    over = (over,) if isinstance(over, str) else tuple(over)
    axes = [axis for axis in site_of(site).axes if axis != "batch"]
    wrong = [axis for axis in over if axis not in axes]
    if wrong or not over or len(set(over)) < len(over):
        raise ValueError(f"over must name axes of {site} ({', '.join(axes)}) once each, but got {list(over)}")
    return over


def placed(
    stem: Stem, edit: Edit, over: Sequence[str], metric: Metric | Callable[[Tensor], Metric]
) -> tuple[Edit, dict[str, list[int]]]:
    """An edit that names its layers, and for every axis that is gone through the places along it, counted from 0.

    Args:
        stem: of the model and its inputs; nothing is run.
        edit: what is done; layers that lack its site are left out unless it names them.
        over: the axes.
        metric: is tried on zeros.

    Raises:
        ValueError: layers differ in how many places they have, there are none, or one is named twice; or as
            :meth:`Stem.refuse` does.
    """
    if "layer" not in edit.where:
        edit = with_other(edit, where={"layer": stem.having(edit.site), **edit.where})
    layers = edit.layers(stem.layers)
    if not layers:
        raise ValueError(
            f"there must be a layer to edit, but none is picked or has {edit.site}; name some that have it"
        )
    stem.refuse(edit)
    different = sorted({tuple(stem.shape(edit.site, layer)) for layer in layers})
    if len(different) > 1:
        raise ValueError(
            f"layers must be alike to be gone through together, but those of {edit.site} have shapes {different}; "
            "name some with where={'layer': ...}"
        )
    sizes = dict(zip(site_of(edit.site).inner, different[0], strict=True)) | {"layer": stem.layers}
    for axis in {*over, *edit.where}:
        found = edit.chosen(axis, sizes[axis])
        if not found or len(set(found)) < len(found):
            raise ValueError(f"where[{axis!r}] must pick places once each, but picks {found}")
    if isinstance(metric, Metric):
        metric(stem.like())
    return edit, {axis: edit.chosen(axis, sizes[axis]) for axis in over}


def at(edit: Edit, over: Sequence[str], place: Place) -> Edit:
    """The edit in one place."""
    return with_other(edit, where={**edit.where, **dict(zip(over, place, strict=True))})


def swept(
    stem: Stem,
    edit: Edit,
    places: Mapping[str, Sequence[int]],
    measured: Metric,
    positions: int,
    progress: Progress | None,
    branch: Callable[[Sequence[Edit]], Tensor] | None = None,
) -> xr.Dataset:
    """The edit in every place.

    Args:
        stem, edit, places, measured: as :func:`placed` gives them.
        positions, progress: as in :func:`sweep`.
        branch: from edits of one layer to the prediction with each (branch, batch, predicted, d_out), where that is
            not simply the model's with the edit.
    """
    stem.check({edit.site: edit.layers(stem.layers)})
    intact = float(measured(stem.prediction).mean())
    every = list(itertools.product(*places.values()))
    found, moved = branched(
        stem,
        [at(edit, tuple(places), place) for place in every],
        measured,
        positions=positions,
        progress=progress,
        branch=branch,
    )
    changed = torch.tensor(moved)
    value = torch.where(changed.to(found.device), found.mean(1), intact).cpu()
    if not changed.any():
        line = f"none of {len(every)} edits of {edit.site} changed anything, bit for bit"
        warnings.warn(line, NothingChanged, stacklevel=3)
    return _dataset(measured, intact, value, changed, places)


def _dataset(
    metric: Metric, intact: float, value: Tensor, changed: Tensor, places: Mapping[str, Sequence[int]]
) -> xr.Dataset:
    """The numbers by place."""
    sizes = [len(indices) for indices in places.values()]

    def named(numbers: Tensor, units: str, about: str) -> xr.DataArray:
        return label(numbers.reshape(sizes), *places, units=units, about=about, coords=places)

    return xr.Dataset(
        {
            "effect": named(value - intact, metric.units, f"{metric.about}: change by the edit").assign_attrs(
                headline=1
            ),
            "value": named(value, metric.units, f"{metric.about}; with the edit"),
            "changed": named(changed.to(torch.int8), "1", "whether the edit changed any bit"),
            "intact": label(intact, units=metric.units, about=f"{metric.about}; without an edit"),
        }
    )
