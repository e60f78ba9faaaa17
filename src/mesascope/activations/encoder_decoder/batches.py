"""The parts of the batch of a task that are source and target."""

from typing import Any

from mesascope.activations.encoder_decoder._inputs import SourceAndTarget
from mesascope.activations.sites import DECODER, ENCODER, STACKS
from mesascope.tasks.base import Batch


def split_batch(inputs: Any, pair: SourceAndTarget) -> dict[str, Batch | None]:
    """Return the parts of the batch of a task that are source and target, by stack; ``None`` without a batch.

    Args:
        inputs: what was passed as inputs.
        pair: the source and the target.
    """
    if not isinstance(inputs, Batch):
        return dict.fromkeys(STACKS)
    batch, length = inputs.to(pair.target.device), pair.source.shape[1]
    return {ENCODER: _select_columns(batch, slice(0, length)), DECODER: _select_columns(batch, slice(length, None))}


def _select_columns(batch: Batch, columns: slice) -> Batch:
    return Batch(
        inputs=batch.inputs[:, columns],
        targets=batch.targets[:, columns],
        weight=batch.weight[:, columns],
        latents={
            name: value[:, columns] if value.shape[:2] == batch.weight.shape else value
            for name, value in batch.latents.items()
        },
    )
