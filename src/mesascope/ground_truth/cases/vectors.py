"""Cases on sequences of numbers: converging sequences in even draws, independent terms in odd draws."""

import torch
from torch import Tensor

from mesascope.ground_truth.cases.case import GroundTruthCase, NextTokenTask, TrueLocations, replace_targets
from mesascope.ground_truth.detections import Location
from mesascope.ground_truth.models.vectors import HEADS, VECTOR_MECHANISMS, build_planted_model
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch

LENGTH, NUM_SEQUENCES = 12, 128  # positions; sequences
POSITION_MECHANISMS = {
    "previous": "attends to the previous position",
    "two back": "attends two positions back",
    "copying": "attends to itself",
    "constant": "attends to itself",
    "copies position": "attends to itself",
    "uniform": "attends uniformly",
    "residual only": "attends uniformly",
}
SIMILARITY_MECHANISMS = {
    "dissimilar, added": "attends to dissimilar inputs",
    "similar, subtracted": "attends to similar inputs",
    "similar, added": "attends to similar inputs",
}
COMBINED_MECHANISMS = {
    "dissimilar, added": "adds dissimilar inputs",
    "similar, subtracted": "subtracts similar inputs",
    "uniform": "averages inputs",
}
CONSTANT_OUTPUT = ("constant", "copies position", "residual only")  # their outputs are the same for every sequence


def list_mechanisms(name: str) -> list[str]:
    """Return the mechanisms of a planted head.

    Args:
        name: key of :data:`VECTOR_MECHANISMS`.

    Returns:
        The mechanism names.
    """
    mechanisms = [
        table[name] for table in (POSITION_MECHANISMS, SIMILARITY_MECHANISMS, COMBINED_MECHANISMS) if name in table
    ]
    if name not in CONSTANT_OUTPUT:
        mechanisms.append("copies negated inputs" if name == "similar, subtracted" else "copies inputs")
        mechanisms.append("affects the prediction")
    return mechanisms


def _draw_sequences(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, LENGTH + 1, 1, generator=generator)


TASK = NextTokenTask(draw_sequences=_draw_sequences)


def _make_case(name: str) -> GroundTruthCase:
    """Return the case of a planted head among three heads with small random weights."""

    def locate_mechanisms(draw: int) -> TrueLocations:
        planted_locations: dict[str, set[Location]] = {label: {(0, draw % HEADS)} for label in list_mechanisms(name)}
        noise: set[Location] = {(0, head) for head in range(HEADS) if head != draw % HEADS}
        return planted_locations | {"attends uniformly": planted_locations.get("attends uniformly", set()) | noise}

    def sample_batch(draw: int) -> Batch:
        generator = torch.Generator().manual_seed(draw)
        batch = (TASK if draw % 2 else Affine(length=LENGTH)).sample(NUM_SEQUENCES, generator)
        return replace_targets(build_planted_model(name, LENGTH, nuisance=0.0), batch, generator)

    return GroundTruthCase(
        name=name,
        description=" ".join((VECTOR_MECHANISMS[name].__doc__ or "").split()),
        task=TASK,
        build_model=lambda draw: build_planted_model(name, LENGTH, seed=draw, head=draw % HEADS),
        sample_batch=sample_batch,
        true_locations=locate_mechanisms,
        components=lambda draw: {
            (0, head): f"the head {name!r}" if head == draw % HEADS else "noise" for head in range(HEADS)
        },
    )


VECTOR_CASES: tuple[GroundTruthCase, ...] = tuple(_make_case(name) for name in VECTOR_MECHANISMS)
