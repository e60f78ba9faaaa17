"""Inputs of the controls of an inspection, which run the same analyses with random weights and with shuffled text."""

from dataclasses import replace

import torch

from mesascope.inspection._passes import InspectionInputs


def shuffled_text(inputs: InspectionInputs, draw: int) -> InspectionInputs:
    """Shuffle the tokens of each sequence of one draw; the first token and all of the prefix stay first.

    Args:
        inputs: The inspected text.
        draw: The number of the draw.

    Returns:
        The shuffled text.
    """
    sequence = single_sequence(inputs, draw)
    generator = torch.Generator().manual_seed(inputs.seed + draw)
    fixed = max(1, len(inputs.prefix))
    order = torch.stack(
        [fixed + torch.randperm(sequence.token_ids.shape[1] - fixed, generator=generator) for _ in sequence.token_ids]
    )
    first = torch.arange(fixed).expand(len(order), fixed)
    return replace(sequence, token_ids=sequence.token_ids.gather(1, torch.cat([first, order], 1)))


def single_sequence(inputs: InspectionInputs, draw: int) -> InspectionInputs:
    """Select the sequence of one draw; it keeps its length, because results can depend on it.

    Args:
        inputs: The inspected text.
        draw: The number of the draw.

    Returns:
        One sequence.
    """
    row = draw % len(inputs.token_ids)
    return replace(inputs, token_ids=inputs.token_ids[row : row + 1], seed=draw + 1)
