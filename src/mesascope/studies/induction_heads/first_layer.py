"""The first layer of the toy model: an average of earlier terms, with weights that depend on the distance."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

LagWeights = Float[Tensor, " lag"]
FIRST_LAYER_STEPS = 2_000  # steps after which the first layer outputs the preceding term to 3 digits


def compute_lag_weights(rate: float | Tensor, lags: int) -> LagWeights:
    """Return attention weights of the terms 1, 2, ... positions back, which decay by a factor e^rate per position.

    Args:
        rate: decay rate.
        lags: number of earlier terms.

    Returns:
        Weights that sum to 1.

    >>> compute_lag_weights(0.0, 4).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    return (-rate * torch.arange(lags, dtype=torch.float64)).softmax(0)


def train_first_layer(initial_size: float, learning_rate: float, lags: int) -> tuple[float, float]:
    """Train the first layer to output the preceding term, on the expected error over all sequences.

    Args:
        initial_size: of scale and decay rate.
        learning_rate: of gradient descent.
        lags: number of earlier terms.

    Returns:
        Scale and decay rate after training.
    """
    scale, decay, distance = initial_size, initial_size, np.arange(lags)
    for _ in range(FIRST_LAYER_STEPS):
        weight = np.exp(-decay * distance)
        weight /= weight.sum()
        residual = scale * weight - (distance == 0)
        slope = -weight * (distance - weight @ distance)  # derivative of the weights by the decay rate
        scale, decay = (
            scale - learning_rate * (residual @ weight),
            decay - learning_rate * scale * (residual @ slope),
        )
    return float(scale), float(decay)


def compute_first_layer_outputs(initial_size: float, learning_rate: float, length: int) -> Float[Tensor, "pos term"]:
    """Return the weight of every earlier term in the trained first layer's output at each of x_2 .. x_L.

    Args:
        initial_size: of scale and decay rate.
        learning_rate: of gradient descent.
        length: L of the sequences.
    """
    scale, decay = train_first_layer(initial_size, learning_rate, length - 1)
    return scale * torch.stack([_expand_lag_weights(decay, k, length) for k in range(1, length)])


def _expand_lag_weights(rate: float, earlier: int, length: int) -> LagWeights:
    """Return the weight of each of x_1 .. x_{L-1} at a position with so many earlier terms."""
    weights = torch.zeros(length - 1, dtype=torch.float64)
    weights[:earlier] = compute_lag_weights(rate, earlier).flip(0)
    return weights
