"""`mesascope which-algorithm`: a ranking for the models of a run, a decoder, a language model; and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from commands import call
from mesascope import api
from mesascope.ground_truth.models.descent import build_gradient_descent_model
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.store import Run
from mesascope.studies.gradient_descent.study import TASK
from saved import save_tiny


@pytest.fixture
def command(capsys, monkeypatch):
    def run(*words: str | Path):
        return call(*map(str, words), capsys=capsys, monkeypatch=monkeypatch)

    return run


@pytest.fixture(scope="module")
def descending(tmp_path_factory) -> Path:
    """A decoder in a folder that takes one step of gradient descent."""
    place = tmp_path_factory.mktemp("models") / "descending"
    build_gradient_descent_model(TASK.dim, TASK.num_examples, step=0.5).save_pretrained(place)
    return place


def test_a_decoder_in_a_folder_is_named_and_ranked(descending, command):
    code, out, _ = command("which-algorithm", descending, "--study", "gradient-descent", "--sequences", "64")
    assert code == 0
    assert "1 step of gradient descent" in out
    assert "least squares" in out
    assert out.index("1 step of", out.index("predictions")) < out.index("least squares")


def test_json_says_the_same_to_machines(descending, command):
    words = ("which-algorithm", descending, "--study", "gradient-descent", "--sequences", "64", "--json")
    code, out, _ = command(*words)
    (told,) = json.loads(out)
    assert code == 0
    assert told["named"] == "1 step of gradient descent"
    first, *others = told["ranking"]
    assert first["algorithm"] == "gradient descent"
    assert first["predictions"] == pytest.approx(1.0, abs=1e-4)
    assert all(row["predictions"] <= first["predictions"] for row in others)
    assert set(first["shifted"]) >= {"inputs twice as large", "correlated inputs", "coefficients twice as large"}
    assert [layer["layer"] for layer in told["layers"]] == ["embedding", "after 0"]


def test_a_language_model_is_held_against_counts_on_its_own_tokens(tmp_path):
    (answer,) = api.rank_algorithms(save_tiny(tmp_path), sequences=32)
    assert answer.task.startswith("Markov chains of ")
    assert set(answer.results["predictor"].values) >= {"unigram", "bigram", "trigram"}
    assert (
        answer.results["named"].item() == "repeat current symbol"
    )  # random weights, but one table for words in and words out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("nowhere",), "a model must be a Hugging Face name"),
        (("DECODER",), "must be given by --study, one of affine"),
        (("DECODER", "--study", "meta-learning"), "the study meta-learning has no such task; choose from affine"),
        (("DECODER", "--study", "affine"), "the decoder must have the study's vocab_size"),
        (("DECODER", "--study", "nothing"), "a study must be one of"),
        (("DECODER", "--study", "gradient-descent", "--sequences", "8"), "sequences must be 32 or more"),
    ],
)
def test_what_cannot_be_answered_is_one_line(words, line, descending, command, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [descending if word == "DECODER" else word for word in words]
    code, out, err = command("which-algorithm", *words)
    assert code == 2
    assert out == ""
    assert line in " ".join(err.split())


def test_a_run_that_opened_a_language_model_is_refused(tmp_path, command):
    Run.create(tmp_path / "run", {"model": "somebody/something"})
    code, _, err = command("which-algorithm", tmp_path / "run")
    assert code == 2
    assert "inspects a language model; pass the model instead" in " ".join(err.split())


def test_a_decoder_of_tokens_fits_no_study_of_vectors(tmp_path, command):
    torch.manual_seed(0)
    Decoder(DecoderConfig(vocab_size=7, hidden_size=8, num_attention_heads=2)).save_pretrained(tmp_path / "tokens")
    code, _, err = command("which-algorithm", tmp_path / "tokens", "--study", "affine")
    assert code == 2
    assert "(7, None, None)" in err
