"""Analyses of syntactic transformations find look-up heads that are set by hand, their effect, and known rules."""

from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
import xarray as xr
from torch import Tensor

from mesascope.activations import Edit, UnsupportedModel, capture
from mesascope.models.config import DecoderConfig
from mesascope.models.encoder_decoder.model import EncoderDecoder
from mesascope.models.transformer import Decoder
from mesascope.studies.syntactic_transformations import head_masks, lookup_masking, prefix_transfer
from mesascope.studies.syntactic_transformations.exact_match import match_outputs
from mesascope.studies.syntactic_transformations.head_masks import draw_head_sets, mask_prefix
from mesascope.studies.syntactic_transformations.prefix_tuning import (
    embed_rules,
    list_rules,
    score_readout,
    train_from_scratch,
    tune_prefix,
)
from mesascope.studies.syntactic_transformations.rule_lookup import find_lookup_heads, rule_lookup
from mesascope.studies.syntactic_transformations.transformation_accuracy import (
    OTHER,
    OWN,
    SEEN,
    UNSEEN,
    exchange_rules,
    transformation_accuracy,
)
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch, training_loss
from mesascope.tasks.syntax.transformations import EXACT

from .rule_models import (
    FIRST_LABELS,
    FIRST_SLOT,
    HEADS,
    LABELS,
    LOOKUP,
    NEXT_LABEL,
    TASK,
    make_lookup_model,
    make_random_model,
    sample_sentences,
)


def predict_exactly(model: EncoderDecoder, batch: Batch, **_: object) -> Tensor:
    """What `match_outputs` returns for a model that applies the rules it is given."""
    right = TASK.baselines(batch)[EXACT].argmax(-1) == batch.targets
    return (right | (batch.weight == 0)).all(1)


def fail_without(needed: dict[str, set[tuple[int, int]]]):
    """Make a `match_outputs`: an output is wrong if the prefix is hidden from heads that a label of it needs."""

    def match(
        model: EncoderDecoder, batch: Batch, *, prefix: Tensor | None = None, edits: Sequence[Edit] = ()
    ) -> Tensor:
        hidden = {(edit.where["layer"], head) for edit in edits for head in edit.where["head"]}
        right = torch.ones(len(batch), dtype=torch.bool)
        for name, heads in needed.items():
            index = LABELS.index(name)
            present = (batch.latents["label"] == index).any(1) & (batch.latents["rule label"] == index).any(1)
            if heads <= hidden:
                right &= ~present
        return right

    return match


def replace_match(monkeypatch: pytest.MonkeyPatch, match, *modules: ModuleType) -> None:
    for module in modules:
        monkeypatch.setattr(module, "match_outputs", match)


def test_exact_match_is_that_of_greedy_generation():
    """Also of a model that goes astray: with the true output so far, or its own, the first error is the same."""
    model, trained, batch = make_random_model(), make_random_model(), sample_sentences(40)
    learned = batch[:20]
    optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2)
    for _ in range(150):  # until it has memorised the outputs of these
        loss = training_loss(TASK, trained(learned.inputs).logits, learned)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for one in (model, trained.eval()):
        tokens, start = batch.inputs.clone(), TASK.source_length
        right = torch.ones(len(batch), dtype=torch.bool)
        for position in range(start, TASK.length):
            with torch.no_grad():
                generated = one(tokens).logits[:, position].argmax(-1)
            scored = batch.weight[:, position] > 0
            right &= ~scored | (generated == batch.targets[:, position])
            if position + 1 < TASK.length:
                tokens[:, position + 1] = torch.where(batch.weight[:, position + 1] > 0, generated, 0)
        assert match_outputs(one, batch).tolist() == right.tolist()
    assert 0 < right.sum() < len(right)


