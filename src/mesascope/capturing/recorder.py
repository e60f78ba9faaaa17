"""What is done with the value at a place: edit it, keep it, reduce it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from mesascope.capturing.edits import Edit, NothingChanged, apply
from mesascope.capturing.sites import site


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


class Recorder:
    """Edits, keeps and reduces what it is shown, micro-batch by micro-batch, in tensors made once.

    Args:
        keep: sites to be kept.
        reduce: reductions by name.
        edits: applied in order, before anything is kept.
        layers: those kept, in order.
        count: how many layers the model has.
        batch: how many sequences there are.
    """

    def __init__(
        self,
        *,
        keep: Sequence[str],
        reduce: Mapping[str, Reduction],
        edits: Sequence[Edit],
        layers: Sequence[int],
        count: int,
        batch: int,
    ) -> None:
        self.kept: dict[str, Tensor] = {}
        self.rows = range(0)
        self._keep, self._reduce, self._edits, self._batch = tuple(keep), dict(reduce), tuple(edits), batch
        self._slots = {layer: slot for slot, layer in enumerate(layers)}
        self._edited = [edit.layers(count) for edit in edits]
        self._changed = [False] * len(edits)

    @property
    def places(self) -> dict[str, tuple[int, ...]]:
        """Every site within layers that must be shown, and in which layers."""
        places: dict[str, set[int]] = {}
        for name in [*self._keep, *(each.site for each in self._reduce.values())]:
            if name != "prediction":
                places.setdefault(name, set()).update(self._slots)
        for edit, layers in zip(self._edits, self._edited, strict=True):
            places.setdefault(edit.site, set()).update(layers)
        return {name: tuple(sorted(layers)) for name, layers in places.items()}

    def __call__(self, name: str, layer: int, value: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """Take what is at a site of a layer, and say what shall be there."""
        for number, edit in enumerate(self._edits):
            if edit.site == name and layer in self._edited[number]:
                changed = apply(edit, value, self.rows, self._batch)
                self._changed[number] |= changed is not None
                value = value if changed is None else changed
        if layer in self._slots:
            self._take(name, value, self._slots[layer])
        return value

    def predicted(self, value: Float[Tensor, "batch pos d_out"]) -> None:
        """Take the prediction."""
        self._take("prediction", value, None)

    def warn_unchanged(self) -> None:
        """Say which edits changed nothing in the whole run."""
        for edit, changed in zip(self._edits, self._changed, strict=True):
            if not changed:
                where = f" at {dict(edit.where)}" if edit.where else ""
                warnings.warn(
                    f"an edit of {edit.site}{where} changed nothing, bit for bit", NothingChanged, stacklevel=3
                )

    def _take(self, name: str, value: Float[Tensor, "batch *rest"], slot: int | None) -> None:
        """Keep and reduce a value."""
        if name in self._keep:
            self._store(name, value, slot)
        for wanted, reduction in self._reduce.items():
            if reduction.site == name:
                self._store(wanted, _reduced(wanted, reduction, value), slot)

    def _store(self, name: str, value: Shaped[Tensor, "batch *rest"], slot: int | None) -> None:
        """Copy a value to its place in the tensor of all layers and sequences."""
        lead = (self._batch,) if slot is None else (len(self._slots), self._batch)
        shape = (*lead, *value.shape[1:])
        if name not in self.kept:
            self.kept[name] = torch.empty(shape, dtype=value.dtype, device=value.device)
        if self.kept[name].shape != shape:
            raise ValueError(
                f"{name} must have one shape in all layers and micro-batches, but got {tuple(value.shape[1:])} after "
                f"{tuple(self.kept[name].shape[len(lead) :])}; pass layers= that agree"
            )
        rows = slice(self.rows.start, self.rows.stop)
        self.kept[name][rows if slot is None else (slot, rows)] = value.detach()


def _reduced(name: str, reduction: Reduction, value: Float[Tensor, "batch *rest"]) -> Shaped[Tensor, "batch *left"]:
    """The reduction of a value, of the promised shape."""
    result = reduction.fn(value)
    if result.ndim != len(reduction.axes) or result.shape[0] != value.shape[0]:
        raise ValueError(
            f"the reduction {name} must return {reduction.axes} with {value.shape[0]} sequences, but got the shape "
            f"{tuple(result.shape)}"
        )
    return result
