"""Linear-attention models that run gradient descent, and a context-blind decoy; their weights are set by hand.

The construction of von Oswald et al., Transformers Learn In-Context by Gradient Descent (arXiv 2212.07677). Input
vectors are pairs (x, y); the last one is the query (x, 0). One head attends with <x_query, x_key> and adds -step / N
times the key's y to y at every position. This is one step of gradient descent on a linear model with initial weights of
zero: afterwards y is the residual of the linear model, and the y of the query is minus the prediction. Each further
layer takes the next step from there.
"""

import torch
from torch import Tensor, nn

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder

HEADS = 2


def build_gradient_descent_model(
    dim: int, examples: int, steps: int = 1, step: float = 1.0, nuisance: float = 0.0, seed: int = 0
) -> Decoder:
    """Build a linear-attention model that runs gradient descent, one step per layer.

    Args:
        dim: input dimensions.
        examples: in-context pairs per prompt. Gradients are averaged over them.
        steps: number of steps, equal to the number of layers.
        step: step size, for the gradient of half the mean squared error.
        nuisance: standard deviation of the weights of a second head, which writes to otherwise unread dimensions.
        seed: seed of those weights.

    Returns:
        The model, in evaluation mode.
    """
    model = build_empty_pair_model(dim, steps, nuisance, seed)
    with torch.no_grad():
        for layer in range(steps):
            set_descent_head(model, layer, dim, step / examples)
    return model.eval()


def build_context_blind_model(dim: int, kind: str = "linear", seed: int = 0) -> Decoder:
    """Build a model that ignores its context: its prediction is a function of the query input only.

    Args:
        dim: input dimensions.
        kind: ``linear`` in the query input, or ``constant``.
        seed: seed of the function.

    Returns:
        The model, in evaluation mode.
    """
    model = build_empty_pair_model(dim, 1, 0.0, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        weight, bias = model.get_parameter("readout.weight"), model.get_parameter("readout.bias")
        weight.zero_()
        if kind == "linear":
            weight[0, :dim] = torch.randn(dim, generator=generator) / dim**0.5
        bias.fill_(0.5)
    return model.eval()


def build_empty_pair_model(
    dim: int, layers: int, nuisance: float, seed: int, attention: str = "linear", max_positions: int = 4096
) -> Decoder:
    """Build a model with embedding, readout and nuisance heads, but without a mechanism.

    The first half of the residual stream holds the pair. Head 1 reads the pair and writes noise to the second half.

    Args:
        dim: input dimensions.
        layers: number of layers. The weights of head 0 are zero in all of them.
        nuisance: standard deviation of the weights of head 1.
        seed: seed of those weights.
        attention: ``linear`` over the in-context pairs, or ``softmax`` over the pairs and the query. Only the latter
            has position embeddings.
        max_positions: maximum sequence length.

    Returns:
        The model, in training mode.
    """
    half_width = max(2, dim + 1)
    model = Decoder(_configure_pair_model(dim, layers, half_width, attention, max_positions))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        set_pair_embeddings(model, dim)
        for layer in range(layers):
            _set_nuisance_head(model, layer, half_width, nuisance, generator)
    return model


def set_pair_embeddings(model: nn.Module, dim: int) -> None:
    """Set all weights to zero but embedding and readout, so that the prediction is minus the y of the query.

    Args:
        model: model whose weights are edited in place.
        dim: input dimensions.
    """
    for parameter in model.parameters():
        parameter.zero_()
    model.get_parameter("embed.weight")[: dim + 1] = torch.eye(dim + 1)
    model.get_parameter("readout.weight")[0, dim] = -1.0


def _configure_pair_model(dim: int, layers: int, half_width: int, attention: str, max_positions: int) -> DecoderConfig:
    return DecoderConfig(
        d_in=dim + 1,
        d_out=1,
        num_hidden_layers=layers,
        hidden_size=2 * half_width,
        num_attention_heads=HEADS,
        attention=attention,
        mask="context_only" if attention == "linear" else "causal",
        norm="none",
        positions="none" if attention == "linear" else "learned",
        max_position_embeddings=max_positions,
    )


def _set_nuisance_head(
    model: nn.Module, layer: int, half_width: int, nuisance: float, generator: torch.Generator
) -> None:
    query, key, value, output = attention_parameters(model, layer)
    for weight in (query[half_width:], key[half_width:], value[half_width:], output[half_width:, half_width:]):
        weight.copy_(nuisance * torch.randn(weight.shape, generator=generator))


def set_descent_head(model: nn.Module, layer: int, dim: int, rate: float) -> None:
    """Set head 0 to take one step of gradient descent.

    It attends with the inner product of the inputs and subtracts ``rate`` times the targets.

    Args:
        model: model whose weights are edited in place.
        layer: layer of the head.
        dim: input dimensions.
        rate: step size over the number of in-context pairs.
    """
    query, key, value, output = attention_parameters(model, layer)
    query[:dim, :dim] = key[:dim, :dim] = torch.eye(dim)
    value[0, dim], output[dim, 0] = 1.0, -rate


def attention_parameters(model: nn.Module, layer: int) -> tuple[Tensor, ...]:
    """Return the projection weights of an attention layer, which can be edited in place.

    Args:
        model: a decoder of this package.
        layer: layer index.

    Returns:
        The weights of the query, key, value and output projections, each (output dimensions, input dimensions).
    """
    return tuple(model.get_parameter(f"layers.{layer}.attention.{name}_proj.weight") for name in "qkvo")
