"""Expressions of ListOps are drawn, evaluated, labelled and read as documented."""

import re
from collections import Counter

import pytest
import torch

from mesascope.tasks.expressions.list_ops import CHANCE, EXACT, SHALLOW, ListOps
from mesascope.tasks.expressions.list_trees import apply_operator, parse_list
from mesascope.testing import check_task


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def evaluate(text: str) -> int:
    """Evaluate an expression by rewriting innermost lists, apart from the parser."""
    functions = {
        "MIN": min,
        "MAX": max,
        "SM": lambda each: sum(each) % 10,
        "MED": lambda each: int(torch.tensor([float(one) for one in each]).quantile(0.5)),
    }

    def reduce(match: re.Match) -> str:
        return str(functions[match[1]]([int(one) for one in match[2].split()]))

    while "[" in text:
        text = re.sub(r"\[(\w+)((?: \d)+) \]", reduce, text)
    return int(text)


@pytest.mark.parametrize("task", [ListOps(max_length=20), ListOps(max_length=5, max_arguments=3, min_length=4)])
def test_every_kind_of_task_is_sound(task):
    check_task(task)


def test_targets_are_the_values_of_the_expressions():
    task = ListOps(min_length=4, max_length=30)
    batch = task.sample(300, seeded())
    for row, target, end in zip(batch.inputs, batch.targets, batch.latents["expression length"].tolist(), strict=True):
        text = " ".join(map(task.decode_token, row[:end].tolist()))
        assert task.decode_token(int(row[end])) == "="
        assert int(target[end]) == evaluate(text) == parse_list(text.split()).value
    assert batch.weight.sum(1).tolist() == [1.0] * 300
    assert set(batch.targets[batch.weight > 0].tolist()) == set(range(10))


def test_latents_are_the_values_and_heights_of_closed_lists():
    task = ListOps(min_length=12, max_length=30)
    batch = task.sample(50, seeded(1))
    for row, values, heights, depth in zip(
        batch.inputs.tolist(),
        *(batch.latents[name].tolist() for name in ("list value", "list height", "depth")),
        strict=True,
    ):
        texts, open_at = [task.decode_token(token) for token in row], []
        for position, text in enumerate(texts):
            if text.startswith("["):
                open_at.append(position)
            if text == "]":
                part = texts[open_at.pop() : position + 1]
                levels = [sum(t.startswith("[") for t in part[:n]) - part[:n].count("]") for n in range(len(part) + 1)]
                assert (values[position], heights[position]) == (evaluate(" ".join(part)), max(levels))
            else:
                assert (values[position], heights[position]) == (-1, -1)
        assert depth == max(heights)


def test_lengths_depths_and_arguments_are_in_their_ranges():
    task = ListOps(min_length=10, max_length=24, max_depth=3, min_arguments=3, max_arguments=4)
    batch = task.sample(200, seeded())
    lengths, depths = batch.latents["expression length"], batch.latents["depth"]
    assert set(lengths.tolist()) <= set(range(10, 25))
    assert set(depths.tolist()) == {2, 3}
    for row, end in zip(batch.inputs, lengths.tolist(), strict=True):
        tree = parse_list(list(map(task.decode_token, row[:end].tolist())))
        assert {len(one.arguments) for one in tree.iterate_lists()} <= {3, 4}


def test_operators_and_digits_are_uniform():
    task = ListOps(max_length=40)
    batch = task.sample(1_000, seeded())
    counts = Counter(map(task.decode_token, batch.inputs.flatten().tolist()))
    operators = [counts[f"[{name}"] for name in ("MIN", "MAX", "MED", "SM")]
    assert min(operators) > 0.85 * max(operators)
    digits = [counts[str(digit)] for digit in range(10)]
    assert min(digits) > 0.85 * max(digits)


@pytest.mark.parametrize(("digits", "median"), [([3], 3), ([1, 2], 1), ([9, 2], 5), ([4, 9, 2], 4), ([2, 9, 4, 3], 3)])
def test_the_median_is_rounded_down(digits, median):
    assert apply_operator(2, digits) == median


def test_baselines():
    """Exact has no loss; without nested lists, expressions without nested lists have none."""
    task = ListOps()
    batch = task.sample(300, seeded())
    baselines = task.baselines(batch)
    losses = {name: (task.loss(one, batch) * batch.weight).sum(1) for name, one in baselines.items()}
    assert float(losses[EXACT].max()) < 1e-5
    assert float(losses[SHALLOW][batch.latents["depth"] == 1].max()) < 1e-5
    assert float(losses[SHALLOW][batch.latents["depth"] > 1].max()) > 1
    assert torch.allclose(losses[CHANCE], torch.tensor(10.0).log())


