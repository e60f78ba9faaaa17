"""References of ablated edges: their mean by position, and the one that is drawn for a sequence."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from mesascope.activations.split_forward import SplitForward
from mesascope.circuits._recorded_runs import MAX_BYTES, RecordedRun, list_projections, record_run
from mesascope.circuits.edges import find_edges

Inputs = Shaped[Tensor, "batch pos *d_in"]
References = Shaped[Tensor, "reference pos *d_in"]
Mask = Int[Tensor, "batch pos"]
ReferenceMask = Int[Tensor, "reference pos"]
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


def validate_mean_positions(mask: Mask | None, reference_mask: ReferenceMask | None) -> None:
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
    inputs: Inputs, references: References, mask: Mask | None, reference_mask: ReferenceMask | None, seed: int
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


class ReferenceMean:
    """The mean over reference sequences of all terms and streams, by position.

    The mean at a position is over the references that have an input there. Sums of terms are streams in every
    reference, so the sums of the mean terms are the mean streams.

    Args:
        model: the model.
        references: the inputs of the references.
        mask: 1 where a reference has an input; ``None`` without padding.
    """

    def __init__(
        self,
        model: nn.Module,
        references: Shaped[Tensor, "reference pos *d_in"],
        mask: ReferenceMask | None,
    ) -> None:
        self.model, self.references, self.mask = model, references, mask

    @cached_property
    def run(self) -> RecordedRun:
        """The mean as one sequence; 0 where no reference has an input."""
        real = torch.ones(self.references.shape[:2]) if self.mask is None else self.mask
        totals: list[Tensor] = []
        like: RecordedRun | None = None
        for part, recorded in self._record_parts():
            weights = real[part].to(recorded.terms.device) > 0
            sums = [_sum_real(tensor, weights) for tensor in _list_tensors(recorded)]
            totals = [total + one for total, one in zip(totals, sums, strict=True)] if totals else sums
            like = recorded
        assert like is not None  # inputs are not empty
        counts = real.sum(0).clamp(min=1).to(totals[0].device)[:, None]
        means = iter([(total / counts).to(like.terms.dtype) for total in totals])
        return RecordedRun(
            terms=next(means),
            attention_streams=[next(means) for _ in like.attention_streams],
            mlp_streams=[None if stream is None else next(means) for stream in like.mlp_streams],
            output_stream=next(means),
        )

    def _record_parts(self) -> Iterator[tuple[slice, RecordedRun]]:
        """Yield the recorded runs of as many references as fit into memory."""
        first = SplitForward(self.model, self.references[:1], all_positions=False)
        projections = list_projections(first)
        numbers = len(find_edges(first).senders) * self.references.shape[1] * projections[0].shape[-1]
        size = max(1, MAX_BYTES // (numbers * projections[0].element_size()))
        for start in range(0, len(self.references), size):
            part = slice(start, start + size)
            mask = None if self.mask is None else self.mask[part]
            split = SplitForward(self.model, self.references[part], attention_mask=mask, all_positions=False)
            yield part, record_run(split, projections)


def _list_tensors(run: RecordedRun) -> list[Tensor]:
    streams = [stream for stream in run.mlp_streams if stream is not None]
    return [run.terms, *run.attention_streams, *streams, run.output_stream]


def _sum_real(
    values: Float[Tensor, "*sender batch pos d_model"], real: Shaped[Tensor, "batch pos"]
) -> Float[Tensor, "*sender 1 pos d_model"]:
    """Return the sum over sequences without their padding, at least in single precision."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return wide.where(real[..., None], 0.0).sum(-3, keepdim=True)
