"""Models of pairs (x, y) that look like one step of gradient descent, but are none; their weights were set by hand.

Each is the frame of :mod:`mesascope.ground_truth.models.descent` with something else in head 0: the last vector,
(x, 0), asks, and minus what the head writes to y is predicted.
"""

import math
from collections.abc import Callable

import torch
from torch import nn

from mesascope.ground_truth.models.descent import blank, descend, maps_of
from mesascope.models.transformer import Decoder

LONGEST = 64  # positions
SURE = 30.0  # nats by which the place that is meant is preferred to its neighbours


def planted_pairs(
    name: str, dim: int, examples: int, step: float = 1.0, nuisance: float = 0.0, seed: int = 0
) -> Decoder:
    """A model with the decoy of this name in head 0 of its only layer.

    Args:
        name: one of :data:`DECOYS`.
        dim: of an input.
        examples: pairs that a prompt shows.
        step: how much of the mean over them is written, where a mean is written.
        nuisance: standard deviation of the weights by which the second head moves what nothing else reads.
        seed: of those weights.

    Raises:
        ValueError: no such decoy.

    >>> x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    >>> x[:, -1, -1] = 0
    >>> found = planted_pairs("averages the answers", 3, 4)(x).logits[:, -1]
    >>> torch.allclose(found, x[:, :, 3:].mean(1))
    True
    """
    if name not in DECOYS:
        raise ValueError(f"a decoy must be one of {', '.join(DECOYS)}, but got {name!r}")
    attention, set_head = DECOYS[name]
    model = blank(dim, 1, nuisance, seed, attention, LONGEST)
    with torch.no_grad():
        set_head(model, dim, step / examples)
    return model.eval()


def _blind_to_the_query(model: nn.Module, dim: int, rate: float) -> None:
    """Attends by the first coordinate of the key, whatever is asked."""
    one = dim + 1
    model.get_parameter("embed.bias")[one] = 1.0
    query, key, value, output = maps_of(model, 0)
    query[0, one] = key[0, 0] = value[0, dim] = 1.0
    output[dim, 0] = -rate


def _of_inputs(model: nn.Module, dim: int, rate: float) -> None:
    """Attends as a step of gradient descent does, and sums a coordinate of the inputs instead of the answers."""
    descend(model, 0, dim, rate)
    value = maps_of(model, 0)[2]
    value[0, dim], value[0, 0] = 0.0, 1.0


def _ascent(model: nn.Module, dim: int, rate: float) -> None:
    """A step of gradient descent, the wrong way."""
    descend(model, 0, dim, -rate)


def _softmax(model: nn.Module, dim: int, rate: float) -> None:
    """Attends by the product of the inputs, but through a softmax."""
    descend(model, 0, dim, 1.0)
    maps_of(model, 0)[0][:dim] *= _head_size(dim) ** 0.5


def _mean(model: nn.Module, dim: int, rate: float) -> None:
    """Attends alike to all pairs, and to what asks, whose answer is 0."""
    _, _, value, output = maps_of(model, 0)
    value[0, dim], output[dim, 0] = 1.0, -1.0


def _last(model: nn.Module, dim: int, rate: float) -> None:
    """Attends to the pair before, whatever is asked."""
    cos, sin, angle = dim + 1, dim + 2, math.pi / (LONGEST + 1)
    circle, places = model.get_parameter("position_embed.weight"), torch.arange(LONGEST) * angle
    circle[:, cos], circle[:, sin] = places.cos(), places.sin()
    query, key, value, output = maps_of(model, 0)
    size = SURE * _head_size(dim) ** 0.5 / (1 - math.cos(angle))
    query[0, cos] = query[1, sin] = size * math.cos(angle)
    query[0, sin], query[1, cos] = size * math.sin(angle), -size * math.sin(angle)
    key[0, cos] = key[1, sin] = value[0, dim] = 1.0
    output[dim, 0] = -1.0


def _head_size(dim: int) -> int:
    """Coordinates of a head."""
    return max(2, dim + 1)


DECOYS: dict[str, tuple[str, Callable[[nn.Module, int, float], None]]] = {
    "scores ignore the query": ("linear", _blind_to_the_query),
    "values are inputs": ("linear", _of_inputs),
    "ascends": ("linear", _ascent),
    "through a softmax": ("softmax", _softmax),
    "averages the answers": ("softmax", _mean),
    "the last answer": ("softmax", _last),
}
