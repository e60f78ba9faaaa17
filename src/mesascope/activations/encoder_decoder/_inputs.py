"""The inputs of an encoder-decoder: a source for the encoder, and a target for the decoder."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from mesascope.activations.sites import ENCODER


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceAndTarget:
    """The inputs of an encoder-decoder, on the device of the model.

    Attributes:
        source: what the encoder reads: tokens (batch, source) or vectors (batch, source, d_model).
        target: what the decoder reads: tokens (batch, pos) or vectors (batch, pos, d_model).
        source_mask: 1 where an input of the source is not padding; ``None`` without padding.
        target_mask: the same for the target.
        prefix: vectors that replace the embeddings of the first tokens of every source, in an encoder-decoder of this
            package.
        prefix_length: the number of first positions of the source that are vectors of a prefix.
    """

    source: Shaped[Tensor, "batch source *d_source"]
    target: Shaped[Tensor, "batch pos *d_target"]
    source_mask: Int[Tensor, "batch source"] | None
    target_mask: Int[Tensor, "batch pos"] | None
    prefix: Float[Tensor, "slot d_model"] | None = None
    prefix_length: int = 0

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.source)

    def __getitem__(self, rows: slice) -> "SourceAndTarget":
        """Return some sequences."""
        return replace(
            self,
            source=self.source[rows],
            target=self.target[rows],
            source_mask=None if self.source_mask is None else self.source_mask[rows],
            target_mask=None if self.target_mask is None else self.target_mask[rows],
        )

    def repeat(self, times: int) -> "SourceAndTarget":
        """Return the sequences several times, one copy after the other.

        Args:
            times: the number of copies.
        """
        return replace(
            self,
            source=self.source.repeat(times, *[1] * (self.source.ndim - 1)),
            target=self.target.repeat(times, *[1] * (self.target.ndim - 1)),
            source_mask=None if self.source_mask is None else self.source_mask.repeat(times, 1),
            target_mask=None if self.target_mask is None else self.target_mask.repeat(times, 1),
        )

    def side(self, stack: str) -> tuple[Tensor, Tensor | None]:
        """Return what a stack reads, and its mask.

        Args:
            stack: ``encoder`` or ``decoder``.
        """
        return (self.source, self.source_mask) if stack == ENCODER else (self.target, self.target_mask)

    def find_real(self, stack: str, row: int) -> Bool[Tensor, "_"]:
        """Return where the inputs of a stack are not padding, in one sequence.

        Args:
            stack: ``encoder`` or ``decoder``.
            row: the sequence.
        """
        x, mask = self.side(stack)
        return torch.ones(x.shape[1], dtype=torch.bool, device=x.device) if mask is None else mask[row].bool()