def test_rules_of_another_sentence_are_its_own_no_more(monkeypatch):
    from mesascope.studies.syntactic_transformations import transformation_accuracy as module

    batch = sample_sentences()
    exchanged = exchange_rules(batch, TASK.max_rules)
    assert torch.equal(exchanged.inputs[1:, : TASK.max_rules], batch.inputs[:-1, : TASK.max_rules])
    assert torch.equal(exchanged.inputs[:, TASK.max_rules :], batch.inputs[:, TASK.max_rules :])
    replace_match(monkeypatch, predict_exactly, module)
    matches = transformation_accuracy(make_random_model(), TASK, batch)["exact_match"]
    assert matches.sel(predictor=OWN).values.tolist() == [1.0, 1.0]
    assert matches.sel(predictor=OTHER).max() < 0.2  # rules without an effect coincide
    assert matches["distribution"].values.tolist() == [SEEN, UNSEEN]


def test_look_up_heads_are_those_that_were_set():
    results = rule_lookup(make_lookup_model(), TASK, sample_sentences())
    assert results["score"].sel(layer=0, head=LOOKUP) == 1
    assert results["role"].values.tolist() == [[1, 0, 0, 0]]
    roles = results["label_role"].sel(layer=0)
    assert roles.sel(head=LOOKUP).values.tolist() == [1, 1, 1, 1]
    assert roles.sel(head=FIRST_LABELS).values.tolist() == [1, 1, 0, 0]
    assert roles.sel(head=[NEXT_LABEL, FIRST_SLOT]).sum() == 0
    first = results[["label_score", "label_score_null"]].sel(layer=0, head=FIRST_SLOT, _label=LABELS[0])
    assert float(first["label_score"]) == float(first["label_score_null"]) == 1  # by its position alone
    assert find_lookup_heads(make_lookup_model(), TASK, sample_sentences()) == {
        "al": ((0, LOOKUP), (0, FIRST_LABELS)),
        "ar": ((0, LOOKUP), (0, FIRST_LABELS)),
        "bl": ((0, LOOKUP),),
        "br": ((0, LOOKUP),),
    }


def test_masking_hides_the_prefix_from_the_chosen_heads_and_nothing_else():
    model, batch = make_lookup_model(), sample_sentences()
    before = capture(model, batch, ["encoder.pattern"]).encoder["pattern"]
    edits = mask_prefix([(0, LOOKUP), (0, FIRST_SLOT)], TASK.max_rules)
    after = capture(model, batch, ["encoder.pattern"], edits=edits).encoder["pattern"]
    is_word = batch.latents["label"][:, : TASK.source_length] >= 0
    masked = after[0][:, [LOOKUP, FIRST_SLOT]].transpose(1, 2)[is_word]
    assert float(masked[..., : TASK.max_rules].abs().max()) == 0
    assert torch.allclose(masked.sum(-1), torch.ones(()))
    others = [FIRST_LABELS, NEXT_LABEL]
    assert torch.equal(after[0][:, others], before[0][:, others])


def test_sets_of_heads_are_different_and_as_many_as_there_are():
    pool = [(0, head) for head in range(4)]
    sets = draw_head_sets(pool, 2, 20, seed=0)
    assert len({frozenset(one) for one in sets}) == len(sets) == 6
    assert len(draw_head_sets(pool, 2, 3, seed=0)) == 3
    assert draw_head_sets(pool, 5, 20, seed=0) == []


def test_the_loss_by_masking_is_that_of_the_heads_that_are_needed(monkeypatch):
    model, batch = make_lookup_model(), sample_sentences()
    replace_match(monkeypatch, fail_without({name: {(0, LOOKUP)} for name in LABELS}), head_masks, lookup_masking)
    results = lookup_masking.lookup_masking(model, TASK, batch)
    assert int(results["heads"]) == 2
    assert float(results["lost"]) > 0.95  # of almost every sentence, which has a word with a rule
    assert float(results["lost_null"]) == 0
    assert float(results["label_lost"]) == 1  # of the last two labels, whose heads are not all there are
    assert float(results["label_lost_null"]) == 0

    replace_match(monkeypatch, fail_without({name: {(0, NEXT_LABEL)} for name in LABELS}), head_masks, lookup_masking)
    decoy = lookup_masking.lookup_masking(model, TASK, batch)
    assert float(decoy["lost"]) == 0
    assert float(decoy["lost_null"]) > 0.95


def test_a_loss_without_look_up_heads_is_not_defined():
    results = lookup_masking.lookup_masking(make_random_model(), TASK, sample_sentences(40))
    assert int(results["heads"]) == 0
    assert all(results[name].isnull() for name in ("lost", "lost_null", "label_lost", "label_lost_null"))


