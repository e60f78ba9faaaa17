"""Cases in which one layer encodes the hidden generator of a sequence."""

from collections.abc import Callable

import torch
from torch import Tensor

from mesascope.ground_truth.cases.case import GroundTruthCase, NextTokenTask, TrueLocations
from mesascope.ground_truth.detections import Location
from mesascope.ground_truth.models.generators import (
    LAYERS,
    READ_POSITIONS,
    PlantedLatent,
    build_generator_model,
    sample_labelled_sequences,
)
from mesascope.tasks.base import Batch

NUM_SEQUENCES = 128  # sequences


def _draw_sequences(count: int, generator: torch.Generator) -> Tensor:
    batch = sample_labelled_sequences(count, generator)
    return torch.cat([batch["inputs"], batch["targets"][:, -1:]], dim=1)


def _make_true_locations(latent: PlantedLatent) -> Callable[[int], TrueLocations]:
    def locate_mechanisms(draw: int) -> TrueLocations:
        layer = draw % LAYERS
        planted_layer: set[Location] = {(layer,)}
        # the head that writes the first token, and the head of the next layer that subtracts it again
        first_token_heads: set[Location] = {(layer, 0), (layer + 1, 1)} if layer + 1 < LAYERS else {(layer, 0)}
        return {
            "encodes the generator": planted_layer if latent == "generator" else set(),
            "encodes the next token": planted_layer if latent == "next token" else set(),
            "attends to the first position": first_token_heads if latent == "generator" else set(),
            "attends uniformly": {(0, 1)},  # before the first layer there is nothing to subtract
        }

    return locate_mechanisms


def _make_case(latent: PlantedLatent) -> GroundTruthCase:
    attended = {
        "generator": "the first token, which identifies the generator",
        "next token": "the token that comes next",
        "nothing": "an uninformative token",
    }
    return GroundTruthCase(
        name=f"reads {'nothing' if latent == 'nothing' else 'the ' + latent}",
        description=f"{'' if latent == 'generator' else 'Decoy of the generator. '}"
        f"One of {LAYERS} layers attends to {attended[latent]}.",
        task=NextTokenTask(draw_sequences=_draw_sequences),
        build_model=lambda draw: build_generator_model(draw % LAYERS, latent),
        sample_batch=lambda draw: Batch(
            **sample_labelled_sequences(NUM_SEQUENCES, torch.Generator().manual_seed(draw))
        ),
        true_locations=_make_true_locations(latent),
        components=lambda draw: {
            (draw % LAYERS,): "the planted layer",
            (draw % LAYERS, 0): "the planted head",
            (0, 1): "noise",
        },
    )


GENERATOR_CASES: tuple[GroundTruthCase, ...] = tuple(_make_case(planted) for planted in READ_POSITIONS)
