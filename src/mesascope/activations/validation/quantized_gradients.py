"""Check that gradients pass quantised modules as they pass the matrices that these stand for."""

from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.tolerances import allclose
from mesascope.models.quantized.weights import (
    UNPACK_ADVICE,
    dequantize_weight,
    is_quantized,
    runs_kernel_without_gradient,
)

_VALIDATED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # by module: the identity of its weight


def validate_quantized_gradients(model: PreTrainedModel) -> None:
    """Check that the gradient of every quantised linear module is the transpose of its dequantised matrix.

    Each module is run once on one vector. Where activations are quantised too, rounding has no gradient, so that a
    library defines one, or loses it.

    Args:
        model: the model.

    Raises:
        UnsupportedModel: a module has no gradient, or another one.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or not is_quantized(module):
            continue
        if runs_kernel_without_gradient(module):
            raise UnsupportedModel(
                f"gradients must pass every module, but {name} of {type(model).__name__} has a 4-bit weight of "
                f"bitsandbytes, whose kernel for this processor has no gradient; {UNPACK_ADVICE}"
            )
        if module.weight.is_meta:
            raise UnsupportedModel(
                f"gradients must pass every module, but the quantised weight of {name} of {type(model).__name__} is "
                "offloaded; load the model in memory"
            )
        if _VALIDATED.get(module) == id(module.weight):
            continue
        if not _has_gradient_of_matrix(module, model.dtype):
            raise UnsupportedModel(
                f"gradients must pass every module, but the quantised module {name} of {type(model).__name__} has no "
                "gradient, or another one than its dequantised weight; quantise weights only, and compute in the dtype "
                "of the model"
            )
        _VALIDATED[module] = id(module.weight)


def _has_gradient_of_matrix(module: nn.Linear, dtype: torch.dtype) -> bool:
    """Return whether the gradient of the summed output of a linear module is the sum of the rows of its matrix."""
    matrix = dequantize_weight(module, "weight")
    with torch.enable_grad():
        x = torch.ones(1, 1, matrix.shape[1], dtype=dtype, device=matrix.device, requires_grad=True)
        output = module.forward(x)  # without the hooks of a recorder
        if not output.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(output.sum(), x, allow_unused=True)
    return gradient is not None and allclose(gradient[0, 0], matrix.to(dtype).sum(0), matrix.abs().sum(0).max().item())
