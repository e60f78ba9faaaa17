"""Changing what flows through a place."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.capturing.sites import gradient_of, site

Index = int | slice | Sequence[int]


class NothingChanged(UserWarning):
    """An edit was applied and left every entry as it was, bit for bit."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A change at one site.

    Attributes:
        site: where; every site but ``prediction`` and the gradients.
        fn: gets what is there in one layer (the axes of the site without ``layer``, cut down to ``where``, none of
            them dropped) for one micro-batch, and returns what shall be there instead, of a shape that broadcasts.
        where: axis to index: an int, a slice or a list of ints. ``layer`` picks layers, counted in the whole model;
            ``batch`` counts sequences in the whole batch. An axis not named is edited throughout.

    Raises:
        ValueError: there is no such site, or it has no such axis.

    >>> Edit(site="head_out", where={"layer": 0, "head": [1, 3]}, fn=torch.zeros_like).layers(2)
    [0]
    """

    site: str
    fn: Callable[[Tensor], Tensor]
    where: Mapping[str, Index] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a site or an axis that does not exist."""
        axes = site(self.site).axes
        if self.site == "prediction":
            raise ValueError("an edit must act before the prediction; edit resid_post of the last layer instead")
        if gradient_of(self.site):
            raise ValueError(f"an edit must act on the way forth, but {self.site} is a gradient; edit another site")
        unknown = sorted(set(self.where) - set(axes))
        if unknown:
            raise ValueError(f"where must name axes of {self.site} ({', '.join(axes)}), but got {', '.join(unknown)}")

    def layers(self, count: int) -> list[int]:
        """Which of ``count`` layers are edited."""
        return _positions(self.where.get("layer", slice(None)), count, "layer")


def apply(edit: Edit, value: Float[Tensor, "..."], rows: range, batch: int) -> Float[Tensor, "..."] | None:
    """The value after an edit.

    Args:
        edit: the change.
        value: what is at its site in one layer, for the sequences ``rows`` of ``batch``.
        rows: which sequences of the whole batch these are.
        batch: how many there are in all.

    Returns:
        the new value, or ``None`` where the edit changes no bit of it.

    Raises:
        ValueError: the result does not fit; IndexError: an index is out of range.
    """
    index = _index(edit, value, rows, batch)
    if any(len(chosen) == 0 for chosen in index):
        return None
    grid = tuple(
        chosen.reshape([-1 if i == axis else 1 for i in range(value.ndim)]) for axis, chosen in enumerate(index)
    )
    old = value[grid] if edit.where else value.clone()
    new = edit.fn(old.clone())
    try:
        new = new.to(value).expand_as(old)
    except RuntimeError:
        raise ValueError(
            f"an edit of {edit.site} must return what broadcasts to {tuple(old.shape)}, but got {tuple(new.shape)}; "
            "values of the whole batch need batch_size=None"
        ) from None
    if torch.equal(new, old):
        return None
    changed = value.clone()
    changed[grid] = new
    return changed


def _index(edit: Edit, value: Float[Tensor, "..."], rows: range, batch: int) -> list[Int[Tensor, " chosen"]]:
    """For every axis, which of its entries are edited."""
    chosen = []
    for axis, size in zip(site(edit.site).inner, value.shape, strict=True):
        where = edit.where.get(axis, slice(None))
        if axis == "batch":
            picked = [row - rows.start for row in _positions(where, batch, axis) if row in rows]
        else:
            picked = _positions(where, size, axis)
        chosen.append(torch.tensor(picked, dtype=torch.long, device=value.device))
    return chosen


def _positions(where: Index, size: int, axis: str) -> list[int]:
    """The entries of an axis that an index means."""
    try:
        if isinstance(where, slice):
            return list(range(size)[where])
        return [range(size)[i] for i in ([where] if isinstance(where, int) else where)]
    except IndexError:
        raise IndexError(f"where[{axis!r}] must lie within {size} entries, but got {where}") from None
