"""Heads of a language model, among many that look alike."""

import torch
from torch import Tensor

from mesascope.analyses.heads.repeated_tokens import ROLES, repeated_tokens
from mesascope.ground_truth.cases.case import Case, Following, Truth, answered
from mesascope.ground_truth.findings import Place
from mesascope.ground_truth.models.tokens import (
    BEGINNING,
    DECOYS,
    HALF,
    MECHANISMS,
    VOCABULARY,
    planted_tokens,
    shuffled,
)
from mesascope.tasks.base import Batch

COUNT = 4  # sequences that repeat, and as many that do not
EVERY = dict(MECHANISMS) | {name: each for name, (_, each) in DECOYS.items()}
NAMES = {each: name for name, each in reversed(EVERY.items())}  # of those that are set alike, the first name
ALWAYS = {
    "attends to the previous position": ("previous token",),
    "attends two positions back": ("two back", "two back, raises another"),
    "attends to itself": ("copying",),
    "attends to the first position": ("sink", "anywhere but two after"),  # what keeps off a place rests on the first
    "attends alike to all": ("uniform",),
    "carries the prediction": ("previous token", "induction"),
}


def _drawn(count: int, generator: torch.Generator) -> Tensor:
    """Sequences that repeat, and sequences that do not; each goes on with its first token."""
    tokens = repeated_tokens(torch.arange(1, VOCABULARY), HALF, count, generator, bos=BEGINNING)
    return torch.cat([tokens, tokens[:, 1:2]], dim=1)


TASK = Following(draw=_drawn)


def _truth(draw: int) -> Truth:
    """Which head does what."""
    heads = shuffled(draw)
    by_role: dict[str, set[Place]] = {
        role: {place for place, each in heads.items() if role in each.role.split(", ")} for role in ROLES
    }
    copies: dict[str, set[Place]] = {
        label: {place for place, each in heads.items() if each.copies == sign}
        for label, sign in (("copies tokens", 1), ("takes tokens away", -1))
    }
    always: dict[str, set[Place]] = {
        label: {place for place, each in heads.items() if NAMES[each] in names} for label, names in ALWAYS.items()
    }
    return by_role | copies | always


def _sequences(draw: int) -> Batch:
    """Sequences with the tokens that the model would say."""
    generator = torch.Generator().manual_seed(draw)
    return answered(planted_tokens(draw, shuffled(draw)), TASK.sample(COUNT, generator), generator)


TOKENS: tuple[Case, ...] = (
    Case(
        name="language model",
        about=f"An induction pair, a duplicate-token head, a sink and a copying head among {len(DECOYS)} decoys.",
        task=TASK,
        build=lambda draw: planted_tokens(draw, shuffled(draw)),
        sequences=_sequences,
        truth=_truth,
        called=lambda draw: {place: f"the head {NAMES[each]!r}" for place, each in shuffled(draw).items()},
    ),
)
