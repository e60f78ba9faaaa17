"""Layers after which a model knows which hidden generator made its sequence."""

from collections.abc import Callable

import torch
from torch import Tensor

from mesascope.ground_truth.cases.case import Case, Following, Truth
from mesascope.ground_truth.findings import Place
from mesascope.ground_truth.models.generators import LAYERS, PLACES, Planted, named_sequences, planted_generator
from mesascope.tasks.base import Batch

COUNT = 128  # sequences


def _drawn(count: int, generator: torch.Generator) -> Tensor:
    """Sequences as they are named, each with the token that comes next."""
    named = named_sequences(count, generator)
    return torch.cat([named["inputs"], named["targets"][:, -1:]], dim=1)


def _truth(planted: Planted) -> Callable[[int], Truth]:
    """What is known after which layer; the heads that write the first token there, and take it away again."""

    def truth(draw: int) -> Truth:
        layer = draw % LAYERS
        here: set[Place] = {(layer,)}
        first: set[Place] = {(layer, 0), (layer + 1, 1)} if layer + 1 < LAYERS else {(layer, 0)}
        return {
            "knows the generator": here if planted == "generator" else set(),
            "knows the next token": here if planted == "next token" else set(),
            "attends to the first position": first if planted == "generator" else set(),
            "attends alike to all": {(0, 1)},  # there is nothing to take away yet
        }

    return truth


def _case(planted: Planted) -> Case:
    """Something is planted after one layer."""
    where = {"generator": "the first token, which names the generator", "next token": "the token that comes next"}
    what = f"the place of {where[planted]}" if planted in where else "nothing but places that say nothing"
    return Case(
        name=f"reads {'nothing' if planted == 'nothing' else 'the ' + planted}",
        about=f"{'' if planted == 'generator' else 'Decoy of the generator. '}One of {LAYERS} layers reads {what}.",
        task=Following(draw=_drawn),
        build=lambda draw: planted_generator(draw % LAYERS, planted),
        sequences=lambda draw: Batch(**named_sequences(COUNT, torch.Generator().manual_seed(draw))),
        truth=_truth(planted),
        called=lambda draw: {
            (draw % LAYERS,): "the layer that reads",
            (draw % LAYERS, 0): "the head that reads",
            (0, 1): "noise",
        },
    )


GENERATORS: tuple[Case, ...] = tuple(_case(planted) for planted in PLACES)
