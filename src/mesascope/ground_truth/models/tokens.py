"""A model of tokens whose heads are known, because their weights were set by hand, among heads that look alike.

It has two layers, no norms and no MLPs. Its residual stream holds, each in coordinates of its own: the token, the token
before it and the one two back (written by heads of the first layer), the logits, a constant 1, whether this is the
first position, and the position as a point on a circle. The previous-token head of the first layer and the induction
head of the second are one mechanism (Olsson et al. 2022): the first writes which token came before, the second looks
where the token that came before is the present one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder

VOCABULARY, HEADS, HALF = 40, 13, 16  # tokens; heads in a layer; how many different tokens a sequence has
LENGTH = 2 * HALF + 1  # a first token of its own, and two halves
D_HEAD = VOCABULARY + 4
BEGINNING = 0  # the token of the first position: a head that prefers it attends to the first position
TOKEN, BEFORE, TWO_BEFORE, LOGIT = (slice(n * VOCABULARY, (n + 1) * VOCABULARY) for n in range(4))
ONE, FIRST, COS, SIN = range(4 * VOCABULARY, 4 * VOCABULARY + 4)
SURE = 16.0  # nats by which a set head prefers its place
MATCH, PLACE = slice(0, VOCABULARY), slice(VOCABULARY, VOCABULARY + 2)  # of a head: for tokens, for positions
REST = VOCABULARY + 2  # of a head: for the first position


@dataclass(frozen=True, kw_only=True)
class Planted:
    """One head: what it attends to and what it does with what it finds.

    Attributes:
        look: sets queries and keys.
        write: sets values and outputs.
        role: what an instrument that sees attention must call it: where it looks in three tenths of the queries.
        copies: 1 if it raises the token it attends to, -1 if it lowers it, 0 otherwise.
    """

    look: Callable[["Head"], None]
    write: Callable[["Head"], None]
    role: str = ""
    copies: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """The weights of one head, as views that can be written to: (d_head, d_model), the output transposed."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    generator: torch.Generator


def planted_tokens(seed: int = 0, heads: Mapping[tuple[int, int], Planted] | None = None) -> Decoder:
    """The model with the heads of :data:`PLANTED`.

    Args:
        seed: of the decoys' random weights.
        heads: by layer and head, where they are; as in :data:`PLANTED` by default.
    """
    config = DecoderConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=2,
        hidden_size=HEADS * D_HEAD,
        num_attention_heads=HEADS,
        norm="none",
        positions="learned",
        max_position_embeddings=LENGTH,
    )
    model = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _frame(model)
        for (layer, head), planted in (PLANTED if heads is None else heads).items():
            views = _head(model, layer, head, generator)
            planted.look(views)
            planted.write(views)
    return model.eval()


def _frame(model: Decoder) -> None:
    """Embedding, positions and read-out; all heads empty."""
    for parameter in model.parameters():
        parameter.zero_()
    eye = torch.eye(VOCABULARY)
    model.get_parameter("embed.weight")[:, TOKEN] = eye
    model.get_parameter("readout.weight")[:, LOGIT] = eye
    positions = model.get_parameter("position_embed.weight")
    angle = torch.arange(LENGTH) * _STEP
    positions[:, ONE], positions[0, FIRST] = 1.0, 1.0
    positions[:, COS], positions[:, SIN] = angle.cos(), angle.sin()


def _head(model: Decoder, layer: int, head: int, generator: torch.Generator) -> Head:
    """The views of one head."""
    rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
    maps = {name: model.get_parameter(f"layers.{layer}.attention.{name}_proj.weight") for name in "qkvo"}
    return Head(
        query=maps["q"][rows],
        key=maps["k"][rows],
        value=maps["v"][rows],
        output=maps["o"][:, rows].T,
        generator=generator,
    )


_STEP = math.pi / (LENGTH + 1)  # the angle between neighbouring positions: all of them take less than half the circle
_SCALE = math.sqrt(D_HEAD)  # scores are divided by it


