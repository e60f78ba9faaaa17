"""Capture on every causal language model type of transformers, and the table of it in the documentation."""

import re

import pytest
import torch
import transformers
from torch.testing import assert_close

from mesascope.activations import capture
from mesascope.activations.capture import read_structure
from mesascope.activations.forward import eval_no_grad
from mesascope.activations.hooks import _attention_math as attention_math

from . import sweep as sweeping
from .pair_sweep import KINDS
from .pair_table import HEADING
from .sweep import outcome_of, sweep, tokens
from .table import PAGE, page
from .tiny import build, every_type

LEAST = 115  # of the types that can be built tiny and random


def test_the_table_lists_every_type_of_the_version_it_names():
    text = PAGE.read_text(encoding="utf-8")
    (version,) = re.findall(r"of transformers (\S+), as", text)
    if version != transformers.__version__:
        pytest.skip(f"docs/architectures.md is of transformers {version}")
    tables = text.split(HEADING)
    assert re.findall(r"^\| ([\w.-]+) \| \w+ \|", tables[0], flags=re.M) == ["type", *sorted(every_type())]
    assert re.findall(r"^\| ([\w.-]+) \| \w+ \|", tables[1], flags=re.M) == ["type", *sorted(KINDS)]
    assert "wrong**" not in text


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_most_types_are_captured_and_none_is_wrong():
    outcomes = sweep()
    assert {outcome.kind: outcome.wrong for outcome in outcomes if outcome.wrong} == {}
    assert sum(outcome.word == "captured" for outcome in outcomes) >= LEAST
    assert all(outcome.why for outcome in outcomes if outcome.word != "captured")
    assert page(outcomes) == PAGE.read_text(encoding="utf-8").split(HEADING)[0]


@pytest.mark.parametrize(
    ("kind", "word", "layers", "missing"),
    [
        ("llama", "captured", (0, 1, 2, 3), {}),
        ("jamba", "captured", (1, 3), {"mlp_hidden": r"feed_forward\.experts computes .* not one weight matrix"}),
        ("bloom", "refused", (), {}),
    ],
)
def test_what_the_sweep_says_of_some(kind, word, layers, missing):
    outcome = outcome_of(kind)
    assert (outcome.word, outcome.layers, outcome.padding, outcome.wrong) == (word, layers, {}, [])
    assert outcome.missing.keys() == missing.keys()
    assert all(re.search(reason, outcome.missing[site]) for site, reason in missing.items())


def test_the_sweep_says_when_a_prediction_is_not_the_untouched_one(monkeypatch):
    capture_rightly = sweeping.capture

    def capture_wrongly(*given, **named):
        recorded = capture_rightly(*given, **named)
        recorded.sites["output"].add_(1e-6)
        return recorded

    monkeypatch.setattr(sweeping, "capture", capture_wrongly)
    assert "captured and untouched predictions differ with sdpa" in outcome_of("llama").wrong


def test_weights_that_are_scaled_after_mixing_are_found_by_unit_values():
    model = build("granite_swa", "eager")
    with eval_no_grad(model):
        structure = read_structure(model, tokens())
    methods = [layer.weights_method for layer in structure.layers]
    assert [method.kind for method in methods] == ["unit"] * len(methods)
    assert [method.rows_sum_to_one for method in methods] == [False] * len(methods)
    seen = structure.trace.attentions[0]
    assert not torch.allclose(attention_math.mix_values(seen.returned_weights, seen.call.value), seen.output, atol=1e-2)
    recorded = capture(model, tokens(), ["pattern", "value", "z"])
    for pattern, value, out in zip(*(recorded[site] for site in ("pattern", "value", "z")), strict=True):
        assert_close(attention_math.mix_values(pattern, value), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_positions_are_counted_from_where_the_model_counts(kind, side):
    model, real = build(kind), slice(4, None) if side == "left" else slice(None, 7)
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[1] = 0
    mask[1, real] = 1
    x = torch.where(mask.bool(), tokens()[:2], 0)
    padded = capture(model, x, ["output"], attention_mask=mask, check=False)["output"]
    with torch.no_grad():
        alone = model(x[1:, real], use_cache=False).logits
    assert_close(padded[1:, real], alone, rtol=1e-4, atol=1e-4)
