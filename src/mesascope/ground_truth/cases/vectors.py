"""Heads that read and write numbers: sequences that converge in even draws, independent terms in odd ones."""

import torch
from torch import Tensor

from mesascope.ground_truth.cases.case import Case, Following, Truth, answered
from mesascope.ground_truth.findings import Place
from mesascope.ground_truth.models.vectors import HEADS, MECHANISMS, planted
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch

LENGTH, COUNT = 12, 128  # positions; sequences
LOOKS = {
    "previous": "attends to the previous position",
    "two back": "attends two positions back",
    "copying": "attends to itself",
    "constant": "attends to itself",
    "position written": "attends to itself",
    "uniform": "attends alike to all",
    "stream alone": "attends alike to all",
}
LIKES = {
    "unlike": "prefers the unlike",
    "like, subtracted": "prefers the like",
    "like, added": "prefers the like",
}
BOTH = {"unlike": "unlike, added", "like, subtracted": "like, subtracted", "uniform": "averages"}
IDLE = ("constant", "position written", "stream alone")  # heads that write nothing that differs between sequences


def truth_of(name: str) -> list[str]:
    """The mechanisms that the planted head has."""
    labels = [table[name] for table in (LOOKS, LIKES, BOTH) if name in table]
    if name not in IDLE:
        labels.append("subtracts what it attends to" if name == "like, subtracted" else "adds what it attends to")
        labels.append("carries the prediction")
    return labels


def _drawn(count: int, generator: torch.Generator) -> Tensor:
    """Independent terms."""
    return torch.randn(count, LENGTH + 1, 1, generator=generator)


TASK = Following(draw=_drawn)


def _case(name: str) -> Case:
    """A planted head among three with small random weights."""

    def truth(draw: int) -> Truth:
        found: dict[str, set[Place]] = {label: {(0, draw % HEADS)} for label in truth_of(name)}
        noise: set[Place] = {(0, head) for head in range(HEADS) if head != draw % HEADS}
        return found | {"attends alike to all": found.get("attends alike to all", set()) | noise}

    def sequences(draw: int) -> Batch:
        generator = torch.Generator().manual_seed(draw)
        batch = (TASK if draw % 2 else Affine(length=LENGTH)).sample(COUNT, generator)
        return answered(planted(name, LENGTH, nuisance=0.0), batch, generator)

    return Case(
        name=name,
        about=" ".join((MECHANISMS[name].__doc__ or "").split()),
        task=TASK,
        build=lambda draw: planted(name, LENGTH, seed=draw, head=draw % HEADS),
        sequences=sequences,
        truth=truth,
        called=lambda draw: {
            (0, head): f"the head {name!r}" if head == draw % HEADS else "noise" for head in range(HEADS)
        },
    )


VECTORS: tuple[Case, ...] = tuple(_case(name) for name in MECHANISMS)
