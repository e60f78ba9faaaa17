"""Token ids or a task instead of a text: models without a tokenizer, plain modules, and output folders of a Trainer."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mesascope import api, wrap
from mesascope.inspection._checkpoints import resolve_checkpoints
from mesascope.tasks.affine import Affine
from mesascope.tasks.regression import Regression
from plain_modules import (
    HandMadeAttention,
    RegressionTransformer,
    SmallGPT,
    logits_of_gpt,
    predictions_of_regression,
)
from saved import save_tiny

IDS = torch.randint(1, 20, (4, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model without a tokenizer."""
    place = save_tiny(tmp_path)
    for file in place.glob("*token*"):
        file.unlink()
    return place


def save_ids(place: Path, name: str, ids: torch.Tensor = IDS) -> Path:
    file = place / name
    if file.suffix == ".npy":
        np.save(file, ids.numpy())
    else:
        save_file({"input_ids": ids.contiguous(), "other": torch.ones(2)}, file)
    return file


def test_the_same_ids_from_files_and_tensors_give_the_same_numbers(folder, tmp_path, command):
    runs = {"tensor": IDS, "npy": save_ids(tmp_path, "ids.npy"), "safetensors": save_ids(tmp_path, "ids.safetensors")}
    results = {
        name: api.inspect(str(folder), token_ids=ids, out=tmp_path / name, analyses=["norms"], quiet=True)
        for name, ids in runs.items()
    }
    for run in results.values():
        assert run.read_results("norms").equals(results["tensor"].read_results("norms"))
        assert run.read_results("text")["token"].values[0, 0].strip() == str(int(IDS[0, 0]))
    assert results["npy"].record["text"]["source"] == "ids.npy"
    words = ("inspect", folder, "--token-ids", runs["npy"], "--analyses", "norms", "--out", tmp_path / "command")
    code, _, err = command(*words)
    assert code == 0, err
    assert (tmp_path / "command" / "report.html").exists()


def test_one_long_sequence_is_split(folder, tmp_path):
    run = api.inspect(
        str(folder), token_ids=IDS.flatten(), tokens=16, sequences=3, out=tmp_path / "a", analyses=["norms"], quiet=True
    )
    assert (run.record["text"]["tokens"], run.record["text"]["sequences"]) == (48, 3)


def test_the_tokens_of_a_study_are_inspected(folder, tmp_path, command):
    code, _, err = command(
        "inspect",
        folder,
        "--study",
        "backward-chaining",
        "--tokens",
        "16",
        "--analyses",
        "norms",
        "--out",
        tmp_path / "run",
    )
    assert code == 0, err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["text"]["source"].startswith("sequences of the task")


def integers(*shape):
    return torch.randint(1, 20, shape)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("missing.npy", None, "token ids must be in a file, but .*missing.npy is none; check the path"),
        ("ids.txt", b"1 2 3", r"must be in a \.npy or \.safetensors file, but got .*ids\.txt; save integers"),
        ("broken.npy", b"not an array", r"must be in a readable file, but .*broken\.npy is not \("),
        ("broken.safetensors", b"x" * 20, r"must be in a readable file, but .*broken\.safetensors is not \("),
        ("floats.npy", np.ones((2, 12)), "token ids must be integers, but .*floats.npy has float64"),
        ("objects.npy", np.array([[1, None]], dtype=object), r"readable file, but .*objects\.npy is not \(.*"),
        ("cube.npy", np.ones((2, 3, 12), int), r"must be \(batch, pos\) or \(pos\) .* has shape \(2, 3, 12\)"),
        ("empty.npy", np.ones((0, 12), int), r"and not empty, but .* has shape \(0, 12\)"),
        ("short.npy", np.ones((2, 4), int), "must have 9 tokens or more, but those of short.npy have 4"),
        ("large.npy", np.full((2, 12), 10**6), r"token ids must be from 0 to \d+, .* has 1000000; use ids of"),
        ("negative.npy", np.full((2, 12), -1), r"token ids must be from 0 to \d+, .* has -1; use ids of"),
        ("long.npy", np.ones((2, 80), int), None),
    ],
)
def test_files_that_cannot_be_used_get_one_line_and_code_2(folder, tmp_path, command, name, content, line):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    words = ("inspect", folder, "--token-ids", file, "--analyses", "norms", "--out", tmp_path / "run")
    if line is None:  # longer rows than the context of 64 are cut
        assert command(*words)[0] == 0
        code, _, err = command(*words[:-1], tmp_path / "b", "--tokens", "80")
        assert (code, "must fit into the context" in err) == (2, True)
        return
    code, _, err = command(*words)
    assert code == 2
    assert re.search(line, err.strip().splitlines()[-1]), err
    assert not (tmp_path / "run").exists()


def test_a_file_of_several_tensors_must_name_its_ids(folder, tmp_path):
    file = tmp_path / "two.safetensors"
    save_file({"a": IDS, "b": IDS.clone()}, file)
    with pytest.raises(ValueError, match=r"must name that of the token ids input_ids, but .* has only a, b"):
        api.inspect(str(folder), token_ids=file, out=tmp_path / "no")


