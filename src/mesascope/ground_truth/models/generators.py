"""A model that encodes the hidden generator of a sequence after exactly one layer; its weights are set by hand.

It has four layers of two heads, no norms and no MLPs. In each layer head 0 attends to one position and writes its token
into the subspace of that layer; in the next layer head 1 subtracts it again. After every layer the residual stream
therefore holds one token more than the embedding, always with the same norm. In the planted layer it is the first
token, which identifies the generator; in all other layers it is an uninformative token.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder

LAYERS, HEADS, D_HEAD = 4, 2, 32
VOCABULARY, LENGTH = 8, 8  # tokens, one per generator; positions
GENERATOR_POSITION, NEXT_TOKEN_POSITION = (
    0,
    1,
)  # positions of the token that identifies the generator, and of the one that follows the sequence
IDLE_POSITIONS: tuple[int, ...] = (
    2,
    3,
    4,
    5,
)  # the position that each layer reads by default, of an uninformative token
TOKEN_DIMS, CONSTANT_DIM = slice(0, VOCABULARY), VOCABULARY
POSITION_DIMS = slice(CONSTANT_DIM + 1, CONSTANT_DIM + 1 + LENGTH)
SCORE_MARGIN = 20.0  # nats between the attention score of the attended position and all others
WRITE_NORM = 4.0  # norm of the written token; the embedding of a token has norm 1

PlantedLatent = Literal["generator", "next token", "nothing"]
READ_POSITIONS: dict[PlantedLatent, int | None] = {
    "generator": GENERATOR_POSITION,
    "next token": NEXT_TOKEN_POSITION,
    "nothing": None,
}


_CONFIG = DecoderConfig(
    vocab_size=VOCABULARY,
    num_hidden_layers=LAYERS,
    hidden_size=HEADS * D_HEAD,
    num_attention_heads=HEADS,
    norm="none",
    positions="learned",
    max_position_embeddings=LENGTH,
)


def build_generator_model(layer: int, latent: PlantedLatent = "generator") -> Decoder:
    """Build the model that encodes a latent variable after one layer.

    Args:
        layer: the planted layer, from 0 to 3. It writes to the residual dimensions :func:`layer_subspace`.
        latent: the encoded latent: the generator or, as decoys, the next token or nothing.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: ``layer`` is out of range.
    """
    if layer not in range(LAYERS):
        raise ValueError(f"layer must be from 0 to {LAYERS - 1}, but got {layer}")
    positions, read = list(IDLE_POSITIONS), READ_POSITIONS[latent]
    positions[layer] = IDLE_POSITIONS[layer] if read is None else read
    model = Decoder(_CONFIG)
    with torch.no_grad():
        _set_embeddings(model)
        _set_heads(model, positions)
    return model.eval()


def _set_heads(model: Decoder, positions: list[int]) -> None:
    for index, position in enumerate(positions):
        _set_reading_head(model, index, 0, position, layer_subspace(index), WRITE_NORM)
        if index:
            _set_reading_head(model, index, 1, positions[index - 1], layer_subspace(index - 1), -WRITE_NORM)


def layer_subspace(layer: int) -> slice:
    """Return the dimensions of the residual stream to which a layer writes the token that it reads.

    Args:
        layer: layer index.

    Returns:
        A slice of the residual dimensions.

    >>> layer_subspace(0), layer_subspace(3)
    (slice(17, 25, None), slice(41, 49, None))
    """
    return slice(POSITION_DIMS.stop + layer * VOCABULARY, POSITION_DIMS.stop + (layer + 1) * VOCABULARY)


def sample_labelled_sequences(n: int, generator: torch.Generator) -> dict[str, Any]:
    """Sample sequences of random tokens, labelled by their generator.

    The first token identifies the generator. The token after the last one repeats the second one.

    Args:
        n: number of sequences.
        generator: source of randomness.

    Returns:
        The fields of a :class:`~mesascope.tasks.base.Batch`, with the latents ``generator``, ``next token`` and
        ``generator and next token`` at every position.

    >>> sorted(sample_labelled_sequences(2, torch.Generator()))
    ['inputs', 'latents', 'targets', 'weight']
    """
    tokens = torch.randint(0, VOCABULARY, (n, LENGTH), generator=generator)
    next_tokens = torch.cat([tokens[:, 1:], tokens[:, NEXT_TOKEN_POSITION, None]], dim=1)
    latents = _label_tokens(tokens[:, GENERATOR_POSITION, None].expand(n, LENGTH), next_tokens)
    return {"inputs": tokens, "targets": next_tokens, "weight": torch.ones(n, LENGTH), "latents": latents}


def _label_tokens(generator_tokens: Tensor, next_tokens: Tensor) -> dict[str, Tensor]:
    """Return the latents at every position."""
    return {
        "generator": generator_tokens,
        "next token": next_tokens,
        "generator and next token": generator_tokens * VOCABULARY + next_tokens,
    }


def _set_embeddings(model: Decoder) -> None:
    for parameter in model.parameters():
        parameter.zero_()
    model.get_parameter("embed.weight")[:, TOKEN_DIMS] = torch.eye(VOCABULARY)
    model.get_parameter("readout.weight")[:, TOKEN_DIMS] = torch.eye(VOCABULARY)
    positions = model.get_parameter("position_embed.weight")
    positions[:, CONSTANT_DIM], positions[:, POSITION_DIMS] = 1.0, torch.eye(LENGTH)


def _set_reading_head(model: Decoder, layer: int, head: int, position: int, target: slice, scale: float) -> None:
    # attend to `position` from every later one, and write its token to the dimensions `target`
    rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
    query, key, value, output = (_projection_weight(model, layer, name) for name in "qkvo")
    query[rows][0, CONSTANT_DIM], key[rows][0, POSITION_DIMS.start + position] = SCORE_MARGIN * D_HEAD**0.5, 1.0
    value[rows][TOKEN_DIMS, TOKEN_DIMS] = torch.eye(VOCABULARY)
    output[target, rows][:, TOKEN_DIMS] = scale * torch.eye(VOCABULARY)


def _projection_weight(model: Decoder, layer: int, name: str) -> Tensor:
    return model.get_parameter(f"layers.{layer}.attention.{name}_proj.weight")
