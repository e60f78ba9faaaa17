"""The command `mesascope circuit`: pair files, a search that can be stopped, and its report."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from transformers import GPT2LMHeadModel

from commands import call
from faults.small_study import STUDY
from mesascope import api
from mesascope.inspection import _find_circuit
from mesascope.report import write_report
from mesascope.store import Run
from pages import read_figure_data
from saved import save_tiny

WORDS = "the of and to is in".split()


def make_pair(number: int = 0, **changes: object) -> dict[str, object]:
    first, second, third = WORDS[number % 4 : number % 4 + 3]
    pair = {"clean": f"{first} {second} {first}", "counterfactual": f"{first} {third} {first}"}
    return {**pair, "answer": f" {second}", "wrong_answer": f" {third}", **changes}


def write_pairs(file: Path, *changed: object) -> Path:
    """Write eight pairs; the given ones replace the first lines."""
    lines = [make_pair(number) for number in range(8)]
    lines[: len(changed)] = changed
    file.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines) + "\n")
    return file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("saved"))


BROKEN = {
    "no JSON": ("{", r"line 1 of \S+ must be a JSON object, but cannot be read"),
    "list": ("[1]", r"line 1 of \S+ must have the keys clean, counterfactual, answer, wrong_answer, but got list"),
    "nested": ("[" * 100_000, r"line 1 of \S+ must be a JSON object"),
    "missing key": ({"clean": "a"}, r"line 1 of \S+ must have the keys .* but got clean;"),
    "number": (make_pair(answer=5), r"answer in line 1 of \S+ must be text that is not empty, but got 5"),
    "empty": (make_pair(clean=""), r"clean in line 1 of \S+ must be text that is not empty"),
    "lengths": (make_pair(clean="the of the the"), r"as many tokens, but those in line 1 of \S+ have 4 and 3"),
    "same prompts": (make_pair(clean="the and the"), r"prompts must differ, but those in line 1 of \S+ are the same"),
    "two tokens": (
        make_pair(answer=" of and"),
        r"answer must be one token after the clean prompt, but ' of and' in line 1",
    ),
    "no space": (
        make_pair(wrong_answer="of"),
        r"wrong_answer must be one token after the clean prompt, but 'of' in line 1",
    ),
    "same answers": (make_pair(answer=" and"), r"answer and wrong_answer must differ, but those in line 1"),
    "too long": (
        make_pair(clean="the " * 65, counterfactual="of " * 65),
        r"must fit into the model's context of 64 tokens, but those in line 1 of \S+ have 65",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_pair_file_ends_in_one_line_before_any_forward_pass(
    name: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a forward pass")

    monkeypatch.setattr(GPT2LMHeadModel, "forward", refuse)
    line, message = BROKEN[name]
    file = write_pairs(tmp_path / "pairs.jsonl", line)
    words = ["circuit", str(tiny), "--pairs", str(file), "--out", str(tmp_path / "run")]
    code, out, err = call(*words, capsys=capsys, monkeypatch=monkeypatch)
    assert (code, out) == (2, "")
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0]), lines[0]
    assert not (tmp_path / "run").exists()


def test_other_bad_input_ends_in_one_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    empty, few, binary = (tmp_path / name for name in ("empty.jsonl", "few.jsonl", "binary.jsonl"))
    empty.write_text("\n")
    few.write_text(json.dumps(make_pair()) + "\n")
    binary.write_bytes(b"\xff\xfe")
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    cases = {
        "needs 4 pairs or more, half to find it and half to test it, but .* has 0": ["--pairs", str(empty)],
        "needs 4 pairs or more, half to find it and half to test it, but .* has 1": ["--pairs", str(few)],
        "pairs must be UTF-8": ["--pairs", str(binary)],
        "pairs must be a readable file, but": ["--pairs", str(tmp_path / "none.jsonl")],
        "pairs must be given for a language model": [],
        "size must be at most": ["--pairs", str(pairs), "--size", "100000"],
        "size must be 1 or more": ["--pairs", str(pairs), "--size", "0"],
        "steps must be 0 or more": ["--pairs", str(pairs), "--steps", "-1"],
        "a dtype must be one of": ["--pairs", str(pairs), "--dtype", "int8"],
        "quantize must be int8, int4 or nf4": ["--pairs", str(pairs), "--quantize", "int3"],
        "ablation must be one of counterfactual, mean, resample, but got 'zero'": [
            *("--pairs", str(pairs)),
            *("--ablation", "zero"),
        ],
        "edges must be ranked by magnitude or signed, but got 'size'": ["--pairs", str(pairs), "--by", "size"],
    }
    for message, options in cases.items():
        words = ["circuit", str(tiny), *options, "--out", str(tmp_path / "run")]
        code, _, err = call(*words, capsys=capsys, monkeypatch=monkeypatch)
        (line,) = [one for one in err.strip().splitlines() if one.startswith("mesascope: ")]
        assert code == 2
        assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_a_search_that_was_stopped_resumes_to_the_same_results(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    monkeypatch.setattr(_find_circuit, "MAX_BYTES_PER_BATCH", 1)  # one pair at a time
    options = {"pairs": pairs, "size": 5, "steps": 2}
    whole = api.circuit(tiny, out=tmp_path / "whole", **options)
    calls: list[int] = []
    attribute = _find_circuit.attribute_in_runs

    def attribute_once(*args: object, **kwargs: object) -> xr.Dataset:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return attribute(*args, **kwargs)

    monkeypatch.setattr(_find_circuit, "attribute_in_runs", attribute_once)
    with pytest.raises(KeyboardInterrupt):
        api.circuit(tiny, out=tmp_path / "stopped", **options)
    api.circuit(tiny, out=tmp_path / "stopped", **options)
    assert len(calls) == 3 + 2  # two of four batches were saved
    api.circuit(tiny, out=tmp_path / "stopped", **options)
    assert len(calls) == 3 + 2
    stopped = Run.open(tmp_path / "stopped")
    assert stopped.result_names() == ["circuit", "circuit_faithfulness", "circuit_test", "edge_scores"]
    for name in whole.result_names():
        first, second = whole.read_results(name), stopped.read_results(name)
        xr.testing.assert_equal(first, second)
    scores = whole.read_results("edge_scores")
    assert scores.sizes["batch"] == 4
    np.testing.assert_allclose(scores["score"], scores["score_by_sequence"].astype(float).mean("batch"))


def write_prompts(file: Path, *changed: dict[str, object]) -> Path:
    """Write eight prompts without counterfactuals; the given ones replace the first lines."""
    lines = [make_pair(number) for number in range(8)]
    for number, line in enumerate(lines):
        del line["counterfactual"]
        if number < 4:  # half of them are longer
            line["clean"] = f"{WORDS[number]} {line['clean']}"
    lines[: len(changed)] = changed
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return file


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_references_take_the_place_of_counterfactuals(
    ablation: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    options = {"pairs": prompts, "size": 5, "steps": 1, "ablation": ablation}
    run = api.circuit(tiny, out=tmp_path / "run", **options)
    name = {"mean": "the mean of the references", "resample": "another reference"}[ablation]
    assert run.record["parameters"]["ablation"] == ablation
    assert f"by {name} on one edge" in run.read_results("circuit")["score"].attrs["description"]
    assert f"0: {name})" in run.read_results("circuit_test").attrs["description"]
    page = write_report(run.path).read_text(encoding="utf-8")
    assert f"--ablation {ablation}" in page
    assert f'"ablated_by": "{name}"' in page.replace('":"', '": "')
    monkeypatch.setattr(_find_circuit, "MAX_BYTES_PER_BATCH", 1)  # the references are those of the whole half
    parts = api.circuit(tiny, out=tmp_path / "parts", **options)
    first, second = (one.read_results("edge_scores")["score"] for one in (run, parts))
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-7)


@pytest.mark.slow
def test_batches_of_pairs_give_the_results_of_all_pairs_and_bound_the_memory(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    opened: list[int] = []
    open_runs = _find_circuit.CircuitRuns

    def count(**arguments: object) -> object:
        opened.append(len(arguments["inputs"]))
        return open_runs(**arguments)

    monkeypatch.setattr(_find_circuit, "CircuitRuns", count)
    options = {"pairs": write_pairs(tmp_path / "pairs.jsonl"), "size": 5, "steps": 1}
    whole = api.circuit(tiny, out=tmp_path / "whole", **options)
    assert opened == [4, 4, 4, 4]  # scores, effects, and both tests
    opened.clear()
    monkeypatch.setattr(_find_circuit, "MAX_BYTES_PER_BATCH", 1)
    parts = api.circuit(tiny, out=tmp_path / "parts", **options)
    assert opened == 16 * [1]
    for name in whole.result_names():
        first, second = whole.read_results(name), parts.read_results(name)
        # faithfulness is a ratio of small differences of logits
        atol = 1e-7 if name in ("circuit", "edge_scores") else 3e-4
        xr.testing.assert_allclose(first, second, rtol=1e-5, atol=atol)


def test_edges_are_ranked_by_sign_if_that_is_asked_for(tiny: Path, tmp_path: Path):
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    run = api.circuit(tiny, pairs=pairs, size=5, steps=1, by="signed", out=tmp_path / "run")
    score = run.read_results("circuit")["score"]
    assert (np.diff(score.values) >= 0).all()
    assert float(score[0]) < 0
    assert "with the lowest scores" in run.read_results("circuit").attrs["description"]


def test_a_file_without_counterfactuals_needs_another_ablation(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    prompts, mixed = write_prompts(tmp_path / "prompts.jsonl"), write_prompts(tmp_path / "mixed.jsonl", make_pair())
    for message, options in {
        r"but got clean, answer, wrong_answer; write .* or ablate by mean or resample": ["--pairs", str(prompts)],
        r"counterfactual must be in all lines of \S+ or in none, but line 2 has none": [
            *("--pairs", str(mixed)),
            *("--ablation", "mean"),
        ],
    }.items():
        words = ["circuit", str(tiny), *options, "--out", str(tmp_path / "run")]
        code, _, err = call(*words, capsys=capsys, monkeypatch=monkeypatch)
        assert code == 2
        (line,) = err.strip().splitlines()
        assert re.search(message, line), line


def test_the_report_draws_every_edge_of_the_circuit(tiny: Path, tmp_path: Path):
    run = api.circuit(tiny, pairs=write_pairs(tmp_path / "pairs.jsonl"), size=6, steps=1, out=tmp_path / "run")
    page = write_report(run.path).read_text(encoding="utf-8")
    data = next(json.loads(text) for text in read_figure_data(page) if '"edges"' in text)
    edges = run.read_results("circuit")
    assert data["size"] == edges["score"].attrs["circuit_size"] == 6
    assert len(data["nodes"]) == 1 + 2 * 3 + 1  # embedding, two layers of two heads and an MLP, output
    assert [data["nodes"][index]["name"] for index in data["edges"]["sender"]] == edges["sender_name"].values.tolist()
    assert data["edges"]["effect"][6:] == [None] * (edges.sizes["rank"] - 6)
    assert None not in data["edges"]["effect"][:6]
    rows = {"embedding": 0, "output": 5, "MLP": 2}
    for name, (_, row) in zip(edges["receiver_name"].values, data["edges"]["receiver"], strict=True):
        layer = int(name[1]) if name.startswith("L") else 0
        assert row == 2 * layer + rows.get(name.split(".")[-1], 1), name
    assert "mesascope circuit" in page
    test = run.read_results("circuit_test")
    assert f"faithfulness of {float(test['faithfulness']):.3f}" in page


def test_a_run_gives_pairs_of_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    study = tmp_path / "small.py"
    study.write_text(STUDY)
    run = api.run(str(study), scale="smoke", seeds=1, out=tmp_path / "small", on="serial")
    options = ["--study", str(study), "--num-pairs", "8", "--size", "4", "--out", str(tmp_path / "circuit")]
    code, out, err = call("circuit", str(run.path), *options, capsys=capsys, monkeypatch=monkeypatch)
    assert code == 0, err
    assert "On pairs that were not used to find it, the circuit of 4 edges has a faithfulness of" in out
    for message, options in {
        "num_pairs must be 4 or more": ["--num-pairs", "3"],
        "the seed must be one of": ["--seed", "77"],
        "the condition must be one of '', 'text', but got 'none'": ["--condition", "none"],
        "the study must be": ["--study", "affine"],
        "which samples its own pairs": ["--pairs", "x.jsonl"],
    }.items():
        code, _, err = call(
            "circuit", str(run.path), "--study", str(study), *options, capsys=capsys, monkeypatch=monkeypatch
        )
        assert code == 2
        assert message in err
