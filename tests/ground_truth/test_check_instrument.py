"""The bench of planted models: what it says of our instruments, and of bad ones."""

import re

import pytest
import torch
import xarray as xr
from transformers import PreTrainedModel

from mesascope.activations import UnsupportedModel
from mesascope.analyses import copying, position, roles, similarity
from mesascope.analyses.instrument import instrument
from mesascope.ground_truth.cases.vectors import VECTORS
from mesascope.testing import BENCH, READINGS, check_instrument, heads_where

from .table import DRAWS, END, PAGE, START, WORSE, kept, main, mistakes, results, row

CASES = tuple(kept(case) for case in BENCH)
SOME = (
    "unlike",
    "like, subtracted",
    "far back",
    "uniform",
    "constant",
    "language model",
    "one step",
    "through a softmax",
)
SOME = (*SOME, "an algorithm on half of the prompts", "reads the generator", "reads the next token")
FEW = tuple(case for case in CASES if case.name in SOME)
TWICE = ("copying", "position", "roles", "token_copying")  # the quick ones, with two draws
TEXT = PAGE.read_text(encoding="utf-8")
HEADS = [(0, head) for head in range(4)]


def kinds(lines: list[str]) -> set[str]:
    """Lines without the numbers of draws, and without the example."""
    return {re.split(r", \d+ of \d+ draws", line)[0] for line in lines}


@pytest.mark.parametrize("name", READINGS)
def test_the_page_says_what_a_small_run_says(name):
    found = results({name: READINGS[name]}, 2 if name in TWICE else 1, FEW)[name]
    for label in found.labels:
        here = row(name, found, label).split(" | ")
        (told,) = re.findall(rf"^\| {re.escape(name)} \| {re.escape(label)} \| .*$", TEXT, flags=re.M)
        for column in (6, 7):  # recall and precision
            assert told.split(" | ")[column] != "1.00" or here[column] in ("1.00", "-")
        applied, refused = (int(cell.strip(" |")) for cell in told.split(" | ")[-2:])
        assert applied + refused == len(BENCH)
    mistakes_told = re.findall(rf"^- {re.escape(name)}: (.*)$", TEXT, flags=re.M)
    assert kinds(found.lines()) <= kinds(mistakes_told)
    lines = re.findall(rf"^- {re.escape(name)}, \d+ cases: .*: \*(.*)\*\.$", TEXT, flags=re.M)
    assert set(found.refused) == set(SOME) & {case for cases in lines for case in cases.split("; ")}


