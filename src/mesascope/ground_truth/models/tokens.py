"""A language model with planted heads among decoys; its weights are set by hand.

It has two layers, no norms, and no MLPs by default. Separate dimensions of its residual stream hold the token, the
previous token and the one two back (both written by heads of the first layer), the logits, a constant 1, an indicator
of the first position, and the position as a point on a circle. The previous-token head of the first layer and the
induction head of the second form an induction circuit (Olsson et al. 2022): the first writes the previous token, and
the second attends to positions whose previous token equals the present token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mesascope.ground_truth.models._token_heads import (
    BOS_TOKEN as BOS_TOKEN,
)
from mesascope.ground_truth.models._token_heads import (
    CONSTANT_DIM,
    COS_DIM,
    D_HEAD,
    FIRST_DIM,
    HALF_LENGTH,
    HEADS,
    LENGTH,
    LOGIT_DIMS,
    POSITION_ANGLE,
    PREVIOUS_DIMS,
    SCORE_MARGIN,
    SIN_DIM,
    TOKEN_DIMS,
    TWO_BACK_DIMS,
    HeadWeights,
    attend_at_lag,
    attend_randomly,
    attend_to_duplicate,
    attend_to_first,
    attend_to_match,
    attend_to_other_tokens,
    attend_to_some_tokens,
    attend_uniformly,
    write_copy,
    write_noise,
    write_nothing,
    write_one_token,
    write_shifted_token,
)
from mesascope.ground_truth.models._token_heads import (
    VOCABULARY as VOCABULARY,
)
from mesascope.ground_truth.models._token_mlps import MLP_UNITS, MlpWeights
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder


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


_CONFIG: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HEADS * D_HEAD,
    "num_attention_heads": HEADS,
    "norm": "none",
    "positions": "learned",
    "max_position_embeddings": LENGTH,
}


def build_planted_language_model(
    seed: int = 0,
    heads: Mapping[tuple[int, int], PlantedHead] | None = None,
    *,
    mlps: Mapping[int, Callable[["MlpWeights"], None]] | None = None,
    num_layers: int = 2,
) -> Decoder:
    """Build the language model with planted heads.

    Args:
        seed: seed of the decoys' random weights.
        heads: the heads by (layer, head), :data:`PLANTED_HEADS` by default.
        mlps: functions that set the weights of an MLP, by layer; no layer has an MLP by default.
        num_layers: number of layers.

    Returns:
        The model, in evaluation mode.
    """
    units = {"intermediate_size": MLP_UNITS, "activation": "relu"} if mlps else {}
    model = Decoder(DecoderConfig(**_CONFIG, **units, num_hidden_layers=num_layers))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _set_embeddings(model)
        for (layer, head), planted in (PLANTED_HEADS if heads is None else heads).items():
            weights = _view_head(model, layer, head, generator)
            planted.set_attention(weights)
            planted.set_output(weights)
        for layer, set_units in (mlps or {}).items():
            set_units(_view_mlp(model, layer, generator))
    return model.eval()


def _set_embeddings(model: Decoder) -> None:
    for parameter in model.parameters():
        parameter.zero_()
    eye = torch.eye(VOCABULARY)
    model.get_parameter("embed.weight")[:, TOKEN_DIMS] = eye
    model.get_parameter("readout.weight")[:, LOGIT_DIMS] = eye
    positions = model.get_parameter("position_embed.weight")
    angle = torch.arange(LENGTH) * POSITION_ANGLE
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


def _view_mlp(model: Decoder, layer: int, generator: torch.Generator) -> MlpWeights:
    up, bias, down = (
        model.get_parameter(f"layers.{layer}.mlp.{name}")
        for name in ("up_proj.weight", "up_proj.bias", "down_proj.weight")
    )
    return MlpWeights(up=up, bias=bias, down=down.T, generator=generator)


NO_MATCH_ROLE = "first token"  # role of a head that attends to the first position when it finds no match
TOKEN_MECHANISMS: Mapping[str, PlantedHead] = {
    "previous token": PlantedHead(
        set_attention=attend_at_lag(1), set_output=write_copy(PREVIOUS_DIMS, 1.0), expected_role="previous token"
    ),
    "induction": PlantedHead(
        set_attention=attend_to_match(TOKEN_DIMS, PREVIOUS_DIMS),
        set_output=write_copy(LOGIT_DIMS, 8.0),
        expected_role="first token, induction",
        copy_sign=1,
    ),
    "duplicate token": PlantedHead(
        set_attention=attend_to_duplicate, set_output=write_nothing, expected_role="self, duplicate token"
    ),
    "sink": PlantedHead(set_attention=attend_to_first, set_output=write_nothing, expected_role="first token"),
    "copying": PlantedHead(
        set_attention=attend_at_lag(0), set_output=write_copy(LOGIT_DIMS, 0.2), expected_role="self", copy_sign=1
    ),
}
TOKEN_DECOYS: Mapping[str, tuple[int, PlantedHead]] = {
    "two back": (0, PlantedHead(set_attention=attend_at_lag(2), set_output=write_copy(TWO_BACK_DIMS, 1.0))),
    "five back": (0, PlantedHead(set_attention=attend_at_lag(5), set_output=write_nothing)),
    "as far back as induction": (
        0,
        PlantedHead(
            set_attention=attend_at_lag(HALF_LENGTH - 1), set_output=write_nothing, expected_role=NO_MATCH_ROLE
        ),
    ),
    "as far back as a duplicate": (
        0,
        PlantedHead(set_attention=attend_at_lag(HALF_LENGTH), set_output=write_noise, expected_role=NO_MATCH_ROLE),
    ),
    "suppresses tokens": (
        0,
        PlantedHead(set_attention=attend_at_lag(4), set_output=write_copy(LOGIT_DIMS, -0.2), copy_sign=-1),
    ),
    "raises another token": (0, PlantedHead(set_attention=attend_at_lag(3), set_output=write_shifted_token)),
    "raises one token": (0, PlantedHead(set_attention=attend_at_lag(6), set_output=write_one_token)),
    "uniform": (0, PlantedHead(set_attention=attend_uniformly, set_output=write_noise, expected_role="uniform")),
    "random attention": (0, PlantedHead(set_attention=attend_randomly, set_output=write_noise)),
    "some tokens": (1, PlantedHead(set_attention=attend_to_some_tokens, set_output=write_noise)),
    "other tokens": (1, PlantedHead(set_attention=attend_to_some_tokens, set_output=write_nothing)),
    "different tokens": (1, PlantedHead(set_attention=attend_to_other_tokens, set_output=write_noise)),
    "two after": (
        1,
        PlantedHead(
            set_attention=attend_to_match(TOKEN_DIMS, TWO_BACK_DIMS),
            set_output=write_nothing,
            expected_role=NO_MATCH_ROLE,
        ),
    ),
    "not two after": (
        1,
        PlantedHead(
            set_attention=attend_to_match(PREVIOUS_DIMS, TWO_BACK_DIMS, -SCORE_MARGIN),
            set_output=write_noise,
            expected_role=NO_MATCH_ROLE,
        ),
    ),
    "seven back": (1, PlantedHead(set_attention=attend_at_lag(7), set_output=write_noise)),
    "random": (1, PlantedHead(set_attention=attend_randomly, set_output=write_noise)),
    "also random": (1, PlantedHead(set_attention=attend_randomly, set_output=write_noise)),
    "weakly back": (1, PlantedHead(set_attention=attend_at_lag(1, 0.01), set_output=write_noise)),
    "two back, raises another token": (
        1,
        PlantedHead(set_attention=attend_at_lag(2), set_output=write_shifted_token),
    ),
    "nine back, suppresses tokens": (
        1,
        PlantedHead(set_attention=attend_at_lag(9), set_output=write_copy(LOGIT_DIMS, -0.2), copy_sign=-1),
    ),
    "three back": (1, PlantedHead(set_attention=attend_at_lag(3), set_output=write_nothing)),
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
