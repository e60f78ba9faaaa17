"""Ragged prompts: every number is that of the same intervention on each prompt alone, whichever side is padded."""

from dataclasses import replace as with_other
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from cases import spread
from mesascope.activations import SITES, Edit, capture
from mesascope.interventions import (
    attribution_patch,
    log_probability,
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

from .ragged import (
    CLOSE,
    DIFFERENCE,
    LENGTHS,
    WIDTH,
    both_models,
    column_means,
    every_case,
    mean_alone,
    padded,
    prompts,
    start,
    take,
    values_of,
)
from .test_changes import MODELS


@both_models
@pytest.mark.parametrize("metric", spread([log_probability(4), "loss", "kl_divergence"], 1))
def test_a_sweep_over_heads_is_the_mean_of_each_prompt_alone(name, side, metric):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    found = sweep(model, ids, zero("z"), metric=metric, attention_mask=mask)
    alone = [sweep(model, text, zero("z"), metric=metric) for text in prompts()]
    for each in ("value", "effect", "intact"):
        assert_close(values_of(found, each), mean_alone(alone, each), **CLOSE)
    assert found["intact"].dims == ()
    assert int(found["num_sequences"]) == 4


@every_case
@pytest.mark.parametrize(
    ("site", "axes"), spread([("mlp_out", ("layer", "pos")), ("pattern", ("query", "layer", "key"))], 1)
)
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


@every_case
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


@both_models
@pytest.mark.parametrize("site", spread(["z", "pattern", "key"], 1))
def test_resampling_takes_a_prompt_of_the_same_length(name, side, site):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    edit = resample(site, capture(model, ids, [site], attention_mask=mask))
    found = sweep(model, ids, edit, ("layer",), DIFFERENCE, attention_mask=mask)
    alone = []
    for row, text in enumerate(prompts()):
        partner = capture(model, prompts()[(row + 2) % 4], [site])  # the only other one of its length
        alone.append(sweep(model, text, replace(site, partner), ("layer",), DIFFERENCE))
    assert_close(values_of(found), mean_alone(alone), **CLOSE)


@every_case
@pytest.mark.parametrize(
    ("site", "axes"), spread([("resid_pre", ("layer", "pos")), ("z", ("layer", "head")), ("pattern", "layer")], 2)
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


@pytest.mark.parametrize(("name", "side", "columns"), [("gpt2", "left", [-2, -1]), ("llama", "right", [0, 1])])
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


@both_models
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


@pytest.mark.parametrize("name", ["gpt2"])
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


@both_models
@pytest.mark.parametrize(("steps", "metric"), [(0, "loss"), (2, DIFFERENCE)])
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


@both_models
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


@both_models
def test_contributions_of_heads_are_those_of_each_prompt_alone(name, side):
    model, (ids, mask) = MODELS[name], padded(prompts(), side)
    found = total_head_contributions(model, ids, attention_mask=mask)
    for row, (text, average) in enumerate(zip(prompts(), column_means(model, prompts(), "z", side), strict=True)):
        edit = Edit(site="z", fn=take, source=average, where={"layer": 1, "head": 2})
        expected = capture(model, text)["output"] - capture(model, text, edits=[edit])["output"]
        assert_close(found[1, 2, row, mask[row].bool()], expected[0], **CLOSE)
        assert bool(found[:, :, row, ~mask[row].bool()].isnan().all())


@pytest.mark.parametrize("name", ["llama"])
def test_sites_are_all_editable_with_padding(name):
    model, (ids, mask) = MODELS[name], padded(prompts(), "left")
    for site in ("query", "attn_out"):
        axes = [axis for axis in SITES[site].axes if axis in ("layer", "head", "kv_head")]
        found = sweep(model, ids, zero(site), axes, DIFFERENCE, attention_mask=mask)
        alone = [sweep(model, text, zero(site), axes, DIFFERENCE) for text in prompts()]
        assert_close(values_of(found), mean_alone(alone), **CLOSE)