def test_the_page_is_of_this_bench_and_these_instruments():
    results_told = TEXT.split(START)[1].split(END)[0]
    assert f"{DRAWS} draws of every case" in results_told
    for case in BENCH:
        assert f"| {case.name} | {case.about} |" in results_told
    told = set(re.findall(r"^\| ([\w ,]+) \| [\w ,]+ \| \d+ \|", results_told, flags=re.M))
    assert told == set(READINGS) | set(WORSE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_is_what_twenty_draws_say():
    assert main() == TEXT


def test_a_criterion_that_takes_place_for_similarity_is_found_out():
    worse = WORSE["similarity, over keys"]
    found = check_instrument(worse.instrument, worse.found, 1, VECTORS[2:7])
    assert found.precision < 0.5
    assert ("far back", "the head 'far back'") in {(mark.case, mark.called) for mark in found.imagined}
    assert "imagined 'prefers the unlike' of the head 'far back' in 'far back'" in str(found)
    with pytest.raises(
        AssertionError, match=r"similarity must find all that is planted and nothing else, but .*far back"
    ):
        found.must_hold()


def test_what_claims_every_head_misses_nothing_and_is_precise_in_one_of_many():
    found = check_instrument(copying, lambda data: {"adds what it attends to": HEADS}, 1, VECTORS)
    assert found.recall == 1
    assert found.precision == pytest.approx(8 / (4 * len(VECTORS)))
    assert {(mark.case, mark.called) for mark in found.imagined} >= {
        ("constant", "the head 'constant'"),
        ("unlike", "noise"),
    }


def test_what_claims_nothing_misses_all():
    found = check_instrument(copying, lambda data: {"adds what it attends to": []}, 1, VECTORS)
    assert found.recall == 0
    assert found.precision != found.precision
    assert len(found.missed) == 8
    assert "adds what it attends to        8      0       8         0    0.00          -" in str(found)


def test_what_always_claims_the_same_head_is_found_out_since_heads_change_places():
    found = check_instrument(similarity, lambda data: {"prefers the unlike": [(0, 0)]}, 2, [VECTORS[2]])
    assert (found.recall, found.precision) == (0.5, 0.5)


def test_a_mechanism_that_is_planted_nowhere_does_not_hold():
    found = check_instrument(position, lambda data: {"telepathy": []}, 1, VECTORS[:2])
    with pytest.raises(AssertionError, match=r"'telepathy' must be planted in a case that position applies to"):
        found.must_hold()


def test_cases_that_are_refused_are_counted_and_named():
    found = check_instrument(roles, READINGS["roles"].found, 1, FEW)
    assert set(found.refused) == set(SOME) - {"language model"}
    assert "roles: 1 draws of 1 cases, 10 not applicable" in str(found)
    assert "not applicable to unlike, like, subtracted, far back, uniform, constant, one step" in str(found)
    nothing = check_instrument(roles, READINGS["roles"].found, 1, VECTORS[:2])
    with pytest.raises(
        AssertionError, match=r"roles must apply to a case of the bench, but all were refused: roles needs"
    ):
        nothing.must_hold()


def test_an_instrument_may_be_any_function_of_model_and_batch():
    def weights(model: PreTrainedModel, batch) -> xr.Dataset:
        if getattr(model.config, "d_in", None) != 1:
            raise UnsupportedModel("no planted numbers")
        output = model.get_parameter("layers.0.attention.o_proj.weight")[4].unflatten(0, (4, 8)).abs().amax(1)
        return xr.Dataset({"writes": (("layer", "head"), output[None].detach().numpy())})

    found = check_instrument(weights, lambda data: {"adds what it attends to": heads_where(data["writes"] > 0.3)}, 1)
    assert found.instrument == "weights"
    assert {mark.case for mark in found.imagined} == {"like, subtracted", "constant", "position written"}
    assert not found.missed
    assert len(found.cases) == len(VECTORS)


def test_an_instrument_may_be_a_sweep():
    seen = []

    @instrument(title="Nothing")
    def nothing(model, task, batch) -> xr.Dataset:
        """Nothing."""
        seen.append(type(task).__name__)
        return xr.Dataset({"x": ("layer", [0.0])})

    check_instrument(nothing, lambda data: {"averages": ()}, 1)
    assert len(seen) == len(BENCH)
    assert {"Following", "Regression"} == set(seen)


def test_a_case_is_refused_in_all_draws_or_in_none():
    calls = iter([True, False])

    def moody(model, batch) -> xr.Dataset:
        if next(calls):
            raise ValueError("not today")
        return xr.Dataset()

    with pytest.raises(ValueError, match=r"previous must be refused in all draws or in none, but: \{0: 'not today'\}"):
        check_instrument(moody, lambda data: {}, 2, VECTORS[:1])


def test_an_error_that_is_no_refusal_is_not_taken_for_one():
    def broken(model, batch) -> xr.Dataset:
        raise TypeError("a mistake")

    with pytest.raises(TypeError, match="a mistake"):
        check_instrument(broken, lambda data: {}, 1, VECTORS[:1])


@pytest.mark.parametrize("case", BENCH, ids=lambda case: case.name)
def test_draws_are_reproducible_and_differ(case):
    one, again, other = case.sequences(0), case.sequences(0), case.sequences(1)
    assert torch.equal(one.inputs, again.inputs)
    assert torch.equal(one.targets, again.targets)
    assert not torch.equal(one.inputs, other.inputs)
    model = case.build(0)
    assert case.task.loss(model(one.inputs).logits, one).shape == one.weight.shape
    for place in (place for at in case.truth(0).values() for place in at if isinstance(place, tuple)):
        sizes = (model.config.num_hidden_layers, model.config.num_attention_heads)
        assert all(index < size for index, size in zip(place, sizes, strict=False))


def test_every_mechanism_of_the_bench_is_spoken_of_by_an_instrument():
    planted = {label for case in BENCH for draw in (0, 1) for label, at in case.truth(draw).items() if at}
    told = set(re.findall(r"^\| [\w ,]+ \| ([\w ,]+) \| \d+ \|", TEXT, flags=re.M))
    assert planted == told


def test_a_table_without_mistakes_says_so():
    found = {"copying": check_instrument(copying, READINGS["copying"].found, 1, VECTORS)}
    assert mistakes(found) == "Nothing was missed or imagined."
