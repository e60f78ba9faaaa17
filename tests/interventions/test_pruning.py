"""Pruning finds which layer needs many heads where it is known, and keeps what it says it keeps."""

import numpy as np
import pytest
import torch

from mesascope.activations import NothingChanged, capture
from mesascope.analyses.causal.ablation import ablation
from mesascope.analyses.causal.pruning import (
    ALL,
    FIRST,
    KEPT,
    KINDS,
    LATER,
    SINGLE,
    SWAPPED,
    arrangements,
    pruning,
    spread,
)
from mesascope.ground_truth.models.descent import planted_descent
from mesascope.interventions import zero
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.testing import check_instrument
from sparse_models import CASES, DIM, SHOWN, TASK, batch

PRUNED = pruning.using(first=SHOWN)


def trained_alike(**shape):
    torch.manual_seed(0)
    usual = {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 3, "initializer_writes": 0.02}
    return Decoder(DecoderConfig(d_in=TASK.width, d_out=1, attention="linear", visible="shown", **usual | shape)).eval()


def test_the_layer_that_needs_many_heads_is_found_and_decoys_are_passed_over():
    def found(data):
        even = data["spread"].values  # of both kinds alike
        known = bool(np.isfinite(even).all())
        claimed = known and even[0].min() > 0.5 and even[1:].max() < 0.2
        assert claimed or not known or even[0].max() <= 0.5 or even[1:].min() >= 0.2
        return {"first layer needs many heads, later ones one": {(0,)} if claimed else set()}

    findings = check_instrument(PRUNED, found, draws=2, cases=CASES)
    findings.must_hold()
    assert not findings.refused


def test_the_damage_is_that_of_ablation_and_of_heads_set_to_nothing():
    model, drawn = trained_alike(), batch(64)
    found = PRUNED(model, TASK, drawn)
    cost = ablation(model, TASK, drawn, first=SHOWN, groups=False)
    assert np.allclose(found["damage"].sel(stat="mean"), cost["cost"].sel(stat="mean"), rtol=1e-4, atol=1e-6)
    edited = capture(model, drawn, ["prediction"], edits=[zero("head_out", {"layer": 1, "head": 2})])["prediction"]
    rise = float(TASK.loss(edited, drawn)[:, -1].mean()) - float(cost["loss"])
    assert float(found["damage"].sel(stat="zero", layer=1, head=2)) == pytest.approx(rise, rel=1e-3, abs=1e-6)
    assert float(found["kept_zero"].sel(component=ALL)) == pytest.approx(float(cost["loss"]), rel=1e-6)


def test_what_is_kept_is_what_the_arrangement_says():
    model, drawn = trained_alike(), batch(64)
    found = PRUNED(model, TASK, drawn)
    order = found["damage"].sel(stat="zero").argsort(1).values
    edits = [zero("head_out", {"layer": layer, "head": sorted(order[layer][:-1].tolist())}) for layer in (1, 2)]
    edited = capture(model, drawn, ["prediction"], edits=edits)["prediction"]
    loss = float(TASK.loss(edited, drawn)[:, -1].mean())
    assert float(found["kept_zero"].sel(component=FIRST)) == pytest.approx(loss, rel=1e-4)


def test_a_model_that_preprocesses_loses_nothing_by_the_pruning_that_suits_it_and_much_by_the_other():
    preprocesses, _, later, _ = CASES
    found, other = (PRUNED(one.build(0), TASK, one.sequences(0)) for one in (preprocesses, later))
    for kind in KINDS:
        kept = found[f"kept_{kind}"]
        loss = {name: float(kept.sel(component=name)) for name in KEPT}
        assert loss[FIRST] == pytest.approx(loss[ALL], abs=1e-6)
        assert min(loss[LATER], loss[SWAPPED], loss[SINGLE]) > 3 * loss[ALL]
        kept = other[f"kept_{kind}"]
        assert float(kept.sel(component=LATER)) == pytest.approx(float(kept.sel(component=ALL)), abs=1e-6)
        assert float(kept.sel(component=FIRST)) > 1.3 * float(kept.sel(component=ALL))


def test_one_head_in_each_layer_costs_nothing_where_there_is_no_other():
    with pytest.warns(NothingChanged):
        capture(planted_descent(DIM, SHOWN, 1), batch(8), ["prediction"], edits=[zero("head_out", {"head": 1})])
    kept = PRUNED(planted_descent(DIM, SHOWN, 2, 0.3), TASK, batch(64))["kept_mean"]
    assert np.allclose(kept, kept[0], atol=1e-6)


@pytest.mark.parametrize(("layers", "heads"), [(2, 4), (3, 4), (4, 2)])
def test_as_many_heads_are_kept_the_other_way_round(layers, heads):
    damage = torch.rand(layers, heads, generator=torch.Generator().manual_seed(0))
    dropped = {name: [len(each) for each in rows] for name, rows in arrangements(damage).items()}
    assert sum(dropped[SWAPPED]) == sum(dropped[FIRST]) == (layers - 1) * (heads - 1)
    assert dropped[SWAPPED][0] == heads - 1
    assert dropped[SINGLE] == [heads - 1] * layers
    assert dropped[LATER] == [heads - 1] + [0] * (layers - 1)
    best = damage.argmax(1).tolist()
    assert all(one not in rows for one, rows in zip(best, arrangements(damage)[SINGLE], strict=True))


def test_the_spread_of_known_shares():
    even = spread(torch.tensor([[3.0, 1.0, -5.0, 0.0]]))
    share = np.array([0.75, 0.25])
    assert float(even[0]) == pytest.approx(float(-(share * np.log(share)).sum() / np.log(4)))


@pytest.mark.parametrize("shape", [{"num_hidden_layers": 1}, {"num_attention_heads": 1}])
def test_what_has_nothing_to_prune_is_refused(shape):
    with pytest.raises(ValueError, match="pruning needs two layers and two heads in each, or more, but got"):
        pruning(trained_alike(**shape), TASK, batch(8))
