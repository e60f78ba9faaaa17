"""Analyses detect the planted heads of a language model, and none of its decoys."""

import math

import pytest
import torch

from mesascope.analyses import ov_copying_score, repeated_token_heads, run_analyses, sample_repeated_tokens
from mesascope.ground_truth.models.tokens import (
    HALF_LENGTH,
    LENGTH,
    PLANTED_HEADS,
    TOKEN_DECOYS,
    TOKEN_MECHANISMS,
    VOCABULARY,
    build_planted_language_model,
)
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder


def sample_tokens(seed: int = 0) -> torch.Tensor:
    return sample_repeated_tokens(
        torch.arange(1, VOCABULARY), HALF_LENGTH, 16, torch.Generator().manual_seed(seed), bos=0
    )


@pytest.fixture(scope="module", params=[0, 1, 2])
def results(request):
    return run_analyses(
        build_planted_language_model(request.param),
        sample_tokens(request.param),
        [repeated_token_heads, ov_copying_score],
    )


def select_heads(dataset, marked) -> set[tuple[int, int]]:
    return {(layer, head) for layer, head in PLANTED_HEADS if marked(dataset["role"][layer, head].item())}


def planted_locations(name: str) -> set[tuple[int, int]]:
    return {place for place, each in PLANTED_HEADS.items() if each is TOKEN_MECHANISMS[name]}


def test_mechanisms_are_detected_and_decoys_are_not(results):
    assert len(TOKEN_DECOYS) >= 20
    for name in ("previous token", "induction", "duplicate token"):
        assert select_heads(results["repeated_token_heads"], lambda role, name=name: name in role) == planted_locations(
            name
        )
    assert select_heads(results["ov_copying_score"], lambda role: role == 1) == planted_locations(
        "copying"
    ) | planted_locations("induction")


def test_every_head_gets_its_expected_role(results):
    for (layer, head), each in PLANTED_HEADS.items():
        assert results["repeated_token_heads"]["role"][layer, head].item() == each.expected_role
        assert results["ov_copying_score"]["role"][layer, head].item() == each.copy_sign


def test_fixed_distance_attention_is_no_induction(results):
    """With repetitions of one length, attention at a fixed distance looks like attention to a token."""
    for name, stat in {
        "as far back as induction": "induction",
        "as far back as a duplicate": "duplicate token",
    }.items():
        ((layer, head),) = (place for place, each in PLANTED_HEADS.items() if each is TOKEN_DECOYS[name][1])
        here = results["repeated_token_heads"].sel(stat=stat).isel(layer=layer, head=head)
        assert float(here["score"]) > 0.99
        assert float(here["score_null_no_repetition"]) > 0.99
        assert here["role"].item() == "first token"


def test_rank_one_ov_matrix_is_no_copying(results):
    """The OV matrix of a head that always raises one token has one eigenvalue, and its score is 1."""
    ((layer, head),) = (place for place, each in PLANTED_HEADS.items() if each is TOKEN_DECOYS["raises one token"][1])
    here = results["ov_copying_score"].isel(layer=layer, head=head)
    assert float(here["score"]) == pytest.approx(1.0)
    assert float(here["score_null_high"]) > 1
    assert int(here["role"]) == 0


def test_repeated_tokens_are_predicted(results):
    assert float(results["repeated_token_heads"]["loss_again"]) < 0.1
    assert float(results["repeated_token_heads"]["loss_again_null"]) > math.log(VOCABULARY)
    assert float(results["repeated_token_heads"]["loss_first"]) > math.log(VOCABULARY)


def test_induction_head_needs_the_previous_token_head():
    model = build_planted_language_model()
    ((layer, head),) = planted_locations("previous token")
    size = model.config.hidden_size // model.config.num_attention_heads
    with torch.no_grad():
        model.get_parameter(f"layers.{layer}.attention.o_proj.weight")[:, head * size : (head + 1) * size] = 0.0
    results = run_analyses(model, sample_tokens(), [repeated_token_heads])["repeated_token_heads"]
    assert select_heads(results, lambda role: "induction" in role) == set()
    assert float(results["loss_again"]) > math.log(VOCABULARY)


def test_random_model_has_uniform_heads_only():
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=VOCABULARY, hidden_size=64, norm="rms", max_position_embeddings=LENGTH)
    results = run_analyses(Decoder(config).eval(), sample_tokens(), [repeated_token_heads, ov_copying_score])
    assert set(results["repeated_token_heads"]["role"].values.flatten()) <= {"", "uniform"}
    assert (results["ov_copying_score"]["role"] == 0).all()
