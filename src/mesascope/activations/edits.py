"""Changing what flows through a place."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import index as number

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations.sites import gradient_of, site

Index = int | slice | Sequence[int]


class NothingChanged(UserWarning):
    """An edit was applied and left every entry as it was, bit for bit."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """A change at one site.

    Attributes:
        site: where; every site but ``prediction`` and the gradients.
        fn: gets what is there in one layer (the axes of the site without ``layer``, cut down to ``where``, none of
            them dropped) for one micro-batch, and returns what shall be there instead, of a shape that broadcasts. It
            is first tried on zeros, and may be called more than once for a place.
        where: axis to index: an int, a slice or a list of ints. ``layer`` picks layers, counted in the whole model;
            ``batch`` counts sequences in the whole batch. An axis not named is edited throughout.
        source: by layer, what ``fn`` gets as a second argument, cut to the same places: the axes of the site without
            ``layer``, for the whole batch.
        shared: the source has one sequence, which serves all.

    Raises:
        ValueError: there is no such site, or it has no such axis.

    >>> Edit(site="head_out", where={"layer": 0, "head": [1, 3]}, fn=torch.zeros_like).layers(2)
    [0]
    """

    site: str
    fn: Callable[..., Tensor]
    where: Mapping[str, Index] = field(default_factory=dict)
    source: Mapping[int, Tensor] | None = None
    shared: bool = False

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
        return self.chosen("layer", count)

    def chosen(self, axis: str, size: int) -> list[int]:
        """Which of ``size`` entries of an axis are edited."""
        return _positions(self.where.get(axis, slice(None)), size, axis)

    def new(self, old: Float[Tensor, "..."], layer: int, index: Sequence[Int[Tensor, "_"]]) -> Float[Tensor, "..."]:
        """What shall be in place of ``old``, in its shape.

        Args:
            old: what is there, cut to where the edit acts.
            layer: in which layer.
            index: for every axis, which entries of the whole batch these are.

        Raises:
            ValueError: what ``fn`` returns does not fit.
        """
        if self.source is None:
            new = self.fn(old.clone())
        else:
            held = self.source[layer]
            cut = [index[0] * 0 if self.shared else index[0], *index[1:]]
            new = self.fn(old.clone(), held[_block([chosen.to(held.device) for chosen in cut])].to(old, copy=True))
        try:
            return new.to(old).expand_as(old)
        except RuntimeError:
            raise ValueError(
                f"an edit of {self.site} must return what broadcasts to {tuple(old.shape)}, but got "
                f"{tuple(new.shape)}; values of the whole batch need batch_size=None"
            ) from None


def refuse(edit: Edit, shapes: Mapping[int, Sequence[int]], rows: int, like: Tensor) -> None:
    """Refuse an edit that cannot be made, before a model runs for it.

    Args:
        edit: the change.
        shapes: by edited layer, the sizes of the site's axes within the layer.
        rows: how many of the sequences the first micro-batch has.
        like: of the type and on the device of what flows through the model.

    Raises:
        ValueError: its source is of another shape or lacks a layer, or what it returns does not fit.
        IndexError: an index is out of range.
    """
    axes, tried = site(edit.site).inner, False
    for layer, shape in shapes.items():
        index = [edit.chosen(axis, size) for axis, size in zip(axes, shape, strict=True)]
        if edit.source is not None:
            _refuse_source(edit, edit.source, layer, tuple(shape))
        if not tried and all(index):
            _try(edit, layer, [index[0][:rows], *index[1:]], like)
        tried = True


def _try(edit: Edit, layer: int, index: Sequence[Sequence[int]], like: Tensor) -> None:
    """Make an edit of zeros; a function that cannot have zeros is given the benefit of the doubt."""
    old = torch.zeros([len(one) for one in index], dtype=like.dtype, device=like.device)
    with suppress(RuntimeError, ArithmeticError, LookupError, AssertionError):
        edit.new(old, layer, [torch.tensor(one, device=like.device) for one in index])


def _refuse_source(edit: Edit, source: Mapping[int, Tensor], layer: int, shape: tuple[int, ...]) -> None:
    """Refuse a source that does not hold a layer, or holds it in a shape that does not serve."""
    if layer not in source:
        held = ", ".join(map(str, sorted(source)))
        raise ValueError(f"an edit of {edit.site} in layer {layer} must have its source, which has layers {held} alone")
    found = tuple(source[layer].shape)
    wanted = (1, *shape[1:]) if edit.shared else shape
    if found != wanted:
        axes = ", ".join(site(edit.site).inner)
        raise ValueError(
            f"the source of an edit of {edit.site} must have as many entries as the run along every axis ({axes}): "
            f"{wanted}, but has {found}; sequences must be as many and as long"
        )


def apply(edit: Edit, value: Float[Tensor, "..."], layer: int, rows: range, batch: int) -> Float[Tensor, "..."] | None:
    """The value after an edit.

    Args:
        edit: the change.
        value: what is at its site in one layer, for the sequences ``rows`` of ``batch``.
        layer: which layer.
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
    here = _block([index[0] - rows.start, *index[1:]])
    old = value[here] if edit.where else value.clone()
    new = edit.new(old, layer, index)
    if torch.equal(new, old):
        return None
    changed = value.clone()
    changed[here] = new
    return changed


def _block(index: Sequence[Int[Tensor, "_"]]) -> tuple[slice | Int[Tensor, "..."], ...]:
    """What picks a block by an index per axis: slices where every index is a run, which is many times as fast."""
    runs = [one.tolist() for one in index]
    if all(run == list(range(run[0], run[0] + len(run))) for run in runs):
        return tuple(slice(run[0], run[0] + len(run)) for run in runs)
    return _grid(index)


def _grid(index: Sequence[Int[Tensor, "_"]]) -> tuple[Int[Tensor, "..."], ...]:
    """The outer product of an index per axis: what picks a block."""
    return tuple(one.reshape([-1 if i == axis else 1 for i in range(len(index))]) for axis, one in enumerate(index))


def _index(edit: Edit, value: Float[Tensor, "..."], rows: range, batch: int) -> list[Int[Tensor, "_"]]:
    """For every axis, which of its entries are edited; sequences are counted in the whole batch."""
    chosen = []
    for axis, size in zip(site(edit.site).inner, value.shape, strict=True):
        picked = edit.chosen(axis, batch if axis == "batch" else size)
        picked = [row for row in picked if row in rows] if axis == "batch" else picked
        chosen.append(torch.tensor(picked, dtype=torch.long, device=value.device))
    return chosen


def _positions(where: Index, size: int, axis: str) -> list[int]:
    """The entries of an axis that an index means."""
    if isinstance(where, slice):
        return list(range(size)[where])
    try:
        one = [number(where)]  # pyright: ignore[reportArgumentType] what is no number has no index
    except (TypeError, ValueError):
        one = list(where)  # pyright: ignore[reportArgumentType]
    if any(isinstance(i, bool) for i in (where, *one)):
        raise ValueError(f"where[{axis!r}] must be numbers of entries, but got {where}; a mask is no index")
    try:
        return [range(size)[i] for i in one]
    except IndexError:
        raise IndexError(f"where[{axis!r}] must lie within {size} entries, but got {where}") from None
