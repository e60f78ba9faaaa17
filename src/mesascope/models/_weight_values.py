"""Values of loaded weights, which must be numbers that a forward pass can use."""

import torch
from torch import nn

from mesascope.models.load_errors import ModelNotFound

MAX_WEIGHT = 1e18  # ours: squares of larger weights overflow float32


@torch.no_grad()
def check_weight_values(name: str, model: nn.Module) -> None:
    """Check that no weight is NaN, infinite or larger than any forward pass can use.

    Args:
        name: The name of the model, for the message.
        model: The loaded model.

    Raises:
        ModelNotFound: A weight is not usable; the message names its tensor.
    """
    for key, weight in model.named_parameters():
        largest = _largest_magnitude(weight)
        if not largest <= MAX_WEIGHT:
            raise ModelNotFound(
                f"the weights of {name} must be finite and below {MAX_WEIGHT:g}, but {key} has {_name_value(largest)} "
                f"in {str(weight.dtype).removeprefix('torch.')}; get the file again, or use another dtype"
            )


def _largest_magnitude(weight: torch.Tensor) -> float:
    """Return the largest magnitude, NaN if there is any; 0 for integers, which hold packed weights."""
    if not weight.is_floating_point() or not weight.numel() or weight.is_meta:
        return 0.0
    low, high = torch.aminmax(weight if weight.element_size() > 1 else weight.float())
    return float(torch.maximum(low.abs(), high.abs()))  # NaN propagates


def _name_value(largest: float) -> str:
    return "NaN" if largest != largest else "an infinity" if largest == float("inf") else f"{largest:.3g}"
