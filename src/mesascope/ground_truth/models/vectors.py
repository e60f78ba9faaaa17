"""Models on sequences of numbers with one planted mechanism or decoy; their weights are set by hand.

Each is a one-layer decoder without norms and MLP. Dimension 0 of its residual stream holds the term, dimension 1 a
constant 1, dimensions 2 and 3 the position as a point on a circle, and dimension 4 the output. One head has the
mechanism; the other heads have small random weights, and an analysis must not report them.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder

TERM_DIM, CONSTANT_DIM, COS_DIM, SIN_DIM, OUTPUT_DIM = range(5)
WIDTH, HEADS = 32, 4
SCORE_SCALE = 2000.0  # scale of scores by position: neighbours get exp(-scale (1 - cos(angle))) of the attention


def build_planted_model(name: str, length: int = 20, nuisance: float = 0.02, seed: int = 0, head: int = 0) -> Decoder:
    """Build a one-layer model with a planted mechanism in one head.

    Args:
        name: key of :data:`VECTOR_MECHANISMS`.
        length: maximum sequence length.
        nuisance: standard deviation of the other heads' weights.
        seed: seed of the other heads' weights.
        head: index of the planted head, from 0 to 3.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: ``name`` is not a mechanism, or ``head`` is out of range.
    """
    if name not in VECTOR_MECHANISMS:
        raise ValueError(f"a planted mechanism must be one of {', '.join(VECTOR_MECHANISMS)}, but got {name!r}")
    if head not in range(HEADS):
        raise ValueError(f"head must be from 0 to {HEADS - 1}, but got {head}")
    model = _build_empty_model(length, nuisance, seed)
    with torch.no_grad():
        VECTOR_MECHANISMS[name](model, length)
        _swap_heads(model, head)
    return model.eval()


def _swap_heads(model: Decoder, head: int) -> None:
    # swapping whole heads leaves the function of the model unchanged
    size = WIDTH // HEADS
    order = torch.arange(WIDTH).unflatten(0, (HEADS, size))
    order[[0, head]] = order[[head, 0]]
    for name in ("q_proj", "k_proj", "v_proj"):
        _projection_weight(model, name).copy_(_projection_weight(model, name)[order.flatten()])
    _projection_weight(model, "o_proj").copy_(_projection_weight(model, "o_proj")[:, order.flatten()])


def _build_empty_model(length: int, nuisance: float, seed: int) -> Decoder:
    config = DecoderConfig(
        d_in=1,
        d_out=1,
        num_hidden_layers=1,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        norm="none",
        positions="learned",
        max_position_embeddings=length,
    )
    model = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weight = _projection_weight(model, name)
            weight.copy_(nuisance * torch.randn(weight.shape, generator=generator))
        model.get_parameter("embed.weight")[TERM_DIM] = 1.0
        model.get_parameter("embed.bias")[CONSTANT_DIM] = 1.0
        angle = torch.arange(length) * _position_angle(length)
        model.get_parameter("position_embed.weight")[:, COS_DIM] = angle.cos()
        model.get_parameter("position_embed.weight")[:, SIN_DIM] = angle.sin()
        model.get_parameter("readout.weight")[0, OUTPUT_DIM] = 1.0
        _clear_head(model)
    return model


def _position_angle(length: int) -> float:
    return math.pi / (length + 1)  # all positions together take less than half of the circle


def _projection_weight(model: Decoder, name: str) -> Tensor:
    return model.get_parameter(f"layers.0.attention.{name}.weight")


def _clear_head(model: Decoder) -> None:
    size = WIDTH // HEADS
    for name in ("q_proj", "k_proj", "v_proj"):
        _projection_weight(model, name)[:size] = 0.0
    _projection_weight(model, "o_proj")[:, :size] = 0.0


def _set_attention(model: Decoder, query: dict[tuple[int, int], float], key: dict[tuple[int, int], float]) -> None:
    # query and key: (dimension of the head, dimension of the residual stream) -> weight
    for index, weight in query.items():
        _projection_weight(model, "q_proj")[index] = weight * (WIDTH // HEADS) ** 0.5
    for index, weight in key.items():
        _projection_weight(model, "k_proj")[index] = weight


def _set_output(model: Decoder, gain: float, coordinate: int = TERM_DIM) -> None:
    _projection_weight(model, "v_proj")[0, coordinate] = 1.0
    _projection_weight(model, "o_proj")[OUTPUT_DIM, 0] = gain


def _attend_at_lag(model: Decoder, length: int, lag: int) -> None:
    rotation = lag * _position_angle(length)  # rotates the query's point on the circle to that of the attended position
    cos, sin = SCORE_SCALE * math.cos(rotation), SCORE_SCALE * math.sin(rotation)
    _set_attention(
        model,
        {(0, COS_DIM): cos, (0, SIN_DIM): sin, (1, COS_DIM): -sin, (1, SIN_DIM): cos},
        {(0, COS_DIM): 1.0, (1, SIN_DIM): 1.0},
    )


def _plant_previous(model: Decoder, length: int) -> None:
    """Attend to the previous position and copy it."""
    _attend_at_lag(model, length, 1)
    _set_output(model, 1.0)


def _plant_two_back(model: Decoder, length: int) -> None:
    """Decoy of the previous position: attend two positions back and copy that position."""
    _attend_at_lag(model, length, 2)
    _set_output(model, 1.0)


def _plant_copying(model: Decoder, length: int) -> None:
    """Attend to the query's own position and copy it."""
    _attend_at_lag(model, length, 0)
    _set_output(model, 1.0)


