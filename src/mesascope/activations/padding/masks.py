"""Attention masks: the entries that are padding, and outputs and functions of the output that leave it out."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

POSITION_AXES = ("pos", "query", "key")
SOURCE_AXIS = "source"  # of cross-attention: positions of the source of an encoder-decoder
MASK_ARGUMENT = "attention_mask"


def find_real_entries(
    axes: Sequence[str],
    index: Sequence[Int[Tensor, "_"]],
    mask: Int[Tensor, "batch pos"] | None,
    source_mask: Int[Tensor, "batch source"] | None = None,
) -> Bool[Tensor, "..."]:
    """Return where the entries of an activation belong to no padding.

    Args:
        axes: the axes of the activation, ``batch`` first.
        index: for every axis, the indices of the entries.
        mask: 1 where an input is not padding; ``None`` without padding.
        source_mask: the same for the source of an encoder-decoder, along the axis ``source``.

    Returns:
        A mask that broadcasts to the entries; an entry between a query and a key is real if both are.
    """
    device = index[0].device if mask is None else mask.device
    real = torch.ones([len(index[0]), *[1] * (len(axes) - 1)], dtype=torch.bool, device=device)
    for number, axis in enumerate(axes):
        own = mask if axis in POSITION_AXES else source_mask if axis == SOURCE_AXIS else None
        if own is not None:
            rows = own.bool().to(device)[index[0].to(device)]
            shape = [-1 if other == number else 1 for other in range(1, len(axes))]
            real = real & rows[:, index[number].to(device)].reshape(len(rows), *shape)
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


def select_last_position(
    output: Float[Tensor, "batch predicted d_out"], mask: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch 1 d_out"]:
    """Return the output of each sequence at its last position that is not padding.

    Args:
        output: outputs at every position, or at the last one only, where no sequence then ends with padding.
        mask: 1 where an input is not padding.

    >>> output = torch.arange(6.0).reshape(2, 3, 1)
    >>> select_last_position(output, torch.tensor([[1, 1, 0], [0, 1, 1]])).flatten().tolist()
    [1.0, 5.0]
    """
    if output.shape[1] < mask.shape[1]:
        return output[:, -1:]
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1).to(output.device)
    return output[torch.arange(len(output), device=output.device), last][:, None]


def average_over_positions(
    values: Float[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"] | None
) -> Float[Tensor, " batch"]:
    """Return the mean over the positions of each sequence that are not padding.

    Args:
        values: one number per position.
        mask: 1 where an input is not padding; ``None`` without padding.

    >>> average_over_positions(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1, 1, 0]])).tolist()
    [2.0]
    """
    if mask is None:
        return values.mean(1)
    real = mask.bool().to(values.device)
    return values.where(real, 0.0).sum(1) / real.sum(1)


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
