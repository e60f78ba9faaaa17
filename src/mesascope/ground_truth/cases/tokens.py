"""A language model with planted heads among decoys."""

import torch
from torch import Tensor

from mesascope.analyses.heads.repeated_tokens import ROLES, sample_repeated_tokens
from mesascope.ground_truth.cases.case import GroundTruthCase, NextTokenTask, TrueLocations, replace_targets
from mesascope.ground_truth.detections import Location
from mesascope.ground_truth.models.tokens import (
    BOS_TOKEN,
    HALF_LENGTH,
    TOKEN_DECOYS,
    TOKEN_MECHANISMS,
    VOCABULARY,
    build_planted_language_model,
    shuffle_heads,
)
from mesascope.tasks.base import Batch

NUM_REPEATED = 4  # sequences with repeated tokens, and as many without
HEADS_BY_NAME = dict(TOKEN_MECHANISMS) | {name: each for name, (_, each) in TOKEN_DECOYS.items()}
HEAD_NAMES = {
    each: name for name, each in reversed(HEADS_BY_NAME.items())
}  # of heads with equal weights, the first name
MECHANISM_HEADS = {
    "attends to the previous position": ("previous token",),
    "attends two positions back": ("two back", "two back, raises another token"),
    "attends to itself": ("copying",),
    # a head that avoids some tokens attends to the first position by default
    "attends to the first position": ("sink", "not two after"),
    "attends uniformly": ("uniform",),
    "affects the prediction": ("previous token", "induction"),
}


def _draw_sequences(count: int, generator: torch.Generator) -> Tensor:
    tokens = sample_repeated_tokens(torch.arange(1, VOCABULARY), HALF_LENGTH, count, generator, bos=BOS_TOKEN)
    return torch.cat([tokens, tokens[:, 1:2]], dim=1)


TASK = NextTokenTask(draw_sequences=_draw_sequences)


def _locate_mechanisms(draw: int) -> TrueLocations:
    heads = shuffle_heads(draw)
    by_role: dict[str, set[Location]] = {
        role: {location for location, each in heads.items() if role in each.expected_role.split(", ")} for role in ROLES
    }
    by_copy_sign: dict[str, set[Location]] = {
        label: {location for location, each in heads.items() if each.copy_sign == sign}
        for label, sign in (("copies tokens", 1), ("suppresses tokens", -1))
    }
    by_mechanism: dict[str, set[Location]] = {
        label: {location for location, each in heads.items() if HEAD_NAMES[each] in names}
        for label, names in MECHANISM_HEADS.items()
    }
    return by_role | by_copy_sign | by_mechanism


def _sample_batch(draw: int) -> Batch:
    generator = torch.Generator().manual_seed(draw)
    return replace_targets(
        build_planted_language_model(draw, shuffle_heads(draw)), TASK.sample(NUM_REPEATED, generator), generator
    )


TOKEN_CASES: tuple[GroundTruthCase, ...] = (
    GroundTruthCase(
        name="language model",
        description=(
            "An induction circuit, a duplicate-token head, an attention sink and a copying head among "
            f"{len(TOKEN_DECOYS)} decoys."
        ),
        task=TASK,
        build_model=lambda draw: build_planted_language_model(draw, shuffle_heads(draw)),
        sample_batch=_sample_batch,
        true_locations=_locate_mechanisms,
        components=lambda draw: {
            location: f"the head {HEAD_NAMES[each]!r}" for location, each in shuffle_heads(draw).items()
        },
    ),
)
