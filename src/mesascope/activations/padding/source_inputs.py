"""The inputs of the run that the source of an edit comes from, with their padding."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceInputs:
    """The inputs of the run that the source of an edit comes from.

    Attributes:
        inputs: the inputs of that run.
        mask: 1 where an input is not padding; ``None`` without padding.
        order: the sequence of that run from which each sequence takes its values; ``None`` if it is its own.
        source_mask: of the decoder of an encoder-decoder: 1 where an input of the source is not padding.
    """

    inputs: Shaped[Tensor, "batch pos *d_in"]
    mask: Int[Tensor, "batch pos"] | None
    order: Int[Tensor, " batch"] | None = None
    source_mask: Int[Tensor, "batch source"] | None = None

    @property
    def row_mask(self) -> Bool[Tensor, "batch pos"]:
        """``True`` where the source has no padding, by the sequence that takes its values."""
        shape, device = self.inputs.shape[:2], self.inputs.device
        real = torch.ones(shape, dtype=torch.bool, device=device) if self.mask is None else self.mask.bool()
        return real if self.order is None else real[self.order.to(device)]

    @property
    def row_source_mask(self) -> Int[Tensor, "batch source"] | None:
        """The mask of the source, by the sequence that takes its values; ``None`` without padding."""
        mask, order = self.source_mask, self.order
        return mask if mask is None or order is None else mask[order.to(mask.device)]