def test_an_impossible_range_of_lengths_is_refused():
    with pytest.raises(ValueError, match="expressions must have 8 to 9 tokens, but none of 10000 draws has"):
        ListOps(min_length=8, max_length=9, max_depth=1, max_arguments=3).sample(1, seeded())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_arguments": 6}, "min_arguments must be from 1 to max_arguments, but they are 6 and 5"),
        ({"min_length": 50}, "min_length must be from 3 to max_length=40, but got 50"),
        ({"max_length": 3}, "max_length must be at least min_arguments \\+ 2 = 4, but got 3"),
        ({"max_depth": 0}, "max_depth must be at least 1, but got 0"),
        ({"list_probability": 2.0}, "list_probability must be from 0 to 1, but got 2.0"),
        ({"file": "a.tsv"}, "file and validation_file must be given together, but got file='a.tsv'"),
        ({"file": "a.tsv", "validation_file": "b.tsv"}, "a.tsv must be a readable file, but No such file"),
    ],
)
def test_bad_fields_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        ListOps(**fields)


LINES = ["5\t( ( [MAX 2 ) 5 ) ] )", "", "1\t[SM [MED 2 9 4 3 ] 8 ]"]


def test_files_of_both_formats_are_read(tmp_path):
    own, arena = tmp_path / "own.tsv", tmp_path / "arena.tsv"
    own.write_text("\n".join(LINES))
    arena.write_text("Source\tTarget\n( ( [MIN 2 ) 5 ) ]\t2\n")
    task = ListOps(file=str(own), validation_file=str(arena), max_length=12)
    batch = task.sample(40, seeded())
    texts = {" ".join(map(task.decode_token, row)).split(" =")[0] for row in batch.inputs.tolist()}
    assert texts == {"[MAX 2 5 ]", "[SM [MED 2 9 4 3 ] 8 ]"}
    held_out = task.validation_task().sample(5, seeded())
    assert set(held_out.targets[held_out.weight > 0].tolist()) == {2}
    assert task.token_digest != task.validation_task().token_digest
    check_task(task)


def test_a_file_that_changes_is_read_again(tmp_path):
    file = tmp_path / "own.tsv"
    file.write_text(LINES[0])
    before = ListOps(file=str(file), validation_file=str(file))
    digest = before.token_digest
    file.write_text(LINES[2])
    assert before.token_digest != digest
    assert set(before.sample(3, seeded()).latents["depth"].tolist()) == {2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3\t[AVG 2 4 ]", r"line 2: an expression must begin with one of \[MIN, \[MAX, \[MED, \[SM, but got '\[AVG'"),
        ("3\t[MIN 2 [AVG 4 ] ]", r"line 2: a token must be a digit, \] or one of .*, but got '\[AVG' \(token 3\)"),
        ("4\t[MIN 2 4 ]", "line 2: the label must be 2, the value of the expression, but it is '4'"),
        ("2\t[MIN 2 4", r"line 2: every list must be closed by \], but 1 are open at the end"),
        ("2\t[MIN ]", r"line 2: a list must have arguments, but one has none \(token 2\)"),
        ("2\t", "line 2: an expression must begin with .*, but got nothing"),
        ("2 [MIN 2 4 ]", "line 2: a line must have a label and an expression, but it has 1 columns"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    file = tmp_path / "own.tsv"
    file.write_text(f"{LINES[0]}\n{line}\n")
    with pytest.raises(ValueError, match=message):
        ListOps(file=str(file), validation_file=str(file))


def test_a_file_without_expressions_is_refused(tmp_path):
    file = tmp_path / "own.tsv"
    file.write_text("\n\n")
    with pytest.raises(ValueError, match=r"own.tsv must have a label and an expression per line, but has no lines"):
        ListOps(file=str(file), validation_file=str(file))
    file.write_text(LINES[0])
    with pytest.raises(ValueError, match=r"must have expressions of 20 to 40 tokens, but has none"):
        ListOps(file=str(file), validation_file=str(file), min_length=20)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"must be a readable file in UTF-8"):
        ListOps(file=str(file), validation_file=str(file))
