"""Heads of a language model whose weights were set by hand are found; nothing is seen in those that look alike."""

import math

import pytest
import torch

from mesascope.analyses import measure_all, repeated_tokens, roles, token_copying
from mesascope.ground_truth.models.tokens import DECOYS, HALF, LENGTH, MECHANISMS, PLANTED, VOCABULARY, planted_tokens
from mesascope.models.config import DecoderConfig
from mesascope.models.transformer import Decoder


def sequences(seed: int = 0) -> torch.Tensor:
    return repeated_tokens(torch.arange(1, VOCABULARY), HALF, 16, torch.Generator().manual_seed(seed), bos=0)


@pytest.fixture(scope="module", params=[0, 1, 2])
def found(request):
    return measure_all(planted_tokens(request.param), sequences(request.param), [roles, token_copying])


def heads(dataset, marked) -> set[tuple[int, int]]:
    return {(layer, head) for layer, head in PLANTED if marked(dataset["role"][layer, head].item())}


def planted(name: str) -> set[tuple[int, int]]:
    return {place for place, each in PLANTED.items() if each is MECHANISMS[name]}


def test_the_mechanisms_are_found_and_no_decoy_is(found):
    assert len(DECOYS) >= 20
    for name in ("previous token", "induction", "duplicate token"):
        assert heads(found["roles"], lambda role, name=name: name in role) == planted(name)
    assert heads(found["token_copying"], lambda role: role == 1) == planted("copying") | planted("induction")


def test_every_head_is_called_what_it_is(found):
    for (layer, head), each in PLANTED.items():
        assert found["roles"]["role"][layer, head].item() == each.role
        assert found["token_copying"]["role"][layer, head].item() == each.copies


def test_place_alone_is_taken_for_content_only_where_nothing_is_held_against_it(found):
    """The trap: with repetitions of one length, a fixed distance back is as good as looking for the token."""
    for name, stat in {
        "as far back as induction": "induction",
        "as far back as a duplicate": "duplicate token",
    }.items():
        ((layer, head),) = (place for place, each in PLANTED.items() if each is DECOYS[name][1])
        here = found["roles"].sel(stat=stat).isel(layer=layer, head=head)
        assert float(here["score"]) > 0.99
        assert float(here["score_plain"]) > 0.99
        assert here["role"].item() == "first token"


def test_one_direction_that_raises_itself_is_no_copying(found):
    """The other trap: a head that always raises one token has one eigenvalue, and its score is 1."""
    ((layer, head),) = (place for place, each in PLANTED.items() if each is DECOYS["raises one token"][1])
    here = found["token_copying"].isel(layer=layer, head=head)
    assert float(here["score"]) == pytest.approx(1.0)
    assert float(here["null_high"]) > 1
    assert int(here["role"]) == 0


def test_what_comes_again_is_predicted(found):
    assert float(found["roles"]["loss_again"]) < 0.1
    assert float(found["roles"]["loss_plain"]) > math.log(VOCABULARY)
    assert float(found["roles"]["loss_first"]) > math.log(VOCABULARY)


def test_without_the_first_layer_s_head_the_second_s_finds_nothing():
    model = planted_tokens()
    ((layer, head),) = planted("previous token")
    size = model.config.hidden_size // model.config.num_attention_heads
    with torch.no_grad():
        model.get_parameter(f"layers.{layer}.attention.o_proj.weight")[:, head * size : (head + 1) * size] = 0.0
    found = measure_all(model, sequences(), [roles])["roles"]
    assert heads(found, lambda role: "induction" in role) == set()
    assert float(found["loss_again"]) > math.log(VOCABULARY)


def test_a_random_model_has_no_head_of_any_role_but_averaging():
    torch.manual_seed(0)
    config = DecoderConfig(vocab_size=VOCABULARY, hidden_size=64, norm="rms", max_position_embeddings=LENGTH)
    found = measure_all(Decoder(config).eval(), sequences(), [roles, token_copying])
    assert set(found["roles"]["role"].values.flatten()) <= {"", "uniform"}
    assert (found["token_copying"]["role"] == 0).all()
