"""Decoys of gradient descent: models on pairs (x, y) that resemble one step; their weights are set by hand.

Each is the empty model of :mod:`mesascope.ground_truth.models.descent` with another mechanism in head 0. The last
vector is the query (x, 0), and the prediction is minus the head's output in the y dimension.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from mesascope.ground_truth.models.descent import attention_parameters, build_empty_pair_model, set_descent_head
from mesascope.models.transformer import Decoder

MAX_POSITIONS = 64  # maximum sequence length
SCORE_MARGIN = 30.0  # nats between the attention score of the attended position and its neighbours'


def build_pair_decoy(
    name: str, dim: int, examples: int, step: float = 1.0, nuisance: float = 0.0, seed: int = 0
) -> Decoder:
    """Build a one-layer model with a decoy in head 0.

    Args:
        name: key of :data:`PAIR_DECOYS`.
        dim: input dimensions.
        examples: in-context pairs per prompt.
        step: factor of the mean over pairs, for decoys that write one.
        nuisance: standard deviation of the weights of a second head, which writes to otherwise unread dimensions.
        seed: seed of those weights.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: ``name`` is not a decoy.

    >>> x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)); x[:, -1, -1] = 0
    >>> torch.allclose(build_pair_decoy("averages the targets", 3, 4)(x).logits[:, -1], x[:, :, 3:].mean(1))
    True
    """
    if name not in PAIR_DECOYS:
        raise ValueError(f"a decoy must be one of {', '.join(PAIR_DECOYS)}, but got {name!r}")
    attention, set_head = PAIR_DECOYS[name]
    model = build_empty_pair_model(dim, 1, nuisance, seed, attention, MAX_POSITIONS)
    with torch.no_grad():
        set_head(model, dim, step / examples)
    return model.eval()


def _set_query_blind_head(model: nn.Module, dim: int, rate: float) -> None:
    """Attend by the first coordinate of the key, independently of the query."""
    constant_dim = dim + 1
    model.get_parameter("embed.bias")[constant_dim] = 1.0
    query, key, value, output = attention_parameters(model, 0)
    query[0, constant_dim] = key[0, 0] = value[0, dim] = 1.0
    output[dim, 0] = -rate


def _set_input_summing_head(model: nn.Module, dim: int, rate: float) -> None:
    """Attend as a step of gradient descent does, and sum a coordinate of the inputs instead of the targets."""
    set_descent_head(model, 0, dim, rate)
    value = attention_parameters(model, 0)[2]
    value[0, dim], value[0, 0] = 0.0, 1.0


def _set_ascent_head(model: nn.Module, dim: int, rate: float) -> None:
    """Take a step of gradient ascent."""
    set_descent_head(model, 0, dim, -rate)


def _set_softmax_head(model: nn.Module, dim: int, rate: float) -> None:
    """Attend by the inner product of the inputs, with softmax attention."""
    set_descent_head(model, 0, dim, 1.0)
    attention_parameters(model, 0)[0][:dim] *= _head_size(dim) ** 0.5


def _set_averaging_head(model: nn.Module, dim: int, rate: float) -> None:
    """Attend uniformly to all pairs and to the query, whose target is 0."""
    _, _, value, output = attention_parameters(model, 0)
    value[0, dim], output[dim, 0] = 1.0, -1.0


def _set_last_pair_head(model: nn.Module, dim: int, rate: float) -> None:
    """Attend to the previous pair, independently of the query."""
    cos, sin, angle = dim + 1, dim + 2, math.pi / (MAX_POSITIONS + 1)
    embeddings, angles = model.get_parameter("position_embed.weight"), torch.arange(MAX_POSITIONS) * angle
    embeddings[:, cos], embeddings[:, sin] = angles.cos(), angles.sin()
    query, key, value, output = attention_parameters(model, 0)
    scale = SCORE_MARGIN * _head_size(dim) ** 0.5 / (1 - math.cos(angle))
    query[0, cos] = query[1, sin] = scale * math.cos(angle)
    query[0, sin], query[1, cos] = scale * math.sin(angle), -scale * math.sin(angle)
    key[0, cos] = key[1, sin] = value[0, dim] = 1.0
    output[dim, 0] = -1.0


def _head_size(dim: int) -> int:
    return max(2, dim + 1)


PAIR_DECOYS: dict[str, tuple[str, Callable[[nn.Module, int, float], None]]] = {
    "scores ignore the query": ("linear", _set_query_blind_head),
    "values are inputs": ("linear", _set_input_summing_head),
    "ascends": ("linear", _set_ascent_head),
    "softmax attention": ("softmax", _set_softmax_head),
    "averages the targets": ("softmax", _set_averaging_head),
    "copies the last target": ("softmax", _set_last_pair_head),
}