def test_a_text_and_token_ids_exclude_each_other(folder, tmp_path):
    with pytest.raises(ValueError, match="must be a text, token_ids or a task, but got a text and token_ids; give one"):
        api.inspect(str(folder), text=tmp_path / "x.txt", token_ids=IDS, out=tmp_path / "no")
    with pytest.raises(ValueError, match="or give token_ids"):
        api.inspect(str(folder), out=tmp_path / "no")
    with pytest.raises(ValueError, match="needs a task of tokens, but the inputs of Affine are vectors"):
        api.inspect(str(folder), task=Affine(), out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def save_training(place: Path, steps=(500, 1000, 20)) -> Path:
    """The output folder of a Trainer."""
    for step in steps:
        save_tiny(place / "made", step).rename(place / f"checkpoint-{step}")
    (place / "made").rmdir()
    (place / "checkpoint-notes").mkdir()
    return place


def test_the_checkpoints_of_a_trainer_are_steps(tmp_path):
    place = save_training(tmp_path / "output")
    assert [checkpoint.step for checkpoint in resolve_checkpoints(str(place), None)] == [20, 500, 1000]
    run = api.inspect(str(place), token_ids=IDS, out=tmp_path / "run", analyses=["norms"], quiet=True)
    assert run.read_results("norms")["step"].values.tolist() == [20, 500, 1000]
    (alone,) = resolve_checkpoints(str(place / "checkpoint-20"), None)
    assert (alone.step, alone.label) == (0, "")


def test_a_final_model_beside_its_checkpoints_is_inspected_unless_all_are_asked_for(tmp_path):
    place = save_training(tmp_path / "output", (1, 2))
    shutil.copy(place / "checkpoint-2" / "config.json", place)
    assert [checkpoint.label for checkpoint in resolve_checkpoints(str(place), None)] == [""]
    assert [checkpoint.step for checkpoint in resolve_checkpoints(str(place), ["all"])] == [1, 2]
    with pytest.raises(ValueError, match="the steps 'all' need a folder with subfolders checkpoint-N"):
        resolve_checkpoints(str(place / "checkpoint-1"), ["all"])


def test_a_wrapped_module_is_inspected_with_its_controls(tmp_path):
    torch.manual_seed(0)
    model = wrap(SmallGPT(), forward=logits_of_gpt, untrained=lambda seed: SmallGPT(), context_length=64)
    run = api.inspect(
        model, token_ids=IDS, out=tmp_path / "run", analyses=["norms", "repeated_token_heads"], quiet=True
    )
    assert run.read_json("model")["class"] == "SmallGPT"
    assert run.read_json("model")["skipped"] == {}
    assert "mean_null_random_weights" in run.read_results("norms")
    assert run.read_results("repeated_token_heads").sizes["head"] == 4


def test_what_a_wrapped_module_lacks_is_skipped_by_name(tmp_path):
    module = SmallGPT(HandMadeAttention)
    model = wrap(module, forward=logits_of_gpt, layers=module.transformer["h"])
    run = api.inspect(
        model, token_ids=IDS, out=tmp_path / "run", analyses=["norms", "positional_attention"], quiet=True
    )
    skipped = run.read_json("model")["skipped"]
    assert run.result_names() == ["norms", "text"]
    assert "pattern must exist in every requested layer" in skipped["positional_attention"]
    assert "pass untrained= to wrap" in skipped["norms, random weights 0"]


def test_other_untrained_modules_are_refused():
    model = wrap(SmallGPT(), untrained=lambda seed: SmallGPT(width=32))
    with pytest.raises(ValueError, match="must return a SmallGPT with weights of the same names and shapes"):
        model.build_untrained(0)


def test_a_model_of_vectors_is_refused_by_inspect(tmp_path):
    model = wrap(RegressionTransformer(), forward=predictions_of_regression)
    with pytest.raises(ValueError, match="inspect needs a model of tokens, but RegressionTransformer embeds none"):
        api.inspect(model, token_ids=IDS, out=tmp_path / "no", analyses=["norms"])


def test_a_regression_transformer_is_compared_with_the_algorithms_of_its_task():
    task = Regression(dim=3, num_examples=6)
    torch.manual_seed(0)
    module = RegressionTransformer()
    (report,) = api.rank_algorithms(wrap(module, forward=predictions_of_regression), task=task, sequences=32)
    assert report.task == "Regression"
    assert {one.name for one in task.candidate_algorithms()} <= set(report.results["predictor"].values)
    for options in ({}, {"task": task, "token_ids": IDS}, {"study": "affine"}):
        with pytest.raises(ValueError, match="must be compared on a task or on token_ids"):
            api.rank_algorithms(wrap(module), sequences=32, **options)


def test_chains_of_given_tokens_need_no_tokenizer(folder, tmp_path, command):
    file = save_ids(tmp_path, "ids.npy")
    words = ("which-algorithm", folder, "--sequences", "32")
    code, _, err = command(*words)
    assert (code, "--token-ids" in err) == (2, True)
    code, out, err = command(*words, "--token-ids", file, "--json")
    assert code == 0, err
    (report,) = json.loads(out)
    assert report["ranking"]
    few = save_ids(tmp_path, "few.npy", torch.ones(2, 12, dtype=torch.long))
    code, _, err = command(*words, "--token-ids", few)
    assert (code, "must have 4 different tokens or more" in err) == (2, True)
