"""The output map by rows: what direction of the normed stream each token's logit is read along."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations.readout.output_head import Tail
from mesascope.activations.tolerances import close

BLOCK = 64  # unit vectors at a time: their logits, and nothing larger, are in memory


class OutputMap:
    """What follows the final norm, as a linear map; scales included, the bias and any cap left out.

    Args:
        tail: from the last layer to the prediction.
        start: the first module of the map: 1 behind a norm, 0 without one.
        width: of the stream.
    """

    def __init__(self, tail: Tail, start: int, width: int) -> None:
        self._tail, self._start, self._width = tail, start, width
        self._bias = tail(torch.zeros(1, width, dtype=self._like.dtype, device=self._like.device), start)[0]
        self._weight = self._held()

    def __call__(self, x: Float[Tensor, "*parts d_model"]) -> Float[Tensor, "*parts d_out"]:
        """The logits of some directions, the bias left out."""
        return self._tail(x, self._start) - self._bias

    def rows(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """The rows of some tokens: exact where the module holds the matrix, else by running it on unit vectors."""
        if self._weight is not None:
            return self._weight[0][tokens] * self._weight[1]
        return self._by_unit_vectors(lambda logits: logits[:, tokens])

    def mean_row(self) -> Float[Tensor, " d_model"]:
        """The mean over all tokens: what is added to every logit alike, and so changes no probability."""
        if self._weight is not None:
            return self._weight[0].mean(0) * self._weight[1]
        return self._by_unit_vectors(lambda logits: logits.mean(1, keepdim=True))[0]

    def _by_unit_vectors(
        self, pick: Callable[[Float[Tensor, "unit d_out"]], Float[Tensor, "unit picked"]]
    ) -> Float[Tensor, "picked d_model"]:
        """Some columns of the logits of all unit vectors, transposed."""
        eye = torch.eye(self._width, dtype=self._like.dtype, device=self._like.device)
        return torch.cat([pick(self(block)) for block in eye.split(BLOCK)]).T.contiguous()

    @property
    def _like(self) -> Tensor:
        """A parameter, for its precision and place."""
        return next(p for module in self._tail.modules for p in module.parameters())

    def _held(self) -> tuple[Float[Tensor, "d_out d_model"], float] | None:
        """The matrix that the one module holds, and its scale, if that is the whole map."""
        if len(self._tail.modules) != self._start + 1:
            return None
        x = torch.randn(4, self._width, generator=torch.Generator().manual_seed(0)).to(self._like)
        expected = self(x)
        scale = self._tail.scales[self._start] * self._tail.scales[-1]
        for held in self._tail.modules[-1].parameters(recurse=False):
            matrix = held.detach()
            if matrix.shape == (expected.shape[-1], self._width) and close(x @ matrix.T * scale, expected):
                return matrix, scale
        return None
