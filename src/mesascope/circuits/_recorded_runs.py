"""Recorded runs: the terms of all senders and the streams of all receivers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.activations.split_forward import SplitForward
from mesascope.circuits.edges import Component

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

    Returns:
        The recorded run.
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
