"""What is done with the value at a place: edit it, keep it, reduce it."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mesascope.activations.edits import Edit, NothingChanged, apply
from mesascope.activations.layer_view import LayerReduction, LayerView, refuse_unlike
from mesascope.activations.memory import make_room
from mesascope.activations.sites import gradient_of, site

DONE, DONE_BACK = "resid_post", "resid_pre_grad"  # what is seen last of a layer, on the way forth and back


OURS = ("score", "pattern")  # made here


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """Something small computed from a large site while the model runs, so that the site is never kept.

    Attributes:
        site: what is reduced.
        fn: gets one layer of the site for one micro-batch; returns a tensor whose first axis is ``batch``.
        axes: of what it returns, ``batch`` first; ``layer`` is put before them when layers are stacked.

    Raises:
        ValueError: there is no such site, or the first axis is not ``batch``.
    """

    site: str
    fn: Callable[[Tensor], Tensor]
    axes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a site that does not exist, and results that are not per sequence."""
        site(self.site)
        if not self.axes or self.axes[0] != "batch":
            raise ValueError(f"the first axis of a reduction must be batch, but got {self.axes}")

    @property
    def stacked(self) -> tuple[str, ...]:
        """The axes of the result over all layers."""
        return ("layer", *self.axes) if "layer" in site(self.site).axes else self.axes


@dataclass(kw_only=True)
class Passing:
    """What belongs to the micro-batch that runs now, and to no other.

    Attributes:
        rows: its sequences.
        view: everything that a view needs beside layer, slot, sites and rerun.
        held: values that reductions of several sites wait for, by layer.
        reruns: how the queries of a layer are had from another stream, by layer.
    """

    rows: range = range(0)
    view: dict[str, Any] = field(default_factory=dict)
    held: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    reruns: dict[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)