def test_a_tuned_prefix_fits_the_examples_and_changes_no_weight():
    model = make_random_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    examples = TASK.sample_with_rules(TASK.composition, 20, torch.Generator().manual_seed(0))
    prefix, again = (tune_prefix(model, TASK, examples, steps=40) for _ in range(2))
    assert torch.equal(prefix, again)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    start = embed_rules(model, TASK).mean(0).expand_as(prefix)
    losses = [training_loss(TASK, model(examples.inputs, prefix=one).logits, examples) for one in (start, prefix)]
    assert losses[1] < losses[0]


def test_a_model_is_trained_from_scratch_by_its_seed():
    model = make_random_model()
    examples = TASK.sample_with_rules(TASK.composition, 20, torch.Generator().manual_seed(0))
    first, second, other = (train_from_scratch(model, TASK, examples, 30, seed) for seed in (0, 0, 1))
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    assert not torch.equal(first.readout.weight, other.readout.weight)
    fresh = train_from_scratch(model, TASK, examples, 1, 0)
    losses = [training_loss(TASK, one(examples.inputs).logits, examples) for one in (fresh, first)]
    assert losses[1] < 0.8 * losses[0]


def test_rules_are_read_from_a_prefix_that_is_made_of_them():
    model, pairs, rules = make_random_model(), list_rules(TASK), TASK.composition
    table = embed_rules(model, TASK)
    prefix = table[[pairs.index(pair) for pair in rules.items()]]
    assert score_readout(prefix, table, pairs, rules) == (1.0, 1.0, 1.0)
    assert score_readout(prefix[[0, 0, 1, 1]], table, pairs, rules) == (1.0, 0.5, 2 / 3)
    wrong = table[[pairs.index(pair) for pair in TASK.held_out_pairs]]
    assert score_readout(wrong, table, pairs, rules) == (0.0, 0.0, 0.0)


def test_transfer_reports_the_four_models_and_is_reproducible():
    options = {"examples": 8, "tuning_steps": 3, "draws": 2, "sequences": 16}
    model, batch = make_random_model(), sample_sentences(40)
    results, again = (prefix_transfer.prefix_transfer(model, TASK, batch, **options) for _ in range(2))
    xr.testing.assert_identical(results, again)
    assert results["exact_match"]["predictor"].values.tolist() == [
        prefix_transfer.TUNED,
        prefix_transfer.SCRATCH,
        prefix_transfer.RANDOM,
        prefix_transfer.RULES,
    ]
    assert results["lost"].isnull()
    assert results["cosine"].sizes == {"_slot": TASK.max_rules, "_rule": len(list_rules(TASK))}


def test_masking_with_a_tuned_prefix_uses_the_heads_that_are_found_with_rules(monkeypatch):
    match = fail_without({name: {(0, LOOKUP)} for name in LABELS})
    replace_match(monkeypatch, match, head_masks, lookup_masking, prefix_transfer)
    monkeypatch.setattr(prefix_transfer, "tune_prefix", lambda *_: torch.zeros(TASK.max_rules, HEADS * 64))
    monkeypatch.setattr(prefix_transfer, "train_from_scratch", lambda model, *_: model)
    results = prefix_transfer.prefix_transfer(make_lookup_model(), TASK, sample_sentences(), draws=5, sequences=200)
    assert float(results["lost"]) > 0.95
    assert float(results["lost_null"]) == 0


@pytest.mark.parametrize(
    "analysis",
    [transformation_accuracy, rule_lookup, lookup_masking.lookup_masking, prefix_transfer.prefix_transfer],
    ids=lambda one: one.name,
)
def test_other_models_and_tasks_are_refused(analysis):
    batch = sample_sentences(4)
    with pytest.raises(UnsupportedModel, match="the model must be an EncoderDecoder with a source of 11 positions"):
        analysis(Decoder(DecoderConfig(vocab_size=TASK.vocab_size)), TASK, batch)
    with pytest.raises(ValueError, match="the task must be SyntacticTransformations, but got Affine"):
        analysis(make_random_model(), Affine(), batch)
