"""Hidden units of planted MLPs: functions that set the weights of the MLP of one layer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mesascope.ground_truth.models._token_heads import LOGIT_DIMS, TOKEN_DIMS, VOCABULARY

MLP_UNITS = 2 * VOCABULARY  # hidden units of an MLP: those of a circuit, and decoys
CIRCUIT_UNITS, DECOY_UNITS = slice(0, VOCABULARY), slice(VOCABULARY, MLP_UNITS)
TOKEN_SHIFT = 7  # the MLP that maps tokens maps a token to the one this far after it
SUPPRESSION_THRESHOLD = 1.25  # a unit is active above it: one condition has 1, both have 2


@dataclass(frozen=True, kw_only=True, eq=False)
class MlpWeights:
    """The weights of one MLP as views (unit, d_model) that can be edited in place, and the biases of its units."""

    up: Tensor
    bias: Tensor
    down: Tensor
    generator: torch.Generator


def map_tokens(source: slice, target: slice) -> Callable[[MlpWeights], None]:
    """Build a setter of a map from each token to another one, with one hidden unit for each.

    Args:
        source: residual dimensions that are read.
        target: residual dimensions that are written.

    Returns:
        The setter.
    """

    def set_units(mlp: MlpWeights) -> None:
        mlp.up[CIRCUIT_UNITS, source] = torch.eye(VOCABULARY)
        mlp.down[CIRCUIT_UNITS, target] = torch.eye(VOCABULARY).roll(TOKEN_SHIFT, 1)

    return set_units


def detect_both(first: int, second: int, token: int, gain: float) -> Callable[[MlpWeights], None]:
    """Build a setter of a unit that raises the logit of a token where two residual dimensions are 1, their AND.

    Args:
        first: a residual dimension that is 0 or 1.
        second: another one.
        token: the token.
        gain: logits that are added.

    Returns:
        The setter.
    """

    def set_units(mlp: MlpWeights) -> None:
        mlp.up[0, [first, second]], mlp.bias[0] = 1.0, -1.0
        mlp.down[0, LOGIT_DIMS.start + token] = gain

    return set_units


def suppress_token(mark: int, gain: float) -> Callable[[MlpWeights], None]:
    """Build a setter of units that take a token's logit away where a residual dimension is 1.

    Args:
        mark: a residual dimension that is 0 or 1.
        gain: the logit of the token before.

    Returns:
        The setter.
    """

    def set_units(mlp: MlpWeights) -> None:
        mlp.up[CIRCUIT_UNITS, LOGIT_DIMS] = torch.eye(VOCABULARY) / gain
        mlp.up[CIRCUIT_UNITS, mark], mlp.bias[CIRCUIT_UNITS] = 1.0, -SUPPRESSION_THRESHOLD
        mlp.down[CIRCUIT_UNITS, LOGIT_DIMS] = -gain / (2 - SUPPRESSION_THRESHOLD) * torch.eye(VOCABULARY)

    return set_units


def add_decoy_units(mlp: MlpWeights, unused: slice) -> None:
    """Set random units that read tokens and what decoys write, and write what nothing but decoys reads.

    Args:
        mlp: the weights, edited in place.
        unused: residual dimensions that nothing but decoys reads.
    """
    shape = (VOCABULARY, VOCABULARY)
    for dims in (TOKEN_DIMS, unused):
        mlp.up[DECOY_UNITS, dims] = torch.randn(shape, generator=mlp.generator) / VOCABULARY**0.5
    mlp.down[DECOY_UNITS, unused] = torch.randn(shape, generator=mlp.generator) / VOCABULARY**0.5
