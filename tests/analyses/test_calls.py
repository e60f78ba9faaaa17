"""Calls of analyses: arguments by name, their types and ranges, and what a capture lacks."""

import pytest
import torch

from mesascope import analyses, capture
from mesascope.activations import NotRecorded
from mesascope.interventions import sweep, zero
from small import llama

TOKENS = torch.tensor([[1, 2, 3, 1, 2, 3, 4, 5, 6, 7], [4, 5, 4, 5, 6, 4, 1, 2, 3, 1]])


@pytest.fixture(scope="module")
def acts():
    return capture(llama(), TOKENS, ["pattern", "resid_pre", "resid_post", "attn_out", "z", "logits"])


def test_arguments_may_be_given_by_name(acts):
    by_name = analyses.natural_induction(acts=acts, draws=3)
    assert by_name.identical(analyses.natural_induction(acts, draws=3))
    assert by_name.attrs["option draws"] == "3"
    assert not any("acts" in name for name in by_name.attrs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": "3"}, "^draws must be an integer, but got '3'"),
        ({"draws": 0}, "^draws of natural_induction must be 1 or more, but got 0"),
        ({"seed": -1}, "^seed must be from 0 to 2.63 - 1, but got -1"),
        ({"seed": 10**30}, "^seed must be from 0 to 2.63 - 1, but got 10000"),
        ({"acts": None}, "^the capture of natural_induction must be a Capture, but got None"),
    ],
)
def test_options_of_another_type_or_range_are_refused(acts, options, message):
    with pytest.raises(ValueError, match=message):
        analyses.natural_induction(**{"acts": acts, **options})


def test_a_first_position_must_exist(acts):
    with pytest.raises(
        ValueError, match=r"^first of token_attribution must be a position, but got 10 with 10 positions"
    ):
        analyses.token_attribution(acts, first=10)


def test_missing_and_unknown_arguments_are_named(acts):
    with pytest.raises(
        TypeError, match=r"^the arguments of natural_induction must be acts, draws, seed, but got: missing"
    ):
        analyses.natural_induction()
    with pytest.raises(TypeError, match=r"but got: got an unexpected keyword argument 'drwas'"):
        analyses.natural_induction(acts, drwas=3)


def test_what_is_computed_in_the_forward_pass_is_named(acts):
    with pytest.raises(
        NotRecorded, match=r"pass reduce=positional_attention.reductions to capture, or use run_analyses"
    ):
        analyses.positional_attention(acts)


def test_targets_of_an_attribution_must_exist(acts):
    one = torch.tensor([0])
    with pytest.raises(ValueError, match=r"^pos_index must be from 0 to 9, but got 10 to 10"):
        analyses.decompose_logits(acts, one, one + 10, one)
    with pytest.raises(ValueError, match=r"^there must be one of batch_index, pos_index, tokens for each target"):
        analyses.decompose_logits(acts, one[:0], one[:0], one[:0])


def test_a_metric_that_fails_is_named_with_its_error():
    def wrong(output):
        return output @ torch.ones(2)

    with pytest.raises(
        ValueError, match=r"^a metric must accept outputs of shape .* but wrong raised RuntimeError"
    ) as error:
        sweep(llama(), TOKENS, zero("z"), metric=wrong)
    assert isinstance(error.value.__cause__, RuntimeError)
    with pytest.raises(ValueError, match=r"one number for each of 2 sequences, but .* returned 1"):
        sweep(llama(), TOKENS, zero("z"), metric=lambda output: 1)
