"""Two-layer models in which a head of layer 1 refines the estimate in the stream, or only looks as if it did.

The readout reads the term and the output dimensions of the residual stream, so the estimate before layer 1 is the last
term. A head of layer 0 writes the term at the previous position to other dimensions, from which layer 1 can read it.
The other heads have small random weights. There are no norms and MLPs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder

DIM, WIDTH, HEADS = 2, 32, 4
TERM_DIMS, PREVIOUS_DIMS, OUTPUT_DIMS, POSITION_DIMS = (slice(2 * n, 2 * n + 2) for n in range(4))
SCORE_SCALE = 2000.0  # scale of scores by position: neighbours get exp(-scale (1 - cos(angle))) of the attention
STEP_SIZE, OVERSHOOT = 0.5, 1.5  # of the refining head; above 1, so that its contribution falls with the last term


@dataclass(frozen=True, kw_only=True, eq=False)
class _Head:
    # the weights of one head, as views (d_head, d_model) and (d_model, d_head)
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor


def build_refinement_model(
    name: str, length: int = 12, nuisance: float = 0.02, seed: int = 0, head: int = 0
) -> Decoder:
    """Build a two-layer model with a planted mechanism in one head of layer 1.

    Args:
        name: key of :data:`REFINEMENT_MECHANISMS`.
        length: maximum sequence length.
        nuisance: standard deviation of the other heads' weights.
        seed: seed of the other heads' weights.
        head: index of the planted head in both layers, from 0 to 3.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: ``name`` is not a mechanism, or ``head`` is out of range.
    """
    if name not in REFINEMENT_MECHANISMS:
        raise ValueError(f"a refinement model must be one of {', '.join(REFINEMENT_MECHANISMS)}, but got {name!r}")
    if head not in range(HEADS):
        raise ValueError(f"head must be from 0 to {HEADS - 1}, but got {head}")
    model = _build_empty_decoder(length, nuisance, seed)
    with torch.no_grad():
        previous, planted = (_clear_head(model, layer, head) for layer in range(2))
        _attend_by_lag(previous, length, 1)
        _write(previous, TERM_DIMS, PREVIOUS_DIMS, 1.0)
        REFINEMENT_MECHANISMS[name](planted, length)
    return model.eval()


def _build_empty_decoder(length: int, nuisance: float, seed: int) -> Decoder:
    config = DecoderConfig(
        d_in=DIM,
        d_out=DIM,
        num_hidden_layers=2,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        max_position_embeddings=length,
    )
    model = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    angle = torch.arange(length) * _angle_between_positions(length)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_projection = "attention" in name and name.endswith("weight")
            parameter.copy_(nuisance * is_projection * torch.randn(parameter.shape, generator=generator))
        model.get_parameter("embed.weight")[TERM_DIMS] = torch.eye(DIM)
        model.get_parameter("position_embed.weight")[:, POSITION_DIMS] = torch.stack([angle.cos(), angle.sin()], 1)
        for dims in (TERM_DIMS, OUTPUT_DIMS):
            model.get_parameter("readout.weight")[:, dims] = torch.eye(DIM)
    return model


def _angle_between_positions(length: int) -> float:
    return math.pi / (length + 1)  # all positions together take less than half of the circle


def _clear_head(model: Decoder, layer: int, head: int) -> _Head:
    size = WIDTH // HEADS
    rows = slice(size * head, size * (head + 1))
    query, key, value, output = (
        model.get_parameter(f"layers.{layer}.attention.{name}.weight")
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    )
    cleared = _Head(query=query[rows], key=key[rows], value=value[rows], output=output[:, rows])
    for weight in (cleared.query, cleared.key, cleared.value, cleared.output):
        weight.zero_()
    return cleared


def _attend_by_lag(head: _Head, length: int, lag: int) -> None:
    # rotates the query's point on the circle to that of the attended position
    rotation, size = lag * _angle_between_positions(length), SCORE_SCALE * (WIDTH // HEADS) ** 0.5
    cos, sin = size * math.cos(rotation), size * math.sin(rotation)
    head.query[:2, POSITION_DIMS] = torch.tensor([[cos, sin], [-sin, cos]])
    head.key[:2, POSITION_DIMS] = torch.eye(2)


def _write(head: _Head, source: slice, target: slice, gain: float) -> None:
    # adds a multiple of some dimensions of the attended position; calls for different sources add up
    head.value[:DIM, source] += gain * torch.eye(DIM)
    head.output[target, :DIM] = torch.eye(DIM)


def _plant_refining(head: _Head, length: int) -> None:
    """Refinement: subtract the error of the stream's estimate, a difference of the last two terms."""
    _attend_by_lag(head, length, 0)
    _write(head, TERM_DIMS, OUTPUT_DIMS, -OVERSHOOT * STEP_SIZE)
    _write(head, PREVIOUS_DIMS, OUTPUT_DIMS, STEP_SIZE)


def _plant_similar_only(head: _Head, length: int) -> None:
    """Decoy of refinement: attend to similar terms and subtract them, without a relation to what the stream misses."""
    head.query[:DIM, TERM_DIMS] = 2.0 * (WIDTH // HEADS) ** 0.5 * torch.eye(DIM)
    head.key[:DIM, TERM_DIMS] = torch.eye(DIM)
    _write(head, TERM_DIMS, OUTPUT_DIMS, -STEP_SIZE)


def _plant_shrinking(head: _Head, length: int) -> None:
    """Decoy of refinement: subtract a fraction of the stream's estimate, and nothing else."""
    _attend_by_lag(head, length, 0)
    _write(head, TERM_DIMS, OUTPUT_DIMS, -STEP_SIZE)


def _plant_adding(head: _Head, length: int) -> None:
    """Decoy of refinement: copy the previous term, which the stream misses, without opposing its estimate."""
    _attend_by_lag(head, length, 1)
    _write(head, TERM_DIMS, OUTPUT_DIMS, STEP_SIZE)


REFINEMENT_MECHANISMS: dict[str, Callable[[_Head, int], None]] = {
    "refining": _plant_refining,
    "similar, not refining": _plant_similar_only,
    "shrinking": _plant_shrinking,
    "adding": _plant_adding,
}
