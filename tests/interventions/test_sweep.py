"""Sweeps: the numbers of one edit per forward pass, in few passes; planted heads found; what cannot be, refused."""

from dataclasses import replace as with_other
from itertools import product

import pytest
import torch
from transformers import GPT2LMHeadModel

from cases import covering
from mesascope.activations import Edit, EditHadNoEffect, UnsupportedModel, capture
from mesascope.activations.sites import SITES
from mesascope.ground_truth.models.vectors import build_planted_model
from mesascope.interventions import (
    attribution_patch,
    log_probability,
    logit_difference,
    mean,
    patch,
    replace,
    sweep,
    zero,
)
from mesascope.interventions.metrics import kl_divergence, loss
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch

from .test_changes import EDITABLE, MODELS, gpt2, llama, placed, runs_of, tokens


def one_by_one(model, inputs, edit: Edit, over, metric) -> torch.Tensor:
    """The metric with every edit in a forward pass of its own."""
    shape = dict(zip(SITES[edit.site].axes, capture(model, inputs, [edit.site])[edit.site].shape, strict=True))
    values = []
    for place in product(*(range(shape[axis]) for axis in over)):
        alone = with_other(edit, where={**edit.where, **dict(zip(over, place, strict=True))})
        values.append(metric(capture(model, inputs, ["output"], edits=[alone])["output"]).mean())
    return torch.stack(values).reshape([shape[axis] for axis in over]).double()


@pytest.mark.parametrize(("name", "site"), covering(MODELS, EDITABLE))
def test_a_sweep_gives_what_one_edit_after_the_other_gives(name, site, device):
    model = placed(name, device)
    other = capture(model, tokens(1), [site])
    over = tuple(axis for axis in SITES[site].axes if axis in ("layer", "head", "kv_head", "pos", "query"))[:2]
    metric, edit = logit_difference(3, torch.tensor([4, 5, 6])), replace(site, other)
    found = sweep(model, tokens(), edit, over, metric)
    expected = one_by_one(model, tokens(), edit, over, metric)
    assert found["value"].dims == over
    atol = 1e-6 if device == "cpu" else 1e-5  # products of another number of rows have sums in another order there
    torch.testing.assert_close(torch.tensor(found["value"].values), expected.cpu(), atol=atol, rtol=1e-5)
    assert float(found["effect"].std()) > 1e-4
    assert float(found["intact"]) == pytest.approx(float(metric(capture(model, tokens())["output"]).mean()))


def test_how_many_run_together_changes_no_number():
    model, edit = MODELS["llama"], zero("z")
    over = ("layer", "head", "pos")
    together, alone = (sweep(model, tokens(), edit, over, max_positions=size) for size in (4096, 1))
    torch.testing.assert_close(together["value"].values, alone["value"].values, atol=1e-6, rtol=1e-6)


def test_few_passes_do_many_edits():
    model = llama()
    over = ("layer", "head", "pos")
    sweep(model, tokens(), zero("z"), over)
    passes = runs_of(model, 8)
    heard: list[tuple[int, int]] = []
    found = sweep(model, tokens(), zero("z"), over, progress=lambda *news: heard.append(news))
    assert found["value"].size == 96
    assert len(passes) <= 12  # one untouched, two for each layer's 32, and what looks at the site
    assert heard[-1] == (96, 96)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)


def test_layers_before_the_edit_are_not_computed_again():
    model = llama()
    calls = [0, 0, 0]
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: calls.__setitem__(number, calls[number] + 1))
    sweep(model, tokens(), zero("z"), ("layer",))
    assert calls[0] < calls[1] < calls[2]


def reading_ahead() -> GPT2LMHeadModel:
    """A model whose last layer reads what the first one computed, past the stream."""
    model = gpt2()
    blocks, memory = model.transformer.h, {}
    first, last = blocks[0].attn.forward, blocks[2].forward

    def remember(*args, **kwargs):
        out = first(*args, **kwargs)
        memory["first"] = out[0]
        return out

    def recall(hidden, *args, **kwargs):
        return last(hidden + memory["first"], *args, **kwargs)

    blocks[0].attn.forward, blocks[2].forward = remember, recall
    return model


