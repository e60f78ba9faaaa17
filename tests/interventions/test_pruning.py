"""Pruning finds which layer needs many heads where it is known, and keeps what it says it keeps."""

import numpy as np
import pytest
import torch

from mesascope.activations import EditHadNoEffect, capture
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.analyses.causal.pruning import (
    ALL_HEADS,
    ALL_IN_FIRST_LAYER,
    ALL_IN_LATER_LAYERS,
    HEAD_SETS,
    ONE_PER_LAYER,
    PRUNING_KINDS,
    REVERSED_SAME_NUMBER,
    heads_to_ablate,
    normalized_entropy,
    pruning,
)
from mesascope.ground_truth.models.descent import build_gradient_descent_model
from mesascope.interventions import zero
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.testing import check_ground_truth
from sparse_models import CASES, DIM, NUM_EXAMPLES, TASK, sample_batch

PRUNED = pruning.using(first=NUM_EXAMPLES)


def trained_alike(**shape):
    torch.manual_seed(0)
    usual = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 3, "residual_init_scale": 0.02}
    return Decoder(
        DecoderConfig(d_in=TASK.input_dim, d_out=1, attention="linear", mask="context_only", **usual | shape)
    ).eval()


def test_the_layer_that_needs_many_heads_is_found_and_decoys_are_passed_over():
    def found(data):
        even = data["entropy"].values  # of both kinds alike
        known = bool(np.isfinite(even).all())
        claimed = known and even[0].min() > 0.5 and even[1:].max() < 0.2
        assert claimed or not known or even[0].max() <= 0.5 or even[1:].min() >= 0.2
        return {"first layer needs many heads, later ones one": {(0,)} if claimed else set()}

    findings = check_ground_truth(PRUNED, found, draws=2, cases=CASES)
    findings.assert_exact()
    assert not findings.not_applicable


def test_the_damage_is_that_of_ablation_and_of_heads_set_to_nothing():
    model, drawn = trained_alike(), sample_batch(64)
    found = PRUNED(model, TASK, drawn)
    ablated = head_ablation(model, TASK, drawn, first=NUM_EXAMPLES, groups=False)
    assert np.allclose(
        found["ablation_effect"].sel(stat="mean"), ablated["effect"].sel(stat="mean"), rtol=1e-4, atol=1e-6
    )
    edited = capture(model, drawn, ["output"], edits=[zero("z", {"layer": 1, "head": 2})])["output"]
    rise = float(TASK.loss(edited, drawn)[:, -1].mean()) - float(ablated["loss"])
    assert float(found["ablation_effect"].sel(stat="zero", layer=1, head=2)) == pytest.approx(rise, rel=1e-3, abs=1e-6)
    assert float(found["pruned_loss_zero"].sel(component=ALL_HEADS)) == pytest.approx(float(ablated["loss"]), rel=1e-6)


def test_what_is_kept_is_what_the_arrangement_says():
    model, drawn = trained_alike(), sample_batch(64)
    found = PRUNED(model, TASK, drawn)
    order = found["ablation_effect"].sel(stat="zero").argsort(1).values
    edits = [zero("z", {"layer": layer, "head": sorted(order[layer][:-1].tolist())}) for layer in (1, 2)]
    edited = capture(model, drawn, ["output"], edits=edits)["output"]
    loss = float(TASK.loss(edited, drawn)[:, -1].mean())
    assert float(found["pruned_loss_zero"].sel(component=ALL_IN_FIRST_LAYER)) == pytest.approx(loss, rel=1e-4)


def test_a_model_that_preprocesses_loses_nothing_by_the_pruning_that_suits_it_and_much_by_the_other():
    preprocesses, _, later, _ = CASES
    found, other = (PRUNED(one.build_model(0), TASK, one.sample_batch(0)) for one in (preprocesses, later))
    for kind in PRUNING_KINDS:
        kept = found[f"pruned_loss_{kind}"]
        loss = {name: float(kept.sel(component=name)) for name in HEAD_SETS}
        assert loss[ALL_IN_FIRST_LAYER] == pytest.approx(loss[ALL_HEADS], abs=1e-6)
        assert min(loss[ALL_IN_LATER_LAYERS], loss[REVERSED_SAME_NUMBER], loss[ONE_PER_LAYER]) > 3 * loss[ALL_HEADS]
        kept = other[f"pruned_loss_{kind}"]
        assert float(kept.sel(component=ALL_IN_LATER_LAYERS)) == pytest.approx(
            float(kept.sel(component=ALL_HEADS)), abs=1e-6
        )
        assert float(kept.sel(component=ALL_IN_FIRST_LAYER)) > 1.3 * float(kept.sel(component=ALL_HEADS))


def test_one_head_in_each_layer_costs_nothing_where_there_is_no_other():
    with pytest.warns(EditHadNoEffect):
        capture(
            build_gradient_descent_model(DIM, NUM_EXAMPLES, 1),
            sample_batch(8),
            ["output"],
            edits=[zero("z", {"head": 1})],
        )
    kept = PRUNED(build_gradient_descent_model(DIM, NUM_EXAMPLES, 2, 0.3), TASK, sample_batch(64))["pruned_loss_mean"]
    assert np.allclose(kept, kept[0], atol=1e-6)


@pytest.mark.parametrize(("layers", "heads"), [(2, 4), (3, 4), (4, 2)])
def test_as_many_heads_are_kept_the_other_way_round(layers, heads):
    damage = torch.rand(layers, heads, generator=torch.Generator().manual_seed(0))
    dropped = {name: [len(each) for each in rows] for name, rows in heads_to_ablate(damage).items()}
    assert sum(dropped[REVERSED_SAME_NUMBER]) == sum(dropped[ALL_IN_FIRST_LAYER]) == (layers - 1) * (heads - 1)
    assert dropped[REVERSED_SAME_NUMBER][0] == heads - 1
    assert dropped[ONE_PER_LAYER] == [heads - 1] * layers
    assert dropped[ALL_IN_LATER_LAYERS] == [heads - 1] + [0] * (layers - 1)
    best = damage.argmax(1).tolist()
    assert all(one not in rows for one, rows in zip(best, heads_to_ablate(damage)[ONE_PER_LAYER], strict=True))


def test_the_spread_of_known_shares():
    even = normalized_entropy(torch.tensor([[3.0, 1.0, -5.0, 0.0]]))
    share = np.array([0.75, 0.25])
    assert float(even[0]) == pytest.approx(float(-(share * np.log(share)).sum() / np.log(4)))


@pytest.mark.parametrize("shape", [{"num_hidden_layers": 1}, {"num_attention_heads": 1}])
def test_what_has_nothing_to_prune_is_refused(shape):
    with pytest.raises(ValueError, match="pruning needs two layers and two heads in each, or more, but got"):
        pruning(trained_alike(**shape), TASK, sample_batch(8))
