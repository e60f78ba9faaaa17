"""The inputs of an encoder-decoder: a source for the encoder, and a target for the decoder."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


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

    def real_source(self, row: int) -> Bool[Tensor, " source"]:
        """Return where the source of a sequence is not padding.

        Args:
            row: the sequence.
        """
        return _real(self.source, self.source_mask, row)

    def real_target(self, row: int) -> Bool[Tensor, " pos"]:
        """Return where the target of a sequence is not padding.

        Args:
            row: the sequence.
        """
        return _real(self.target, self.target_mask, row)


def _real(x: Tensor, mask: Tensor | None, row: int) -> Tensor:
    return torch.ones(x.shape[1], dtype=torch.bool, device=x.device) if mask is None else mask[row].bool()
