"""Runs of studies: sequences of their task take the place of prompts; the command serves until it is interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mesascope import api
from mesascope.explorer import (
    open_explored_run,
    view_ablation,
    view_attribution,
    view_lens,
    view_patching,
    view_pattern,
    view_terms,
    view_tokens,
)
from mesascope.explorer.page import render_explorer
from mesascope.explorer.subject import check_explored_task
from mesascope.studies.multi_concept.task import ConceptPrompts
from mesascope.tasks.seeded import SeededSequences
from served import request_view

STUDY = """
from mesascope.models.config import DecoderConfig
from mesascope.studies.base import SCALES, Citation, Condition, ScaleConfig, Study
from mesascope.tasks.seeded import SeededSequences
from mesascope.train import SGD, TrainingConfig

TRAINING = TrainingConfig(steps=3, batch_size=4, optimizer=SGD(lr=0.1), checkpoints=2)
SHAPE = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 8}
STUDY = Study(
    name="tiny",
    title="Tiny",
    description="For a test.",
    citation=Citation(key="k", authors="A", title="T", year=2024, venue="V", url="https://example.org"),
    conditions=(
        Condition(
            task=SeededSequences(num_symbols=5, num_generators=3, prefix_length=1, length=8),
            model=DecoderConfig(vocab_size=5, **SHAPE),
            scales={name: ScaleConfig(training=TRAINING, sequences=16, evaluation_sequences=16) for name in SCALES},
            analyses=(),
        ),
    ),
    claims=(),
    seeds=dict.fromkeys(SCALES, 1),
    minutes=dict.fromkeys(SCALES, 1.0),
)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    (place / "tiny.py").write_text(STUDY)
    return api.run(str(place / "tiny.py"), scale="smoke", out=place / "run", on="serial"), str(place / "tiny.py")


@pytest.fixture(scope="module")
def explored(run):
    return open_explored_run(run[0].path, run[1])


def test_a_run_of_vectors_is_opened_with_its_code(tmp_path):
    vectors = {
        "from mesascope.tasks.seeded import SeededSequences": "from mesascope.tasks.affine import Affine",
        "SeededSequences(num_symbols=5, num_generators=3, prefix_length=1, length=8)": "Affine(length=8)",
        "vocab_size=5": "d_in=1, d_out=1",
    }
    text = STUDY
    for old, new in vectors.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    study = tmp_path / "vectors.py"
    study.write_text(text)
    finished = api.run(str(study), scale="smoke", out=tmp_path / "run", on="serial")
    subject = open_explored_run(finished.path, str(study))
    view, space = view_terms(subject, "3; 2=1.5"), {}
    exec(compile(view["code"], "terms", "exec"), space)
    assert view["prediction"] == space["prediction"][0].tolist()
    assert view["inputs"][2] == [1.5]
    assert "the task does not score" in render_explorer(subject)


def test_a_sequence_is_drawn_by_its_number(explored):
    task = SeededSequences(num_symbols=5, num_generators=3, prefix_length=1, length=8)
    drawn = task.sample(1, torch.Generator().manual_seed(3)).inputs[0].tolist()
    assert [one["id"] for one in view_tokens(explored, 3)["tokens"]] == drawn
    assert 'type="number"' in render_explorer(explored)


def test_the_code_of_every_view_loads_the_model_and_its_task(explored):
    views = {
        "norm": (view_tokens(explored, 1), lambda view: view["norm"]),
        "pattern": (view_pattern(explored, 1, 1, 0), lambda view: view["pattern"]),
        "probability": (
            view_lens(explored, 1, 4),
            lambda view: [[one["probability"] for one in row["top"]] for row in view["rows"]],
        ),
    }
    for name, (view, read) in views.items():
        space = {}
        exec(compile(view["code"], name, "exec"), space)
        assert space[name].tolist() == read(view), name
    for view in (
        view_ablation(explored, 1, [[0, 1]], "mean", 4),
        view_ablation(explored, 1, [[0, 1]], position=4),
        view_patching(explored, 1, 2, "resid_pre", 1, 4, read_position=4),
    ):
        space = {}
        exec(compile(view["code"], "predictions", "exec"), space)
        order = [row["id"] for row in view["rows"]]
        assert [row["after"] for row in view["rows"]] == space["after"][order].tolist()
    view, space = view_attribution(explored, 1, 4), {}
    exec(compile(view["code"], "attribution", "exec"), space)
    assert view["head"] == space["contributions"].head[..., 0].tolist()
    assert np.isclose(view["total"], view["logit"], atol=1e-5)


@pytest.mark.parametrize("prompt", [-1, 2**31, "a text"])
def test_a_sequence_that_does_not_exist_is_named(explored, prompt):
    with pytest.raises(ValueError, match="a sequence must be given by its number from 0 to 2147483647, but got"):
        view_tokens(explored, prompt)


class Shuffled(SeededSequences):
    """Sequences whose targets are not the next tokens."""

    def sample(self, n, generator):
        batch = super().sample(n, generator)
        return type(batch)(inputs=batch.inputs, targets=batch.targets.flip(1), weight=batch.weight)


@pytest.mark.parametrize(
    ("task", "line"),
    [
        (
            ConceptPrompts(demonstrations=4),
            "needs vectors as targets of vectors, but those of ConceptPrompts are classes",
        ),
        (
            Shuffled(num_symbols=5, num_generators=3, prefix_length=1, length=8),
            "needs a task whose targets are the next tokens, but those of Shuffled are not",
        ),
    ],
)
def test_other_tasks_are_refused_by_name(task, line):
    with pytest.raises(ValueError, match=line):
        check_explored_task(task)


@pytest.mark.slow  # tests/personas/test_explorer_user.py serves from a forked process
def test_the_command_serves_until_it_is_interrupted(run):
    finished, study = run
    words = [sys.executable, "-m", "mesascope", "serve", str(finished.path), "--study", study]
    source = Path(__file__).parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            assert address.startswith("http://127.0.0.1:")
            assert len(request_view(address, "tokens", prompt=0)["tokens"]) == 8
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
