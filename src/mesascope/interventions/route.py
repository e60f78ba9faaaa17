"""The way from senders to a receiver: what lies on it, what is held beside it, and what comes through."""

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as with_other

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.capturing import Edit, Stem, UnsupportedModel
from mesascope.capturing import site as site_of
from mesascope.capturing.rounding import same

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
