"""A language model with planted heads among decoys; its weights are set by hand.

It has two layers, no norms and no MLPs. Separate dimensions of its residual stream hold the token, the previous token
and the one two back (both written by heads of the first layer), the logits, a constant 1, an indicator of the first
position, and the position as a point on a circle. The previous-token head of the first layer and the induction head of
the second form an induction circuit (Olsson et al. 2022): the first writes the previous token, and the second attends
to positions whose previous token equals the present token.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder

VOCABULARY, HEADS, HALF_LENGTH = 40, 13, 16  # tokens; heads per layer; length of the half that is repeated
LENGTH = 2 * HALF_LENGTH + 1  # a BOS token and two halves
D_HEAD = VOCABULARY + 4
BOS_TOKEN = 0  # the token of the first position
TOKEN_DIMS, PREVIOUS_DIMS, TWO_BACK_DIMS, LOGIT_DIMS = (slice(n * VOCABULARY, (n + 1) * VOCABULARY) for n in range(4))
CONSTANT_DIM, FIRST_DIM, COS_DIM, SIN_DIM = range(4 * VOCABULARY, 4 * VOCABULARY + 4)
SCORE_MARGIN = 16.0  # nats between the attention score of the attended position and all others
TOKEN_ROWS, POSITION_ROWS = (
    slice(0, VOCABULARY),
    slice(VOCABULARY, VOCABULARY + 2),
)  # head dimensions for tokens and positions
FIRST_ROW = VOCABULARY + 2  # head dimension for the first position


@dataclass(frozen=True, kw_only=True)
class PlantedHead:
    """The attention and the output of a planted head.

    Attributes:
        set_attention: sets the query and key weights.
        set_output: sets the value and output weights.
        expected_role: the roles of the head for at least 30 % of queries, as an analysis of attention must report them.
        copy_sign: 1 if the head raises the logit of the attended token, -1 if it lowers it, 0 otherwise.
    """

    set_attention: Callable[["HeadWeights"], None]
    set_output: Callable[["HeadWeights"], None]
    expected_role: str = ""
    copy_sign: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadWeights:
    """The weights of one head as views (d_head, d_model) that can be edited in place; the output is transposed."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    generator: torch.Generator