@pytest.mark.parametrize("over", [("layer", "head"), ("layer",)], ids=str)
@pytest.mark.parametrize("layers", [[0, 1, 2], [0, 2], [2]], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_layer_that_reads_past_the_stream_is_run_whole(over, layers, rows):
    model, metric, x = reading_ahead(), log_probability(3), tokens(rows=rows)
    edit = replace("z", capture(model, tokens(1, rows=rows), ["z"]), {"layer": layers})
    found = sweep(model, x, edit, over, metric)
    expected = one_by_one(model, x, edit, over, metric)[layers]
    torch.testing.assert_close(torch.tensor(found["value"].values), expected, atol=1e-6, rtol=1e-5)


def test_a_model_whose_sequences_influence_one_another_is_refused():
    model = gpt2()
    block = model.transformer.h[1]
    own = block.forward
    block.forward = lambda hidden, *args, **kwargs: own(hidden + hidden.sum(0, keepdim=True), *args, **kwargs)
    with pytest.raises(UnsupportedModel, match="other sequences of the batch, but that of GPT2LMHeadModel differs by"):
        sweep(model, tokens(), zero("z"))


@pytest.mark.parametrize("seed", range(20))
def test_of_a_planted_model_the_planted_head_alone_is_a_cause(seed):
    task = Affine()
    batch = task.sample(64, torch.Generator().manual_seed(seed))
    model = build_planted_model("previous", seed=seed)
    edit = mean("z", capture(model, batch, ["z"]))
    found = sweep(model, batch, edit, ("layer", "head"), "squared_distance")["effect"][0]
    assert (found > 0.1).values.tolist() == [True, False, False, False]
    assert float(found[0]) > 1000 * float(abs(found[1:]).max())


def test_a_head_that_looks_right_and_says_nothing_is_no_cause():
    batch = Affine().sample(64, torch.Generator().manual_seed(0))
    model = build_planted_model("constant")
    edit = mean("z", capture(model, batch, ["z"]))
    found = sweep(model, batch, edit, ("layer", "head"), "squared_distance")["effect"][0]
    assert float(abs(found).max()) < 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_patching_the_whole_stream_recovers_everything_and_patching_with_itself_nothing(name):
    model, metric = MODELS[name], logit_difference(3, 4)
    found = patch(model, tokens(), tokens(1), metric, "resid_post", ("layer",))
    assert found["recovered"].values == pytest.approx([1.0, 1.0, 1.0])
    assert float(found["target"]) == pytest.approx(float(metric(capture(model, tokens(1))["output"]).mean()))
    own = replace("resid_post", capture(model, tokens(), ["resid_post"]))
    with pytest.warns(EditHadNoEffect, match="none of 24 edits of resid_post had any effect"):
        same = sweep(model, tokens(), own, ("layer", "pos"), metric)
    assert (same["effect"] == 0).all()
    assert (same["changed"] == 0).all()


def test_a_patch_before_the_first_difference_changes_nothing_and_after_the_last_token_everything_is_there():
    model, clean = MODELS["llama"], tokens()
    corrupted = clean.clone()
    corrupted[:, 5] = (corrupted[:, 5] + 1) % 20
    found = patch(model, corrupted, clean, logit_difference(3, 4), "resid_pre", ("layer", "pos"))
    assert (found["recovered"][:, :5] == 0).all()
    assert found["recovered"].sel(layer=0, pos=5) == pytest.approx(1.0)
    assert (found["recovered"].sel(layer=0, pos=[6, 7]) == 0).all()


def test_metrics_by_name_and_by_function():
    model, x = MODELS["gpt2"], tokens()
    plain = capture(model, x)["output"]
    expected = torch.nn.functional.cross_entropy(plain[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    by_name = sweep(model, x, zero("mlp_out"), ("layer",), "loss")
    assert float(by_name["intact"]) == pytest.approx(float(expected), rel=1e-6)
    moved = sweep(model, x, zero("mlp_out"), ("layer",), "kl_divergence")
    assert float(moved["intact"]) == pytest.approx(0.0, abs=1e-9)
    assert (moved["effect"] > 0).all()
    own = sweep(model, x, zero("mlp_out"), ("layer",), lambda prediction: prediction[:, -1, 7])
    assert float(own["intact"]) == pytest.approx(float(plain[:, -1, 7].mean()))
    assert own["value"].attrs["units"] == "units of the metric"
    task = Affine()
    batch: Batch = task.sample(8, torch.Generator().manual_seed(0))
    scored = sweep(build_planted_model("previous"), batch, zero("z"))
    each = task.loss(capture(build_planted_model("previous"), batch)["output"], batch)
    assert float(scored["intact"]) == pytest.approx(
        float(((each * batch.weight).sum(1) / batch.weight.sum(1)).mean()), rel=1e-5
    )


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda m: sweep(m, tokens(), zero("z"), ("layer", "kv_head")),
            r"axes must name axes of z \(lay",
        ),
        (lambda m: sweep(m, tokens(), zero("z"), ("layer", "batch")), "axes must name axes of z"),
        (lambda m: sweep(m, tokens(), zero("z"), ()), "axes must name axes of z"),
        (lambda m: sweep(m, tokens(), zero("z"), metric="accuracy"), "a metric must be one of kl_divergence, sq"),
        (
            lambda m: patch(m, tokens(), tokens(1, length=7), logit_difference(3, 4)),
            r"same length, but got shapes \(3, 8\) and \(3, 7\)",
        ),
        (
            lambda m: patch(m, tokens(), tokens(), logit_difference(3, 4)),
            "the metric must differ between the two runs, but logit_difference is",
        ),
        (lambda m: sweep(m, tokens(), zero("z"), metric=lambda p: p), r"one number for each of 3 sequences"),
        (lambda m: sweep(m, tokens(), zero("z"), metric=logit_difference(3, 20)), "must be token ids from 0 to 19"),
        (lambda m: sweep(m, tokens(), zero("z"), metric=log_probability(torch.ones(2).long())), "one for each"),
    ],
)
def test_what_makes_no_sense_is_refused(call, line):
    with pytest.raises(ValueError, match=line):
        call(MODELS["gpt2"])