def _at_lag(lag: int, sure: float = SURE) -> Callable[[Head], None]:
    """Attends so many positions back, whatever is there."""

    def look(head: Head) -> None:
        turn = lag * _STEP
        size = sure * _SCALE / (1 - math.cos(_STEP))
        head.query[PLACE, COS] = size * torch.tensor([math.cos(turn), -math.sin(turn)])
        head.query[PLACE, SIN] = size * torch.tensor([math.sin(turn), math.cos(turn)])
        head.key[PLACE.start, COS], head.key[PLACE.start + 1, SIN] = 1.0, 1.0

    return look


def _where(at_query: slice, at_key: slice, size: float = 3 * SURE) -> Callable[[Head], None]:
    """Attends where the key's token, or one before it, is the query's, or one before it; else to the first position."""

    def look(head: Head) -> None:
        head.query[MATCH, at_query] = size * _SCALE * torch.eye(VOCABULARY)
        head.key[MATCH, at_key] = torch.eye(VOCABULARY)
        _first(head)

    return look


def _duplicate(head: Head) -> None:
    """Attends where the token is the same, but away from the query itself if there is another place."""
    _where(TOKEN, TOKEN, 12 * SURE)(head)
    for row, coordinate in zip(range(PLACE.start, PLACE.stop), (COS, SIN), strict=True):
        head.query[row, coordinate], head.key[row, coordinate] = -6 * SURE * _SCALE, 1.0


def _first(head: Head) -> None:
    """Attends to the first position."""
    head.query[REST, ONE], head.key[REST, FIRST] = SURE * _SCALE, 1.0


def _unlike(head: Head) -> None:
    """Attends away from the query's own token."""
    head.query[MATCH, TOKEN], head.key[MATCH, TOKEN] = -SURE * _SCALE * torch.eye(VOCABULARY), torch.eye(VOCABULARY)


def _uniform(head: Head) -> None:
    """Attends alike to all positions: without queries and keys."""


def _some_tokens(head: Head) -> None:
    """Attends to some tokens more than to others, whatever the query is; never to that of the first position."""
    head.query[MATCH.start, ONE] = _SCALE
    head.key[MATCH.start, TOKEN] = 4 * torch.randn(VOCABULARY, generator=head.generator)
    head.key[MATCH.start, TOKEN.start + BEGINNING] = -SURE


def _random(head: Head) -> None:
    """Attends by random weights on tokens."""
    for weight in (head.query, head.key):
        weight[:, TOKEN] = torch.randn(D_HEAD, VOCABULARY, generator=head.generator)


def _copy(to: slice, gain: float) -> Callable[[Head], None]:
    """Writes the token it finds somewhere, times a gain."""

    def write(head: Head) -> None:
        head.value[MATCH, TOKEN] = torch.eye(VOCABULARY)
        head.output[MATCH, to] = gain * torch.eye(VOCABULARY)

    return write


def _next_token(head: Head) -> None:
    """Decoy of copying: raises another token than it finds, each token its own."""
    head.value[MATCH, TOKEN] = torch.eye(VOCABULARY)
    head.output[MATCH, LOGIT] = torch.eye(VOCABULARY).roll(1, 1)


def _noise(head: Head) -> None:
    """Decoy of copying: a random map from tokens to logits."""
    head.value[:, TOKEN] = torch.randn(D_HEAD, VOCABULARY, generator=head.generator) / VOCABULARY**0.5
    head.output[:, LOGIT] = 0.1 * torch.randn(D_HEAD, VOCABULARY, generator=head.generator) / D_HEAD**0.5


def _one_token(head: Head) -> None:
    """Decoy of copying: raises one token whatever it finds, and so itself too, along one direction alone."""
    head.value[MATCH.start, TOKEN] = 0.1
    head.output[MATCH.start, LOGIT.start + 7] = 1.0


