"""What the edges outside a circuit carry: a counterfactual run, the mean of reference runs, or a drawn reference."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

Inputs = Shaped[Tensor, "batch pos *d_in"]
References = Shaped[Tensor, "reference pos *d_in"]
Mask = Int[Tensor, "rows pos"]
ABLATIONS: Mapping[str, str] = MappingProxyType(  # by name, what the other edges carry
    {
        "counterfactual": "the counterfactual run",
        "mean": "the mean of the references",
        "resample": "another reference",
    }
)


def validate_ablation(ablation: str) -> None:
    """Check the name of an ablation.

    Args:
        ablation: one of `ABLATIONS`.

    Raises:
        ValueError: If there is no such ablation.
    """
    if ablation not in ABLATIONS:
        raise ValueError(f"ablation must be one of {', '.join(ABLATIONS)}, but got {ablation!r}")


def validate_mean_positions(mask: Mask | None, reference_mask: Mask | None) -> None:
    """Check that the mean over references is defined at every position of the inputs.

    Args:
        mask: 1 where an input is not padding; ``None`` without padding.
        reference_mask: 1 where a reference has an input; ``None`` without padding.

    Raises:
        ValueError: If a column of the padded sequences is not the same position in all of them, or no reference has an
            input where a sequence has one.
    """
    if mask is None and reference_mask is None:
        return
    given = next(each for each in (mask, reference_mask) if each is not None)
    rows = [torch.ones_like(given[:1]) if each is None else each for each in (mask, reference_mask)]
    real = torch.cat([each.to(given.device) for each in rows])
    position = real.cumsum(1)
    lowest, highest = position.where(real > 0, real.shape[1]).amin(0), position.where(real > 0, 0).amax(0)
    mixed = (lowest < highest).nonzero()
    if len(mixed):
        raise ValueError(
            "a mean by position needs sequences that begin in the same column, but column "
            f"{int(mixed[0])} is a different position in some of them; pad on the right"
        )
    missing = (rows[0].to(given.device).any(0) & ~rows[1].to(given.device).any(0)).nonzero()
    if len(missing):
        raise ValueError(
            f"a mean by position needs a reference at every position of the inputs, but none has position "
            f"{int(missing[0])}; pass longer references"
        )


def draw_references(
    inputs: Inputs, references: References, mask: Mask | None, reference_mask: Mask | None, seed: int
) -> Int[Tensor, " batch"]:
    """Draw a reference with the same padding for every sequence, never the same sequence.

    Args:
        inputs: the sequences.
        references: sequences of the same length.
        mask: 1 where an input is not padding; ``None`` without padding.
        reference_mask: 1 where a reference has an input; ``None`` without padding.
        seed: seed of the draw.

    Returns:
        The index of a reference for every sequence.

    Raises:
        ValueError: If there is no such reference for a sequence.
    """
    allowed = find_other_references(inputs, references, mask)
    if mask is not None or reference_mask is not None:
        ones = inputs.new_ones(1, inputs.shape[1], dtype=torch.long)
        first, second = (ones if each is None else each.to(ones) for each in (mask, reference_mask))
        allowed = allowed & (first[:, None] == second[None]).all(2)
    lacking = (~allowed.any(1)).nonzero()
    if len(lacking):
        raise ValueError(
            "resample needs a reference of the same length with other inputs for every sequence, but sequence "
            f"{int(lacking[0])} has none among {len(references)}; pass more references, or use the mean"
        )
    return torch.multinomial(allowed.cpu().double(), 1, generator=torch.Generator().manual_seed(seed))[:, 0]


def find_other_references(inputs: Inputs, references: References, mask: Mask | None) -> Bool[Tensor, "batch reference"]:
    """Return which references differ from each sequence, where it has an input.

    Args:
        inputs: the sequences.
        references: sequences of the same length.
        mask: 1 where an input is not padding; ``None`` without padding.
    """
    by_row = []
    for row, sequence in enumerate(inputs):
        different = (references != sequence).flatten(2).any(2) if inputs.ndim > 2 else references != sequence
        by_row.append((different if mask is None else different & (mask[row] > 0)).any(1))
    return torch.stack(by_row)
