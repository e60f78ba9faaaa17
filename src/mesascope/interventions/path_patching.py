"""Path patching: what one part of a model tells another, and what comes of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_other

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.activations import Edit, Stem, UnsupportedModel, capture
from mesascope.activations import site as site_of
from mesascope.activations.tolerances import same
from mesascope.interventions.edits import Where, replace
from mesascope.interventions.metrics import Metric
from mesascope.interventions.recovery import refuse_unlike, targeted, with_share
from mesascope.interventions.sweep import POSITIONS, Progress, directed, placed, refuse_asked, swept
from mesascope.tasks.base import Batch

HELD = {"residual": ("attn_write", "mlp_write"), "mlp": ("attn_write",), "all": ()}  # on the way, by ``through``
WRITES = ("attn_write", "mlp_write")
STREAMS = ("resid_pre", "resid_post")
_MIXED = ("head_out", "attn_write")
FEEDS = {  # what each site of a layer comes into within it; the MLP too, where it reads after attention
    "resid_pre": ("query", "key", "value", "score", "pattern", *_MIXED, "mlp_write", "resid_post"),
    "query": ("score", "pattern", *_MIXED, "resid_post"),
    "key": ("score", "pattern", *_MIXED, "resid_post"),
    "value": (*_MIXED, "resid_post"),
    "score": ("pattern", *_MIXED, "resid_post"),
    "pattern": (*_MIXED, "resid_post"),
    "head_out": ("attn_write", "resid_post"),
    "attn_write": ("resid_post",),
    "mlp_write": ("resid_post",),
    "resid_post": (),
}


@dataclass(frozen=True, kw_only=True)
class Route:
    """The way from senders to a receiver.

    Attributes:
        stem: the untouched pass.
        goal: the receiver, as an edit that changes nothing; ``None`` for the prediction.
        layer: that of the receiver; how many layers there are for the prediction.
        through: what the way may pass.
    """

    stem: Stem
    goal: Edit | None
    layer: int
    through: str

    @property
    def last(self) -> int:
        """The last layer on the way."""
        return min(self.layer, self.stem.layers - 1)

    def reaches(self, site: str, layer: int) -> bool:
        """Whether a sender comes before the receiver."""
        if layer != self.layer or self.goal is None:
            return layer < self.layer
        serial = (
            self.goal.site == "mlp_write" and "attn_write" in (site, *FEEDS[site]) and not self.stem.parallel(layer)
        )
        return serial or self.goal.site in FEEDS[site]

    def prepare(self, site: str, layers: Sequence[int]) -> None:
        """Keep what is held, added to or compared, and check it; refuse layers whose writes are not known."""
        way = range(min(layers), self.last + 1)
        places: dict[str, set[int]] = {site: set(layers)}
        for held in HELD[self.through]:
            self._refuse_unknown(held, way)
            places.setdefault(held, set()).update(set(way) & set(self.stem.having(held)))
        if self.through == "residual":
            places.setdefault("resid_post", set()).update(way)
        if self.goal is not None:
            self._refuse_nothing(self.goal)
            places.setdefault(self.goal.site, set()).add(self.layer)
        self.stem.keep({name: sorted(chosen) for name, chosen in places.items()})
        self.stem.check({name: sorted(chosen) for name, chosen in places.items()})

    def refuse_gaps(self, layers: Sequence[int]) -> None:
        """Refuse a model that does something to the stream between two layers on the way."""
        for number in range(min(layers), self.last):
            if not same(self.stem.seen("resid_post", number), self.stem.seen("resid_pre", number + 1)):
                raise UnsupportedModel(
                    f"what a layer leaves must be what the next one reads, but {type(self.stem.model).__name__} "
                    f"changes the stream between layers {number} and {number + 1}; use through='all'"
                )

    def predictions(self, edits: Sequence[Edit]) -> Float[Tensor, "branch batch predicted d_out"]:
        """What is predicted when the receiver gets what each sender of one layer sends."""
        (layer,) = edits[0].layers(self.stem.layers)
        if self.through == "residual" and layer < self.layer:
            branches = [[edit, *self._holding(self.layer, "")] for edit in self._streams(edits, layer)]
        else:
            branches = [[edit, *self._holding(layer, edit.site)] for edit in edits]
        if self.goal is None:
            return self.stem.branch(branches)
        values = self.stem.reached(branches, self.goal.site, self.layer)
        return self.stem.branch([[_put(self.goal, self.layer, value)] for value in values])

    def _streams(self, edits: Sequence[Edit], layer: int) -> list[Edit]:
        """For every sender, the untouched stream where the receiver reads it, and what the sender changes in it."""
        site = edits[0].site if edits[0].site in (*WRITES, *STREAMS) else "attn_write"
        *values, plain = self.stem.reached([*([edit] for edit in edits), []], site, layer)
        place = ("resid_post", self.last) if self.goal is None else ("resid_pre", self.layer)
        stream, there = self.stem.seen(*place), Edit(site=place[0], where={"layer": place[1]}, fn=torch.clone)
        return [_put(there, place[1], stream + (value - plain)) for value in values]

    def _holding(self, first: int, sender: str) -> list[Edit]:
        """What keeps writes as they were, from a layer to the receiver: all but the sender's own and the receiver."""
        own = sender if sender in (*WRITES, *STREAMS) else "attn_write" if sender else ""
        ends = {(own, first)} | ({(self.goal.site, self.layer)} if self.goal is not None else set())
        return [
            _put(Edit(site=site, where={"layer": layer}, fn=torch.clone), layer, self.stem.seen(site, layer))
            for site in HELD[self.through]
            for layer in self.stem.having(site)
            if first <= layer <= self.last and (site, layer) not in ends
        ]

    def _refuse_nothing(self, goal: Edit) -> None:
        """Refuse a receiver that is not there, or of which no place is meant."""
        self.stem.refuse(goal)
        sizes = zip(site_of(goal.site).inner, self.stem.shape(goal.site, self.layer), strict=True)
        empty = [axis for axis, size in sizes if not goal.chosen(axis, size)]
        if empty:
            raise ValueError(f"a receiver must be somewhere, but at[{empty[0]!r}] picks nothing")

    def _refuse_unknown(self, site: str, layers: Sequence[int]) -> None:
        """Refuse layers of which it is not known what they write; one without an MLP writes nothing there."""
        whole = self.stem.missing("attn_write")
        lacking = {n: why for n, why in self.stem.missing(site).items() if n in layers and n in whole}
        if lacking:
            raise UnsupportedModel(
                f"what is written between sender and receiver must be known to be held, but "
                f"{type(self.stem.model).__name__} lacks {site} in layers {list(lacking)} "
                f"({next(iter(lacking.values()))}); use through='all', which holds nothing"
            )


def _put(place: Edit, layer: int, value: Float[Tensor, "batch *rest"]) -> Edit:
    """An edit that puts there what is given, of the whole site in one layer."""
    return with_other(place, fn=_other, source={layer: value})


def _other(old: Tensor, other: Tensor) -> Tensor:
    """What shall be there instead."""
    return other


def named(goal: Edit | None) -> str:
    """The receiver in words."""
    if goal is None:
        return "the prediction"
    return f"{goal.site} at " + ", ".join(f"{axis} {index}" for axis, index in goal.where.items())


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
    >>> from mesascope.ground_truth.models.tokens import planted_tokens
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