def _nothing(head: Head) -> None:
    """Writes nothing."""


RESTS = "first token"  # where a head looks as long as what it looks for is not there
MECHANISMS: Mapping[str, Planted] = {
    "previous token": Planted(look=_at_lag(1), write=_copy(BEFORE, 1.0), role="previous token"),
    "induction": Planted(look=_where(TOKEN, BEFORE), write=_copy(LOGIT, 8.0), role="first token, induction", copies=1),
    "duplicate token": Planted(look=_duplicate, write=_nothing, role="self, duplicate token"),
    "sink": Planted(look=_first, write=_nothing, role="first token"),
    "copying": Planted(look=_at_lag(0), write=_copy(LOGIT, 0.2), role="self", copies=1),
}
DECOYS: Mapping[str, tuple[int, Planted]] = {
    "two back": (0, Planted(look=_at_lag(2), write=_copy(TWO_BEFORE, 1.0))),
    "five back": (0, Planted(look=_at_lag(5), write=_nothing)),
    "as far back as induction": (0, Planted(look=_at_lag(HALF - 1), write=_nothing, role=RESTS)),
    "as far back as a duplicate": (0, Planted(look=_at_lag(HALF), write=_noise, role=RESTS)),
    "takes away": (0, Planted(look=_at_lag(4), write=_copy(LOGIT, -0.2), copies=-1)),
    "raises another token": (0, Planted(look=_at_lag(3), write=_next_token)),
    "raises one token": (0, Planted(look=_at_lag(6), write=_one_token)),
    "uniform": (0, Planted(look=_uniform, write=_noise, role="uniform")),
    "random attention": (0, Planted(look=_random, write=_noise)),
    "some tokens": (1, Planted(look=_some_tokens, write=_noise)),
    "other tokens": (1, Planted(look=_some_tokens, write=_nothing)),
    "unlike tokens": (1, Planted(look=_unlike, write=_noise)),
    "two after": (1, Planted(look=_where(TOKEN, TWO_BEFORE), write=_nothing, role=RESTS)),
    "anywhere but two after": (1, Planted(look=_where(BEFORE, TWO_BEFORE, -SURE), write=_noise, role=RESTS)),
    "seven back": (1, Planted(look=_at_lag(7), write=_noise)),
    "random": (1, Planted(look=_random, write=_noise)),
    "also random": (1, Planted(look=_random, write=_noise)),
    "vaguely back": (1, Planted(look=_at_lag(1, 0.01), write=_noise)),
    "two back, raises another": (1, Planted(look=_at_lag(2), write=_next_token)),
    "nine back, takes away": (1, Planted(look=_at_lag(9), write=_copy(LOGIT, -0.2), copies=-1)),
    "three back": (1, Planted(look=_at_lag(3), write=_nothing)),
}


def _placed() -> dict[tuple[int, int], Planted]:
    """Every head at its place: the mechanisms spread among the decoys of their layer."""
    layers: list[list[Planted]] = [[each for layer, each in DECOYS.values() if layer == n] for n in range(2)]
    for name, at in {"previous token": 3, "duplicate token": 7, "sink": 9, "copying": 11}.items():
        layers[0].insert(at, MECHANISMS[name])
    layers[1].insert(5, MECHANISMS["induction"])
    return {(n, head): each for n, layer in enumerate(layers) for head, each in enumerate(layer)}


PLANTED: Mapping[tuple[int, int], Planted] = _placed()


def shuffled(seed: int) -> dict[tuple[int, int], Planted]:
    """The heads of :data:`PLANTED`, each at another place of its layer.

    >>> sorted(shuffled(3)) == sorted(PLANTED), shuffled(3)[0, 0] is PLANTED[0, 0]
    (True, False)
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(HEADS, generator=generator).tolist() for _ in range(2)]
    return {(layer, orders[layer][head]): each for (layer, head), each in PLANTED.items()}
