"""What a prompt shows: pairs of an input and its answer, and the inputs whose answers are asked."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

Asked = Float[Tensor, "batch place feature"]
Answers = Float[Tensor, "batch place out"]
Rule = Float[Tensor, "batch place feature out"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """At some positions of every sequence, the pairs seen so far and what is asked there; all in float64.

    Attributes:
        known: the inputs seen before each place; rows of zeros stand for those that come later.
        following: their answers, rows of zeros likewise.
        asked: the input whose answer is asked.
        seen: how many pairs have been seen at each place.
        at: the positions of the sequence that the places are.
    """

    known: Float[Tensor, "batch place pair feature"]
    following: Float[Tensor, "batch place pair out"]
    asked: Asked
    seen: Int[Tensor, " place"]
    at: tuple[int, ...]

    def swapped(self, order: Int[Tensor, " batch"]) -> "Examples":
        """What is asked stays; the pairs seen before are those of another sequence."""
        return replace(self, known=self.known[order], following=self.following[order])

    def rows(self, which: slice) -> "Examples":
        """Those of some sequences."""
        return replace(self, known=self.known[which], following=self.following[which], asked=self.asked[which])

    @property
    def gram(self) -> Float[Tensor, "batch place feature feature"]:
        """The sum over the pairs of input times input."""
        return self.known.mT @ self.known

    @property
    def moment(self) -> Rule:
        """The sum over the pairs of input times answer."""
        return self.known.mT @ self.following

    def apply(self, rule: Float[Tensor, "*lead batch place feature out"]) -> Float[Tensor, "*lead batch place out"]:
        """The answers that a linear rule gives; rules may have more axes in front."""
        return (self.asked[..., None, :] @ rule)[..., 0, :]

    def spread(self, answers: Float[Tensor, "*lead batch place out"], length: int) -> Float[Tensor, "..."]:
        """Answers at the positions of sequences of this length, zeros elsewhere."""
        whole = answers.new_zeros(*answers.shape[:-2], length, answers.shape[-1])
        whole[..., list(self.at), :] = answers
        return whole


def examples_before(
    features: Float[Tensor, "batch point feature"],
    answers: Float[Tensor, "batch point out"],
    at: tuple[int, ...],
    points: tuple[int, ...] | None = None,
) -> Examples:
    """Each point is asked, and the pairs seen there are those of all earlier points.

    Args:
        features: of every point.
        answers: to every point; the last is never seen.
        at: the position in the sequence where each point that is asked stands.
        points: which of the points are asked; all by default.
    """
    count = features.shape[1]
    asked = torch.tensor(range(count) if points is None else points, device=features.device)
    pair = torch.arange(max(count - 1, 1), device=features.device)
    mask = (pair[None, :] < asked[:, None])[None, :, :, None].to(torch.float64)
    known, following = features[:, : len(pair)].double(), answers[:, : len(pair)].double()
    return Examples(
        known=known[:, None] * mask,
        following=following[:, None] * mask,
        asked=features[:, asked].double(),
        seen=asked,
        at=at,
    )
