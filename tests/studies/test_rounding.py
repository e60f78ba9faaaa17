"""The comparison of verdicts of two runs."""

import pytest

from .rounding import THREADS, compare_statuses, use_threads


def test_changes_and_opposites_are_told_apart():
    first = {("", "a"): "supported", ("", "b"): "no effect", ("x=1", "a"): "inconclusive", ("", "check"): "holds"}
    second = {("", "a"): "contradicted", ("", "b"): "no effect", ("x=1", "a"): "supported", ("", "check"): "fails"}
    changed, opposite = compare_statuses(first, second)
    assert changed == ["a: supported -> contradicted", "a (x=1): inconclusive -> supported", "check: holds -> fails"]
    assert opposite == ["a: supported -> contradicted", "check: holds -> fails"]


def test_runs_with_other_claims_are_refused():
    with pytest.raises(ValueError, match="the same claims"):
        compare_statuses({("", "a"): "supported"}, {("", "b"): "supported"})


def test_all_conditions_and_scales_use_the_other_number_of_threads():
    study = use_threads("affine")
    threads = {config.training.threads for one in study.conditions for config in one.scales.values()}
    assert threads == {THREADS}
