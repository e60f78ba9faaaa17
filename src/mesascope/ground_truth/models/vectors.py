"""Models whose mechanism is known, because their weights were set by hand; and decoys that look alike.

Each is a one-layer decoder without norms and MLP that reads and predicts numbers. Its residual stream has the
term in coordinate 0, a constant 1 in coordinate 1, the position as a point on a circle in coordinates 2 and 3,
and the output in coordinate 4. One head carries the mechanism; the other heads have small random weights, so that
an instrument must find the one head and pass over the others.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder

TERM, ONE, COS, SIN, OUT = range(5)
WIDTH, HEADS = 32, 4
SHARP = 2000.0  # scores by position: the neighbouring position gets exp(-SHARP (1 - cos(angle))) of the attention


def planted(name: str, length: int = 20, nuisance: float = 0.02, seed: int = 0, head: int = 0) -> Decoder:
    """A model with the mechanism of this name in one head of its only layer.

    Args:
        name: one of :data:`MECHANISMS`.
        length: the longest sequence.
        nuisance: standard deviation of the other heads' weights.
        seed: of the other heads' weights.
        head: which head has the mechanism, from 0 to 3.

    Raises:
        ValueError: no such mechanism or head.
    """
    if name not in MECHANISMS:
        raise ValueError(f"a planted mechanism must be one of {', '.join(MECHANISMS)}, but got {name!r}")
    if head not in range(HEADS):
        raise ValueError(f"head must be from 0 to {HEADS - 1}, but got {head}")
    model = _blank(length, nuisance, seed)
    with torch.no_grad():
        MECHANISMS[name](model, length)
        _exchange(model, head)
    return model.eval()


def _exchange(model: Decoder, head: int) -> None:
    """Let head 0 and another change places; the model computes the same."""
    size = WIDTH // HEADS
    order = torch.arange(WIDTH).unflatten(0, (HEADS, size))
    order[[0, head]] = order[[head, 0]]
    for name in ("q_proj", "k_proj", "v_proj"):
        _map(model, name).copy_(_map(model, name)[order.flatten()])
    _map(model, "o_proj").copy_(_map(model, "o_proj")[:, order.flatten()])


def _blank(length: int, nuisance: float, seed: int) -> Decoder:
    """The frame: embedding, positions and read-out are exact, all heads are noise that writes nowhere important."""
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
            weight = _map(model, name)
            weight.copy_(nuisance * torch.randn(weight.shape, generator=generator))
        model.get_parameter("embed.weight")[TERM] = 1.0
        model.get_parameter("embed.bias")[ONE] = 1.0
        angle = torch.arange(length) * _step(length)
        model.get_parameter("position_embed.weight")[:, COS] = angle.cos()
        model.get_parameter("position_embed.weight")[:, SIN] = angle.sin()
        model.get_parameter("readout.weight")[0, OUT] = 1.0
        _clear(model)
    return model


def _step(length: int) -> float:
    """The angle between neighbouring positions: all of them take less than half the circle."""
    return math.pi / (length + 1)


def _map(model: Decoder, name: str) -> Tensor:
    """One of the attention's four maps."""
    return model.get_parameter(f"layers.0.attention.{name}.weight")


def _clear(model: Decoder) -> None:
    """Empty head 0."""
    size = WIDTH // HEADS
    for name in ("q_proj", "k_proj", "v_proj"):
        _map(model, name)[:size] = 0.0
    _map(model, "o_proj")[:, :size] = 0.0


def _look(model: Decoder, query: dict[tuple[int, int], float], key: dict[tuple[int, int], float]) -> None:
    """Set head 0's query and key maps: (row in the head, coordinate of the stream) -> weight."""
    for place, weight in query.items():
        _map(model, "q_proj")[place] = weight * (WIDTH // HEADS) ** 0.5
    for place, weight in key.items():
        _map(model, "k_proj")[place] = weight


def _write(model: Decoder, gain: float, coordinate: int = TERM) -> None:
    """Head 0 writes gain times the attended coordinate to the output."""
    _map(model, "v_proj")[0, coordinate] = 1.0
    _map(model, "o_proj")[OUT, 0] = gain


def _at_lag(model: Decoder, length: int, lag: int) -> None:
    """Attend to the position ``lag`` before the query: its angle, turned back."""
    turn = lag * _step(length)
    cos, sin = SHARP * math.cos(turn), SHARP * math.sin(turn)
    _look(
        model,
        {(0, COS): cos, (0, SIN): sin, (1, COS): -sin, (1, SIN): cos},
        {(0, COS): 1.0, (1, SIN): 1.0},
    )


def _previous(model: Decoder, length: int) -> None:
    """Attends to the position before the query and copies it."""
    _at_lag(model, length, 1)
    _write(model, 1.0)


def _two_back(model: Decoder, length: int) -> None:
    """Decoy of the previous position: attends one further back, and copies it."""
    _at_lag(model, length, 2)
    _write(model, 1.0)


def _copying(model: Decoder, length: int) -> None:
    """Attends to the query's own position and copies it."""
    _at_lag(model, length, 0)
    _write(model, 1.0)


def _unlike(model: Decoder, length: int) -> None:
    """First reading of negative similarity: the score falls as the terms agree; what it finds is added."""
    _look(model, {(0, TERM): -2.0}, {(0, TERM): 1.0})
    _write(model, 0.5)


def _like_subtracted(model: Decoder, length: int) -> None:
    """Second reading of negative similarity: attends to terms that agree, and subtracts what it finds."""
    _look(model, {(0, TERM): 2.0}, {(0, TERM): 1.0})
    _write(model, -0.5)


def _like_added(model: Decoder, length: int) -> None:
    """Decoy of both readings: attends to terms that agree, and adds what it finds."""
    _look(model, {(0, TERM): 2.0}, {(0, TERM): 1.0})
    _write(model, 0.5)


def _large_keys(model: Decoder, length: int) -> None:
    """Decoy of negative similarity: prefers large terms whatever the query is."""
    _look(model, {(0, ONE): 2.0}, {(0, TERM): 1.0})
    _write(model, 0.5)


def _far_back(model: Decoder, length: int) -> None:
    """Decoy of negative similarity: prefers early positions, which in a converging sequence are the unlike ones."""
    _look(model, {(0, ONE): 3.0}, {(0, COS): 1.0})
    _write(model, 0.5)


def _uniform(model: Decoder, length: int) -> None:
    """Averages all terms so far."""
    _write(model, 1.0)


def _constant(model: Decoder, length: int) -> None:
    """Decoy of copying: looks where a copying head looks, and writes a constant."""
    _at_lag(model, length, 0)
    _write(model, 1.0, coordinate=ONE)


def _position_written(model: Decoder, length: int) -> None:
    """Decoy of copying: looks where a copying head looks, and writes the place instead of the term."""
    _at_lag(model, length, 0)
    _write(model, 1.0, coordinate=COS)


def _stream_alone(model: Decoder, length: int) -> None:
    """Decoy of copying, and of whatever matters: the term is copied, but by the stream; the head does nothing."""
    model.get_parameter("readout.weight")[0, TERM] = 1.0


MECHANISMS: dict[str, Callable[[Decoder, int], None]] = {
    "previous": _previous,
    "copying": _copying,
    "unlike": _unlike,
    "like, subtracted": _like_subtracted,
    "like, added": _like_added,
    "large keys": _large_keys,
    "far back": _far_back,
    "uniform": _uniform,
    "constant": _constant,
    "position written": _position_written,
    "two back": _two_back,
    "stream alone": _stream_alone,
}
