"""Untrained models, in which no head has learned anything: decoys of every role of a head on vectors.

The attention score of a head with random weights is a bilinear form of query and key. For scalar terms it contains the
product of the two terms with a random factor, and the sign of this factor is the sign of the correlation of score and
similarity. A role that is reported here says nothing about a trained model with the same role.
"""

import torch

from mesascope.ground_truth.cases.case import GroundTruthCase
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder
from mesascope.tasks.affine import Affine

LENGTH, NUM_SEQUENCES, LAYERS, HEADS, WIDTH = 12, 128, 3, 4, 64  # positions; sequences; size of the models


def _build_untrained_model(dim: int, draw: int) -> Decoder:
    config = DecoderConfig(
        d_in=dim,
        d_out=dim,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        hidden_size=WIDTH,
        max_position_embeddings=LENGTH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw)
        return Decoder(config).eval()


def _make_case(dim: int) -> GroundTruthCase:
    terms = "scalar terms" if dim == 1 else f"terms of {dim} coordinates"
    task = Affine(dim=dim, length=LENGTH)
    return GroundTruthCase(
        name=f"untrained, {terms}",
        description=f"Decoy of all roles: random weights, affine recurrences with {terms}.",
        task=task,
        build_model=lambda draw: _build_untrained_model(dim, draw),
        sample_batch=lambda draw: task.sample(NUM_SEQUENCES, torch.Generator().manual_seed(draw)),
        true_locations=lambda draw: {},
        components=lambda draw: {(layer, head): "random weights" for layer in range(LAYERS) for head in range(HEADS)},
    )


UNTRAINED_CASES: tuple[GroundTruthCase, ...] = tuple(_make_case(dim) for dim in (1, 4))
