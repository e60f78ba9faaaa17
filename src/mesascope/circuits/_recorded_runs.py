"""Recorded runs: the terms of all senders and the streams of all receivers, of one run or as a mean of many."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from mesascope.activations.split_forward import SplitForward
from mesascope.circuits.edges import Component, find_edges

MAX_BYTES = 2**30  # of what the senders add in all branches of one run, or in the references that are run together
Stream = Float[Tensor, "batch pos d_model"]
Projections = list[Float[Tensor, "head d_head d_model"]]


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedRun:
    """Terms that the senders of a run add, and streams that its receivers read.

    Attributes:
        terms: the term of every sender.
        attention_streams: by layer, the stream that attention reads.
        mlp_streams: by layer, the stream that the MLP reads; ``None`` without one.
        output_stream: the stream that is mapped to the output.
    """

    terms: Float[Tensor, "sender batch pos d_model"]
    attention_streams: Sequence[Stream]
    mlp_streams: Sequence[Stream | None]
    output_stream: Stream

    def stream(self, receiver: Component) -> Stream:
        """Return the stream that a receiver reads.

        Args:
            receiver: the receiver.
        """
        if receiver.kind == "output":
            return self.output_stream
        stream = (self.mlp_streams if receiver.kind == "mlp" else self.attention_streams)[receiver.layer]
        assert stream is not None
        return stream


def record_run(split: SplitForward, projections: Projections) -> RecordedRun:
    """Record the terms and streams of an unedited run.

    Args:
        split: the run.
        projections: by layer, the maps from what the heads compute to what they add to the stream.
    """
    terms, layers = [split.unedited_activation("resid_pre", 0)], range(split.num_layers)
    for layer in layers:
        terms += list(compute_head_terms(projections[layer], split.unedited_activation("z", layer)))
        if split.has_mlp(layer):
            terms.append(split.unedited_activation("mlp_out", layer))
    return RecordedRun(
        terms=torch.stack(terms),
        attention_streams=[split.unedited_activation("resid_pre", layer) for layer in layers],
        mlp_streams=[split.mlp_stream(layer) if split.has_mlp(layer) else None for layer in layers],
        output_stream=split.unedited_activation("resid_post", layers[-1]),
    )


def compute_head_terms(
    projection: Float[Tensor, "head d_head d_model"], z: Float[Tensor, "batch pos head d_head"]
) -> Float[Tensor, "head batch pos d_model"]:
    """Return what each head of a layer adds to the residual stream.

    Args:
        projection: the maps of the heads.
        z: what the heads compute.
    """
    return torch.einsum("bphd,hdm->hbpm", z, projection.to(z))


def list_projections(split: SplitForward) -> Projections:
    """Return, by layer, the maps from what the heads compute to what they add to the stream.

    Args:
        split: a run of the model.
    """
    return [split.output_projection(layer) for layer in range(split.num_layers)]


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
        mask: Int[Tensor, "reference pos"] | None,
    ) -> None:
        self.model, self.references, self.mask = model, references, mask

    @cached_property
    def run(self) -> RecordedRun:
        """The mean as one sequence; 0 where no reference has an input."""
        real = torch.ones(self.references.shape[:2]) if self.mask is None else self.mask
        totals: list[Tensor] = []
        for part, recorded in self._record_parts():
            weights = real[part].to(recorded.terms.device) > 0
            sums = [_sum_real(tensor, weights) for tensor in _list_tensors(recorded)]
            totals = [total + one for total, one in zip(totals, sums, strict=True)] if totals else sums
            like = recorded
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
