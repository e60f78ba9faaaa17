"""Models of linear attention that descend a gradient, their weights set by hand; and models that do something else.

The construction of von Oswald et al., Transformers Learn In-Context by Gradient Descent (arXiv 2212.07677): vectors are
pairs (x, y), the last one (x, 0) asks. One head attends with <x_query, x_key> and writes -step / N times the key's y to
y, which is one step of gradient descent on the pairs, from a rule of zeros, told on all of them at once: afterwards y
is what the rule leaves unexplained. A second layer takes the next step from there. What is asked then has minus the
prediction as its y.
"""

import torch
from torch import Tensor, nn

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder

HEADS = 2


def planted_descent(
    dim: int, examples: int, steps: int = 1, step: float = 1.0, nuisance: float = 0.0, seed: int = 0
) -> Decoder:
    """Linear attention that takes so many steps of gradient descent, one in a layer.

    Args:
        dim: of an input.
        examples: pairs that a prompt shows; the step is measured on the mean over them.
        steps: of gradient descent: layers.
        step: how far each goes along the gradient of half the mean squared error.
        nuisance: standard deviation of the weights by which a second head moves what nothing else reads.
        seed: of those weights.
    """
    model = blank(dim, steps, nuisance, seed)
    with torch.no_grad():
        for layer in range(steps):
            descend(model, layer, dim, step / examples)
    return model.eval()


def planted_blind(dim: int, kind: str = "linear", seed: int = 0) -> Decoder:
    """A model that ignores its context: what it predicts is a function of the last input alone.

    Args:
        dim: of an input.
        kind: ``linear`` in the input, or ``constant``.
        seed: of the function.
    """
    model = blank(dim, 1, 0.0, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        weight, bias = model.get_parameter("readout.weight"), model.get_parameter("readout.bias")
        weight.zero_()
        if kind == "linear":
            weight[0, :dim] = torch.randn(dim, generator=generator) / dim**0.5
        bias.fill_(0.5)
    return model.eval()


def blank(dim: int, layers: int, nuisance: float, seed: int, attention: str = "linear", longest: int = 4096) -> Decoder:
    """The frame: the pair in the first half of the stream; noise in the other, written by head 1, which reads the pair.

    Args:
        dim, nuisance, seed: as in :func:`planted_descent`.
        layers: how many; head 0 is empty in all of them.
        attention: ``linear`` over the pairs that are shown, or ``softmax`` over them and what asks; positions are told
            to the latter alone.
        longest: the longest sequence.
    """
    free = max(2, dim + 1)
    config = DecoderConfig(
        d_in=dim + 1,
        d_out=1,
        num_hidden_layers=layers,
        hidden_size=2 * free,
        num_attention_heads=HEADS,
        attention=attention,
        visible="shown" if attention == "linear" else "past",
        norm="none",
        positions="none" if attention == "linear" else "learned",
        max_position_embeddings=longest,
    )
    model = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("embed.weight")[: dim + 1] = torch.eye(dim + 1)
        model.get_parameter("readout.weight")[0, dim] = -1.0
        for layer in range(layers):
            query, key, value, output = maps_of(model, layer)
            for weight in (query[free:], key[free:], value[free:], output[free:, free:]):
                weight.copy_(nuisance * torch.randn(weight.shape, generator=generator))
    return model


def descend(model: nn.Module, layer: int, dim: int, rate: float) -> None:
    """Head 0 attends by the product of the inputs and takes ``rate`` times the answers away."""
    query, key, value, output = maps_of(model, layer)
    query[:dim, :dim] = key[:dim, :dim] = torch.eye(dim)
    value[0, dim], output[dim, 0] = 1.0, -rate


def maps_of(model: nn.Module, layer: int) -> tuple[Tensor, ...]:
    """The maps of a layer's attention to queries, keys, values and outputs, which can be written to."""
    return tuple(model.get_parameter(f"layers.{layer}.attention.{name}_proj.weight") for name in "qkvo")
