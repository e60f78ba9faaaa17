"""A linear-attention model that preprocesses its inputs, then runs gradient descent; its weights are set by hand.

The algorithm of Chen et al., How Transformers Utilize Multi-Head Attention in In-Context Learning? (arXiv 2408.04532);
the weights are ours. Input vectors are pairs (x, y); the last one is the query (x, 0). The first layer has one head for
every coordinate j. It attends with x_query,j x_key,j and writes the key's y over the number of pairs, so that the sum
is r_j x_query,j, where r_j is the mean of x_ij y_i. In each later layer one head takes a step of gradient descent on
these products, as in :mod:`mesascope.ground_truth.models.descent`; the other heads write nothing.
"""

import torch

from mesascope.ground_truth.models.descent import attention_parameters, set_pair_embeddings
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder


def build_preprocessing_model(dim: int, examples: int, steps: int = 1, step: float = 1.0) -> Decoder:
    """Build a linear-attention model that preprocesses with one head per coordinate, then runs gradient descent.

    Args:
        dim: input dimensions, equal to the number of heads per layer.
        examples: in-context pairs per prompt. Products and gradients are averaged over them.
        steps: number of steps, equal to the number of layers after the first.
        step: step size, for the gradient of half the mean squared error.

    Returns:
        The model, in evaluation mode.
    """
    head_dim = max(dim, 3)  # later heads multiply all coordinates, and the residual stream needs 2 dim + 1
    model = Decoder(_configure_model(dim, head_dim, steps))
    with torch.no_grad():
        set_pair_embeddings(model, dim)
        _set_preprocessing_heads(model, dim, head_dim, examples)
        for layer in range(1, 1 + steps):
            _set_step_head(model, layer, dim, step / examples)
    return model.eval()


def _configure_model(dim: int, head_dim: int, steps: int) -> DecoderConfig:
    return DecoderConfig(
        d_in=dim + 1,
        d_out=1,
        num_hidden_layers=1 + steps,
        hidden_size=dim * head_dim,
        num_attention_heads=dim,
        attention="linear",
        mask="context_only",
        norm="none",
        positions="none",
        max_position_embeddings=4096,
    )


def _set_preprocessing_heads(model: Decoder, dim: int, head_dim: int, examples: int) -> None:
    query, key, value, output = attention_parameters(model, 0)
    for coordinate in range(dim):
        row = coordinate * head_dim
        query[row, coordinate] = key[row, coordinate] = value[row, dim] = 1.0
        output[dim + 1 + coordinate, row] = 1 / examples


def _set_step_head(model: Decoder, layer: int, dim: int, rate: float) -> None:
    """Set head 0 to take one step of gradient descent on the products, which follow the pair in the stream."""
    query, key, value, output = attention_parameters(model, layer)
    product_dims = slice(dim + 1, 2 * dim + 1)
    query[:dim, product_dims] = key[:dim, product_dims] = torch.eye(dim)
    value[0, dim], output[dim, 0] = 1.0, -rate
