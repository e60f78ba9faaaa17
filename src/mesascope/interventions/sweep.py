"""One edit after the other over layers, heads and positions, many in each forward pass."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace as with_other

import torch
import xarray as xr
from torch import Tensor, nn

from mesascope.axes import label
from mesascope.capturing import Edit, NothingChanged, Stem, capture
from mesascope.capturing import site as site_of
from mesascope.interventions.changes import Where, replace
from mesascope.interventions.metrics import Metric, distance, divergence, loss
from mesascope.tasks.base import Batch

POSITIONS = 4096  # of all branches that run as one
NUMBERS = 64_000_000  # that their predictions may have: 256 MB in single precision
NAMES = ("divergence", "distance", "loss")

Progress = Callable[[int, int], None]
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
    one are not computed again (:class:`mesascope.capturing.Stem`). An edit that changes no bit has the intact value,
    exactly.

    Args:
        model: any model that capture supports.
        inputs: tokens (batch, pos), vectors, or a batch of a task; of one length, without padding.
        edit: what is done, such as ``zero("head_out")`` or ``mean("mlp_write", recorded)``; its ``where`` limits the
            places. Layers that lack its site are left out unless it names them.
        over: the axes of the site whose places are edited one at a time; all other axes are edited at once.
        metric: ``loss``, ``divergence`` (tokens) or ``distance`` (vectors) from the intact prediction, one of
            :mod:`mesascope.interventions.metrics`, or a function from (batch, pos, d_out) to (batch).
        positions: sequences times length of all edits that run as one.
        progress: hears how many edits are done, and how many there are.

    Returns:
        ``value`` (the metric with the edit, mean over sequences), ``effect`` (its difference from the intact one) and
        ``changed`` (1 where the edit changed a bit), by the axes ``over``; and ``intact``.

    Raises:
        ValueError, IndexError, UnsupportedModel: what is asked for is not there; before any edited pass.

    >>> from mesascope.interventions import zero
    >>> from mesascope.models.planted import planted
    >>> from mesascope.tasks.affine import Affine
    >>> batch = Affine().sample(8, torch.Generator().manual_seed(0))
    >>> found = sweep(planted("previous"), batch, zero("head_out"), metric="distance")
    >>> found["effect"].dims, int(found["effect"].sel(layer=0).argmax("head"))
    (('layer', 'head'), 0)
    """
    _refuse_axes(edit.site, over)
    chosen = _metric(metric, inputs)
    stem = Stem(model, inputs, edit.site, everywhere=not (isinstance(chosen, Metric) and chosen.last))
    measured = chosen if isinstance(chosen, Metric) else chosen(stem.prediction)
    if "layer" not in edit.where:
        edit = with_other(edit, where={"layer": stem.having(edit.site), **edit.where})
    stem.refuse(edit)
    places = _places(stem, edit, over)
    intact = float(measured(stem.prediction).mean())
    every = list(itertools.product(*places.values()))
    edits = [with_other(edit, where={**edit.where, **dict(zip(over, place, strict=True))}) for place in every]
    changed = torch.tensor([stem.changes(one) for one in edits])
    value = torch.full((len(every),), intact, dtype=torch.float64)
    done = len(every) - int(changed.sum())
    for chunk in _chunks(every, changed.tolist(), stem, positions, over):
        for number, prediction in zip(chunk, stem.branch([edits[number] for number in chunk]), strict=True):
            value[number] = float(measured(prediction).mean())
        done += len(chunk)
        if progress is not None:
            progress(done, len(every))
    if not changed.any():
        line = f"none of {len(every)} edits of {edit.site} changed anything, bit for bit"
        warnings.warn(line, NothingChanged, stacklevel=2)
    return _dataset(measured, intact, value, changed, places)