@pytest.mark.parametrize(
    ("site", "where", "over"),
    [
        ("z", {"layer": -1, "pos": slice(-3, None), "batch": [0, 2]}, ("head", "pos")),
        ("pattern", {"head": [3, -4]}, ("query", "head")),
        ("key", {"pos": 2}, ("kv_head",)),
        ("resid_pre", {"layer": [2, 0], "pos": [1, -1]}, ("pos", "layer")),
        ("mlp_out", {"d_model": [0, 5]}, ("d_model",)),
    ],
)
@pytest.mark.filterwarnings("ignore::mesascope.activations.EditHadNoEffect")
def test_where_limits_the_places_that_are_gone_through(site, where, over):
    model, metric = MODELS["llama"], logit_difference(3, 4)
    edit = replace(site, capture(model, tokens(1), [site]), where)
    found = sweep(model, tokens(), edit, over, metric)
    for place in product(*(found[axis].values.tolist() for axis in over)):
        alone = with_other(edit, where={**edit.where, **dict(zip(over, place, strict=True))})
        expected = metric(capture(model, tokens(), ["output"], edits=[alone])["output"]).mean()
        value = found["value"].sel(dict(zip(over, place, strict=True)))
        assert float(value) == pytest.approx(float(expected), abs=1e-6)


def test_a_metric_is_not_rounded_to_the_precision_of_the_model():
    prediction = torch.randn(2, 300, 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    x = tokens(rows=2, length=300)
    for metric in (loss(x), logit_difference(3, 4), log_probability(5), kl_divergence(prediction.flip(0))):
        assert torch.equal(metric(prediction), metric(prediction.float())), metric.name


def test_a_loss_weighs_positions_as_the_batch_does():
    batch = Batch(inputs=tokens(), targets=tokens(1), weight=torch.arange(24.0).reshape(3, 8))
    prediction = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    each = [
        torch.nn.functional.cross_entropy(row, target, reduction="none")
        for row, target in zip(prediction, batch.targets, strict=True)
    ]
    expected = [
        sum(w * e for w, e in zip(ws, es, strict=True)) / ws.sum() for ws, es in zip(batch.weight, each, strict=True)
    ]
    assert loss(batch)(prediction).tolist() == pytest.approx([float(one) for one in expected], rel=1e-5)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda m, x: sweep(m, x, zero("z", {"head": 9})), "must lie within 4 entries, but got 9"),
        (lambda m, x: sweep(m, x, zero("z"), metric=logit_difference(3, 99)), "must be token ids from 0 to 19"),
        (
            lambda m, x: sweep(m, x, zero("z"), metric=logit_difference(torch.tensor(3.0), 4)),
            "must be integer token ids",
        ),
        (lambda m, x: sweep(m, x, zero("z", {"layer": []})), "an edit needs a layer"),
        (
            lambda m, x: sweep(m, x, zero("z", {"head": [1, 1]})),
            "must select one or more indices, each once, but selects",
        ),
        (lambda m, x: sweep(m, x, zero("z", {"pos": []})), "must select one or more indices, each once, but selects"),
        (lambda m, x: sweep(m, x, zero("z", {"head": [True, False]})), "pass their indices"),
        (lambda m, x: sweep(m, x, zero("z"), max_positions=0), "positions must be 1 or more"),
        (
            lambda m, x: patch(m, x, x.flip(1), logit_difference(3, 4), axes=("layer", "head")),
            "axes must name axes of res",
        ),
        (lambda m, x: patch(m, x, x.flip(1), logit_difference(3, 4), where={"pos": 40}), "must lie within 12 entries"),
        (lambda m, x: patch(m, x, x.flip(1), "kl_divergence"), "a metric that differs between the runs"),
        (lambda m, x: attribution_patch(m, x, zero("z", {"head": 9})), "must lie within 4 entries, but got 9"),
    ],
)
def test_it_is_refused_before_the_model_runs_on_the_sequences(call, line):
    model = gpt2()
    passes = runs_of(model, 12)
    with pytest.raises((ValueError, IndexError), match=line):
        call(model, tokens(length=12))
    assert not passes


def test_metrics_of_tokens_are_refused_for_vectors():
    batch = Affine().sample(4, torch.Generator().manual_seed(0))
    model = build_planted_model("previous")
    for metric in ("kl_divergence", logit_difference(0, 0), log_probability(0)):
        with pytest.raises(ValueError, match="needs a model that predicts tokens, but this one predicts vectors"):
            sweep(model, batch, zero("z"), metric=metric)
    with pytest.raises(ValueError, match="vectors and sequences of one token must be passed as a Batch"):
        sweep(model, batch.inputs, zero("z"))
    empty = Batch(
        inputs=batch.inputs, targets=batch.targets, weight=batch.weight * torch.tensor([[0.0], [1], [1], [1]])
    )
    with pytest.raises(ValueError, match="loss needs a position of nonzero weight in every sequence, but one has none"):
        sweep(model, empty, zero("z"))
