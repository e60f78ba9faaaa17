"""Output projection of one layer: from ``z`` to ``attn_out``, with bias and gain."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec, ResidualUpdate
from mesascope.activations.structure._trace import ModuleCall, Trace
from mesascope.activations.tolerances import allclose, bitwise_equal, relative_difference, rounding_tolerance
from mesascope.models.quantized.weights import read_matrices

NUM_RANDOM_VECTORS = 4  # that a parameter must map as the module does


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputProjection:
    """The map from ``z`` to ``attn_out`` of one layer: a linear module times a gain.

    Attributes:
        module: the module.
        gain: constant factor on its output.
        num_heads: number of heads.
        d_head: size of ``z`` per head.
        dtype, device: those of ``z``.
    """

    module: nn.Module
    gain: float
    num_heads: int
    d_head: int
    dtype: torch.dtype
    device: torch.device

    @torch.no_grad()
    def compute_matrix(self) -> tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, " d_model"]]:
        """Return the map and its bias, by running the module on unit vectors.

        The module's own parameter, dequantised if it is quantised, is returned where it is the same map, since it is
        exact.

        Returns:
            The matrix of each head and the bias, both times the gain.
        """
        width = self.num_heads * self.d_head
        bias = self.module(torch.zeros(1, 1, width, dtype=self.dtype, device=self.device))[0, 0]
        matrix = self._find_parameter(bias)
        if matrix is None:
            matrix = self.module(torch.eye(width, dtype=self.dtype, device=self.device)[None])[0] - bias
        return matrix.detach().unflatten(0, (self.num_heads, self.d_head)) * self.gain, bias.detach() * self.gain

    def _find_parameter(self, bias: Float[Tensor, " d_model"]) -> Float[Tensor, "d_in d_model"] | None:
        """Return the module's parameter that is the map: it maps random vectors as the module does."""
        x = torch.randn(1, NUM_RANDOM_VECTORS, self.num_heads * self.d_head, generator=torch.Generator().manual_seed(0))
        x = x.to(bias)
        expected = self.module(x) - bias
        tolerance = min(rounding_tolerance(x), max(1e-5, 4 * torch.finfo(x.dtype).eps))
        shape = (x.shape[-1], expected.shape[-1])
        for matrix in (candidate for p in read_matrices(self.module) for candidate in (p.T, p)):
            fits = matrix.dtype == x.dtype and matrix.shape == shape
            if fits and relative_difference(x @ matrix, expected, bias.abs().max().item()) <= tolerance:
                return matrix
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class TracedProjection:
    """An output projection with the tensors by which it is checked.

    Attributes:
        projection: the projection.
        z: its input on the trace input.
        attn_out: the residual update that it gives there.
    """

    projection: OutputProjection
    z: Float[Tensor, "batch pos head d_head"]
    attn_out: Float[Tensor, "batch pos d_model"]

    def check(self) -> OutputProjection | str:
        """Return the output projection if it gives the residual update, or why it does not."""
        matrix, bias = self.projection.compute_matrix()
        predicted = torch.einsum("bphd,hdm->bpm", self.z, matrix) + bias
        if allclose(predicted, self.attn_out):
            return self.projection
        present = self._run_module()  # differs from the trace if weights were written that no fingerprint compares
        if bitwise_equal(present, self._run_module()) and allclose(predicted, present):
            return self.projection
        return (
            "the output projection is not linear: its result differs from attn_out by "
            f"{relative_difference(predicted, self.attn_out):.1e}"
        )

    def _run_module(self) -> Float[Tensor, "batch pos d_model"]:
        output = self.projection.module(self.z.flatten(2))
        return output.reshape(self.attn_out.shape) * self.projection.gain


def locate_output_projection(model: PreTrainedModel, layer: LayerSpec, trace: Trace) -> TracedProjection | str:
    """Return the output projection of one layer with its tensors on the trace input, or why there is none.

    Args:
        model: the traced model.
        layer: specification of the layer.
        trace: traced forward pass.
    """
    if layer.projection is None or layer.attn_out is None or layer.attention is None:
        return layer.missing.get("projection", "attn_out is not available")
    return _locate_projection(model, trace, layer, (layer.attention, layer.projection, layer.attn_out))


def locate_cross_projection(model: PreTrainedModel, layer: LayerSpec, trace: Trace) -> TracedProjection | str:
    """Return the output projection of the cross-attention of one layer, as `locate_output_projection` does.

    Args:
        model: the traced model.
        layer: specification of the layer.
        trace: traced forward pass.
    """
    cross = layer.cross
    if cross is None:
        return "the layer has no cross-attention"
    if cross.projection is None or cross.attn_out is None:
        return layer.missing.get("cross_projection", "cross_attn_out is not available")
    return _locate_projection(model, trace, layer, (cross.module, cross.projection, cross.attn_out))


def _locate_projection(
    model: PreTrainedModel, trace: Trace, layer: LayerSpec, found: tuple[str, str, ResidualUpdate]
) -> TracedProjection:
    attention, module_name, update = found
    block = trace.block_call(layer)
    z = trace.attention_within(block, attention).output
    projection = OutputProjection(
        module=model.get_submodule(module_name),
        gain=update.gain,
        num_heads=z.shape[-2],
        d_head=z.shape[-1],
        dtype=z.dtype,
        device=z.device,
    )
    return TracedProjection(projection=projection, z=z, attn_out=compute_residual_update(update, trace, block))


def compute_residual_update(
    update: ResidualUpdate, trace: Trace, block: ModuleCall
) -> Float[Tensor, "batch pos d_model"]:
    """Compute a residual update on the trace input.

    Args:
        update: module and gain of the update.
        trace: traced forward pass.
        block: traced call of the block.

    Returns:
        The output of the module times the gain.
    """
    return trace.call_within(block, update.module).output_tensor.reshape(block.output_tensor.shape) * update.gain