class Recorder:
    """Edits, keeps and reduces what it is shown, micro-batch by micro-batch, in tensors made once.

    Args:
        keep: sites to be kept.
        reduce: reductions by name.
        edits: applied in order, before anything is kept.
        layers: those kept, in order.
        count: how many layers the model has.
        batch: how many sequences there are.
        lacking: which layers lack a site; optional sites are not asked for there.
    """

    def __init__(
        self,
        *,
        keep: Sequence[str],
        reduce: Mapping[str, Reduction | LayerReduction],
        edits: Sequence[Edit],
        layers: Sequence[int],
        count: int,
        batch: int,
        lacking: Mapping[str, Collection[int]] | None = None,
    ) -> None:
        self.kept: dict[str, Tensor] = {}
        self.passing = Passing()
        self._keep, self._edits, self._batch = tuple(keep), tuple(edits), batch
        self._single = {name: how for name, how in reduce.items() if isinstance(how, Reduction)}
        several = [how for how in reduce.values() if isinstance(how, LayerReduction)]
        self._back = [how for how in several if any(map(gradient_of, how.sites))]
        self._forth = [how for how in several if how not in self._back]
        self._alone = {*keep, *(how.site for how in self._single.values())}  # wanted one site at a time
        self._lacking = lacking or {}
        self._slots = {layer: slot for slot, layer in enumerate(layers)}
        self._edited = [edit.layers(count) for edit in edits]
        self._changed = [False] * len(edits)

    @property
    def places(self) -> dict[str, tuple[int, ...]]:
        """Every site within layers that must be shown, and in which layers."""
        wanted = self._alone - {"prediction"}
        wanted |= {name for how in (*self._forth, *self._back) for name in how.sites}
        wanted |= ({DONE} if self._forth or self._back else set()) | ({DONE_BACK} if self._back else set())
        places = {name: set(self._slots) for name in wanted}
        for name in {name for how in (*self._forth, *self._back) for name in how.optional} - wanted:
            places[name] = set(self._slots) - set(self._lacking.get(name, ()))
        for edit, layers in zip(self._edits, self._edited, strict=True):
            places.setdefault(edit.site, set()).update(layers)
        return {name: tuple(sorted(layers)) for name, layers in sorted(places.items())}

    @property
    def differentiates(self) -> bool:
        """Whether a gradient is wanted anywhere."""
        return any(map(gradient_of, self.places))

    @property
    def predicts(self) -> bool:
        """Whether predictions are wanted, for themselves or for a gradient."""
        return "prediction" in self._alone or self.differentiates

    def enter(self, layer: int, rerun: Callable[[Tensor], Tensor]) -> None:
        """Take note of how the queries of a layer are had from another stream."""
        if layer in self._slots and (self._forth or self._back):
            self.passing.reruns[layer] = rerun

    def __call__(self, name: str, layer: int, value: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """Take what is at a site of a layer, and say what shall be there."""
        for number, edit in enumerate(self._edits):
            if edit.site == name and layer in self._edited[number]:
                changed = apply(edit, value, layer, self.passing.rows, self._batch)
                self._changed[number] |= changed is not None
                value = value if changed is None else changed
        if layer in self._slots:
            with torch.no_grad():
                self._take(name, value.detach(), self._slots[layer])
                self._hold(name, layer, value.detach())
        return value

    def predicted(self, value: Float[Tensor, "batch pos d_out"]) -> None:
        """Take the prediction."""
        self._take("prediction", value.detach(), None)

    def warn_unchanged(self) -> None:
        """Say which edits changed nothing in the whole run."""
        for edit, changed in zip(self._edits, self._changed, strict=True):
            if not changed:
                where = f" at {dict(edit.where)}" if edit.where else ""
                warnings.warn(
                    f"an edit of {edit.site}{where} changed nothing, bit for bit", NothingChanged, stacklevel=3
                )

    def _hold(self, name: str, layer: int, value: Float[Tensor, "batch *rest"]) -> None:
        """Keep what reductions of several sites wait for; run those that have everything, and let go."""
        back, forth = (
            {site for how in some for site in (*how.sites, *how.optional)} for some in (self._back, self._forth)
        )
        held = self.passing.held.setdefault(layer, {})
        if name in back | forth:
            held[name] = value.clone() if self._may_be_overwritten(name) else value
        if name == DONE:
            self._see(self._forth, layer)
            for done in set(held) - back:
                del held[done]
            if not self._back:
                self.passing.reruns.pop(layer, None)
        if name == DONE_BACK:
            self._see(self._back, layer)
            del self.passing.held[layer]
            self.passing.reruns.pop(layer, None)

    def _may_be_overwritten(self, name: str) -> bool:
        """Whether a value may be written to by the model: not what is made here, nor what a graph still needs."""
        return name not in OURS and (self._edits != () or not self._back or gradient_of(name) is not None)

    def _see(self, reductions: Sequence[LayerReduction], layer: int) -> None:
        """Run reductions of several sites, and store what they give."""
        for how in reductions:
            held = self.passing.held[layer]
            view = LayerView(
                layer=layer,
                slot=self._slots[layer],
                sites={name: held[name] for name in (*how.sites, *how.optional) if name in held},
                rows=self.passing.rows,
                rerun=self.passing.reruns[layer],
                **self.passing.view | {"parallel": self.passing.view["parallel"][layer]},
            )
            for name, result in how.fn(view).items():
                refuse_unlike(name, how.axes[name], len(self.passing.rows), result)
                self._store(name, result, self._slots[layer])

    def _take(self, name: str, value: Float[Tensor, "batch *rest"], slot: int | None) -> None:
        """Keep and reduce a value."""
        if name in self._keep:
            self._store(name, value, slot)
        for wanted, reduction in self._single.items():
            if reduction.site == name:
                result = reduction.fn(value)
                refuse_unlike(wanted, reduction.axes, len(value), result)
                self._store(wanted, result, slot)

    def room(self, name: str, layer: int, like: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "batch *rest"] | None:
        """Where the value at a site will be kept, if it will be and nothing may change it before."""
        if name not in self._keep or layer not in self._slots or self._edits:
            return None
        return self._place(name, like, self._slots[layer])

    def _store(self, name: str, value: Shaped[Tensor, "batch *rest"], slot: int | None) -> None:
        """Copy a value to its place in the tensor of all layers and sequences, unless it was made there or is all."""
        if slot is None and name in self._keep and len(self.passing.rows) == self._batch:
            self.kept[name] = value.detach()
            return
        place = self._place(name, value, slot)
        if place.data_ptr() != value.data_ptr():
            place.copy_(value.detach())

    def _place(
        self, name: str, value: Shaped[Tensor, "batch *rest"], slot: int | None
    ) -> Shaped[Tensor, "batch *rest"]:
        """The place of a value in the tensor of all layers and sequences."""
        lead = (self._batch,) if slot is None else (len(self._slots), self._batch)
        shape = (*lead, *value.shape[1:])
        if name not in self.kept:
            self.kept[name] = make_room(shape, value.dtype, value.device)
        if self.kept[name].shape != shape:
            raise ValueError(
                f"{name} must have one shape in all layers and micro-batches, but got {tuple(value.shape[1:])} after "
                f"{tuple(self.kept[name].shape[len(lead) :])}; pass layers= that agree"
            )
        rows = slice(self.passing.rows.start, self.passing.rows.stop)
        return self.kept[name][rows if slot is None else (slot, rows)]
