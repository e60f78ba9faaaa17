"""The recorded activations of an encoder-decoder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jaxtyping import Shaped
from torch import Tensor

from mesascope.activations.recording._captured import Capture, NotRecorded
from mesascope.activations.sites import DECODER, ENCODER, locate_site
from mesascope.summaries import Summarised, Summary


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EncoderDecoderCapture(Summarised, Mapping[str, Tensor]):
    """Recorded activations of one run of an encoder-decoder: a capture of each stack.

    It is also a mapping from names such as ``encoder.pattern`` and ``decoder.pattern``; the names of cross-attention
    and of the output need no stack: ``cross_pattern``, ``logits``.

    Attributes:
        encoder: the capture of the encoder, whose positions are those of the source.
        decoder: the capture of the decoder, whose positions are those of the target; with the sites of cross-attention.
    """

    encoder: Capture
    decoder: Capture

    def __getitem__(self, name: str) -> Shaped[Tensor, "..."]:
        """Return a recorded site or reduction.

        Raises:
            NotRecorded: it was not recorded, or both stacks may have it.
        """
        stack, local = locate_site(name)
        if stack is None:
            raise NotRecorded(
                f"{name!r} must be of one stack of an encoder-decoder; write encoder.{name} or decoder.{name}"
            )
        return (self.encoder if stack == ENCODER else self.decoder)[local]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of what was recorded, with their stacks."""
        for stack, acts in ((ENCODER, self.encoder), (DECODER, self.decoder)):
            yield from (f"{stack}.{name}" for name in acts)

    def __len__(self) -> int:
        """Return the number of recorded sites and reductions."""
        return len(self.encoder) + len(self.decoder)

    def __eq__(self, other: object) -> bool:
        """Return whether the other object is this capture."""
        return self is other

    def __hash__(self) -> int:
        """Return the hash of the object, not of its tensors."""
        return id(self)

    def summarise(self) -> Summary:
        """Return shape, dtype and memory of everything that was recorded."""
        encoder, decoder = self.encoder.summarise(), self.decoder.summarise()
        rows = [
            (f"{stack}.{name}", *rest)
            for stack, one in ((ENCODER, encoder), (DECODER, decoder))
            for name, *rest in one.rows
        ]
        length = self.encoder.inputs.shape[1]
        return Summary(title=f"{decoder.title}, source of {length} positions", header=decoder.header, rows=rows)
