"""Edits of activations during a forward pass."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import index as number

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations.padding.masks import find_real_entries
from mesascope.activations.padding.source_inputs import SourceInputs
from mesascope.activations.sites import (
    CROSS_PREFIX,
    HALTING_SITES,
    OUTPUT_HEAD_SITES,
    get_site,
    split_stack,
    strip_gradient_suffix,
)
from mesascope.argument_types import validate_fields

AxisIndex = int | slice | Sequence[int]
BlockIndex = tuple[slice | Int[Tensor, "..."], ...]


class EditHadNoEffect(UserWarning):
    """An edit was applied and had no effect: it left every entry bitwise the same."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """An edit of the activation at one site.

    Attributes:
        site: the site; any but ``resid_mid``, ``final_norm``, ``output``, ``logits`` and the gradients. In an
            encoder-decoder the name begins with ``encoder.`` or ``decoder.``, or is one of :data:`CROSS_SITES`.
        fn: function from the original activation to its replacement. It receives the activation of one layer for one
            micro-batch (the axes of the site without ``layer``, restricted to ``where``, none of them dropped) and
            returns a tensor that broadcasts to it. It is first tried on zeros, and may be called more than once.
        where: by axis, the indices to edit: an int, a slice or a list of ints. ``layer`` selects layers of the whole
            model; ``batch`` selects sequences of the whole batch. In a model that repeats its layers, ``iteration``
            selects iterations; in a model with chunks, ``chunk`` selects chunks. Other axes are edited throughout.
            Positions are columns of the padded inputs; entries that belong to padding, as queries or as keys, are never
            changed. In a model with chunks, ``fn`` is called for each chunk; positions of others are NaN there, and
            stay as they are.
        source: by layer, a tensor that ``fn`` receives as a second argument, restricted to ``where``: the axes of the
            site without ``layer``, for the whole batch. In a model that repeats its layers, by index of the call:
            iteration * number of layers + layer.
        shared_source: the source has one sequence, which is used for all.
        source_inputs: the inputs and the padding of the run that the source comes from, if any.

    Raises:
        ValueError: the site does not exist or cannot be edited, or it lacks an axis of ``where``.

    >>> Edit(site="z", where={"layer": 0, "head": [1, 3]}, fn=torch.zeros_like).edited_layers(2)
    [0]
    """

    site: str
    fn: Callable[..., Tensor]
    where: Mapping[str, AxisIndex] = field(default_factory=dict)
    source: Mapping[int, Tensor] | None = None
    shared_source: bool = False
    source_inputs: SourceInputs | None = None

    def __post_init__(self) -> None:
        """Validate the site and the axes."""
        validate_fields(self)
        axes, local = get_site(self.site).axes, split_stack(self.site)[1]
        if local in (*OUTPUT_HEAD_SITES, *HALTING_SITES):
            raise ValueError(
                f"an edit must act in a layer, but {self.site} is after the last one; edit resid_post of the last layer"
            )
        if local.removeprefix(CROSS_PREFIX) == "resid_mid":
            raise ValueError(
                "an edit must change the residual stream itself, but the residual connection bypasses the module that "
                f"reads {local}; edit attn_out or resid_post"
            )
        if strip_gradient_suffix(self.site):
            raise ValueError(f"an edit must act in the forward pass, but {self.site} is a gradient; edit another site")
        unknown = sorted(set(self.where) - {*axes, *(("iteration", "chunk") if "layer" in axes else ())})
        if unknown:
            raise ValueError(f"where must name axes of {self.site} ({', '.join(axes)}), but got {', '.join(unknown)}")

    def edited_layers(
        self, num_layers: int, num_iterations: int | None = None, *, has_chunks: bool = False
    ) -> list[int]:
        """Return the layers to edit; the calls of layers, in a model that repeats its layers.

        Args:
            num_layers: the number of layers of the model.
            num_iterations: the number of iterations; ``None`` in a model that calls each layer once.
            has_chunks: the model processes its inputs chunk by chunk.

        Returns:
            Layer indices, counted from 0; with iterations, indices of calls, iteration * num_layers + layer. A site of
            a memory, which has no layers, is at index 0.

        Raises:
            IndexError: an index is out of range.
            ValueError: iterations or chunks are selected in a model that has none.
        """
        if "chunk" in self.where and not has_chunks:
            raise ValueError(
                "where['chunk'] needs a model with chunks, but the model processes all positions at once; omit it"
            )
        if "layer" not in get_site(self.site).axes:
            return [0]
        layers = self.edited_indices("layer", num_layers)
        if num_iterations is not None:
            iterations = self.edited_indices("iteration", num_iterations)
            return [iteration * num_layers + layer for iteration in iterations for layer in layers]
        if "iteration" in self.where:
            raise ValueError(
                "where['iteration'] needs a model that repeats its layers, but the model calls each layer once; omit it"
            )
        return layers

    def edited_indices(self, axis: str, size: int) -> list[int]:
        """Return the indices to edit along an axis.

        Args:
            axis: the name of the axis.
            size: its size.

        Returns:
            Indices from 0 to ``size - 1``.

        Raises:
            IndexError: an index is out of range.
            ValueError: an index is a boolean mask.
        """
        return _resolve_indices(self.where.get(axis, slice(None)), size, axis)

    def compute_replacement(
        self, old: Float[Tensor, "..."], layer: int, index: Sequence[Int[Tensor, "_"]]
    ) -> Float[Tensor, "..."]:
        """Return the replacement of an activation, in the same shape.

        Args:
            old: the original activation, restricted to ``where``.
            layer: the layer, counted from 0.
            index: for every axis, the indices of these entries in the whole batch.

        Returns:
            The replacement values.

        Raises:
            ValueError: the result of ``fn`` does not broadcast to ``old``.
        """
        if self.source is None:
            new = self.fn(old.clone())
        else:
            layer_source = self.source[layer]
            source_index = [index[0] * 0 if self.shared_source else index[0], *index[1:]]
            new = self.fn(
                old.clone(),
                layer_source[block_index([chosen.to(layer_source.device) for chosen in source_index])].to(
                    old, copy=True
                ),
            )
        try:
            return new.to(old).expand_as(old)
        except RuntimeError:
            raise ValueError(
                f"an edit of {self.site} must return a tensor that broadcasts to {tuple(old.shape)}, but got "
                f"{tuple(new.shape)}; values for the whole batch need batch_size=None"
            ) from None


def validate_edit(edit: Edit, shapes: Mapping[int, Sequence[int]], num_rows: int, like: Tensor) -> None:
    """Check that an edit can be applied, before a model runs.

    Args:
        edit: the edit.
        shapes: by edited layer, the sizes of the axes of the site without ``layer``.
        num_rows: the number of sequences of the first micro-batch.
        like: a tensor with the dtype and device of the activations.

    Raises:
        ValueError: the source lacks a layer or has another shape, or the result of ``fn`` does not broadcast.
        IndexError: an index is out of range.
    """
    axes, tried = get_site(edit.site).axes_within_layer, False
    for layer, shape in shapes.items():
        index = [edit.edited_indices(axis, size) for axis, size in zip(axes, shape, strict=True)]
        if edit.source is not None:
            _validate_source(edit, edit.source, layer, tuple(shape))
        if not tried and all(index):
            _dry_run(edit, layer, [index[0][:num_rows], *index[1:]], like)
        tried = True


def _dry_run(edit: Edit, layer: int, index: Sequence[Sequence[int]], like: Tensor) -> None:
    """Dry-run the edit on zeros to validate its output shape; skip validation if ``fn`` raises on zeros."""
    old = torch.zeros([len(one) for one in index], dtype=like.dtype, device=like.device)
    with suppress(RuntimeError, ArithmeticError, LookupError, AssertionError):
        edit.compute_replacement(old, layer, [torch.tensor(one, device=like.device) for one in index])


def _validate_source(edit: Edit, source: Mapping[int, Tensor], layer: int, shape: tuple[int, ...]) -> None:
    if layer not in source:
        source_layers = ", ".join(map(str, sorted(source)))
        raise ValueError(
            f"the source of an edit of {edit.site} must have layer {layer}, but has only layers {source_layers}"
        )
    actual = tuple(source[layer].shape)
    expected = (1, *shape[1:]) if edit.shared_source else shape
    if actual != expected:
        axes = ", ".join(get_site(edit.site).axes_within_layer)
        raise ValueError(
            f"the source of an edit of {edit.site} must have the shape of the run ({axes}) = {expected}, but has "
            f"{actual}; use the same number of sequences of the same length"
        )


def apply_edit(
    edit: Edit,
    value: Float[Tensor, "..."],
    layer: int,
    rows: range,
    batch_size: int,
    mask: Int[Tensor, "batch pos"] | None = None,
    source_mask: Int[Tensor, "batch source"] | None = None,
) -> Float[Tensor, "..."] | None:
    """Return an activation after an edit.

    Args:
        edit: the edit.
        value: the activation at its site in one layer, for the sequences ``rows``.
        layer: the layer, counted from 0.
        rows: the indices of these sequences in the whole batch.
        batch_size: the number of sequences of the whole batch.
        mask: of these sequences, 1 where an input is not padding; entries that belong to padding stay as they are.
        source_mask: the same for the source of an encoder-decoder, whose positions cross-attention attends to.

    Returns:
        The new activation, or ``None`` if the edit changes no bit of it.

    Raises:
        ValueError: the result of the edit does not broadcast.
        IndexError: an index is out of range.
    """
    index = _edited_entries(edit, value, rows, batch_size)
    if any(len(chosen) == 0 for chosen in index):
        return None
    entries = [index[0] - rows.start, *index[1:]]
    block = block_index(entries)
    old = value[block] if edit.where else value.clone()
    new = edit.compute_replacement(old, layer, index)
    if mask is not None or source_mask is not None:
        real = find_real_entries(get_site(edit.site).axes_within_layer, entries, mask, source_mask)
        new = torch.where(real.to(old.device), new, old)
    return replace_block(value, block, old, new)


def replace_block(
    value: Float[Tensor, "..."], block: BlockIndex, old: Float[Tensor, "..."], new: Float[Tensor, "..."]
) -> Float[Tensor, "..."] | None:
    """Return a copy of an activation with another block, or ``None`` if no bit of the block differs.

    Args:
        value: the activation.
        block: the index of the block, from `block_index`.
        old: the block.
        new: its replacement.
    """
    if torch.equal(new, old):
        return None
    changed = value.clone()
    changed[block] = new
    return changed


def block_index(index: Sequence[Int[Tensor, "_"]]) -> BlockIndex:
    """Return an index for the outer product of one index per axis; slices, which are faster, if all are contiguous.

    Args:
        index: for every axis, the indices.
    """
    runs = [one.tolist() for one in index]
    if all(run == list(range(run[0], run[0] + len(run))) for run in runs):
        return tuple(slice(run[0], run[0] + len(run)) for run in runs)
    return _outer_index(index)


def _outer_index(index: Sequence[Int[Tensor, "_"]]) -> tuple[Int[Tensor, "..."], ...]:
    return tuple(one.reshape([-1 if i == axis else 1 for i in range(len(index))]) for axis, one in enumerate(index))


def _edited_entries(edit: Edit, value: Float[Tensor, "..."], rows: range, batch: int) -> list[Int[Tensor, "_"]]:
    chosen = []
    for axis, size in zip(get_site(edit.site).axes_within_layer, value.shape, strict=True):
        indices = edit.edited_indices(axis, batch if axis == "batch" else size)
        indices = [row for row in indices if row in rows] if axis == "batch" else indices
        chosen.append(torch.tensor(indices, dtype=torch.long, device=value.device))
    return chosen


def _resolve_indices(where: AxisIndex, size: int, axis: str) -> list[int]:
    if isinstance(where, slice):
        return list(range(size)[where])
    try:
        indices = [number(where)]  # pyright: ignore[reportArgumentType] raises TypeError for a sequence
    except (TypeError, ValueError):
        indices = list(where)  # pyright: ignore[reportArgumentType]
    if any(isinstance(i, bool) for i in (where, *indices)):
        raise ValueError(f"where[{axis!r}] must be integer indices, but got the booleans {where}; pass their indices")
    try:
        return [range(size)[i] for i in indices]
    except IndexError:
        raise IndexError(f"where[{axis!r}] must lie within {size} entries, but got {where}") from None
