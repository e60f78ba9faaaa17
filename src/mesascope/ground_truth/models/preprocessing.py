"""A model of linear attention that preprocesses, then descends a gradient, its weights set by hand.

The algorithm of Chen et al., How Transformers Utilize Multi-Head Attention in In-Context Learning? (arXiv 2408.04532);
the weights are ours. Vectors are pairs (x, y), the last one (x, 0) asks. In the first layer there is a head for every
coordinate j: it attends with x_query,j x_key,j and writes the key's y over the number of pairs, so that the sum is r_j
x_query,j, r_j being the mean of x_ij y_i. In each later layer one head takes a step of gradient descent on these
products, as in :mod:`mesascope.ground_truth.models.descent`; the others write nothing.
"""

import torch

from mesascope.ground_truth.models.descent import maps_of
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder


def planted_preprocessing(dim: int, examples: int, steps: int = 1, step: float = 1.0) -> Decoder:
    """Linear attention that preprocesses with as many heads as there are coordinates, then takes so many steps.

    Args:
        dim: of an input: heads of each layer.
        examples: pairs that a prompt shows; products and the step are measured on the mean over them.
        steps: of gradient descent: layers after the first.
        step: how far each goes along the gradient of half the mean squared error.
    """
    wide = max(dim, 3)  # of a head: the later one multiplies all coordinates, and the stream needs 2 dim + 1
    config = DecoderConfig(
        d_in=dim + 1,
        d_out=1,
        num_hidden_layers=1 + steps,
        hidden_size=dim * wide,
        num_attention_heads=dim,
        attention="linear",
        visible="shown",
        norm="none",
        positions="none",
        max_position_embeddings=4096,
    )
    model = Decoder(config)
    answer, products = dim, slice(dim + 1, 2 * dim + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("embed.weight")[: dim + 1] = torch.eye(dim + 1)
        model.get_parameter("readout.weight")[0, answer] = -1.0
        query, key, value, output = maps_of(model, 0)
        for one in range(dim):
            row = one * wide
            query[row, one] = key[row, one] = value[row, answer] = 1.0
            output[products.start + one, row] = 1 / examples
        for layer in range(1, 1 + steps):
            query, key, value, output = maps_of(model, layer)
            query[:dim, products] = key[:dim, products] = torch.eye(dim)
            value[0, answer], output[answer, 0] = 1.0, -step / examples
    return model.eval()
