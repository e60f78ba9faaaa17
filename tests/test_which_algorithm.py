"""`mesascope which-algorithm`: a ranking for the models of a run, a decoder, a language model; and what is refused."""

import json
from pathlib import Path

import pytest
import torch
import xarray as xr

from mesascope import api
from mesascope.cli._output import _ranking_table
from mesascope.ground_truth.models.descent import build_gradient_descent_model
from mesascope.inspection import AlgorithmReport, describe_ranking, write_rankings
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.store import Run
from mesascope.studies.gradient_descent.study import TASK
from mesascope.studies.registry import load_study
from report.test_ranking import found as make_ranking
from saved import save_tiny


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
    assert first["tied"]
    assert first["at_edge"] == []
    assert first["relative_to_steps"] is None
    assert "1 step of gradient descent" in told["tied"]
    assert [layer["layer"] for layer in told["layers"]] == ["embedding", "after 0"]
    assert told["layers"][1]["similarity"] > 0.9 > told["layers"][1]["embedding"]


def test_the_embedding_is_printed_next_to_the_layers(tmp_path, command):
    """Copying is similarity 1 after the first layer, and at the embedding already; it explains none of the steps."""
    study, name = load_study("affine"), tmp_path / "copying"
    torch.manual_seed(0)
    model = Decoder(study.conditions[0].model)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(0.01)
    model.save_pretrained(name)
    code, out, _ = command("which-algorithm", name, "--study", "affine", "--sequences", "64")
    assert code == 0
    assert "; at the embedding " in " ".join(out.split())
    code, out, _ = command("which-algorithm", name, "--study", "affine", "--sequences", "64", "--json")
    (told,) = json.loads(out)
    assert {row["algorithm"]: row["at_edge"] for row in told["ranking"]}["least squares"] == []
    assert any(row["at_edge"] for row in told["ranking"])
    assert all(row["relative_to_steps"] < 1 for row in told["ranking"])


def test_columns_of_the_ranking_show_steps_ties_and_edges():
    row = {
        "hyperparameters": "ridge 0.001",
        "at_edge": ["ridge"],
        "weights": {},
        "shifted": {},
        "distinguishable": False,
    }
    row |= {"label": "ridge regression", "tied": True, "predictions": 0.99, "relative_to_steps": 0.5, "null": 0.0}
    tables = [_ranking_table([row | {"errors": 0.1} | change]) for change in ({}, {"relative_to_steps": None})]
    cells = [[next(iter(column.cells)) for column in table.columns] for table in tables]
    assert cells[0][:3] == ["ridge regression (ridge 0.001; ridge at the edge of the grid)", "0.990 *=", "0.500"]
    assert [len(one) for one in cells] == [7, 6]


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


def test_a_ranking_becomes_a_run_with_a_report(descending, tmp_path, command):
    """Its results are those that are returned, and its page is regenerated like any other."""
    words = ("which-algorithm", descending, "--study", "gradient-descent", "--sequences", "64", "--out", tmp_path / "r")
    code, out, _ = command(*words)
    assert code == 0
    assert "report.html" in out
    run = Run.open(tmp_path / "r")
    (report,) = api.rank_algorithms(descending, study="gradient-descent", sequences=64)
    found = run["which_algorithm"]
    xr.testing.assert_allclose(found["similarity"], report.results["similarity"])
    assert found.attrs["title"] == "Nearest algorithm"
    assert found.attrs["description"].startswith("Task: Regression. ")
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Most similar algorithm: " in page
    assert f"mesascope which-algorithm {descending} --study gradient-descent --sequences 64" in page
    for again in (("report", run.path), ("verify", run.path), words):
        assert command(*again)[0] == 0


def test_seeds_are_one_axis_of_the_run(tmp_path):
    results = make_ranking(None).assign_attrs(title="Nearest", description="similarity")
    reports = [
        AlgorithmReport(condition=condition, seed=seed, task="Affine", results=results)
        for condition in ("", "noisy")
        for seed in (3, 4)
    ]
    description = describe_ranking("m", study=None, token_ids=None, sequences=32, seed=0, device="cpu")
    run = write_rankings(tmp_path / "r", description, reports)
    assert run.result_names() == ["which_algorithm_1", "which_algorithm_2"]
    assert run["which_algorithm_2"]["seed"].values.tolist() == [3, 4]
    assert run["which_algorithm_2"].attrs["title"] == "Nearest: noisy"


def test_a_directory_with_something_else_is_refused_before_anything_is_computed(descending, tmp_path, command):
    Run.create(tmp_path / "run", {"study": "affine"})
    before = (tmp_path / "run" / "run.json").read_bytes()
    code, out, err = command("which-algorithm", descending, "--study", "gradient-descent", "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "comparing" not in err
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_url_is_no_directory_of_a_ranking(descending, command):
    code, out, err = command("which-algorithm", descending, "--study", "gradient-descent", "--out", "s3://bucket/name")
    assert (code, out) == (2, "")
    assert "comparing" not in err
    with pytest.raises(ValueError, match="the directory of such a run must be a folder, but got 's3://bucket/name'"):
        api.rank_algorithms(descending, study="gradient-descent", out="s3://bucket/name")


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
