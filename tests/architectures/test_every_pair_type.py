"""Capture on sequence-to-sequence model types of transformers, and the table of them in the documentation."""

import pytest

from .pair_sweep import KINDS, outcome_of_pair, sweep_pairs
from .pair_table import HEADING, PAGE, pair_section

LEAST = 13  # of the types that can be built tiny and random


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_types_are_captured_and_none_is_wrong():
    outcomes = sweep_pairs()
    assert {outcome.kind: outcome.wrong for outcome in outcomes if outcome.wrong} == {}
    assert sum(outcome.word == "captured" for outcome in outcomes) >= LEAST
    assert all(outcome.why for outcome in outcomes if outcome.word != "captured")
    assert HEADING + PAGE.read_text(encoding="utf-8").split(HEADING)[1] == pair_section(outcomes)
    assert len(outcomes) == len(KINDS)


@pytest.mark.parametrize(
    ("kind", "word", "refused"),
    [("mt5", "captured", set()), ("plbart", "captured", {"left"}), ("fsmt", "refused", set())],
)
def test_what_the_sweep_says_of_some(kind, word, refused):
    outcome = outcome_of_pair(kind)
    assert (outcome.word, outcome.wrong) == (word, [])
    assert {side for sides in outcome.padding for side in sides.split(", ")} - {"right"} == refused
