"""Output projection of one layer: from ``z`` to ``attn_out``, with bias and gain."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec, ResidualUpdate
from mesascope.activations.structure._trace import Trace
from mesascope.activations.tolerances import allclose, relative_difference


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputProjection:
    """The map from ``z`` to ``attn_out`` of one layer: a linear module times a gain.

    Attributes:
        module: the module.
        gain: constant factor on its output.
        num_heads: number of heads.
        d_head: size of ``z`` per head.
    """

    module: nn.Module
    gain: float
    num_heads: int
    d_head: int

    @torch.no_grad()
    def compute_matrix(self) -> tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, " d_model"]]:
        """Return the map and its bias, by running the module on unit vectors.

        The module's own parameter is returned where it is the same matrix, since it is exact.

        Returns:
            The matrix of each head and the bias, both times the gain.
        """
        reference = next(self.module.parameters())
        eye = torch.eye(self.num_heads * self.d_head, dtype=reference.dtype, device=reference.device)[None]
        bias = self.module(torch.zeros_like(eye[:, :1]))[0, 0]
        matrix = self.module(eye)[0] - bias
        parameters = [candidate for p in self.module.parameters(recurse=False) if p.ndim == 2 for candidate in (p.T, p)]
        exact = [p for p in parameters if p.shape == matrix.shape and allclose(p, matrix, bias.abs().max().item())]
        matrix = (exact[0] if exact else matrix).unflatten(0, (self.num_heads, self.d_head))
        return matrix.detach() * self.gain, bias.detach() * self.gain


def find_output_projection(model: PreTrainedModel, layer: LayerSpec, trace: Trace) -> OutputProjection | str:
    """Find the output projection of one layer, and check it on the trace input; or return why there is none.

    Args:
        model: the traced model.
        layer: specification of the layer.
        trace: traced forward pass.
    """
    if layer.projection is None or layer.attn_out is None:
        return layer.missing.get("projection", "attn_out is not available")
    z = next(each.output for each in trace.attentions if each.name == layer.attention)
    module = model.get_submodule(layer.projection)
    projection = OutputProjection(module=module, gain=layer.attn_out.gain, num_heads=z.shape[-2], d_head=z.shape[-1])
    matrix, bias = projection.compute_matrix()
    attn_out = compute_residual_update(layer.attn_out, trace, (*z.shape[:2], -1))
    predicted = torch.einsum("bphd,hdm->bpm", z, matrix) + bias
    if not allclose(predicted, attn_out):
        return (
            "the output projection is not linear: its result differs from attn_out by "
            f"{relative_difference(predicted, attn_out):.1e}"
        )
    return projection


def compute_residual_update(
    update: ResidualUpdate, trace: Trace, shape: tuple[int, ...]
) -> Float[Tensor, "batch pos d_model"]:
    """Compute a residual update on the trace input.

    Args:
        update: module and gain of the update.
        trace: traced forward pass.
        shape: shape of the residual stream (batch, pos, d_model).

    Returns:
        The output of the module times the gain.
    """
    (call,) = trace.calls_of(update.module)
    return call.output_tensor.reshape(shape) * update.gain
