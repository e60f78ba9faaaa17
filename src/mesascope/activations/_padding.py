"""Padding in edits and objectives: which entries are padding, and whether those of two runs fit each other."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

POSITION_AXES = ("pos", "query", "key")
MASK_ARGUMENT = "attention_mask"


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceInputs:
    """The inputs of the run that the source of an edit comes from.

    Attributes:
        inputs: the inputs of that run.
        mask: 1 where an input is not padding; ``None`` without padding.
        order: the sequence of that run from which each sequence takes its values; ``None`` if it is its own.
    """

    inputs: Shaped[Tensor, "batch pos *d_in"]
    mask: Int[Tensor, "batch pos"] | None
    order: Int[Tensor, " batch"] | None = None

    @property
    def row_mask(self) -> Bool[Tensor, "batch pos"]:
        """``True`` where the source has no padding, by the sequence that takes its values."""
        shape, device = self.inputs.shape[:2], self.inputs.device
        real = torch.ones(shape, dtype=torch.bool, device=device) if self.mask is None else self.mask.bool()
        return real if self.order is None else real[self.order.to(device)]


def find_real_entries(
    axes: Sequence[str], index: Sequence[Int[Tensor, "_"]], mask: Int[Tensor, "batch pos"]
) -> Bool[Tensor, "..."]:
    """Return where the entries of an activation belong to no padding.

    Args:
        axes: the axes of the activation, ``batch`` first.
        index: for every axis, the indices of the entries.
        mask: 1 where an input is not padding.

    Returns:
        A mask that broadcasts to the entries; an entry between a query and a key is real if both are.
    """
    rows = mask.bool()[index[0].to(mask.device)]
    real = torch.ones([len(rows), *[1] * (len(axes) - 1)], dtype=torch.bool, device=mask.device)
    for number, axis in enumerate(axes):
        if axis in POSITION_AXES:
            shape = [-1 if other == number else 1 for other in range(1, len(axes))]
            real = real & rows[:, index[number].to(mask.device)].reshape(len(rows), *shape)
    return real


def zero_padding(
    values: Shaped[Tensor, "batch *rest"], axes: Sequence[str], mask: Int[Tensor, "batch pos"] | None
) -> Shaped[Tensor, "batch *rest"]:
    """Set the entries of an activation that belong to padding to zero.

    Args:
        values: the activation.
        axes: its axes, ``batch`` first; positions other than the last may have been left out.
        mask: 1 where an input is not padding; ``None`` without padding.

    Returns:
        The activation with zeros at padding.
    """
    is_last_only = mask is not None and "pos" in axes and values.shape[axes.index("pos")] < mask.shape[1]
    if mask is None or is_last_only:
        return values
    index = [torch.arange(size, device=mask.device) for size in values.shape]
    return values.masked_fill(~find_real_entries(axes, index, mask).to(values.device), 0)


def pads_the_end(mask: Int[Tensor, "batch pos"] | None) -> bool:
    """Return whether the last column is padding in any sequence.

    Args:
        mask: 1 where an input is not padding; ``None`` without padding.
    """
    return mask is not None and not bool(mask[:, -1].all())


def accepts_mask(function: Callable[..., Any]) -> bool:
    """Return whether a function of the output has a parameter ``attention_mask``.

    Args:
        function: the function.
    """
    try:
        return MASK_ARGUMENT in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a function of C without a signature
        return False


def validate_accepts_mask(function: Callable[..., Any], name: str, mask: Int[Tensor, "batch pos"] | None) -> None:
    """Check that a function of the output can leave out padding.

    Args:
        function: a function from outputs (batch, pos, d_out) to (batch).
        name: its name in the error.
        mask: 1 where an input is not padding; ``None`` without padding.

    Raises:
        ValueError: there is padding, which the function would take for inputs.
    """
    if mask is not None and not accepts_mask(function):
        raise ValueError(
            f"with padding, {name} must leave it out, but takes no {MASK_ARGUMENT}; give it a parameter "
            f"{MASK_ARGUMENT}=None (batch, pos), use logit_difference or log_probability, or pass sequences of one "
            "length"
        )
