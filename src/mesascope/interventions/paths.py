"""Path patching: what one part of a model tells another, and what comes of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace as with_other

import torch
import xarray as xr
from torch import Tensor, nn

from mesascope.capturing import Edit, Stem, capture
from mesascope.interventions.changes import Where, replace
from mesascope.interventions.contrast import refuse_unlike, targeted, with_share
from mesascope.interventions.metrics import Metric
from mesascope.interventions.route import HELD, Route, named
from mesascope.interventions.sweep import POSITIONS, Progress, directed, placed, refuse_asked, swept
from mesascope.tasks.base import Batch


def path_patch(
    model: nn.Module,
    inputs: Tensor | Batch,
    source: Tensor | Batch,
    metric: Metric | str | Callable[[Tensor], Tensor],
    site: str = "head_out",
    over: Sequence[str] = ("layer", "head"),
    *,
    receiver: str = "prediction",
    at: Where | None = None,
    through: str = "residual",
    where: Where | None = None,
    positions: int = POSITIONS,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Path patching: run ``inputs`` with what a receiver gets when one sender after the other is as on ``source``.

    Three runs of ``inputs`` for each sender (Wang et al. 2022, appendix B; Goldowsky-Dill et al. 2023): one untouched;
    one with the sender's value from ``source``, in which what lies off the path is held at its untouched value and the
    receiver is seen; one in which the receiver alone has the value seen, and the metric is read.

    Args:
        model: any model that capture supports.
        inputs: what is run.
        source: where the senders' values come from: as many sequences, of the same length.
        metric: a direction in which the two runs differ, as in :func:`patch`.
        site: where senders are.
        over: the axes of the site whose places are senders, one at a time.
        receiver: a site, or ``prediction``: the prediction of the second run is then judged itself.
        at: where the receiver is: axis to index, such as ``{"layer": 9, "head": [6, 9]}``; one layer.
        through: what the path may pass between sender and receiver. ``residual``: the stream alone; every write of
            attention and MLP between the two is held. ``mlp``: MLPs too; every write of attention between the two is
            held, as Wang et al. do. ``all``: everything; nothing is held.
        where: limits the senders; layers that do not come before the receiver, or that lack the site, are left out
            unless it names them.
        positions: as in :func:`sweep`.
        progress: hears how many senders are done, and how many there are.

    Returns:
        as :func:`patch`; ``changed`` is 1 where the sender's value differs between the two runs by a bit.

    Raises:
        ValueError: a sender does not come before the receiver, the two runs differ in shape, or the metric is the same
            on both; IndexError: an index is out of range; UnsupportedModel: what would be held is not known. All
            before any patched pass.

    >>> from mesascope.interventions import logit_difference
    >>> from mesascope.models.planted_tokens import planted_tokens
    >>> first, second = torch.randperm(39, generator=torch.Generator().manual_seed(0))[:32].add(1).view(2, 1, 16)
    >>> clean, other = (torch.cat([half[:, :1] * 0, half, half], 1) for half in (first, second))
    >>> metric = logit_difference(first[:, 0], second[:, 0])  # what came next the first time
    >>> induction = {"layer": 1, "kv_head": 5}
    >>> found = path_patch(planted_tokens(), clean, other, metric, receiver="key", at=induction)
    >>> int(abs(found["effect"]).sel(layer=0).argmax("head"))  # the previous-token head
    3
    """
    refuse_unlike(inputs, source)
    over = refuse_asked(site, over, positions)
    measured = directed(metric, inputs)
    goal = _goal(receiver, at, through)
    stem = Stem(model, inputs, site, everywhere=not measured.last)
    route = Route(stem=stem, goal=goal, layer=_layer_of(goal, stem), through=through)
    senders = Edit(site=site, where=dict(where or {}), fn=torch.clone)
    senders = with_other(senders, where={**senders.where, "layer": _sending(route, senders, over)})
    blank, places = placed(stem, senders, over, measured)
    layers = blank.layers(stem.layers)
    route.prepare(site, layers)
    recorded = capture(model, source, [site, "prediction"], layers=layers)
    target = targeted(measured, stem.prediction, recorded["prediction"])
    if through == "residual":
        route.refuse_gaps(layers)
    edit = replace(site, recorded, blank.where)
    found = swept(stem, edit, places, measured, positions, progress, route.predictions)
    about = f"{measured.about}: change by what reaches {named(goal)} through {through}"
    found["effect"] = found["effect"].assign_attrs(about=about)
    return with_share(found, measured, target)


def _goal(receiver: str, at: Where | None, through: str) -> Edit | None:
    """The receiver, as an edit that changes nothing; nothing for the prediction.

    Raises:
        ValueError: there is no such site or axis, or no such way.
    """
    if through not in HELD:
        raise ValueError(f"through must be one of {', '.join(HELD)}, but got {through!r}")
    if receiver != "prediction":
        return Edit(site=receiver, where=dict(at or {}), fn=torch.clone)
    if at:
        raise ValueError(f"the prediction is received as a whole, but got at={dict(at)}; leave at out")
    return None


def _layer_of(goal: Edit | None, stem: Stem) -> int:
    """The one layer in which the receiver is; how many layers there are for the prediction."""
    if goal is None:
        return stem.layers
    layers = goal.layers(stem.layers)
    if len(layers) != 1:
        raise ValueError(
            f"a receiver must be in one layer, but {goal.site} is meant in {len(layers)}; pass at={{'layer': ...}}"
        )
    return layers[0]


def _sending(route: Route, senders: Edit, over: Sequence[str]) -> list[int]:
    """The layers of senders: those named, or all that have the site and come before the receiver."""
    site, stem = senders.site, route.stem
    asked = senders.layers(stem.layers) if "layer" in senders.where else stem.having(site)
    layers = [layer for layer in asked if route.reaches(site, layer)]
    if len(layers) < len(asked) and ("layer" in senders.where or not layers):
        late = f"of layers {[layer for layer in asked if layer not in layers]}" if layers else "of no layer asked for"
        raise ValueError(
            f"a sender must come before its receiver, but {site} {late} comes into {named(route.goal)}; "
            "choose earlier senders or a later receiver"
        )
    if "layer" not in over and len(layers) > 1:
        raise ValueError(
            f"a sender must be in one layer, but {site} is meant in layers {layers} at once; add layer to over"
        )
    return layers