def build_planted_language_model(seed: int = 0, heads: Mapping[tuple[int, int], PlantedHead] | None = None) -> Decoder:
    """Build the language model with planted heads.

    Args:
        seed: seed of the decoys' random weights.
        heads: the heads by (layer, head), :data:`PLANTED_HEADS` by default.

    Returns:
        The model, in evaluation mode.
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
        _set_embeddings(model)
        for (layer, head), planted in (PLANTED_HEADS if heads is None else heads).items():
            weights = _view_head(model, layer, head, generator)
            planted.set_attention(weights)
            planted.set_output(weights)
    return model.eval()


def _set_embeddings(model: Decoder) -> None:
    for parameter in model.parameters():
        parameter.zero_()
    eye = torch.eye(VOCABULARY)
    model.get_parameter("embed.weight")[:, TOKEN_DIMS] = eye
    model.get_parameter("readout.weight")[:, LOGIT_DIMS] = eye
    positions = model.get_parameter("position_embed.weight")
    angle = torch.arange(LENGTH) * _POSITION_ANGLE
    positions[:, CONSTANT_DIM], positions[0, FIRST_DIM] = 1.0, 1.0
    positions[:, COS_DIM], positions[:, SIN_DIM] = angle.cos(), angle.sin()


def _view_head(model: Decoder, layer: int, head: int, generator: torch.Generator) -> HeadWeights:
    rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
    parameters = {name: model.get_parameter(f"layers.{layer}.attention.{name}_proj.weight") for name in "qkvo"}
    return HeadWeights(
        query=parameters["q"][rows],
        key=parameters["k"][rows],
        value=parameters["v"][rows],
        output=parameters["o"][:, rows].T,
        generator=generator,
    )


_POSITION_ANGLE = math.pi / (
    LENGTH + 1
)  # angle between neighbouring positions; all positions take less than half of the circle
_SCORE_SCALE = math.sqrt(D_HEAD)  # attention scores are divided by it


def _attend_at_lag(lag: int, margin: float = SCORE_MARGIN) -> Callable[[HeadWeights], None]:
    def set_attention(head: HeadWeights) -> None:
        rotation = lag * _POSITION_ANGLE
        scale = margin * _SCORE_SCALE / (1 - math.cos(_POSITION_ANGLE))
        head.query[POSITION_ROWS, COS_DIM] = scale * torch.tensor([math.cos(rotation), -math.sin(rotation)])
        head.query[POSITION_ROWS, SIN_DIM] = scale * torch.tensor([math.sin(rotation), math.cos(rotation)])
        head.key[POSITION_ROWS.start, COS_DIM], head.key[POSITION_ROWS.start + 1, SIN_DIM] = 1.0, 1.0

    return set_attention


def _attend_to_match(
    query_dims: slice, key_dims: slice, margin: float = 3 * SCORE_MARGIN
) -> Callable[[HeadWeights], None]:
    # attend where the key token in `key_dims` equals the query token in `query_dims`, else to the first position

    def set_attention(head: HeadWeights) -> None:
        head.query[TOKEN_ROWS, query_dims] = margin * _SCORE_SCALE * torch.eye(VOCABULARY)
        head.key[TOKEN_ROWS, key_dims] = torch.eye(VOCABULARY)
        _attend_to_first(head)

    return set_attention


def _attend_to_duplicate(head: HeadWeights) -> None:
    _attend_to_match(TOKEN_DIMS, TOKEN_DIMS, 12 * SCORE_MARGIN)(head)
    # penalise nearby positions, so that the query attends to itself only if its token occurs nowhere else
    for row, coordinate in zip(range(POSITION_ROWS.start, POSITION_ROWS.stop), (COS_DIM, SIN_DIM), strict=True):
        head.query[row, coordinate], head.key[row, coordinate] = -6 * SCORE_MARGIN * _SCORE_SCALE, 1.0


def _attend_to_first(head: HeadWeights) -> None:
    head.query[FIRST_ROW, CONSTANT_DIM], head.key[FIRST_ROW, FIRST_DIM] = SCORE_MARGIN * _SCORE_SCALE, 1.0


def _attend_to_other_tokens(head: HeadWeights) -> None:
    head.query[TOKEN_ROWS, TOKEN_DIMS], head.key[TOKEN_ROWS, TOKEN_DIMS] = (
        -SCORE_MARGIN * _SCORE_SCALE * torch.eye(VOCABULARY),
        torch.eye(VOCABULARY),
    )


def _attend_uniformly(head: HeadWeights) -> None:
    """Leave query and key weights at zero."""


def _attend_to_some_tokens(head: HeadWeights) -> None:
    # prefers some tokens to others, independently of the query, and never the first position
    head.query[TOKEN_ROWS.start, CONSTANT_DIM] = _SCORE_SCALE
    head.key[TOKEN_ROWS.start, TOKEN_DIMS] = 4 * torch.randn(VOCABULARY, generator=head.generator)
    head.key[TOKEN_ROWS.start, TOKEN_DIMS.start + BOS_TOKEN] = -SCORE_MARGIN


def _attend_randomly(head: HeadWeights) -> None:
    for weight in (head.query, head.key):
        weight[:, TOKEN_DIMS] = torch.randn(D_HEAD, VOCABULARY, generator=head.generator)


def _write_copy(target: slice, gain: float) -> Callable[[HeadWeights], None]:
    def set_output(head: HeadWeights) -> None:
        head.value[TOKEN_ROWS, TOKEN_DIMS] = torch.eye(VOCABULARY)
        head.output[TOKEN_ROWS, target] = gain * torch.eye(VOCABULARY)

    return set_output


def _write_shifted_token(head: HeadWeights) -> None:
    # decoy of copying: every token raises the logit of another token
    head.value[TOKEN_ROWS, TOKEN_DIMS] = torch.eye(VOCABULARY)
    head.output[TOKEN_ROWS, LOGIT_DIMS] = torch.eye(VOCABULARY).roll(1, 1)


def _write_noise(head: HeadWeights) -> None:
    # decoy of copying: a random map from tokens to logits
    head.value[:, TOKEN_DIMS] = torch.randn(D_HEAD, VOCABULARY, generator=head.generator) / VOCABULARY**0.5
    head.output[:, LOGIT_DIMS] = 0.1 * torch.randn(D_HEAD, VOCABULARY, generator=head.generator) / D_HEAD**0.5


def _write_one_token(head: HeadWeights) -> None:
    # decoy of copying: every token raises the logit of the same token, so the OV matrix has one non-zero eigenvalue
    head.value[TOKEN_ROWS.start, TOKEN_DIMS] = 0.1
    head.output[TOKEN_ROWS.start, LOGIT_DIMS.start + 7] = 1.0


def _write_nothing(head: HeadWeights) -> None:
    """Leave value and output weights at zero."""


NO_MATCH_ROLE = "first token"  # role of a head that attends to the first position when it finds no match
TOKEN_MECHANISMS: Mapping[str, PlantedHead] = {
    "previous token": PlantedHead(
        set_attention=_attend_at_lag(1), set_output=_write_copy(PREVIOUS_DIMS, 1.0), expected_role="previous token"
    ),
    "induction": PlantedHead(
        set_attention=_attend_to_match(TOKEN_DIMS, PREVIOUS_DIMS),
        set_output=_write_copy(LOGIT_DIMS, 8.0),
        expected_role="first token, induction",
        copy_sign=1,
    ),
    "duplicate token": PlantedHead(
        set_attention=_attend_to_duplicate, set_output=_write_nothing, expected_role="self, duplicate token"
    ),
    "sink": PlantedHead(set_attention=_attend_to_first, set_output=_write_nothing, expected_role="first token"),
    "copying": PlantedHead(
        set_attention=_attend_at_lag(0), set_output=_write_copy(LOGIT_DIMS, 0.2), expected_role="self", copy_sign=1
    ),
}
TOKEN_DECOYS: Mapping[str, tuple[int, PlantedHead]] = {
    "two back": (0, PlantedHead(set_attention=_attend_at_lag(2), set_output=_write_copy(TWO_BACK_DIMS, 1.0))),
    "five back": (0, PlantedHead(set_attention=_attend_at_lag(5), set_output=_write_nothing)),
    "as far back as induction": (
        0,
        PlantedHead(
            set_attention=_attend_at_lag(HALF_LENGTH - 1), set_output=_write_nothing, expected_role=NO_MATCH_ROLE
        ),
    ),
    "as far back as a duplicate": (
        0,
        PlantedHead(set_attention=_attend_at_lag(HALF_LENGTH), set_output=_write_noise, expected_role=NO_MATCH_ROLE),
    ),
    "suppresses tokens": (
        0,
        PlantedHead(set_attention=_attend_at_lag(4), set_output=_write_copy(LOGIT_DIMS, -0.2), copy_sign=-1),
    ),
    "raises another token": (0, PlantedHead(set_attention=_attend_at_lag(3), set_output=_write_shifted_token)),
    "raises one token": (0, PlantedHead(set_attention=_attend_at_lag(6), set_output=_write_one_token)),
    "uniform": (0, PlantedHead(set_attention=_attend_uniformly, set_output=_write_noise, expected_role="uniform")),
    "random attention": (0, PlantedHead(set_attention=_attend_randomly, set_output=_write_noise)),
    "some tokens": (1, PlantedHead(set_attention=_attend_to_some_tokens, set_output=_write_noise)),
    "other tokens": (1, PlantedHead(set_attention=_attend_to_some_tokens, set_output=_write_nothing)),
    "different tokens": (1, PlantedHead(set_attention=_attend_to_other_tokens, set_output=_write_noise)),
    "two after": (
        1,
        PlantedHead(
            set_attention=_attend_to_match(TOKEN_DIMS, TWO_BACK_DIMS),
            set_output=_write_nothing,
            expected_role=NO_MATCH_ROLE,
        ),
    ),
    "not two after": (
        1,
        PlantedHead(
            set_attention=_attend_to_match(PREVIOUS_DIMS, TWO_BACK_DIMS, -SCORE_MARGIN),
            set_output=_write_noise,
            expected_role=NO_MATCH_ROLE,
        ),
    ),
    "seven back": (1, PlantedHead(set_attention=_attend_at_lag(7), set_output=_write_noise)),
    "random": (1, PlantedHead(set_attention=_attend_randomly, set_output=_write_noise)),
    "also random": (1, PlantedHead(set_attention=_attend_randomly, set_output=_write_noise)),
    "weakly back": (1, PlantedHead(set_attention=_attend_at_lag(1, 0.01), set_output=_write_noise)),
    "two back, raises another token": (
        1,
        PlantedHead(set_attention=_attend_at_lag(2), set_output=_write_shifted_token),
    ),
    "nine back, suppresses tokens": (
        1,
        PlantedHead(set_attention=_attend_at_lag(9), set_output=_write_copy(LOGIT_DIMS, -0.2), copy_sign=-1),
    ),
    "three back": (1, PlantedHead(set_attention=_attend_at_lag(3), set_output=_write_nothing)),
}


def _arrange_heads() -> dict[tuple[int, int], PlantedHead]:
    layers: list[list[PlantedHead]] = [[each for layer, each in TOKEN_DECOYS.values() if layer == n] for n in range(2)]
    for name, at in {"previous token": 3, "duplicate token": 7, "sink": 9, "copying": 11}.items():
        layers[0].insert(at, TOKEN_MECHANISMS[name])
    layers[1].insert(5, TOKEN_MECHANISMS["induction"])
    return {(n, head): each for n, layer in enumerate(layers) for head, each in enumerate(layer)}


PLANTED_HEADS: Mapping[tuple[int, int], PlantedHead] = _arrange_heads()


def shuffle_heads(seed: int) -> dict[tuple[int, int], PlantedHead]:
    """Return the heads of :data:`PLANTED_HEADS` in a random order within each layer.

    Args:
        seed: seed of the permutation.

    Returns:
        The heads by (layer, head).

    >>> sorted(shuffle_heads(3)) == sorted(PLANTED_HEADS), shuffle_heads(3)[0, 0] is PLANTED_HEADS[0, 0]
    (True, False)
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(HEADS, generator=generator).tolist() for _ in range(2)]
    return {(layer, orders[layer][head]): each for (layer, head), each in PLANTED_HEADS.items()}
