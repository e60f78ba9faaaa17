"""Pairs of formulas are drawn, related, labelled and read as documented."""

import re
from itertools import product

import pytest
import torch

from mesascope.tasks.expressions.formulas import RELATIONS, VARIABLES, find_relation, parse_formula
from mesascope.tasks.expressions.logical_inference import (
    CHANCE,
    EXACT,
    INDEPENDENT,
    NO_NEGATIONS,
    LogicalInference,
)
from mesascope.testing import check_task


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def read_pairs(task: LogicalInference, n: int = 200) -> list[tuple[str, str, str]]:
    """Return the relation and both formulas of every sequence, as text."""
    batch = task.sample(n, seeded())
    pairs = []
    for row, target, weight in zip(batch.inputs.tolist(), batch.targets.tolist(), batch.weight.tolist(), strict=True):
        end = weight.index(1.0)
        left, right = " ".join(map(task.decode_token, row[:end])).split(" : ")
        assert sum(weight) == 1
        assert task.decode_token(row[end]) == "?"
        pairs.append((task.decode_token(target[end]), left, right))
    return pairs


def find_relation_by_python(left: str, right: str) -> str:
    """Find the relation by evaluating both formulas as Python under all assignments."""
    seen = set()
    for values in product([False, True], repeat=len(VARIABLES)):
        names = dict(zip(VARIABLES, values, strict=True))
        seen.add((eval(left, {}, names), eval(right, {}, names)))
    missing = {(True, True), (True, False), (False, True), (False, False)} - seen
    return {
        frozenset({(True, False), (False, True)}): "=",
        frozenset({(True, False)}): "<",
        frozenset({(False, True)}): ">",
        frozenset({(True, True), (False, False)}): "^",
        frozenset({(True, True)}): "|",
        frozenset({(False, False)}): "v",
        frozenset(): "#",
    }[frozenset(missing)]


@pytest.mark.parametrize("task", [LogicalInference(max_operators=3), LogicalInference(max_operators=0)])
def test_every_kind_of_task_is_sound(task):
    check_task(task)


def test_targets_are_the_relations_of_the_formulas():
    pairs = read_pairs(LogicalInference())
    for relation, left, right in pairs:
        assert relation == find_relation_by_python(left, right)
    assert {relation for relation, _, _ in pairs} == set(RELATIONS)


def test_operators_and_variables_are_in_their_ranges():
    task = LogicalInference(min_operators=2, max_operators=4, max_variables=3)
    batch = task.sample(200, seeded())
    assert set(batch.latents["operators"].tolist()) == {2, 3, 4}
    for (_, left, right), operators, depth in zip(
        read_pairs(task), batch.latents["operators"].tolist(), batch.latents["depth"].tolist(), strict=True
    ):
        counts = [len(re.findall("and|or|not", text)) for text in (left, right)]
        assert max(counts) == operators
        assert depth == max(parse_formula(text.split()).height for text in (left, right)) <= operators
        assert len(set(re.findall(r"\b[a-f]\b", left + right))) <= 3


def test_baselines():
    task = LogicalInference()
    batch = task.sample(400, seeded())
    scored = batch.weight > 0
    answers = batch.targets[scored]
    predictions = {name: one[scored] for name, one in task.baselines(batch).items()}
    assert predictions[EXACT].argmax(-1).equal(answers)
    right = predictions[NO_NEGATIONS].argmax(-1) == answers
    has_none = torch.tensor(["not" not in left + right for _, left, right in read_pairs(task, 400)])
    assert bool(right[has_none].all())
    assert 0 < float(right[~has_none].float().mean()) < 0.9
    assert bool((predictions[INDEPENDENT].argmax(-1) == list(RELATIONS).index("#")).all())
    assert torch.allclose(predictions[CHANCE][:, : len(RELATIONS)], torch.tensor(1 / 7).log())


@pytest.mark.parametrize("text", ["( a and ( b or c ) )", "( a ( and ( b ( or c ) ) ) )"])
def test_brackets_of_both_kinds_are_read(text):
    assert parse_formula(text.split()).to_texts() == "( a and ( b or c ) )".split()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a formula must have a variable or \\( after token 0, but got nothing"),
        ("g", "a formula must have a variable or \\( after token 0, but got 'g'"),
        ("( a xor b )", "a formula must have and or or after token 2, but got 'xor'"),
        ("( a and b", "a formula must have \\) after token 4, but got nothing"),
        ("( not a b )", "a formula must have \\) after token 3, but got 'b'"),
        ("a b", "a formula must end after token 1, but got 'b'"),
    ],
)
def test_a_broken_formula_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_formula(text.split())


def test_a_constant_formula_has_no_relation():
    with pytest.raises(ValueError, match="must be true and false somewhere, but the right one is always false"):
        find_relation(parse_formula(["a"]), parse_formula("( a and ( not a ) )".split()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_operators": 7}, "min_operators must be from 0 to max_operators=6, but got 7"),
        ({"max_variables": 7}, "max_variables must be from 1 to 6, but got 7"),
        ({"validation_file": "b.tsv"}, "file and validation_file must be given together"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        LogicalInference(**fields)


def test_a_file_is_read(tmp_path):
    file, other = tmp_path / "train.tsv", tmp_path / "test.tsv"
    file.write_text("<\t( a ( and b ) )\ta\n#\ta\tb\n")
    other.write_text("^\t( not c )\tc\n")
    task = LogicalInference(file=str(file), validation_file=str(other), max_operators=2)
    assert set(read_pairs(task, 30)) == {("<", "( a and b )", "a"), ("#", "a", "b")}
    assert set(read_pairs(task.validation_task(), 5)) == {("^", "( not c )", "c")}
    check_task(task)
    with pytest.raises(ValueError, match="must have pairs whose longer formula has 2 to 2 operators, but has none"):
        LogicalInference(file=str(file), validation_file=str(other), min_operators=2, max_operators=2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("<\ta", "line 2: a line must have a relation and two formulas, but it has 2 columns"),
        ("=\ta\tb", "line 2: the relation must be # \\(independence\\), that of the formulas, but it is '='"),
        ("=\ta\t( b iff a )", "line 2: a formula must have and or or after token 2, but got 'iff'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    file = tmp_path / "train.tsv"
    file.write_text(f"#\ta\tb\n{line}\n")
    with pytest.raises(ValueError, match=message):
        LogicalInference(file=str(file), validation_file=str(file))
