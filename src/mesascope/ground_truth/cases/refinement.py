"""Cases of refinement by subtraction: converging sequences in even draws, independent terms in odd draws."""

from dataclasses import replace

import torch
from torch import Tensor

from mesascope.ground_truth.cases.case import (
    TARGET_NOISE,
    GroundTruthCase,
    NextTokenTask,
    TrueLocations,
    replace_targets,
)
from mesascope.ground_truth.detections import Location
from mesascope.ground_truth.models.refinement import (
    DIM,
    HEADS,
    REFINEMENT_MECHANISMS,
    STEP_SIZE,
    build_refinement_model,
)
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch

LENGTH, NUM_SEQUENCES = 12, 128  # positions; sequences
MECHANISMS = {  # of the head in layer 1
    "refining": ("refines the estimate", "attends to itself", "copies negated inputs"),
    "similar, not refining": ("attends to similar inputs", "subtracts similar inputs", "copies negated inputs"),
    "shrinking": ("attends to itself", "copies negated inputs"),
    "adding": ("attends to the previous position", "copies inputs"),
}
OPTIMAL = ("refining", "adding")  # the targets are the predictions of the model; otherwise a multiple of the last term


def _draw_sequences(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, LENGTH + 1, DIM, generator=generator)


TASK = NextTokenTask(draw_sequences=_draw_sequences)


def _make_case(name: str) -> GroundTruthCase:
    """Return the case of a planted head in layer 1 among heads with small random weights."""

    def sample_batch(draw: int) -> Batch:
        generator = torch.Generator().manual_seed(draw)
        batch = (TASK if draw % 2 else Affine(dim=DIM, length=LENGTH)).sample(NUM_SEQUENCES, generator)
        if name in OPTIMAL:
            return replace_targets(build_refinement_model(name, LENGTH, nuisance=0.0), batch, generator)
        # the stream misses nothing of the target that a model can know, but has another scale
        noise = TARGET_NOISE * torch.randn(batch.inputs.shape, generator=generator)
        return replace(batch, targets=(1 - STEP_SIZE) * batch.inputs + noise)

    return GroundTruthCase(
        name=name,
        description=" ".join((REFINEMENT_MECHANISMS[name].__doc__ or "").split()),
        task=TASK,
        build_model=lambda draw: build_refinement_model(name, LENGTH, seed=draw, head=draw % HEADS),
        sample_batch=sample_batch,
        true_locations=lambda draw: _locate_mechanisms(name, draw % HEADS),
        components=lambda draw: {
            (layer, head): f"the head {f'{name!r}' if layer else 'of layer 0'}" if head == draw % HEADS else "noise"
            for layer in range(2)
            for head in range(HEADS)
        },
    )


def _locate_mechanisms(name: str, head: int) -> TrueLocations:
    planted: dict[str, set[Location]] = {label: {(1, head)} for label in MECHANISMS[name]}
    previous: set[Location] = {(0, head)}
    planted["attends to the previous position"] = planted.get("attends to the previous position", set()) | previous
    # layer 0 matters where layer 1 reads what it writes
    planted["affects the prediction"] = {(1, head)} | (previous if name == "refining" else set())
    noise: set[Location] = {(layer, other) for layer in range(2) for other in range(HEADS) if other != head}
    return planted | {"attends uniformly": noise}


REFINEMENT_CASES: tuple[GroundTruthCase, ...] = tuple(_make_case(name) for name in MECHANISMS)
