"""A model that knows, after one layer alone, which hidden generator made its sequence; its weights were set by hand.

It has four layers of two heads, no norms and no MLPs. In each layer one head attends to one place of the sequence and
writes the token there into coordinates that belong to that layer; in the next layer the other head takes it out again.
So after every layer the stream holds one token more than at the embedding, of the same size whatever it says. In the
planted layer it is the first token, which names the generator; in all others it is a token that says nothing.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder

LAYERS, HEADS, D_HEAD = 4, 2, 32
VOCABULARY, LENGTH = 8, 8  # tokens, each the name of a generator; positions
NAME, NEXT = 0, 1  # places of the token that names the generator, and of the one that comes after the sequence
IDLE: tuple[int, ...] = (
    2,
    3,
    4,
    5,
)  # the place that a layer reads where nothing is planted: of tokens that say nothing
TOKEN, ONE = slice(0, VOCABULARY), VOCABULARY
PLACE = slice(ONE + 1, ONE + 1 + LENGTH)
SURE = 20.0  # nats by which a head prefers its place
SIZE = 4.0  # of what is written; the embedding's token has size 1

Planted = Literal["generator", "next token", "nothing"]
PLACES: dict[Planted, int | None] = {"generator": NAME, "next token": NEXT, "nothing": None}


def planted_generator(layer: int, planted: Planted = "generator") -> Decoder:
    """The model in which something is known after one layer.

    Args:
        layer: after which, from 0 to 3; what it writes stands in the coordinates :func:`subspace` of that layer.
        planted: what is known there: the generator; as decoys that look alike, the next token, or nothing.

    Raises:
        ValueError: there is no such layer.
    """
    if layer not in range(LAYERS):
        raise ValueError(f"layer must be from 0 to {LAYERS - 1}, but got {layer}")
    places = list(IDLE)
    read = PLACES[planted]
    places[layer] = IDLE[layer] if read is None else read
    model = Decoder(
        DecoderConfig(
            vocab_size=VOCABULARY,
            num_hidden_layers=LAYERS,
            hidden_size=HEADS * D_HEAD,
            num_attention_heads=HEADS,
            norm="none",
            positions="learned",
            max_position_embeddings=LENGTH,
        )
    )
    with torch.no_grad():
        _frame(model)
        for number, place in enumerate(places):
            _move(model, number, 0, place, subspace(number), SIZE)
            if number:
                _move(model, number, 1, places[number - 1], subspace(number - 1), -SIZE)
    return model.eval()


def subspace(layer: int) -> slice:
    """The coordinates of the residual stream into which a layer writes the token that it finds.

    >>> subspace(0), subspace(3)
    (slice(17, 25, None), slice(41, 49, None))
    """
    return slice(PLACE.stop + layer * VOCABULARY, PLACE.stop + (layer + 1) * VOCABULARY)


def named_sequences(n: int, generator: torch.Generator) -> dict[str, Any]:
    """What a batch is made of: sequences of random tokens, named by the first; the second comes again after the last.

    The latents, each at every position: ``generator``, ``next token``, and ``generator and next token``.

    Args:
        n: how many. generator: of the tokens.

    >>> sorted(named_sequences(2, torch.Generator()))
    ['inputs', 'latents', 'targets', 'weight']
    """
    tokens = torch.randint(0, VOCABULARY, (n, LENGTH), generator=generator)
    following = torch.cat([tokens[:, 1:], tokens[:, NEXT, None]], dim=1)
    name = tokens[:, NAME, None].expand(n, LENGTH)
    both = {"generator": name, "next token": following, "generator and next token": name * VOCABULARY + following}
    return {"inputs": tokens, "targets": following, "weight": torch.ones(n, LENGTH), "latents": both}


def _frame(model: Decoder) -> None:
    """Embedding, positions and read-out; all heads empty."""
    for parameter in model.parameters():
        parameter.zero_()
    model.get_parameter("embed.weight")[:, TOKEN] = torch.eye(VOCABULARY)
    model.get_parameter("readout.weight")[:, TOKEN] = torch.eye(VOCABULARY)
    positions = model.get_parameter("position_embed.weight")
    positions[:, ONE], positions[:, PLACE] = 1.0, torch.eye(LENGTH)


def _move(model: Decoder, layer: int, head: int, place: int, to: slice, size: float) -> None:
    """Make a head attend to a place from everywhere after it, and write the token there, times a size."""
    rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
    query, key, value, output = (_weight(model, layer, name) for name in "qkvo")
    query[rows][0, ONE], key[rows][0, PLACE.start + place] = SURE * D_HEAD**0.5, 1.0
    value[rows][TOKEN, TOKEN] = torch.eye(VOCABULARY)
    output[to, rows][:, TOKEN] = size * torch.eye(VOCABULARY)


def _weight(model: Decoder, layer: int, name: str) -> Tensor:
    """A map of a layer's attention, which can be written to."""
    return model.get_parameter(f"layers.{layer}.attention.{name}_proj.weight")
