"""Chunks of consecutive positions that are not padding."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

Order = Int[Tensor, "batch pos"]


def order_padding_last(is_real: Bool[Tensor, "batch pos"]) -> Order:
    """Return the order of positions that moves padding behind all others, so that it does not shift chunks.

    Args:
        is_real: False at padding.

    Returns:
        The old position of every new one.
    """
    return (~is_real).int().argsort(dim=1, stable=True)


def invert_order(order: Order) -> Order:
    """Return the order that restores the original one.

    Args:
        order: the old position of every new one.
    """
    return order.argsort(dim=1)


def reorder_positions(x: Shaped[Tensor, "batch pos *rest"], order: Order) -> Shaped[Tensor, "batch pos *rest"]:
    """Return a tensor with its positions in another order.

    Args:
        x: any tensor over positions.
        order: the old position of every new one.
    """
    return x.gather(1, order.reshape(*order.shape, *[1] * (x.ndim - 2)).expand_as(x))


def split_chunks(chunk_length: int, *tensors: Shaped[Tensor, "..."]) -> Sequence[tuple[Tensor, ...]]:
    """Split tensors into chunks along axis 1; the last chunk may be shorter.

    Args:
        chunk_length: positions of a chunk.
        *tensors: tensors with the same number of positions.

    Returns:
        One tuple of parts per chunk.
    """
    return list(zip(*(torch.split(x, chunk_length, dim=1) for x in tensors), strict=True))
