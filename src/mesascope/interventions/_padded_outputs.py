"""Outputs of padded sequences: the last position of each sequence, and means over its positions."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
