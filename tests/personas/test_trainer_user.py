"""Somebody who trains a GPT-2 with the Trainer of transformers, and asks how it changed between its checkpoints.

By the last section of docs/your-own-model.md: the output folder is a model, and its checkpoints are steps.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import mesascope

pytestmark = pytest.mark.slow

LENGTH, VOCABULARY = 24, 20


def draw_tokens(count: int, seed: int) -> torch.Tensor:
    """Sequences whose second half repeats the first."""
    first = torch.randint(1, VOCABULARY, (count, LENGTH // 2), generator=torch.Generator().manual_seed(seed))
    return torch.cat([first, first], 1)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after six steps: three checkpoints, each with the state of its optimizer."""
    folder = tmp_path_factory.mktemp("training") / "output"
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **shape))
    data = [{"input_ids": row, "labels": row} for row in draw_tokens(64, 0)]
    arguments = TrainingArguments(
        str(folder),
        max_steps=6,
        save_steps=2,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=True,
        save_total_limit=3,
    )
    Trainer(model, arguments, train_dataset=data).train()
    return folder


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ids") / "ids.npy"
    np.save(file, draw_tokens(4, 1).numpy())
    return file


def test_the_checkpoints_are_compared_by_one_command(output: Path, ids: Path, tmp_path: Path, command: Callable):
    assert {file.name for file in output.iterdir()} >= {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    words = ("inspect", output, "--token-ids", ids, "--analyses", "norms,logit_lens", "--out", tmp_path / "run")
    code, out, err = command(*words)
    assert code == 0, err
    assert f"Report: {tmp_path / 'run' / 'report.html'}" in " ".join(out.split())
    run = mesascope.Run.open(tmp_path / "run")
    loss = run["logit_lens"]["loss"]
    assert loss["step"].values.tolist() == [2, 4, 6]
    model = GPT2LMHeadModel.from_pretrained(output / "checkpoint-4").eval()
    tokens = torch.tensor(np.load(ids))
    expected = float(model(tokens, labels=tokens).loss.detach())
    assert float(loss.sel(step=4).isel(layer=-1)) == pytest.approx(expected, abs=1e-4)


def test_two_checkpoints_are_chosen_by_name(output: Path, ids: Path, tmp_path: Path, command: Callable):
    words = ("inspect", output, "--token-ids", ids, "--analyses", "norms", "--out", tmp_path / "run")
    code, _, err = command(*words, "--steps", "checkpoint-2,checkpoint-6")
    assert code == 0, err
    assert mesascope.Run.open(tmp_path / "run")["norms"]["step"].values.tolist() == [2, 6]
    code, _, err = command(*words, "--steps", "checkpoint-3")
    assert (code, err.count("\n")) == (2, 1)
    assert "a step must be a folder" in err


def test_algorithms_are_ranked_for_each_checkpoint(output: Path, ids: Path, command: Callable):
    code, out, err = command("which-algorithm", output, "--token-ids", ids, "--sequences", "32", "--json")
    assert code == 0, err
    reports = json.loads(out)
    assert len(reports) == 3
    assert all(report["ranking"] for report in reports)


def test_a_final_model_is_inspected_unless_all_steps_are_asked_for(
    output: Path, ids: Path, tmp_path: Path, command: Callable
):
    """After `trainer.save_model()`, which also writes `training_args.bin`, a pickle."""
    final = GPT2LMHeadModel.from_pretrained(output / "checkpoint-6")
    final.save_pretrained(output)
    words = ("inspect", output, "--token-ids", ids, "--analyses", "norms")
    assert command(*words, "--out", tmp_path / "final")[0] == 0
    assert "step" not in mesascope.Run.open(tmp_path / "final")["norms"].dims
    assert command(*words, "--steps", "all", "--out", tmp_path / "all")[0] == 0
    assert mesascope.Run.open(tmp_path / "all")["norms"]["step"].values.tolist() == [2, 4, 6]
