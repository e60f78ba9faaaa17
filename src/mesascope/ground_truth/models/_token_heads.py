"""Attention and output of the planted heads: functions that set the weights of one head."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

VOCABULARY, HEADS, HALF_LENGTH = 40, 13, 16  # tokens; heads per layer; length of the half that is repeated
LENGTH = 2 * HALF_LENGTH + 1  # a BOS token and two halves
D_HEAD = VOCABULARY + 4
BOS_TOKEN = 0  # the token of the first position
TOKEN_DIMS, PREVIOUS_DIMS, TWO_BACK_DIMS, LOGIT_DIMS = (slice(n * VOCABULARY, (n + 1) * VOCABULARY) for n in range(4))
CONSTANT_DIM, FIRST_DIM, COS_DIM, SIN_DIM = range(4 * VOCABULARY, 4 * VOCABULARY + 4)
SCORE_MARGIN = 16.0  # nats between the attention score of the attended position and all others
# head dimensions for tokens and positions
TOKEN_ROWS, POSITION_ROWS = slice(0, VOCABULARY), slice(VOCABULARY, VOCABULARY + 2)
FIRST_ROW = VOCABULARY + 2  # head dimension for the first position


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadWeights:
    """The weights of one head as views (d_head, d_model) that can be edited in place; the output is transposed."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    generator: torch.Generator


# angle between neighbouring positions; all positions take less than half of the circle
POSITION_ANGLE = math.pi / (LENGTH + 1)
_SCORE_SCALE = math.sqrt(D_HEAD)  # attention scores are divided by it


def attend_at_lag(lag: int, margin: float = SCORE_MARGIN) -> Callable[[HeadWeights], None]:
    """Build a setter of attention to the position that is a number of positions back.

    Args:
        lag: distance in positions.
        margin: nats between the score of this position and those of its neighbours.

    Returns:
        The setter.
    """

    def set_attention(head: HeadWeights) -> None:
        rotation = lag * POSITION_ANGLE
        scale = margin * _SCORE_SCALE / (1 - math.cos(POSITION_ANGLE))
        head.query[POSITION_ROWS, COS_DIM] = scale * torch.tensor([math.cos(rotation), -math.sin(rotation)])
        head.query[POSITION_ROWS, SIN_DIM] = scale * torch.tensor([math.sin(rotation), math.cos(rotation)])
        head.key[POSITION_ROWS.start, COS_DIM], head.key[POSITION_ROWS.start + 1, SIN_DIM] = 1.0, 1.0

    return set_attention


def attend_to_match(
    query_dims: slice, key_dims: slice, margin: float = 3 * SCORE_MARGIN
) -> Callable[[HeadWeights], None]:
    """Build a setter of attention to keys that equal the query's token, else to the first position.

    Args:
        query_dims: residual dimensions of the query's token.
        key_dims: residual dimensions of the key's token.
        margin: nats between the score of a match and all others.

    Returns:
        The setter.
    """

    def set_attention(head: HeadWeights) -> None:
        head.query[TOKEN_ROWS, query_dims] = margin * _SCORE_SCALE * torch.eye(VOCABULARY)
        head.key[TOKEN_ROWS, key_dims] = torch.eye(VOCABULARY)
        attend_to_first(head)

    return set_attention


def attend_to_duplicate(head: HeadWeights) -> None:
    """Attend to other positions with the same token, and to itself only if the token occurs nowhere else.

    Args:
        head: the weights, edited in place.
    """
    attend_to_match(TOKEN_DIMS, TOKEN_DIMS, 12 * SCORE_MARGIN)(head)
    # penalise nearby positions, so that the query attends to itself only if its token occurs nowhere else
    for row, coordinate in zip(range(POSITION_ROWS.start, POSITION_ROWS.stop), (COS_DIM, SIN_DIM), strict=True):
        head.query[row, coordinate], head.key[row, coordinate] = -6 * SCORE_MARGIN * _SCORE_SCALE, 1.0


