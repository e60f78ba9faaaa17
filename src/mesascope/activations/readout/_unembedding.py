"""Unembedding: the linear map from the output of the final norm to the output."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mesascope.activations.readout._output_head import OutputHead
from mesascope.activations.tolerances import allclose
from mesascope.models.quantized.weights import read_matrices

UNIT_VECTORS_PER_CHUNK = 64  # unit vectors at a time; their logits are the largest tensor in memory


class Unembedding:
    """The linear map after the final norm; scales included, without bias and soft cap.

    Args:
        output_head: from the last layer to the output.
        start: index of the first module of the map: 1 after a norm, 0 without one.
        like: a vector with the width, dtype and device of the input of the map.
    """

    def __init__(self, output_head: OutputHead, start: int, like: Float[Tensor, " d_model"]) -> None:
        self._output_head, self._start, self._like = output_head, start, like
        bias = output_head(torch.zeros_like(like)[None], start)[0]
        self._bias = bias if bias.any() else None  # logits are large, and most models have no bias
        self._weight = self._find_weight()

    def __call__(self, x: Float[Tensor, "*parts d_model"]) -> Float[Tensor, "*parts d_out"]:
        """Map directions to the output, without the bias.

        Args:
            x: directions after the final norm.

        Returns:
            Their outputs.
        """
        output = self._output_head(x, self._start)
        return output if self._bias is None else output - self._bias

    def get_rows(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """Return the rows of some tokens.

        They are exact where the module holds the matrix itself, and found by running it on unit vectors elsewhere.

        Args:
            tokens: token ids.

        Returns:
            One row per token.
        """
        if self._weight is not None:
            return self._weight[0][tokens] * self._weight[1]
        return self._run_unit_vectors(lambda logits: logits[:, tokens])

    def compute_mean_row(self) -> Float[Tensor, " d_model"]:
        """Return the mean row over all tokens.

        It shifts all logits by the same amount, so that no probability depends on it.

        Returns:
            The mean row.
        """
        if self._weight is not None:
            return self._weight[0].mean(0) * self._weight[1]
        return self._run_unit_vectors(lambda logits: logits.mean(1, keepdim=True))[0]

    def _run_unit_vectors(
        self, select: Callable[[Float[Tensor, "unit d_out"]], Float[Tensor, "unit picked"]]
    ) -> Float[Tensor, "picked d_model"]:
        """Return selected columns of the outputs of all unit vectors, transposed."""
        eye = torch.eye(len(self._like), dtype=self._like.dtype, device=self._like.device)
        return torch.cat([select(self(block)) for block in eye.split(UNIT_VECTORS_PER_CHUNK)]).T.contiguous()

    def _find_weight(self) -> tuple[Float[Tensor, "d_out d_model"], float] | None:
        """Return matrix and scale, where one module's parameter is the whole map."""
        if len(self._output_head.modules) != self._start + 1:
            return None
        x = torch.randn(4, len(self._like), generator=torch.Generator().manual_seed(0)).to(self._like)
        expected = self(x)
        scale = self._output_head.scales[self._start] * self._output_head.scales[-1]
        for matrix in read_matrices(self._output_head.modules[-1]):
            if (
                matrix.dtype == x.dtype
                and matrix.shape == (expected.shape[-1], len(self._like))
                and allclose(x @ matrix.T * scale, expected)
            ):
                return matrix, scale
        return None