def _plant_dissimilar_added(model: Decoder, length: int) -> None:
    """Negative similarity, first kind: attend to dissimilar terms and add them."""
    _set_attention(model, {(0, TERM_DIM): -2.0}, {(0, TERM_DIM): 1.0})
    _set_output(model, 0.5)


def _plant_similar_subtracted(model: Decoder, length: int) -> None:
    """Negative similarity, second kind: attend to similar terms and subtract them."""
    _set_attention(model, {(0, TERM_DIM): 2.0}, {(0, TERM_DIM): 1.0})
    _set_output(model, -0.5)


def _plant_similar_added(model: Decoder, length: int) -> None:
    """Decoy of both kinds of negative similarity: attend to similar terms and add them."""
    _set_attention(model, {(0, TERM_DIM): 2.0}, {(0, TERM_DIM): 1.0})
    _set_output(model, 0.5)


def _plant_large_keys(model: Decoder, length: int) -> None:
    """Decoy of negative similarity: attend to large terms, independently of the query."""
    _set_attention(model, {(0, CONSTANT_DIM): 2.0}, {(0, TERM_DIM): 1.0})
    _set_output(model, 0.5)


def _plant_early_positions(model: Decoder, length: int) -> None:
    """Decoy of negative similarity: attend to early positions, which are dissimilar in a converging sequence."""
    _set_attention(model, {(0, CONSTANT_DIM): 3.0}, {(0, COS_DIM): 1.0})
    _set_output(model, 0.5)


def _plant_uniform(model: Decoder, length: int) -> None:
    """Average all terms so far."""
    _set_output(model, 1.0)


def _plant_constant(model: Decoder, length: int) -> None:
    """Decoy of copying: attend to the query's own position and write a constant."""
    _attend_at_lag(model, length, 0)
    _set_output(model, 1.0, coordinate=CONSTANT_DIM)


def _plant_copied_position(model: Decoder, length: int) -> None:
    """Decoy of copying: attend to the query's own position and copy the position instead of the term."""
    _attend_at_lag(model, length, 0)
    _set_output(model, 1.0, coordinate=COS_DIM)


def _plant_residual_only(model: Decoder, length: int) -> None:
    """Decoy of copying: the residual stream copies the term, and the head writes nothing."""
    model.get_parameter("readout.weight")[0, TERM_DIM] = 1.0


VECTOR_MECHANISMS: dict[str, Callable[[Decoder, int], None]] = {
    "previous": _plant_previous,
    "copying": _plant_copying,
    "dissimilar, added": _plant_dissimilar_added,
    "similar, subtracted": _plant_similar_subtracted,
    "similar, added": _plant_similar_added,
    "large keys": _plant_large_keys,
    "early positions": _plant_early_positions,
    "uniform": _plant_uniform,
    "constant": _plant_constant,
    "copies position": _plant_copied_position,
    "two back": _plant_two_back,
    "residual only": _plant_residual_only,
}