def attend_to_first(head: HeadWeights) -> None:
    """Attend to the first position.

    Args:
        head: the weights, edited in place.
    """
    head.query[FIRST_ROW, CONSTANT_DIM], head.key[FIRST_ROW, FIRST_DIM] = SCORE_MARGIN * _SCORE_SCALE, 1.0


def attend_to_other_tokens(head: HeadWeights) -> None:
    """Attend to positions with another token.

    Args:
        head: the weights, edited in place.
    """
    head.query[TOKEN_ROWS, TOKEN_DIMS], head.key[TOKEN_ROWS, TOKEN_DIMS] = (
        -SCORE_MARGIN * _SCORE_SCALE * torch.eye(VOCABULARY),
        torch.eye(VOCABULARY),
    )


def attend_uniformly(head: HeadWeights) -> None:
    """Leave query and key weights at zero.

    Args:
        head: the weights, edited in place.
    """


def attend_to_some_tokens(head: HeadWeights) -> None:
    """Prefer some tokens to others, independently of the query, and never attend to the first position.

    Args:
        head: the weights, edited in place.
    """
    head.query[TOKEN_ROWS.start, CONSTANT_DIM] = _SCORE_SCALE
    head.key[TOKEN_ROWS.start, TOKEN_DIMS] = 4 * torch.randn(VOCABULARY, generator=head.generator)
    head.key[TOKEN_ROWS.start, TOKEN_DIMS.start + BOS_TOKEN] = -SCORE_MARGIN


def attend_randomly(head: HeadWeights) -> None:
    """Set random query and key weights.

    Args:
        head: the weights, edited in place.
    """
    for weight in (head.query, head.key):
        weight[:, TOKEN_DIMS] = torch.randn(D_HEAD, VOCABULARY, generator=head.generator)


def write_copy(target: slice, gain: float, source: slice = TOKEN_DIMS) -> Callable[[HeadWeights], None]:
    """Build a setter of an output that copies a token at the attended position.

    Args:
        target: residual dimensions that are written.
        gain: factor of the copy.
        source: residual dimensions that are read; those of the position's own token by default.

    Returns:
        The setter.
    """

    def set_output(head: HeadWeights) -> None:
        head.value[TOKEN_ROWS, source] = torch.eye(VOCABULARY)
        head.output[TOKEN_ROWS, target] = gain * torch.eye(VOCABULARY)

    return set_output


def write_shifted_token(head: HeadWeights) -> None:
    """Raise the logit of another token for every token, a decoy of copying.

    Args:
        head: the weights, edited in place.
    """
    head.value[TOKEN_ROWS, TOKEN_DIMS] = torch.eye(VOCABULARY)
    head.output[TOKEN_ROWS, LOGIT_DIMS] = torch.eye(VOCABULARY).roll(1, 1)


def write_noise(head: HeadWeights) -> None:
    """Write a random map from tokens to logits, a decoy of copying.

    Args:
        head: the weights, edited in place.
    """
    head.value[:, TOKEN_DIMS] = torch.randn(D_HEAD, VOCABULARY, generator=head.generator) / VOCABULARY**0.5
    head.output[:, LOGIT_DIMS] = 0.1 * torch.randn(D_HEAD, VOCABULARY, generator=head.generator) / D_HEAD**0.5


def write_one_token(head: HeadWeights) -> None:
    """Raise the logit of the same token for every token, a decoy of copying.

    The OV matrix has one non-zero eigenvalue.

    Args:
        head: the weights, edited in place.
    """
    head.value[TOKEN_ROWS.start, TOKEN_DIMS] = 0.1
    head.output[TOKEN_ROWS.start, LOGIT_DIMS.start + 7] = 1.0


def write_nothing(head: HeadWeights) -> None:
    """Leave value and output weights at zero.

    Args:
        head: the weights, edited in place.
    """
