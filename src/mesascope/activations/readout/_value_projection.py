"""Value projections, from the values for unit vectors."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import allclose, relative_difference

BatchedStream = Float[Tensor, "batch pos d_model"]
BatchedValues = Float[Tensor, "batch kv_head pos d_head"]
ValueProjection = tuple[Float[Tensor, "kv_head d_model d_head"], Float[Tensor, "kv_head d_head"]]


def build_value_projection(values: Float[Tensor, "unit kv_head d_head"]) -> ValueProjection:
    """Return the map and its bias.

    Args:
        values: the values for zero and for each unit vector.
    """
    bias = values[0]
    return (values[1:] - bias).transpose(0, 1).contiguous(), bias


def validate_linear(
    layer: int, value_map: ValueProjection, pairs: Sequence[tuple[BatchedStream, BatchedValues]]
) -> None:
    """Check that a map reproduces the model's values.

    Args:
        layer: index among the recorded layers.
        value_map: the map and its bias.
        pairs: inputs of attention, on the trace input and far from it, and the model's values for them.
    """
    matrix, bias = value_map
    for normed, value in pairs:
        predicted = torch.einsum("bpm,kmd->bkpd", normed, matrix) + bias[:, None]
        if predicted.shape != value.shape or not allclose(predicted, value):
            raise UnsupportedModel(
                f"values must be a linear function of the attention input, but in recorded layer {layer} they differ "
                f"from one by {relative_difference(predicted, value):.1e}; a norm may follow the value projection"
            )
