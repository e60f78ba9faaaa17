"""Ragged prompts: every number is that of the same intervention on each prompt alone, whichever side is padded."""

from dataclasses import replace as with_other
from itertools import product

import pytest
import torch
import xarray as xr
from torch.testing import assert_close
from transformers import BatchEncoding

from mesascope.activations import SITES, Edit, capture
from mesascope.interventions import (
    Metric,
    attribution_patch,
    log_probability,
    logit_difference,
    mean,
    patch,
    path_patch,
    replace,
    resample,
    scale,
    sweep,
    total_head_contributions,
    zero,
)
from mesascope.interventions.head_ablation_effects import (
    build_perturbation_edit,
    draw_signed_permutations,
    head_ablation_effects,
)
from mesascope.interventions.metrics import kl_divergence, loss
from mesascope.tasks.base import Batch

from .test_changes import MODELS

LENGTHS, WIDTH = (5, 8, 5, 8), 9  # the first or the last column is padding in all of them
DIFFERENCE = logit_difference(3, 5)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
pytestmark = pytest.mark.parametrize("name", MODELS)


def prompts(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 20, (1, length), generator=generator) for length in lengths]


def start(length: int, side: str) -> int:
    return WIDTH - length if side == "left" else 0


def padded(texts: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = torch.zeros(2, len(texts), WIDTH, dtype=torch.long)
    for row, text in enumerate(texts):
        columns = slice(start(text.shape[1], side), start(text.shape[1], side) + text.shape[1])
        ids[row, columns], mask[row, columns] = text[0], 1
    return ids, mask


def values_of(dataset: xr.Dataset, name: str = "value") -> torch.Tensor:
    return torch.tensor(dataset[name].values).double()


def mean_alone(results: list[xr.Dataset], name: str = "value") -> torch.Tensor:
    return torch.stack([values_of(one, name) for one in results]).mean(0)


both_sides = pytest.mark.parametrize("side", ["left", "right"])


@both_sides
@pytest.mark.parametrize("metric", [DIFFERENCE, log_probability(4), "loss", "kl_divergence"])
def test_a_sweep_over_heads_is_the_mean_of_each_prompt_alone(name, side, metric):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    found = sweep(model, ids, zero("z"), metric=metric, attention_mask=mask)
    alone = [sweep(model, text, zero("z"), metric=metric) for text in prompts()]
    for each in ("value", "effect", "intact"):
        assert_close(values_of(found, each), mean_alone(alone, each), **CLOSE)
    assert found["intact"].dims == ()
    assert int(found["num_sequences"]) == 4


@both_sides
@pytest.mark.parametrize(("site", "axes"), [("mlp_out", ("layer", "pos")), ("pattern", ("query", "layer", "key"))])
def test_a_sweep_over_columns_averages_the_prompts_that_have_them(name, side, site, axes):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    edit = scale(site, 0.5, {"layer": [0, 2]})
    found = sweep(model, ids, edit, axes, DIFFERENCE, attention_mask=mask)
    alone = [sweep(model, text, edit, axes, DIFFERENCE) for text in prompts()]
    columns = [axis for axis in axes if axis != "layer"]
    assert found["value"].dims == axes
    assert found["intact"].dims == found["num_sequences"].dims == tuple(columns)
    for place in product(range(WIDTH), repeat=len(columns)):
        at = dict(zip(columns, place, strict=True))
        inside = [
            (one, {axis: column - start(length, side) for axis, column in at.items()})
            for one, length in zip(alone, LENGTHS, strict=True)
            if all(0 <= column - start(length, side) < length for column in place)
        ]
        assert int(found["num_sequences"].sel(at)) == len(inside)
        if not inside:
            assert bool(found["value"].sel(at).isnull().all() and found["intact"].sel(at).isnull().all())
            continue
        expected = mean_alone([one.sel(where) for one, where in inside])
        assert_close(values_of(found.sel(at)), expected, **CLOSE)
        intact = mean_alone([one for one, _ in inside], "intact")
        assert_close(values_of(found.sel(at), "intact"), intact, **CLOSE)
        assert_close(values_of(found.sel(at), "effect"), expected - intact, **CLOSE)


def column_means(model, texts: list[torch.Tensor], site: str, side: str) -> list[dict[int, torch.Tensor]]:
    """By prompt and layer: the mean, at each of its positions, over the prompts with an input in the same column."""
    acts = [capture(model, text, [site])[site][:, 0] for text in texts]
    total, count = torch.zeros(len(acts[0]), WIDTH, *acts[0].shape[2:]), torch.zeros(WIDTH)
    columns = [slice(start(one.shape[1], side), start(one.shape[1], side) + one.shape[1]) for one in acts]
    for one, part in zip(acts, columns, strict=True):
        total[:, part] += one
        count[part] += 1
    average = total / count.clamp(min=1).view(-1, *[1] * (total.ndim - 2))
    return [{layer: average[layer, part][None] for layer in range(len(average))} for part in columns]


def take(old: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return source


@both_sides
@pytest.mark.parametrize("site", ["z", "resid_post"])
def test_a_mean_is_over_the_prompts_that_have_the_column(name, side, site):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    edit = mean(site, capture(model, ids, [site], attention_mask=mask))
    found = sweep(model, ids, edit, ("layer",), DIFFERENCE, attention_mask=mask)
    edits = [Edit(site=site, fn=take, source=each) for each in column_means(model, prompts(), site, side)]
    alone = [sweep(model, text, one, ("layer",), DIFFERENCE) for text, one in zip(prompts(), edits, strict=True)]
    assert_close(values_of(found), mean_alone(alone), **CLOSE)
    edited = capture(model, ids, ["output"], edits=[edit], attention_mask=mask)["output"]
    for row, (text, one) in enumerate(zip(prompts(), edits, strict=True)):
        expected = capture(model, text, ["output"], edits=[one])["output"][0]
        assert_close(edited[row, mask[row].bool()], expected, **CLOSE)


@both_sides
@pytest.mark.parametrize("site", ["z", "pattern", "key"])
def test_resampling_takes_a_prompt_of_the_same_length(name, side, site):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    edit = resample(site, capture(model, ids, [site], attention_mask=mask))
    found = sweep(model, ids, edit, ("layer",), DIFFERENCE, attention_mask=mask)
    alone = []
    for row, text in enumerate(prompts()):
        partner = capture(model, prompts()[(row + 2) % 4], [site])  # the only other one of its length
        alone.append(sweep(model, text, replace(site, partner), ("layer",), DIFFERENCE))
    assert_close(values_of(found), mean_alone(alone), **CLOSE)


@both_sides
@pytest.mark.parametrize(
    ("site", "axes"), [("resid_pre", ("layer", "pos")), ("z", ("layer", "head")), ("pattern", "layer")]
)
def test_a_patch_is_that_of_each_pair_alone(name, side, site, axes):
    model = MODELS[name]
    (ids, mask), (other, other_mask) = padded(prompts(), side), padded(prompts(1), side)
    found = patch(model, ids, other, DIFFERENCE, site, axes, attention_mask=mask, source_attention_mask=other_mask)
    pairs = list(zip(prompts(), prompts(1), strict=True))
    alone = [patch(model, text, source, DIFFERENCE, site, axes) for text, source in pairs]
    if "pos" not in axes:
        value, intact, target = (mean_alone(alone, each) for each in ("value", "intact", "target"))
        assert_close(values_of(found), value, **CLOSE)
        assert_close(values_of(found, "recovered"), (value - intact) / (target - intact), atol=1e-4, rtol=1e-4)
        return
    for column in range(WIDTH):
        inside = [
            one.sel(pos=column - start(length, side))
            for one, length in zip(alone, LENGTHS, strict=True)
            if 0 <= column - start(length, side) < length
        ]
        if inside:
            here = found.sel(pos=column)
            for each in ("value", "intact", "target"):
                assert_close(values_of(here, each), mean_alone(inside, each), **CLOSE)
            value, intact, target = (mean_alone(inside, each) for each in ("value", "intact", "target"))
            assert_close(values_of(here, "recovered"), (value - intact) / (target - intact), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("side", "columns"), [("left", [-2, -1]), ("right", [0, 1])])
def test_a_pair_of_unequal_length_is_patched_where_both_have_inputs(name, side, columns):
    model, lengths = MODELS[name], (8, 5, 7, 4)
    (ids, mask), (other, other_mask) = padded(prompts(), side), padded(prompts(1, lengths), side)
    masks = {"attention_mask": mask, "source_attention_mask": other_mask}
    where = {"pos": columns}
    found = patch(model, ids, other, DIFFERENCE, "mlp_out", ("layer",), where=where, **masks)
    alone = []
    for text, source in zip(prompts(), prompts(1, lengths), strict=True):
        values = capture(model, source, ["mlp_out"])["mlp_out"][:, :, columns]
        layers = {layer: torch.zeros(1, text.shape[1], 16) for layer in range(3)}
        for layer, each in layers.items():
            each[:, columns] = values[layer]
        alone.append(sweep(model, text, Edit(site="mlp_out", fn=take, source=layers, where=where), "layer", DIFFERENCE))
    assert_close(values_of(found), mean_alone(alone), **CLOSE)
    with pytest.raises(ValueError, match=r"has padding at column \d, where sequence 1 of the run has none; pass pairs"):
        patch(model, ids, other, DIFFERENCE, "mlp_out", ("layer",), **masks)


@both_sides
@pytest.mark.parametrize(
    ("through", "receiver", "where"),
    [
        ("residual", "output", None),
        ("mlp", "output", None),
        ("residual", "key", {"layer": 2}),
        ("all", "query", {"layer": 2}),
    ],
)
def test_a_path_is_that_of_each_pair_alone(name, side, through, receiver, where):
    model = MODELS[name]
    (ids, mask), (other, other_mask) = padded(prompts(), side), padded(prompts(1), side)
    options = {"receiver": receiver, "receiver_where": where, "through": through}
    masks = {"attention_mask": mask, "source_attention_mask": other_mask}
    found = path_patch(model, ids, other, DIFFERENCE, **options, **masks)
    pairs = zip(prompts(), prompts(1), strict=True)
    alone = [path_patch(model, text, source, DIFFERENCE, **options) for text, source in pairs]
    for each in ("value", "effect", "target"):
        assert_close(values_of(found, each), mean_alone(alone, each), **CLOSE)


def test_a_sequence_counts_on_a_path_if_the_receiver_has_an_input(name):
    model = MODELS[name]
    (ids, mask), (other, other_mask) = padded(prompts(), "left"), padded(prompts(1), "left")
    options = {"receiver": "value", "through": "all"}
    masks = {"attention_mask": mask, "source_attention_mask": other_mask}
    where = {"layer": 2, "pos": 2}
    found = path_patch(model, ids, other, DIFFERENCE, **options, **masks, receiver_where=where)
    alone = [
        path_patch(model, prompts()[row], prompts(1)[row], DIFFERENCE, **options, receiver_where={"layer": 2, "pos": 1})
        for row in (1, 3)
    ]
    assert int(found["num_sequences"]) == 2
    for each in ("value", "effect", "intact", "target"):
        assert_close(values_of(found, each), mean_alone(alone, each), **CLOSE)


@both_sides
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("metric", [DIFFERENCE, "loss"])
def test_estimates_are_those_of_each_prompt_alone(name, side, steps, metric):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    found = attribution_patch(model, ids, zero("z"), metric=metric, steps=steps, attention_mask=mask, compare=True)
    alone = [attribution_patch(model, text, zero("z"), metric=metric, steps=steps, compare=True) for text in prompts()]
    for each in ("estimate", "effect", "error"):
        assert_close(values_of(found, each), mean_alone(alone, each), **CLOSE)
    where = {"layer": 1}
    by_column = attribution_patch(
        model, ids, zero("z", where), ("pos",), metric, steps=steps, attention_mask=mask, compare=True
    )
    single = [attribution_patch(model, text, zero("z", where), ("pos",), metric, steps=steps) for text in prompts()]
    expected = [
        one.sel(pos=3 - start(length, side))
        for one, length in zip(single, LENGTHS, strict=True)
        if 3 - start(length, side) >= 0
    ]
    assert_close(values_of(by_column.sel(pos=3), "estimate"), mean_alone(expected, "estimate"), **CLOSE)
    assert bool(by_column["agreement"].notnull().all())
    assert bool(by_column["estimate"].isnull().sel(pos=0 if side == "left" else WIDTH - 1))


@both_sides
def test_effects_of_heads_are_those_of_each_prompt_alone(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    found = head_ablation_effects(model, ids, DIFFERENCE, attention_mask=mask, seed=3)
    averages, permutations = column_means(model, prompts(), "z", side), draw_signed_permutations(4, 16, 3)
    for row, text in enumerate(prompts()):
        acts, partner = capture(model, text, ["z"]), capture(model, prompts()[(row + 2) % 4], ["z"])
        intact = DIFFERENCE(capture(model, text, ["output"])["output"])
        assert_close(found.intact[row : row + 1], intact, **CLOSE)
        own = tuple(each[row : row + 1] for each in permutations)
        ablation = Edit(site="z", fn=take, source=averages[row])
        for layer, head in ((0, 1), (2, 3)):
            where = {"layer": layer, "head": head}
            edits = [with_other(ablation, where=where), replace("z", partner, where)]
            edits.append(build_perturbation_edit(acts, layer, head, ablation, own))
            outputs = [capture(model, text, ["output"], edits=[edit])["output"] for edit in edits]
            expected = torch.cat([DIFFERENCE(output) - intact for output in outputs])
            effects = [*found.effect[layer, head, :, row], found.perturbation_effect[layer, head, row]]
            assert_close(torch.stack(effects), expected, **CLOSE)


@both_sides
def test_contributions_of_heads_are_those_of_each_prompt_alone(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    found = total_head_contributions(model, ids, attention_mask=mask)
    for row, (text, average) in enumerate(zip(prompts(), column_means(model, prompts(), "z", side), strict=True)):
        edit = Edit(site="z", fn=take, source=average, where={"layer": 1, "head": 2})
        expected = capture(model, text)["output"] - capture(model, text, edits=[edit])["output"]
        assert_close(found[1, 2, row, mask[row].bool()], expected[0], **CLOSE)
        assert bool(found[:, :, row, ~mask[row].bool()].isnan().all())


@both_sides
def test_every_form_of_inputs_is_taken(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    found = values_of(sweep(model, ids, zero("z"), attention_mask=mask))
    encoding = BatchEncoding({"input_ids": ids, "attention_mask": mask})
    for inputs in (encoding, BatchEncoding({"input_ids": ids.tolist(), "attention_mask": mask.tolist()})):
        assert torch.equal(values_of(sweep(model, inputs, zero("z"))), found)
    assert torch.equal(values_of(sweep(model, ids.int(), zero("z"), attention_mask=mask.bool().numpy())), found)
    other, other_mask = padded(prompts(1), side)
    source = BatchEncoding({"input_ids": other, "attention_mask": other_mask})
    found = patch(model, ids, other, DIFFERENCE, attention_mask=mask, source_attention_mask=other_mask)
    xr.testing.assert_equal(patch(model, encoding, source, DIFFERENCE), found)
    xr.testing.assert_equal(
        path_patch(model, encoding, source, DIFFERENCE),
        path_patch(model, ids, other, DIFFERENCE, attention_mask=mask, source_attention_mask=other_mask),
    )
    for function in (attribution_patch, sweep):
        assert function(model, encoding, zero("z"), metric=DIFFERENCE).equals(
            function(model, ids, zero("z"), metric=DIFFERENCE, attention_mask=mask)
        )
    by_head = [
        head_ablation_effects(model, one, DIFFERENCE, attention_mask=given)
        for one, given in ((encoding, None), (ids, mask))
    ]
    assert torch.equal(by_head[0].effect, by_head[1].effect)
    assert total_head_contributions(model, encoding).shape == (3, 4, 4, WIDTH, 20)


def test_small_integers_are_tokens_answers_and_targets(name):
    model, text = MODELS[name], torch.cat(prompts(lengths=(8, 8)))
    answers = torch.tensor([3, 4])
    for given, same in ((text.int(), text), (text.short(), text)):
        assert float(loss(given)(capture(model, text)["output"]).sum()) == float(
            loss(same)(capture(model, text)["output"]).sum()
        )
        for edit in (zero("z"), zero("mlp_out")):
            axes = ("layer",)
            xr.testing.assert_equal(sweep(model, given, edit, axes), sweep(model, same, edit, axes))
        metrics = logit_difference(answers.int(), answers.to(torch.uint8) + 1), logit_difference(answers, answers + 1)
        xr.testing.assert_equal(*(sweep(model, text, zero("z"), metric=metric) for metric in metrics))
    targets = Batch(inputs=text, targets=text.roll(-1, 1), weight=torch.ones(2, 8))
    small = with_other(targets, targets=targets.targets.int())
    xr.testing.assert_equal(*(sweep(model, one, zero("z")) for one in (small, targets)))


@both_sides
def test_metrics_of_several_positions_leave_out_padding(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)

    def norm(output, attention_mask=None):
        weight = torch.ones(output.shape[:2]) if attention_mask is None else attention_mask
        return (output.norm(dim=-1) * weight).sum(1) / weight.sum(1)

    found = sweep(model, ids, zero("z"), metric=norm, attention_mask=mask)
    assert_close(
        values_of(found), mean_alone([sweep(model, text, zero("z"), metric=norm) for text in prompts()]), **CLOSE
    )
    last = Metric(name="last", units="logit", description="a logit", fn=lambda y: y[:, -1, 7], last_position_only=True)
    found = sweep(model, ids, zero("z"), metric=last, attention_mask=mask)
    assert_close(
        values_of(found), mean_alone([sweep(model, text, zero("z"), metric=last) for text in prompts()]), **CLOSE
    )
    for metric, line in ((lambda y: y[:, -1, 7], "the metric <lambda> must leave it out"), (min, "metric min must")):
        for run in (sweep, attribution_patch):
            with pytest.raises(ValueError, match=line):
                run(model, ids, zero("z"), metric=metric, attention_mask=mask)
    outputs = capture(model, ids, attention_mask=mask)["output"]
    assert_close(kl_divergence(outputs)(outputs, mask), torch.zeros(4).double(), **CLOSE)


@both_sides
def test_a_batch_of_a_task_can_have_padding(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    batch = Batch(
        inputs=ids, targets=ids.flip(1), weight=torch.rand(4, WIDTH, generator=torch.Generator().manual_seed(0)) + 0.1
    )
    found = sweep(model, batch, zero("z"), attention_mask=mask)
    alone = []
    for row in range(4):
        real = mask[row].bool()
        own = Batch(
            inputs=ids[row, real][None], targets=ids.flip(1)[row, real][None], weight=batch.weight[row, real][None]
        )
        alone.append(sweep(model, own, zero("z")))
    assert_close(values_of(found), mean_alone(alone), **CLOSE)
    gradient = capture(model, batch, ["resid_pre_grad"], attention_mask=mask)["resid_pre_grad"]
    row, real = 0, mask[0].bool()
    own = Batch(inputs=ids[:1, real], targets=ids.flip(1)[:1, real], weight=batch.weight[:1, real])
    expected = capture(model, own, ["resid_pre_grad"])["resid_pre_grad"]
    assert_close(gradient[:, row, real], expected[:, 0], **CLOSE)
    assert not gradient[:, row, ~real].any()


@both_sides
def test_an_objective_reads_the_last_position_that_is_no_padding(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    found = capture(model, ids, ["mlp_out_grad"], objective=DIFFERENCE, attention_mask=mask)["mlp_out_grad"]
    for row, text in enumerate(prompts()):
        alone = capture(model, text, ["mlp_out_grad"], objective=DIFFERENCE)["mlp_out_grad"]
        assert_close(found[:, row, mask[row].bool()], alone[:, 0], **CLOSE)
    with pytest.raises(ValueError, match="with padding, an objective must leave it out"):
        capture(model, ids, ["mlp_out_grad"], objective=lambda y: y[:, -1, 3], attention_mask=mask)


@both_sides
def test_an_edit_never_reaches_padding(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    plain = capture(model, ids, ["pattern", "z"], attention_mask=mask)
    flat = Edit(site="pattern", fn=lambda old: torch.full_like(old, 0.1))  # on padding, too, if it could
    edited = capture(model, ids, ["pattern", "output"], edits=[flat], attention_mask=mask, batch_size=3)
    real = mask.bool()
    pairs = (real[:, None, :, None] & real[:, None, None]).expand(4, 4, WIDTH, WIDTH)
    assert torch.equal(edited["pattern"][:, ~pairs], plain["pattern"][:, ~pairs])
    for row, text in enumerate(prompts()):
        alone = capture(model, text, ["output"], edits=[flat])["output"]
        assert_close(edited["output"][row, real[row]], alone[0], **CLOSE)


def test_positions_that_count_from_an_end_of_padding_are_refused(name):
    model, (ids, mask) = MODELS[name], padded(prompts(), "right")
    line = r"where\['pos'\] must not count from the end of sequences that end with padding, but got .*; pad on the left"
    for where in (-1, [0, -2], slice(-3, None), slice(1, -1)):
        for run in (sweep, attribution_patch):
            with pytest.raises(ValueError, match=line):
                run(model, ids, zero("z", {"pos": where}), metric=DIFFERENCE, attention_mask=mask)
        with pytest.raises(ValueError, match=line):
            capture(model, ids, edits=[zero("z", {"pos": where})], attention_mask=mask)
    other, other_mask = padded(prompts(1), "right")
    masks = {"attention_mask": mask, "source_attention_mask": other_mask}
    with pytest.raises(ValueError, match=line):
        patch(model, ids, other, DIFFERENCE, "z", ("layer",), where={"pos": -1}, **masks)
    with pytest.raises(ValueError, match=line):
        path_patch(model, ids, other, DIFFERENCE, receiver="key", receiver_where={"layer": 2, "pos": -1}, **masks)
    ids, mask = padded(prompts(), "left")
    found = sweep(model, ids, zero("z", {"pos": -1}), metric=DIFFERENCE, attention_mask=mask)
    alone = [sweep(model, text, zero("z", {"pos": -1}), metric=DIFFERENCE) for text in prompts()]
    assert_close(values_of(found), mean_alone(alone), **CLOSE)


@both_sides
def test_sources_whose_padding_does_not_fit_are_refused(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    sites = ["z", "pattern", "key", "attn_scores"]
    acts = capture(model, ids, sites, attention_mask=mask)
    forgotten = capture(model, ids, sites)
    shorter, shorter_mask = padded(prompts(1, (5, 7, 5, 7)), side)
    longer = capture(model, *padded_arguments(prompts(1, (6, 8, 6, 8)), side), sites)
    short = capture(model, shorter, sites, attention_mask=shorter_mask)
    for edit, line in (
        (mean("z", forgotten), "must have the attention mask of the run"),
        (replace("z", forgotten), "must have the attention mask of the run"),
        (resample("z", forgotten), "must have the attention mask of the run"),
        (
            replace("z", short),
            r"must have an input wherever the run has one, but has padding at column \d, where sequence 1",
        ),
        (mean("z", short), "must have an input wherever the run has one"),
        (replace("pattern", short), "must have the same padding as the run.* but sequence 1 has another length"),
        (mean("pattern", acts), "a mean of pattern needs sequences of one length"),
        (mean("attn_scores", acts), "a mean of attn_scores needs sequences of one length"),
    ):
        with pytest.raises(ValueError, match=line):
            sweep(model, ids, edit, ("layer",), DIFFERENCE, attention_mask=mask)
        with pytest.raises(ValueError, match=line):
            capture(model, ids, edits=[edit], attention_mask=mask)
    for edit in (mean("key", acts), replace("key", longer)):
        if side == "left":
            with pytest.raises(
                ValueError, match="must have the same positions as the run, because of rotary embeddings"
            ):
                sweep(model, ids, edit, ("layer",), DIFFERENCE, attention_mask=mask)
        else:
            sweep(model, ids, edit, ("layer",), DIFFERENCE, attention_mask=mask)
    with pytest.raises(ValueError, match="must have the attention mask of the run"):
        sweep(model, ids, mean("z", acts), ("layer",), DIFFERENCE)
    lone = capture(model, shorter[:3], ["z"], attention_mask=shorter_mask[:3])
    with pytest.raises(ValueError, match="resample needs two or more .* sequence 1 is the only one with 7 inputs"):
        resample("z", lone)


def padded_arguments(texts: list[torch.Tensor], side: str) -> tuple:
    ids, mask = padded(texts, side)
    return (BatchEncoding({"input_ids": ids, "attention_mask": mask}),)


def test_masks_that_cannot_be_are_refused(name):
    model, (ids, mask) = MODELS[name], padded(prompts(), "left")
    other, other_mask = padded(prompts(1), "left")
    for run in (patch, path_patch):
        with pytest.raises(ValueError, match="source_attention_mask must be passed too"):
            run(model, ids, other, DIFFERENCE, attention_mask=mask)
        with pytest.raises(ValueError, match="^attention_mask must be passed too"):
            run(model, ids, other, DIFFERENCE, source_attention_mask=other_mask)
        with pytest.raises(ValueError, match=r"but got shapes \(4, 9\) and \(4, 8\); pad both to one length"):
            run(model, ids, other[:, 1:], DIFFERENCE, attention_mask=mask)
    empty = mask.clone()
    empty[2] = 0
    with pytest.raises(ValueError, match="a sequence must not be all padding, but sequence 2 is"):
        sweep(model, ids, zero("z"), attention_mask=empty)
    single = mask.clone()
    single[1, :-1] = 0
    with pytest.raises(ValueError, match="loss needs a target that is not padding in every sequence, but sequence 1"):
        sweep(model, ids, zero("z"), attention_mask=single)
    with pytest.raises(ValueError, match="attention_mask must be"):
        sweep(model, ids, zero("z"), attention_mask=mask[:, 1:])
    with pytest.raises(ValueError, match="attention_mask must be given once"):
        sweep(model, BatchEncoding({"input_ids": ids, "attention_mask": mask}), zero("z"), attention_mask=mask)


def test_sites_are_all_editable_with_padding(name):
    model, (ids, mask) = MODELS[name], padded(prompts(), "left")
    for site in ("resid_pre", "query", "value", "attn_out"):
        axes = [axis for axis in SITES[site].axes if axis in ("layer", "head", "kv_head")]
        found = sweep(model, ids, zero(site), axes, DIFFERENCE, attention_mask=mask)
        alone = [sweep(model, text, zero(site), axes, DIFFERENCE) for text in prompts()]
        assert_close(values_of(found), mean_alone(alone), **CLOSE)
