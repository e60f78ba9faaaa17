"""Ablation costs what it must on models whose heads are known, and nothing where a head does nothing."""

import numpy as np
import pytest
import torch

from mesascope.activations import Edit, capture
from mesascope.analyses.causal.head_ablation import head_ablation
from mesascope.ground_truth.models.vectors import build_planted_model
from mesascope.interventions import mean
from mesascope.interventions.head_ablation_effects import log_factor
from mesascope.models.transformer import Decoder, DecoderConfig
from mesascope.report.panels.choose_view import build_panels
from mesascope.statistics import MIN_LOSS
from mesascope.tasks.affine import Affine

TASK = Affine(length=12)
BATCH = TASK.sample(128, torch.Generator().manual_seed(0))


def test_only_the_planted_head_costs_anything():
    found = head_ablation(build_planted_model("copying", length=12), TASK, BATCH, first=2)
    effect = found["effect"][0].sel(stat="mean")
    assert float(effect[0]) > 0.1
    assert float(np.abs(effect[1:]).max()) < 1e-3 * float(effect[0])


def test_a_mean_takes_away_exactly_the_heads_variance():
    """A copying head's output at a position, replaced by its mean: the prediction is the mean term."""
    model = build_planted_model("copying", length=12, nuisance=0.0)
    found = head_ablation(model, TASK, BATCH, groups=False)
    mean_term = BATCH.inputs.mean(0, keepdim=True)
    loss = TASK.loss(mean_term.expand_as(BATCH.inputs), BATCH).mean()
    assert float(found["effect"][0, 0].sel(stat="mean")) == pytest.approx(float(loss) - float(found["loss"]), rel=1e-4)


def test_resampling_costs_more_than_the_mean():
    effect = head_ablation(build_planted_model("copying", length=12), TASK, BATCH)["effect"][0, 0]
    assert float(effect.sel(stat="resample")) > 1.3 * float(effect.sel(stat="mean"))


def test_a_group_of_one_costs_what_the_head_costs_and_all_heads_cost_what_the_layer_does():
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(d_in=1, d_out=1, num_hidden_layers=2, hidden_size=16)).eval()
    found = head_ablation(model, TASK, BATCH)
    groups = found["group_effect"]
    assert len(groups["component"]) == 15
    assert (groups.sel(component=["0", "1", "2", "3"]).values == found["effect"].values).all()
    write = capture(model, BATCH, ["attn_out"])["attn_out"][0]
    edit = Edit(site="attn_out", where={"layer": 0}, fn=lambda old: write.mean(0, keepdim=True).expand_as(old))
    edited = capture(model, BATCH, ["output"], edits=[edit])["output"]
    by_layer = float(TASK.loss(edited, BATCH).mean()) - float(found["loss"])
    assert float(groups.sel(layer=0, component="0+1+2+3", stat="mean")) == pytest.approx(by_layer, rel=1e-3)


def test_the_log_effect_is_the_mean_over_sequences_of_the_log_ratio():
    model = build_planted_model("copying", length=12)
    found = head_ablation(model, TASK, BATCH, first=2)
    recorded = capture(model, BATCH, ["z", "output"])
    edit = mean("z", recorded, {"layer": 0, "head": 0})
    losses = [
        TASK.loss(output, BATCH)[:, 2:].double().mean(1)
        for output in (recorded["output"], capture(model, BATCH, ["output"], edits=[edit])["output"])
    ]
    logs = (losses[1] / losses[0]).log10()
    effect = found["log_effect"].sel(layer=0, head=0, stat="mean")
    assert float(effect) == pytest.approx(float(logs.mean()), rel=1e-4)
    low, high = (float(found[f"log_effect_{end}"].sel(layer=0, head=0, stat="mean")) for end in ("low", "high"))
    half_width = 1.96 * float(logs.std()) / len(logs) ** 0.5
    assert (low, high) == pytest.approx((float(effect) - half_width, float(effect) + half_width), abs=0.2 * half_width)
    assert float(found["loss_se"]) == pytest.approx(float(losses[0].std()) / len(logs) ** 0.5, rel=1e-4)


def test_the_log_effect_finds_the_planted_head_and_no_other():
    found = head_ablation(build_planted_model("copying", length=12, nuisance=0.0), TASK, BATCH, first=2)
    effect, groups = (found[name][0].sel(stat="mean") for name in ("log_effect", "log_group_effect"))
    assert float(found["log_effect_low"][0, 0].sel(stat="mean")) > 0.3
    assert float(np.abs(effect[1:]).max()) < 1e-3
    assert float(groups.sel(component="1+2")) == pytest.approx(0.0, abs=1e-3)  # decoys
    assert float(groups.sel(component="0+1+2+3")) == pytest.approx(float(effect[0]), rel=0.01)
    null = found["log_effect_null"]
    assert null.attrs["control_of"] == "log_effect"
    assert float(null[0, 0]) < 0.5 * float(effect[0])


def test_one_sequence_decides_the_effect_but_not_the_log_effect():
    intact, increase = torch.full((100,), 0.1), torch.zeros(100)
    increase[0] = 1000.0
    assert float(log_factor(intact, increase).mean()) == pytest.approx(0.04, abs=1e-3)
    assert float(1 + increase.mean() / intact.mean()) > 100


def test_factors_of_losses_that_are_zero_or_negative():
    found = log_factor(torch.tensor([0.0, 0.5]), torch.tensor([[0.0, -0.5]]))
    assert found.tolist() == [[0.0, pytest.approx(np.log10(MIN_LOSS / 0.5))]]
    for intact, increase in ((torch.tensor([-1.0]), torch.tensor([2.0])), (torch.ones(1), torch.tensor([-1.5]))):
        with pytest.raises(ValueError, match="needs losses of 0 or more, but one is negative"):
            log_factor(intact, increase)


def test_interval_ends_and_standard_errors_have_no_panel():
    found = head_ablation(build_planted_model("copying", length=12), TASK, BATCH)
    names = {name for name in found.data_vars if "uncertainty_of" in found[name].attrs}
    ends = {f"{name}_{end}" for name in ("log_effect", "log_group_effect") for end in ("low", "high")}
    assert names == ends | {"loss_se"}
    titles = {panel.title for panel in build_panels(found)}
    assert {"log effect", "group effect", "log group effect", "loss"} <= titles
    assert not {name.replace("_", " ") for name in names} & titles


def test_too_many_heads_for_groups_are_refused_and_single_heads_are_not():
    model = Decoder(DecoderConfig(d_in=1, d_out=1, num_hidden_layers=1, hidden_size=16, num_attention_heads=8)).eval()
    with pytest.raises(ValueError, match="at most 6 heads in a layer, but got 8; use groups=False"):
        head_ablation(model, TASK, BATCH)
    found = head_ablation(model, TASK, BATCH, groups=False)
    assert found["effect"].sizes["head"] == 8
    assert not {"group_effect", "log_group_effect"} & set(found.data_vars)


def test_one_head_is_its_only_group():
    model = Decoder(DecoderConfig(d_in=1, d_out=1, num_hidden_layers=1, hidden_size=16, num_attention_heads=1)).eval()
    found = head_ablation(model, TASK, BATCH)
    assert found["group_effect"]["component"].values.tolist() == ["0"]
    assert (found["group_effect"].values == found["effect"].values).all()
    assert (found["log_group_effect"].values == found["log_effect"].values).all()