def patch(
    model: nn.Module,
    inputs: Tensor | Batch,
    source: Tensor | Batch,
    site: str = "resid_pre",
    over: Sequence[str] = ("layer", "pos"),
    metric: Metric | str | Callable[[Tensor], Tensor] = "loss",
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
        site: where.
        over: the axes of the site whose places are patched one at a time.
        metric: as in :func:`sweep`.
        where: limits the places.
        positions: as in :func:`sweep`.
        progress: hears how many patches are done, and how many there are.

    Returns:
        as :func:`sweep`, with ``recovered``: the share of the way from the metric on ``inputs`` (0) to the one on
        ``source`` (1); and ``target``, the metric on ``source``.

    Raises:
        ValueError: the two differ in shape, or the metric is the same on both; else as :func:`sweep`.
    """
    ours, theirs = (tuple((x.inputs if isinstance(x, Batch) else x).shape) for x in (inputs, source))
    if ours != theirs:
        raise ValueError(f"both runs must be as many sequences of the same length, but got {ours} and {theirs}")
    recorded = capture(model, source, [site, "prediction"])
    plain = capture(model, inputs, ["prediction"])["prediction"]
    chosen = _metric(metric, inputs)
    measured = chosen if isinstance(chosen, Metric) else chosen(plain)
    intact, target = (float(measured(prediction).mean()) for prediction in (plain, recorded["prediction"]))
    if abs(target - intact) <= 1e-6 * max(abs(target), abs(intact)):
        raise ValueError(
            f"the metric must differ between the two runs, but {measured.name} is {intact:.4g} on both; "
            "choose another metric or another pair"
        )
    edit = replace(site, recorded, where)
    found = sweep(model, inputs, edit, over, measured, positions=positions, progress=progress)
    share = (found["value"] - intact) / (target - intact)
    about = f"{measured.name}: share of the way from the run that is patched (0) to the one patched in (1)"
    return found.assign(
        recovered=share.assign_attrs(units="1", about=about, headline=1),
        target=label(target, units=measured.units, about=f"{measured.about}; on the run that is patched in"),
    )


def _metric(
    metric: Metric | str | Callable[[Tensor], Tensor], inputs: Tensor | Batch
) -> Metric | Callable[[Tensor], Metric]:
    """What is measured; what compares with the intact prediction is made when that is known.

    Raises:
        ValueError: there is none of this name.
    """
    if isinstance(metric, Metric):
        return metric
    if callable(metric):
        name = getattr(metric, "__name__", "metric")
        return Metric(name=name, units="units of the metric", about=f"{name}, a function of the user's", fn=metric)
    if metric not in NAMES:
        raise ValueError(f"a metric must be one of {', '.join(NAMES)}, a Metric or a function, but got {metric!r}")
    return {"divergence": divergence, "distance": distance}.get(metric) or loss(inputs)


def _refuse_axes(site: str, over: Sequence[str]) -> None:
    """Refuse axes that the site does not have, or that are no places."""
    axes = [axis for axis in site_of(site).axes if axis != "batch"]
    wrong = [axis for axis in over if axis not in axes]
    if wrong or not over or len(set(over)) < len(over):
        raise ValueError(f"over must name axes of {site} ({', '.join(axes)}) once each, but got {list(over)}")


def _places(stem: Stem, edit: Edit, over: Sequence[str]) -> dict[str, list[int]]:
    """For every axis that is gone through, the places along it, counted from 0.

    Raises:
        ValueError: layers differ in how many places they have.
    """
    layers = edit.layers(stem.layers)
    shapes = {tuple(stem.shape(edit.site, layer)) for layer in layers}
    if len(shapes) > 1:
        raise ValueError(
            f"layers must be alike to be gone through together, but those of {edit.site} have shapes "
            f"{sorted(shapes)}; name some with where={{'layer': ...}}"
        )
    sizes = dict(zip(site_of(edit.site).inner, next(iter(shapes)), strict=True))
    return {axis: layers if axis == "layer" else edit.chosen(axis, sizes[axis]) for axis in over}


def _chunks(
    every: Sequence[Place], changed: Sequence[bool], stem: Stem, positions: int, over: Sequence[str]
) -> Iterator[list[int]]:
    """Numbers of edits that run together: of one layer, and as many as there is room for; those that change nothing
    need not run."""
    each = stem.inputs.shape[0] * stem.inputs.shape[1]
    room = max(1, min(positions // each, NUMBERS // max(1, stem.prediction.numel())) - 1)  # and one that is not edited
    layers: dict[int, list[int]] = {}
    for number, place in enumerate(every):
        if not changed[number]:
            continue
        layers.setdefault(place[over.index("layer")] if "layer" in over else 0, []).append(number)
    for _, group in sorted(layers.items()):
        yield from (group[start : start + room] for start in range(0, len(group), room))


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
